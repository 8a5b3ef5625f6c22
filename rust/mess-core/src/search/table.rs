//! The calibration table: exact per-image counts of every candidate exit, confidences, costs.

use std::collections::BTreeSet;

use ndarray::{ArrayView1, ArrayView2, ArrayView3, Axis, Zip};

use crate::error::{Error, Result};

/// Views of a calibration table with E candidate exits, n images, C classes, T pixel thresholds, K cost columns.
///
/// Exits are indexed 0..E; `points[e]` orders them along the backbone, and a configuration visits strictly increasing
/// points. The original final exit is one of the candidates. Costs are for one image; each column has one unit.
#[derive(Debug, Clone, Copy)]
pub struct Table<'a> {
    /// (E, n, C) pixels whose prediction and ground truth are both the class.
    pub intersection: ArrayView3<'a, i64>,
    /// (E, n, C) valid pixels predicted as the class.
    pub predicted: ArrayView3<'a, i64>,
    /// (n, C) pixels whose ground truth is the class.
    pub ground_truth: ArrayView2<'a, i64>,
    /// (E, T, n) image confidence in [0, 1].
    pub image_confidence: ArrayView3<'a, f64>,
    /// (E,) index of the exit point.
    pub points: ArrayView1<'a, i64>,
    /// (K, E) cost of the backbone up to the exit point.
    pub backbone_cost: ArrayView2<'a, f64>,
    /// (K, E) cost of the head.
    pub head_cost: ArrayView2<'a, f64>,
    /// (K, E) cost of deciding whether to stop there.
    pub policy_cost: ArrayView2<'a, f64>,
    /// (n,) how often each image counts, at least 1; every image once when absent.
    pub image_weight: Option<ArrayView1<'a, i64>>,
}

/// One cost column: what each exit adds, (E,) each.
#[derive(Debug, Clone, Copy)]
pub struct Costs<'a> {
    /// Backbone up to the exit point.
    pub backbone: ArrayView1<'a, f64>,
    /// Head.
    pub head: ArrayView1<'a, f64>,
    /// Deciding.
    pub policy: ArrayView1<'a, f64>,
}

impl Costs<'_> {
    /// Of an image that stops at the first exit of a chain: no configuration that begins with it costs less.
    pub(crate) fn of_first(&self, exit: usize) -> f64 {
        self.backbone[exit] + self.head[exit] + self.policy[exit]
    }
}

/// Largest count of pixels in one entry of the table: the engine keeps them in 32 bits.
const MAX_COUNT: i64 = u32::MAX as i64;
/// Largest sum of weighted counts over images: up to here, float64 holds every integer.
const MAX_SUM: i64 = 1 << 53;
/// Largest cost, so that no sum or product with one is infinite.
const MAX_COST: f64 = 1e100;

impl<'a> Table<'a> {
    /// Number of candidate exits E.
    pub fn num_exits(&self) -> usize {
        self.intersection.dim().0
    }

    /// Number of images n.
    pub fn num_images(&self) -> usize {
        self.intersection.dim().1
    }

    /// Number of classes C.
    pub fn num_classes(&self) -> usize {
        self.intersection.dim().2
    }

    /// Number of pixel thresholds T.
    pub fn num_pixel_thresholds(&self) -> usize {
        self.image_confidence.dim().1
    }

    /// Number of cost columns K.
    pub fn num_columns(&self) -> usize {
        self.backbone_cost.dim().0
    }

