//! Exact value of one configuration: the definition that the engine's shortcuts are tested against.

use super::objective::Setting;
use super::outcome::{Configuration, Found};
use super::table::Table;
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
pub fn evaluate(table: &Table<'_>, setting: Setting, configuration: &Configuration) -> Result<Evaluation> {
    table.validate()?;
    check(table, setting, configuration)?;
    let last = configuration.exits.len() - 1;
    let position: Vec<usize> = (0..table.num_images())
        .map(|image| {
            let stops = |i: &usize| {
                let gate = configuration.gates[*i];
                table.image_confidence[[configuration.exits[*i], gate.pixel_threshold, image]] >= gate.image_threshold
            };
            (0..configuration.gates.len()).find(stops).unwrap_or(last)
        })
        .collect();
    let mut counts = Counts::new(table);
    let mut stopped = vec![0; configuration.exits.len()];
    for (image, &at) in position.iter().enumerate() {
        counts.add(table, configuration.exits[at], image);
        stopped[at] += 1;
    }
    let (cost, accuracy) = match setting {
        Setting::Anytime { horizon, .. } => {
            anytime(table, &configuration.exits, horizon, |exit| exit_accuracy(table, exit))
        }
        Setting::Budgeted | Setting::InputDependent => {
            (mean_cost(table, &configuration.exits, &stopped), counts.mean_iou())
        }
    };
    Ok(Evaluation { found: Found { configuration: configuration.clone(), cost, accuracy, stopped }, position })
}

fn check(table: &Table<'_>, setting: Setting, configuration: &Configuration) -> Result<()> {
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

/// Cost of an image that stops at position `i` of `exits`: backbone up to there, every head so far, and every policy so
/// far but the last exit's, which decides nothing.
pub(crate) fn stop_costs(table: &Table<'_>, exits: &[usize]) -> Vec<f64> {
    let mut on_the_way = 0.0;
    let last = exits.len() - 1;
    exits
        .iter()
        .enumerate()
        .map(|(i, &exit)| {
            on_the_way += table.head_cost[exit] + if i < last { table.policy_cost[exit] } else { 0.0 };
            table.backbone_cost[exit] + on_the_way
        })
        .collect()
}

/// Mean cost of an image when `stopped[i]` of them stop at position `i` of `exits`. The engine adds up the same terms in
/// the same order, so that both give the same bits.
pub(crate) fn mean_cost(table: &Table<'_>, exits: &[usize], stopped: &[u64]) -> f64 {
    let costs = stop_costs(table, exits);
    let total: f64 = costs.iter().zip(stopped).fold(0.0, |sum, (cost, count)| sum + cost * *count as f64);
    total / table.num_images() as f64
}

/// (cost of running to the end, expected accuracy at a uniform cut-off).
pub(crate) fn anytime(
    table: &Table<'_>,
    exits: &[usize],
    horizon: f64,
    accuracy_of: impl Fn(usize) -> f64,
) -> (f64, f64) {
    let mut heads = 0.0;
    let ready: Vec<f64> = exits
        .iter()
        .map(|&exit| {
            heads += table.head_cost[exit];
            table.backbone_cost[exit] + heads
        })
        .collect();
    let mut accuracy = 0.0;
    for (i, &exit) in exits.iter().enumerate() {
        let from = ready[i].min(horizon);
        let to = ready.get(i + 1).map_or(horizon, |next| next.min(horizon));
        accuracy += accuracy_of(exit) * (to - from) / horizon;
    }
    (ready[exits.len() - 1], accuracy)
}

/// Mean IoU when every image takes one exit.
pub(crate) fn exit_accuracy(table: &Table<'_>, exit: usize) -> f64 {
    let mut counts = Counts::new(table);
    (0..table.num_images()).for_each(|image| counts.add(table, exit, image));
    counts.mean_iou()
}

/// Class counts of a mixture of exits: intersection and union, the ground truth being the same for any mixture.
#[derive(Debug, Clone)]
pub(crate) struct Counts {
    intersection: Vec<i64>,
    union: Vec<i64>,
    /// Classes with ground truth: the ones that the mean is taken over.
    present: Vec<bool>,
}

impl Counts {
    /// No image counted yet; the union starts at the whole ground truth.
    pub fn new(table: &Table<'_>) -> Self {
        let union = table.ground_truth.sum_axis(ndarray::Axis(0)).to_vec();
        let present = union.iter().map(|u| *u > 0).collect();
        Self { intersection: vec![0; union.len()], union, present }
    }

    /// Count the prediction of `exit` for `image`.
    pub fn add(&mut self, table: &Table<'_>, exit: usize, image: usize) {
        self.accumulate(table, exit, image, 1);
    }

    /// Replace the prediction of `from` by that of `to` for `image`.
    pub fn exchange(&mut self, table: &Table<'_>, image: usize, from: usize, to: usize) {
        self.accumulate(table, from, image, -1);
        self.accumulate(table, to, image, 1);
    }

    fn accumulate(&mut self, table: &Table<'_>, exit: usize, image: usize, sign: i64) {
        let intersection = table.intersection.slice(ndarray::s![exit, image, ..]);
        let predicted = table.predicted.slice(ndarray::s![exit, image, ..]);
        for class in 0..self.union.len() {
            self.intersection[class] += sign * intersection[class];
            self.union[class] += sign * (predicted[class] - intersection[class]);
        }
    }

    /// Sum over images first, then divide, then average over classes with ground truth.
    pub fn mean_iou(&self) -> f64 {
        let (mut sum, mut classes) = (0.0, 0u32);
        for class in 0..self.union.len() {
            if self.present[class] {
                sum += self.intersection[class] as f64 / self.union[class] as f64;
                classes += 1;
            }
        }
        sum / f64::from(classes)
    }
}
