//! The best known configurations, shared by all threads, and what a better one would have to reach.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::objective::Objective;
use super::outcome::{Configuration, Found};

/// What remains to be excluded: a set of configurations holds nothing better than what is known unless it holds one with
/// accuracy >= a and cost <= b for one of these pairs.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Targets {
    /// (b, a), both rising.
    pub corners: Vec<(f64, f64)>,
}

impl Targets {
    /// Greatest m b - a: with h(m) of `bound.rs`, no target is reachable when h(m) + this < 0.
    pub fn slack(&self, multiplier: f64) -> f64 {
        slack(&self.corners, multiplier)
    }
}

/// The same of some corners.
pub(crate) fn slack(corners: &[(f64, f64)], multiplier: f64) -> f64 {
    corners.iter().map(|(cost, accuracy)| multiplier * cost - accuracy).fold(f64::NEG_INFINITY, f64::max)
}

/// The best configuration, or the front by rising cost.
pub(crate) struct Incumbents {
    objective: Objective,
    /// A cost that no configuration exceeds.
    ceiling: f64,
    found: Mutex<Vec<Found>>,
    /// Only what is better than the incumbents by more than this is looked for, see [`Incumbents::set_gap`].
    gap: Mutex<f64>,
    targets: Mutex<Arc<Targets>>,
    /// Rises with every change, so that readers know when to look again.
    version: AtomicU64,
}

impl Incumbents {
    pub fn new(objective: Objective, ceiling: f64) -> Self {
        let targets = Mutex::new(Arc::new(targets(objective, &[], ceiling, 0.0)));
        let (found, gap) = (Mutex::new(Vec::new()), Mutex::new(0.0));
        Self { objective, ceiling, found, gap, targets, version: AtomicU64::new(1) }
    }

    /// Look only for what is better by this: a share of the incumbent's cost or accuracy, or for a front an accuracy.
    /// What a whole pass then does not find does not exist.
    pub fn set_gap(&self, gap: f64) {
        let found = lock(&self.found);
        *lock(&self.gap) = gap;
        self.publish(&found);
    }

    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    pub fn targets(&self) -> Arc<Targets> {
        Arc::clone(&lock(&self.targets))
    }

    pub fn found(&self) -> Vec<Found> {
        lock(&self.found).clone()
    }

    pub fn configurations(&self) -> Vec<Configuration> {
        lock(&self.found).iter().map(|found| found.configuration.clone()).collect()
    }

    /// (cost, accuracy) of the best configuration, of a front the most accurate one.
    pub fn last_value(&self) -> Option<(f64, f64)> {
        lock(&self.found).last().map(|best| (best.cost, best.accuracy))
    }

    /// Take a configuration into account; it is built only when it is wanted.
    pub fn offer(&self, cost: f64, accuracy: f64, build: impl FnOnce() -> Found) {
        if !self.objective.allows(cost, accuracy) || self.is_beaten(&lock(&self.found), cost, accuracy) {
            return;
        }
        let new = build();
        let mut found = lock(&self.found);
        if !self.is_beaten(&found, cost, accuracy) && self.insert(&mut found, new) {
            self.publish(&found);
        }
    }

    fn publish(&self, found: &[Found]) {
        let targets = targets(self.objective, found, self.ceiling, *lock(&self.gap));
        *lock(&self.targets) = Arc::new(targets);
        self.version.fetch_add(1, Ordering::Release);
    }

    /// Whether a known configuration is strictly better, so that no tie-break could matter.
    fn is_beaten(&self, found: &[Found], cost: f64, accuracy: f64) -> bool {
        let is_better = |best: &Found| match self.objective {
            Objective::MinimizeCost { .. } => best.cost < cost || (best.cost == cost && best.accuracy > accuracy),
            _ => best.accuracy > accuracy || (best.accuracy == accuracy && best.cost < cost),
        };
        match self.objective {
            Objective::ParetoFront { resolution } => {
                let place_of = |cost: f64| place(cost, resolution);
                // the front rises in both, so the last one that is not behind is the most accurate of them
                let affordable = found.partition_point(|f| place_of(f.cost) <= place_of(cost));
                affordable > 0 && is_better(&found[affordable - 1])
            }
            _ => found.first().is_some_and(is_better),
        }
    }

    /// Put in one that is not beaten; whether anything changed.
    fn insert(&self, found: &mut Vec<Found>, new: Found) -> bool {
        let Objective::ParetoFront { resolution } = self.objective else {
            if found.first().is_some_and(|best| self.objective.compare(&new, best).is_ge()) {
                return false;
            }
            *found = vec![new];
            return true;
        };
        let place_of = |f: &Found| place(f.cost, resolution);
        let new_place = place_of(&new);
        let at = found.partition_point(|f| place_of(f) <= new_place);
        if at > 0 {
            let rival = &found[at - 1];
            let is_equal_elsewhere = rival.accuracy == new.accuracy && place_of(rival) < new_place;
            if is_equal_elsewhere || (rival.accuracy >= new.accuracy && self.objective.compare(&new, rival).is_ge()) {
                return false;
            }
        }
        found.retain(|f| place_of(f) < new_place || f.accuracy > new.accuracy);
        let at = found.partition_point(|f| place_of(f) < new_place);
        found.insert(at, new);
        true
    }
}

/// Where a cost stands on the front: the number of the first multiple of the resolution, as float64 has it, that is not
/// below it.
fn place(cost: f64, resolution: f64) -> f64 {
    if resolution <= 0.0 {
        return cost;
    }
    let near = (cost / resolution).ceil(); // off by one where the quotient is rounded across an integer
    if (near - 1.0) * resolution >= cost {
        near - 1.0
    } else if near * resolution < cost {
        near + 1.0
    } else {
        near
    }
}

fn targets(objective: Objective, found: &[Found], ceiling: f64, gap: f64) -> Targets {
    let best = found.first();
    let corners = match objective {
        Objective::MinimizeCost { min_accuracy } => {
            vec![(best.map_or(ceiling, |best| best.cost) * (1.0 - gap), min_accuracy)]
        }
        Objective::MaximizeAccuracy { max_cost } => {
            vec![(max_cost.min(ceiling), best.map_or(0.0, |best| best.accuracy) * (1.0 + gap))]
        }
        Objective::ParetoFront { resolution } => {
            // between two places, what is new must beat the lower one without reaching the upper one's cost
            let below = |f: &Found| match resolution > 0.0 {
                true => (place(f.cost, resolution) - 1.0) * resolution * (1.0 + 1e-12),
                false => f.cost * (1.0 - 1e-12),
            };
            let until = found.iter().map(below).chain([ceiling]);
            let from = [0.0].into_iter().chain(found.iter().map(|f| f.accuracy + gap));
            let is_free = best.is_some_and(|best| best.cost == 0.0); // nothing costs less
            until.zip(from).skip(usize::from(is_free)).collect()
        }
    };
    Targets { corners }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
