//! What may be chosen.

use std::collections::BTreeSet;

use super::table::Table;
use crate::error::{Error, Result};

/// The set of configurations to consider.
///
/// Each exit of an input-dependent configuration gets at least one image of the table: a gate that lets nobody go only
/// costs, and one that lets everybody go hides the exits behind it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Space {
    /// Exits of a configuration, the last one included; at least 1.
    pub max_exits: usize,
    /// Image thresholds of a gate: `None` for every distinct observed confidence, else that many of them, at evenly
    /// spaced quantiles.
    pub image_thresholds: Option<usize>,
    /// Exits that every configuration has.
    pub required: Vec<usize>,
    /// Exits that no configuration has.
    pub forbidden: Vec<usize>,
    /// Least share of the (weighted) images at each exit, in [0, 1].
    pub min_share: f64,
}

impl Space {
    /// # Errors
    /// [`Error::Value`] when no exit or no threshold may be chosen, or exits contradict each other.
    pub fn validate(&self, table: &Table<'_>) -> Result<()> {
        if self.max_exits == 0 {
            return Err(Error::value("max_exits", "at least 1", 0));
        }
        if self.max_exits > 31 {
            return Err(Error::value("max_exits", "at most 31", self.max_exits)); // an image's exits are bits of a word
        }
        if self.image_thresholds == Some(0) {
            return Err(Error::value("image_thresholds", "at least 1, or none for all observed ones", 0));
        }
        if !(0.0..=1.0).contains(&self.min_share) {
            return Err(Error::value("min_share", "a share in [0, 1]", self.min_share));
        }
        for (name, exits) in [("required_exits", &self.required), ("forbidden_exits", &self.forbidden)] {
            if let Some(bad) = exits.iter().find(|exit| **exit >= table.num_exits()) {
                return Err(Error::value(name, format!("indices below {}", table.num_exits()), bad));
            }
        }
        if let Some(both) = self.required.iter().find(|exit| self.forbidden.contains(exit)) {
            return Err(Error::value("required_exits", "exits that are not forbidden", both));
        }
        let same_point = |a: usize| self.required.iter().any(|b| *b != a && table.points[a] == table.points[*b]);
        if let Some(&exit) = self.required.iter().find(|exit| same_point(**exit)) {
            return Err(Error::value("required_exits", "one exit a point", format!("two at that of exit {exit}")));
        }
        if self.required.len() > self.max_exits {
            let expected = format!("at most max_exits = {}", self.max_exits);
            return Err(Error::value("required_exits", expected, self.required.len()));
        }
        Ok(())
    }

    /// In how many ways the points of chains can be chosen, those of required exits among them.
    pub(crate) fn families(&self, table: &Table<'_>) -> f64 {
        let allowed = (0..table.num_exits()).filter(|exit| self.allows(*exit)).map(|exit| table.points[exit]);
        let required: BTreeSet<i64> = self.required.iter().map(|exit| table.points[*exit]).collect();
        let free = allowed.collect::<BTreeSet<i64>>().len() - required.len();
        let mut ways = 1.0;
        let of_length = |length: usize| {
            ways *= (free + 1).saturating_sub(length) as f64 / length as f64;
            ways
        };
        1.0 + (1..=self.max_exits - required.len()).map(of_length).sum::<f64>()
    }

    /// Whether an exit may be chosen.
    pub(crate) fn allows(&self, exit: usize) -> bool {
        !self.forbidden.contains(&exit)
    }

    /// Whether a chain has all required exits.
    pub(crate) fn is_complete(&self, exits: &[usize]) -> bool {
        self.required.iter().all(|exit| exits.contains(exit))
    }

    /// Whether a chain that went from `before` (none: the input) straight to `next` passed a required exit by.
    pub(crate) fn skips_required(&self, points: &[i64], before: Option<usize>, next: usize) -> bool {
        let from = before.map_or(i64::MIN, |exit| points[exit]);
        let is_skipped = |exit: &usize| *exit != next && from < points[*exit] && points[*exit] <= points[next];
        self.required.iter().any(is_skipped)
    }
}