    /// One cost column.
    pub fn costs(&self, column: usize) -> Costs<'a> {
        let row = |costs: ArrayView2<'a, f64>| costs.index_axis_move(Axis(0), column);
        Costs { backbone: row(self.backbone_cost), head: row(self.head_cost), policy: row(self.policy_cost) }
    }

    /// A cost that no configuration exceeds: the dearest backbone, and the dearest head and policy at each point.
    pub fn ceiling(&self, column: usize) -> f64 {
        let costs = self.costs(column);
        let points: BTreeSet<i64> = self.points.iter().copied().collect();
        let dearest = |point: i64| {
            let here = (0..self.num_exits()).filter(|exit| self.points[*exit] == point);
            here.map(|exit| costs.head[exit] + costs.policy[exit]).fold(0.0, f64::max)
        };
        let backbone = costs.backbone.iter().copied().fold(0.0, f64::max);
        (backbone + points.into_iter().map(dearest).sum::<f64>()) * (1.0 + 1e-9)
    }

    /// How often an image counts.
    pub fn weight(&self, image: usize) -> i64 {
        self.image_weight.map_or(1, |weights| weights[image])
    }

    /// Sum of all weights.
    pub fn total_weight(&self) -> i64 {
        (0..self.num_images()).map(|image| self.weight(image)).sum()
    }

    /// Classes with ground truth: the only ones that any metric looks at.
    pub fn present_classes(&self) -> Vec<usize> {
        (0..self.num_classes()).filter(|class| self.ground_truth.column(*class).iter().any(|v| *v > 0)).collect()
    }

    /// Check shapes and domains once; everything behind relies on it.
    ///
    /// # Errors
    /// [`Error::Value`] naming the array, when shapes disagree, something is empty, a count is negative, an intersection
    /// exceeds its prediction or ground truth, a confidence is outside [0, 1], a cost is negative or above 1e100, the
    /// backbone cost does not grow with the points, or no class has ground truth.
    pub fn validate(&self) -> Result<()> {
        let (e, n, c) = self.intersection.dim();
        if e == 0 || n == 0 || c == 0 {
            return Err(Error::value("intersection", "at least one exit, image and class", format!("({e}, {n}, {c})")));
        }
        let t = self.image_confidence.dim().1;
        shape("predicted", self.predicted.shape(), &[e, n, c])?;
        shape("ground_truth", self.ground_truth.shape(), &[n, c])?;
        shape("image_confidence", self.image_confidence.shape(), &[e, t, n])?;
        shape("points", self.points.shape(), &[e])?;
        let columns = self.num_columns().max(1);
        for (name, cost) in
            [("backbone_cost", self.backbone_cost), ("head_cost", self.head_cost), ("policy_cost", self.policy_cost)]
        {
            shape(name, cost.shape(), &[columns, e])?;
            if let Some(bad) = cost.iter().find(|v| !(0.0..=MAX_COST).contains(*v)) {
                return Err(Error::value(name, format!("costs from 0 to {MAX_COST:e}"), bad));
            }
        }
        if let Some(bad) = self.image_confidence.iter().find(|v| !(0.0..=1.0).contains(*v)) {
            return Err(Error::value("image_confidence", "numbers in [0, 1]", bad));
        }
        if let Some(weights) = self.image_weight {
            shape("image_weight", weights.shape(), &[n])?;
            if let Some(bad) = weights.iter().find(|w| !(1..=MAX_COUNT).contains(*w)) {
                return Err(Error::value("image_weight", format!("integers from 1 to {MAX_COUNT}"), bad));
            }
        }
        let most = (MAX_SUM / self.total_weight()).min(MAX_COUNT); // so that no sum over images is rounded
        for (name, (least, largest)) in
            [("predicted", range(self.predicted.iter())), ("ground_truth", range(self.ground_truth.iter()))]
        {
            if largest > most {
                return Err(Error::value(name, format!("counts up to {most}"), largest));
            }
            if least < 0 {
                return Err(Error::value(name, "counts of 0 and more", least));
            }
        }
        let (of_exits, of_predicted) = (self.intersection.outer_iter(), self.predicted.outer_iter());
        for (exit, (intersection, predicted)) in of_exits.zip(of_predicted).enumerate() {
            let within = |both: &i64, predicted: &i64, truth: &i64| 0 <= *both && *both <= (*predicted).min(*truth);
            if Zip::from(intersection).and(predicted).and(self.ground_truth).all(within) {
                continue;
            }
            for ((image, class), &both) in intersection.indexed_iter() {
                let (predicted, truth) = (&predicted[[image, class]], &self.ground_truth[[image, class]]);
                if !within(&both, predicted, truth) {
                    let limit = predicted.min(truth);
                    let got = format!("{both} at exit {exit}, image {image}, class {class}");
                    return Err(Error::value("intersection", format!("0..={limit} (predicted and ground truth)"), got));
                }
            }
        }
        if self.ground_truth.iter().all(|v| *v == 0) {
            return Err(Error::value("ground_truth", "at least one pixel with a class", "none"));
        }
        for backbone in self.backbone_cost.rows() {
            for (a, b) in (0..e).flat_map(|a| (0..e).map(move |b| (a, b))) {
                if self.points[a] < self.points[b] && backbone[a] > backbone[b] {
                    let got = format!("{} at exit {a}, {} at the deeper exit {b}", backbone[a], backbone[b]);
                    return Err(Error::value("backbone_cost", "costs that grow with the points", got));
                }
            }
        }
        Ok(())
    }
}

/// The least and the largest of some numbers, and 0.
fn range<'v>(of: impl Iterator<Item = &'v i64>) -> (i64, i64) {
    of.fold((0, 0), |(least, largest), value| (least.min(*value), largest.max(*value)))
}

fn shape(argument: &'static str, got: &[usize], expected: &[usize]) -> Result<()> {
    if got == expected {
        return Ok(());
    }
    Err(Error::value(argument, format!("shape {expected:?}"), format!("{got:?}")))
}
