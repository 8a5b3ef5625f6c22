//! What a search returns.

use std::cmp::Ordering;

/// Decision of one exit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gate {
    /// Index of the pixel threshold in the table.
    pub pixel_threshold: usize,
    /// An image stops when its image confidence is at least this.
    pub image_threshold: f64,
}

/// Exits in order of execution; `gates[i]` belongs to `exits[i]`, and the last exit has none.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Configuration {
    /// Indices of candidate exits, at strictly increasing points.
    pub exits: Vec<usize>,
    /// One gate for each exit but the last; empty in the budgeted and anytime settings.
    pub gates: Vec<Gate>,
}

impl Configuration {
    /// One exit, no gate.
    pub fn single(exit: usize) -> Self {
        Self { exits: vec![exit], gates: vec![] }
    }

    /// Fewer exits first, then smaller exits, then smaller pixel thresholds, then larger image thresholds.
    pub(crate) fn cmp_choices(&self, other: &Self) -> Ordering {
        let pixels = |c: &Self| c.gates.iter().map(|g| g.pixel_threshold).collect::<Vec<_>>();
        self.exits
            .len()
            .cmp(&other.exits.len())
            .then_with(|| self.exits.cmp(&other.exits))
            .then_with(|| pixels(self).cmp(&pixels(other)))
            .then_with(|| {
                let pairs = self.gates.iter().zip(&other.gates);
                pairs
                    .map(|(a, b)| b.image_threshold.total_cmp(&a.image_threshold))
                    .find(|o| o.is_ne())
                    .unwrap_or(Ordering::Equal)
            })
    }
}

/// A configuration and its exact value on the table.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// The choices.
    pub configuration: Configuration,
    /// Mean cost of an image (budgeted and anytime: the cost of every image).
    pub cost: f64,
    /// See [`super::Metric`] and, for the anytime setting, [`super::Setting`].
    pub accuracy: f64,
    /// Images that stop at each exit (anytime: all at the last).
    pub stopped: Vec<u64>,
}

/// What is known about the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// No configuration of the space is better than `found`; the front is complete.
    Optimal,
    /// No configuration of the space satisfies objective and limits.
    Infeasible,
    /// Interrupted or out of time: `found` is the best known, which may be nothing, and `bound` limits what better ones
    /// there can be.
    Stopped,
}

/// Result of a search.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// What is known about the answer.
    pub status: Status,
    /// The best configuration, or the front by rising cost.
    pub found: Vec<Found>,
    /// When infeasible: the configuration within the limits that comes nearest to the objective's bound, if there is one;
    /// where the time ended meanwhile, the nearest that was found by then.
    pub nearest: Option<Found>,
    /// Proven: no configuration costs less than this (minimising cost), or is more accurate (maximising accuracy). For a
    /// front: no configuration exceeds the accuracy of the front by more than this, at its own cost or at less than a
    /// resolution above it.
    pub bound: f64,
    /// How far `found` may be from the optimum: |bound - value| / |value|; for a front `bound` itself. 0 when optimal or
    /// infeasible, infinite when stopped before anything was found.
    pub gap: f64,
    /// Sets of configurations whose bound was computed.
    pub explored: u64,
    /// Configurations whose exact value was computed.
    pub evaluated: u64,
    /// Configurations of the space that the last pass examined or excluded.
    pub covered: f64,
    /// Configurations of the space.
    pub space: f64,
}
