//! What a configuration must satisfy besides its objective.

use super::evaluate::{stop_costs, total_cost};
use super::objective::Setting;
use super::table::Table;
use crate::error::{Error, Result};

/// What is summed up of a cost column.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Statistic {
    /// Mean over images.
    Mean,
    /// The least cost that at least this share of the images does not exceed: 0.95 for the 95th percentile, 1 for the
    /// worst image. Anytime: what every image pays.
    Quantile(f64),
    /// Backbone up to the last exit and every head and policy, whatever the images do: for memory.
    Total,
}

/// An upper bound on a cost.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CostLimit {
    /// Index of the cost column.
    pub column: usize,
    /// Of which number.
    pub statistic: Statistic,
    /// Inclusive.
    pub at_most: f64,
}

/// Constraints on a configuration.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Limits {
    /// (class, least IoU), inclusive. Anytime: of the last prediction.
    pub class_iou: Vec<(usize, f64)>,
    /// Upper bounds on costs.
    pub costs: Vec<CostLimit>,
}

impl Limits {
    /// # Errors
    /// [`Error::Value`] for classes without ground truth, unknown columns, and numbers outside their domain.
    pub fn validate(&self, table: &Table<'_>) -> Result<()> {
        for &(class, floor) in &self.class_iou {
            if class >= table.num_classes() || table.ground_truth.column(class).iter().all(|v| *v == 0) {
                return Err(Error::value("min_class_iou", "classes with ground truth", class));
            }
            if !(0.0..=1.0).contains(&floor) {
                return Err(Error::value("min_class_iou", "IoU in [0, 1]", floor));
            }
        }
        for limit in &self.costs {
            if limit.column >= table.num_columns() {
                return Err(Error::value(
                    "cost_limits",
                    format!("columns below {}", table.num_columns()),
                    limit.column,
                ));
            }
            if limit.at_most.is_nan() {
                return Err(Error::value("cost_limits", "a number", limit.at_most));
            }
            if let Statistic::Quantile(share) = limit.statistic
                && !(share > 0.0 && share <= 1.0)
            {
                return Err(Error::value("cost_limits", "a quantile in (0, 1]", share));
            }
        }
        Ok(())
    }

    /// Whether a configuration satisfies the cost limits: `exits` in order, `weights[i]` of `total` images stop at the
    /// i-th of them.
    pub(crate) fn allow_costs(
        &self,
        table: &Table<'_>,
        setting: Setting,
        exits: &[usize],
        weights: &[f64],
        total: f64,
    ) -> bool {
        self.costs.iter().all(|limit| {
            let costs = table.costs(limit.column);
            let stop_costs = || stop_costs(costs, setting, exits);
            let value = match limit.statistic {
                Statistic::Total => total_cost(costs, setting, exits),
                Statistic::Mean => mean(&stop_costs(), weights, total),
                Statistic::Quantile(share) => {
                    // stop costs rise along the exits: backbone costs do, and heads and policies add up
                    let mut reached = 0.0;
                    let at = weights.iter().position(|weight| {
                        reached += weight;
                        reached / total >= share // not reached >= share * total: 7 of 100 are 0.07
                    });
                    stop_costs()[at.unwrap_or(exits.len() - 1)]
                }
            };
            value <= limit.at_most
        })
    }
}

/// Mean of `values[i]` over `weights[i]` of `total` images.
pub(crate) fn mean(values: &[f64], weights: &[f64], total: f64) -> f64 {
    values.iter().zip(weights).fold(0.0, |sum, (value, weight)| sum + value * weight) / total
}
