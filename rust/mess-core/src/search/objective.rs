//! What is wanted, and the total order that makes the answer unique.

use std::cmp::Ordering;

use super::outcome::Found;
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

/// What to optimise. Accuracy is dataset mean IoU over classes with ground truth; both bounds are inclusive.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Objective {
    /// Least cost with at least this accuracy.
    MinimizeCost {
        /// In [0, 1].
        min_accuracy: f64,
    },
    /// Greatest accuracy at no more than this cost.
    MaximizeAccuracy {
        /// In the table's unit.
        max_cost: f64,
    },
    /// Every configuration that no other one beats in both.
    ParetoFront,
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
            _ => Ok(()),
        }
    }

    /// Whether (cost, accuracy) satisfies the constraint.
    pub(crate) fn allows(&self, cost: f64, accuracy: f64) -> bool {
        match *self {
            Self::MinimizeCost { min_accuracy } => accuracy >= min_accuracy,
            Self::MaximizeAccuracy { max_cost } => cost <= max_cost,
            Self::ParetoFront => true,
        }
    }

    /// Total order, best first: the objective, then the other value, then fewer exits, then the smallest choices.
    pub(crate) fn compare(&self, a: &Found, b: &Found) -> Ordering {
        let (cost, accuracy) = (a.cost.total_cmp(&b.cost), b.accuracy.total_cmp(&a.accuracy));
        let values = match self {
            Self::MaximizeAccuracy { .. } => accuracy.then(cost),
            _ => cost.then(accuracy),
        };
        values.then_with(|| a.configuration.cmp_choices(&b.configuration))
    }
}
