//! Exact value of one configuration: the definition that the engine's shortcuts are tested against.

use super::limits::mean;
use super::objective::{Metric, Scoring, Setting};
use super::outcome::{Configuration, Found};
use super::table::{Costs, Table};
use crate::error::{Error, Result};

/// Value of a configuration on a table, and where each image stopped.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    /// Cost, accuracy, images per exit.
    pub found: Found,
    /// Position in the configuration at which each image stopped.
    pub position: Vec<usize>,
}

/// Evaluate `configuration`, image by image.
///
/// # Errors
/// [`Error::Value`] when the configuration does not fit the table or the setting.
pub fn evaluate(table: &Table<'_>, scoring: Scoring, configuration: &Configuration) -> Result<Evaluation> {
    table.validate()?;
    scoring.validate(table)?;
    evaluate_on_valid(table, scoring, configuration)
}

/// The same on a table that was validated: to do so reads all of it.
pub(crate) fn evaluate_on_valid(
    table: &Table<'_>,
    scoring: Scoring,
    configuration: &Configuration,
) -> Result<Evaluation> {
    check(table, scoring.setting, configuration)?;
    let exits = &configuration.exits;
    let last = exits.len() - 1;
    let position: Vec<usize> = (0..table.num_images())
        .map(|image| {
            let stops = |i: &usize| {
                let gate = configuration.gates[*i];
                table.image_confidence[[exits[*i], gate.pixel_threshold, image]] >= gate.image_threshold
            };
            (0..configuration.gates.len()).find(stops).unwrap_or(last)
        })
        .collect();
    let mut stopped = vec![0; exits.len()];
    let mut weights = vec![0.0; exits.len()];
    for (image, &at) in position.iter().enumerate() {
        stopped[at] += 1;
        weights[at] += table.weight(image) as f64;
    }
    let costs = table.costs(scoring.column);
    let (cost, accuracy) = match scoring.setting {
        Setting::Anytime { horizon, .. } => {
            let accuracies: Vec<f64> = exits.iter().map(|exit| exit_accuracy(table, scoring.metric, *exit)).collect();
            anytime(costs, exits, horizon, &accuracies)
        }
        setting => {
            let taken = position.iter().map(|at| exits[*at]);
            let accuracy = accuracy(table, scoring.metric, taken);
            (mean(&stop_costs(costs, setting, exits), &weights, table.total_weight() as f64), accuracy)
        }
    };
    Ok(Evaluation { found: Found { configuration: configuration.clone(), cost, accuracy, stopped }, position })
}

/// Whether a configuration fits a table and a setting.
pub(crate) fn check(table: &Table<'_>, setting: Setting, configuration: &Configuration) -> Result<()> {
    let Configuration { exits, gates } = configuration;
    if exits.is_empty() || exits.iter().any(|e| *e >= table.num_exits()) {
        return Err(Error::value("exits", format!("indices 0..{}", table.num_exits()), format!("{exits:?}")));
    }
    if exits.windows(2).any(|w| table.points[w[0]] >= table.points[w[1]]) {
        return Err(Error::value("exits", "strictly increasing exit points", format!("{exits:?}")));
    }
    let expected = match setting {
        Setting::InputDependent => exits.len() - 1,
        _ => 0,
    };
    if gates.len() != expected || (setting == Setting::Budgeted && exits.len() != 1) {
        let got = format!("{} exits, {} gates", exits.len(), gates.len());
        return Err(Error::value("gates", format!("{expected} of them, one exit when budgeted"), got));
    }
    if gates.iter().any(|g| g.pixel_threshold >= table.num_pixel_thresholds() || g.image_threshold.is_nan()) {
        let expected = format!("pixel threshold indices 0..{}, image thresholds", table.num_pixel_thresholds());
        return Err(Error::value("gates", expected, format!("{gates:?}")));
    }
    Ok(())
}

/// Cost of an image that stops at each position of `exits`: backbone up to there, every head so far, and every policy so
/// far but the last exit's, which decides nothing (no policy at all when anytime).
pub(crate) fn stop_costs(costs: Costs<'_>, setting: Setting, exits: &[usize]) -> Vec<f64> {
    let mut on_the_way = 0.0;
    let num_gates = if setting == Setting::InputDependent { exits.len() - 1 } else { 0 };
    exits
        .iter()
        .enumerate()
        .map(|(i, &exit)| {
            on_the_way += costs.head[exit] + if i < num_gates { costs.policy[exit] } else { 0.0 };
            costs.backbone[exit] + on_the_way
        })
        .collect()
}

/// Everything that a network with these exits holds.
pub(crate) fn total_cost(costs: Costs<'_>, setting: Setting, exits: &[usize]) -> f64 {
    stop_costs(costs, setting, exits)[exits.len() - 1]
}

/// (cost of running to the end, expected accuracy at a uniform cut-off), from the accuracy of each exit.
pub(crate) fn anytime(costs: Costs<'_>, exits: &[usize], horizon: f64, accuracies: &[f64]) -> (f64, f64) {
    let mut heads = 0.0;
    let ready: Vec<f64> = exits
        .iter()
        .map(|&exit| {
            heads += costs.head[exit];
            costs.backbone[exit] + heads
        })
        .collect();
    let mut accuracy = 0.0;
    for (i, of_exit) in accuracies.iter().enumerate() {
        let from = ready[i].min(horizon);
        let to = ready.get(i + 1).map_or(horizon, |next| next.min(horizon));
        accuracy += of_exit * (to - from) / horizon;
    }
    (ready[exits.len() - 1], accuracy)
}

/// Accuracy when every image takes one exit.
pub(crate) fn exit_accuracy(table: &Table<'_>, metric: Metric, exit: usize) -> f64 {
    accuracy(table, metric, std::iter::repeat_n(exit, table.num_images()))
}

/// Accuracy when image i takes the i-th of `taken`.
fn accuracy(table: &Table<'_>, metric: Metric, taken: impl Iterator<Item = usize>) -> f64 {
    let classes = table.present_classes();
    let (mut t, mut f, mut g) = (vec![0; classes.len()], vec![0; classes.len()], vec![0; classes.len()]);
    for (image, exit) in taken.enumerate() {
        let weight = table.weight(image);
        for (at, &class) in classes.iter().enumerate() {
            let both = table.intersection[[exit, image, class]];
            t[at] += weight * both;
            f[at] += weight * (table.predicted[[exit, image, class]] - both);
            g[at] += weight * table.ground_truth[[image, class]];
        }
    }
    let exact = |sums: Vec<i64>| sums.into_iter().map(|sum| sum as f64).collect::<Vec<f64>>();
    metric.value(&exact(t), &exact(f), &exact(g))
}
