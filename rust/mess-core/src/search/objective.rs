//! What is wanted: how a configuration is valued, and the total order that makes the answer unique.

use std::cmp::Ordering;

use super::limits::Limits;
use super::outcome::Found;
use super::space::Space;
use super::table::Table;
use crate::error::{Error, Result};

/// How a network is used.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Setting {
    /// One static exit for all images.
    Budgeted,
    /// Every chosen exit runs in turn. The accuracy of a configuration is the expected accuracy of the newest prediction
    /// when the run is cut off at a cost drawn uniformly from 0 to `horizon` (0 before the first prediction); its cost is
    /// that of running to the end.
    Anytime {
        /// Cost up to which a cut-off may come.
        horizon: f64,
        /// Least accuracy of the last prediction.
        min_final_accuracy: f64,
    },
    /// Each image stops at the first exit that is confident enough.
    InputDependent,
}

/// Accuracy of a dataset: counts are summed over (weighted) images first and divided once. With T, F, G the sums of
/// intersection, of wrongly predicted pixels and of ground truth of a class, over the classes that have ground truth:
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metric {
    /// mean of T / (G + F)
    MeanIou,
    /// sum of T / sum of G
    PixelAccuracy,
    /// mean of T / G
    MeanClassAccuracy,
    /// sum of G T / (G + F) / sum of G
    FrequencyWeightedIou,
}

impl Metric {
    /// The value of sums T, F, G, each (present classes,).
    pub(crate) fn value(self, t: &[f64], f: &[f64], g: &[f64]) -> f64 {
        let classes = g.len() as f64;
        let sum = |term: fn(f64, f64, f64) -> f64| -> f64 {
            t.iter().zip(f).zip(g).fold(0.0, |sum, ((t, f), g)| sum + term(*t, *f, *g))
        };
        match self {
            Self::MeanIou => sum(|t, f, g| t / (g + f)) / classes,
            Self::PixelAccuracy => sum(|t, _, _| t) / sum(|_, _, g| g),
            Self::MeanClassAccuracy => sum(|t, _, g| t / g) / classes,
            Self::FrequencyWeightedIou => sum(|t, f, g| g * (t / (g + f))) / sum(|_, _, g| g),
        }
    }

    /// The weight of each class: the value is the sum of weight x T / D, with D = G + F where [`Self::has_union`], else G.
    pub(crate) fn class_weights(self, g: &[f64]) -> Vec<f64> {
        let (classes, total) = (g.len() as f64, g.iter().sum::<f64>());
        let weight = |g: &f64| match self {
            Self::MeanIou | Self::MeanClassAccuracy => 1.0 / classes,
            Self::PixelAccuracy | Self::FrequencyWeightedIou => g / total,
        };
        g.iter().map(weight).collect()
    }

    /// Whether the value divides by the union, and so is no linear function of the counts.
    pub(crate) fn has_union(self) -> bool {
        matches!(self, Self::MeanIou | Self::FrequencyWeightedIou)
    }
}

/// How a configuration is valued on a table.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scoring {
    /// How the network is used.
    pub setting: Setting,
    /// What accuracy is.
    pub metric: Metric,
    /// Index of the cost column.
    pub column: usize,
}

impl Scoring {
    /// # Errors
    /// [`Error::Value`] when the column is not in the table or the horizon is no cost.
    pub fn validate(&self, table: &Table<'_>) -> Result<()> {
        if self.column >= table.num_columns() {
            return Err(Error::value("cost_column", format!("an index below {}", table.num_columns()), self.column));
        }
        if let Setting::Anytime { horizon, .. } = self.setting
            && !(horizon > 0.0 && horizon.is_finite())
        {
            return Err(Error::value("horizon", "a finite cost above 0", horizon));
        }
        if let Setting::Anytime { min_final_accuracy, .. } = self.setting
            && min_final_accuracy.is_nan()
        {
            return Err(Error::value("min_final_accuracy", "a number", min_final_accuracy));
        }
        Ok(())
    }
}

/// Least resolution of a front, as a part of a cost that no configuration exceeds: so that its steps can be counted.
const FINEST: f64 = 1e-12;

/// What to optimise. Both bounds are inclusive.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Objective {
    /// Least cost with at least this accuracy.
    MinimizeCost {
        /// In [0, 1].
        min_accuracy: f64,
    },
    /// Greatest accuracy at no more than this cost.
    MaximizeAccuracy {
        /// In the column's unit.
        max_cost: f64,
    },
    /// Every configuration that no other one beats in both. With a resolution above 0: for each of the costs 0,
    /// resolution, 2 x resolution, ... the most accurate configuration that costs no more (the cheapest of them, then
    /// the smallest choices), so that any configuration has one in the front that is at least as accurate and costs less
    /// than one resolution more.
    ParetoFront {
        /// In the column's unit; 0 for every point.
        resolution: f64,
    },
}

impl Objective {
    /// # Errors
    /// [`Error::Value`] when a bound is NaN.
    pub fn validate(&self) -> Result<()> {
        match *self {
            Self::MinimizeCost { min_accuracy } if min_accuracy.is_nan() => {
                Err(Error::value("min_accuracy", "a number", min_accuracy))
            }
            Self::MaximizeAccuracy { max_cost } if max_cost.is_nan() => {
                Err(Error::value("max_cost", "a number", max_cost))
            }
            Self::ParetoFront { resolution } if !(resolution >= 0.0 && resolution.is_finite()) => {
                Err(Error::value("resolution", "a finite cost >= 0", resolution))
            }
            _ => Ok(()),
        }
    }

    /// Whether (cost, accuracy) satisfies the constraint.
    pub(crate) fn allows(&self, cost: f64, accuracy: f64) -> bool {
        match *self {
            Self::MinimizeCost { min_accuracy } => accuracy >= min_accuracy,
            Self::MaximizeAccuracy { max_cost } => cost <= max_cost,
            Self::ParetoFront { .. } => true,
        }
    }

    /// Total order, best first: the objective, then the other value, then fewer exits, then the smallest choices. (Of
    /// points of a front it orders those that share a place on it.)
    pub(crate) fn compare(&self, a: &Found, b: &Found) -> Ordering {
        let (cost, accuracy) = (a.cost.total_cmp(&b.cost), b.accuracy.total_cmp(&a.accuracy));
        let values = match self {
            Self::MinimizeCost { .. } => cost.then(accuracy),
            _ => accuracy.then(cost),
        };
        values.then_with(|| a.configuration.cmp_choices(&b.configuration))
    }
}

/// Each choice of exit points of an input-dependent search has a plane and values of its own in memory.
const MOST_FAMILIES: f64 = 65_536.0;

/// A search: what may be chosen, how it is valued, what it must satisfy, what is wanted.
#[derive(Debug, Clone, PartialEq)]
pub struct Query {
    /// How a configuration is valued.
    pub scoring: Scoring,
    /// What is wanted.
    pub objective: Objective,
    /// What may be chosen.
    pub space: Space,
    /// What must hold besides.
    pub limits: Limits,
}

impl Query {
    /// # Errors
    /// [`Error::Value`] naming the part that is invalid for the table.
    pub fn validate(&self, table: &Table<'_>) -> Result<()> {
        self.scoring.validate(table)?;
        self.objective.validate()?;
        self.space.validate(table)?;
        self.limits.validate(table)?;
        if let Objective::ParetoFront { resolution } = self.objective {
            let least = FINEST * table.ceiling(self.scoring.column);
            if resolution > 0.0 && resolution < least {
                return Err(Error::value("resolution", format!("0, or {least:e} and more"), resolution));
            }
        }
        let families = self.space.families(table);
        if self.scoring.setting == Setting::InputDependent && families > MOST_FAMILIES {
            let expected = format!("fewer for so many exit points: at most {MOST_FAMILIES} choices of points");
            return Err(Error::value("max_exits", expected, format!("{} for {families:e}", self.space.max_exits)));
        }
        let is_anytime = matches!(self.scoring.setting, Setting::Anytime { .. });
        if is_anytime && self.space.min_share > 0.0 {
            return Err(Error::value("min_share", "0 when anytime, where no image stops early", self.space.min_share));
        }
        Ok(())
    }
}
