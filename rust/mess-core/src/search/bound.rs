//! Admissible bounds on the accuracy of a mixture of exits.
//!
//! A metric is a sum over classes of w T / D with T the intersection summed over images and D either the ground truth G,
//! a constant, or the union U = G + F, with F the wrongly predicted pixels. T and F are sums over images of what the
//! exit that an image takes contributes, so only the division keeps the value from separating into images.
//!
//! # The affine upper bound
//!
//! Take an anchor (t0, u0) with u0 > 0 for each class, and r = t0 / u0. For all T and all U > 0
//!
//! ```text
//! T / U = r + (T - r U) / u0 + (T / U - r) (1 - U / u0)
//! ```
//!
//! *Proof.* Expand the last product: T/U - r - T/u0 + r U/u0; with the middle part (T - r U)/u0 and r, all but T/U
//! cancels. ∎
//!
//! The first two parts are affine in (T, U), hence sums over images of `value(row)`. The last, the *remainder*, is of
//! second order around the anchor. Over a box Tl <= T <= Th, 0 < Ul <= U <= Uh it is at most its greatest value at the
//! box's four corners.
//!
//! *Proof.* For fixed U it is affine in T: T (1/U - 1/u0) + const, so its maximum over T is at Tl or Th. For fixed T it is
//! T/U + r U/u0 + const, convex in U > 0 (T >= 0), so its maximum over U is at Ul or Uh. ∎
//!
//! So for any set of configurations whose sums stay in the boxes,
//! `constant + sum over images of the largest value among the exits that the image can reach + remainder` is an upper
//! bound on the accuracy of each of them: the affine part is a sum over images, and every configuration gives every image
//! one of the exits that it can reach. For metrics that divide by G the remainder is 0.
//!
//! # Cost
//!
//! The mean cost separates into images too. For any multiplier m >= 0 (accuracy per cost), every configuration of the
//! set with accuracy A and cost K satisfies
//!
//! ```text
//! A - m K <= constant + remainder + sum over images of max over reachable exits (value - m cost) =: h(m)
//! ```
//!
//! so none of them has both accuracy >= a and cost <= b when h(m) + m b < a (weak Lagrangian duality). h is convex in m,
//! and K of a maximiser is minus a subgradient, which tells in which direction a better multiplier lies.
//!
//! # Rounding
//!
//! T, F and G are integers below 2^53, exact in float64. Everything else is rounded; `MARGIN` is far above the error that
//! sums of numbers near 1 gather, and a set is only given up when its bound misses the target by more than that. What is
//! kept is decided by exact evaluation, so rounding costs time and never an answer.

use super::compact::{Compact, PAD};
use super::objective::Metric;
use crate::isa::Kernel;

/// What a bound has to miss a target by (accuracies are at most 1).
pub(crate) const MARGIN: f64 = 1e-9;

/// The affine upper bound of a metric at an anchor. Arrays are (padded P,).
#[derive(Debug, Clone)]
pub(crate) struct Anchor {
    /// Weight of each class in the metric.
    weight: Vec<f64>,
    /// 1 for metrics that divide by the union, 0 for those that have no remainder.
    has_remainder: f64,
    /// t0 / u0 of each class.
    ratio: Vec<f64>,
    /// 1 / u0 of each class.
    inverse: Vec<f64>,
    /// Factor of an intersection, for each class.
    of_both: Vec<f64>,
    /// Factor of a wrongly predicted pixel, for each class.
    of_wrong: Vec<f64>,
    /// The part that depends on no image.
    pub constant: f64,
}

/// Closed ranges of the sums T and F of each class, (padded P,).
#[derive(Debug, Clone, Default)]
pub(crate) struct Ranges {
    pub t_low: Vec<f64>,
    pub t_high: Vec<f64>,
    pub f_low: Vec<f64>,
    pub f_high: Vec<f64>,
}

impl Anchor {
    /// The anchor at sums `t` and `f`.
    pub fn new(metric: Metric, compact: &Compact, t: &[f64], f: &[f64]) -> Self {
        let (classes, padded) = (compact.classes.len(), compact.padded());
        let mut weights = metric.class_weights(&compact.truth[..classes]);
        weights.resize(padded, 0.0);
        let mut anchor = Self {
            weight: weights.clone(),
            has_remainder: f64::from(u8::from(metric.has_union())),
            ratio: Vec::with_capacity(padded),
            inverse: Vec::with_capacity(padded),
            of_both: Vec::with_capacity(padded),
            of_wrong: Vec::with_capacity(padded),
            constant: 0.0,
        };
        for (class, &truth) in compact.truth.iter().enumerate() {
            let (weight, union) = (weights[class], truth + f[class]);
            let (ratio, inverse) =
                if metric.has_union() { (t[class] / union, 1.0 / union) } else { (0.0, 1.0 / truth) };
            anchor.ratio.push(ratio);
            anchor.inverse.push(inverse);
            anchor.of_both.push(weight * inverse);
            anchor.of_wrong.push(-weight * ratio * inverse);
            anchor.constant += weight * ratio * (1.0 - truth * inverse);
        }
        anchor
    }

    /// What (intersection, wrongly predicted) of an image adds.
    #[inline(always)]
    pub fn value(&self, (both, wrong): (&[u32], &[u32])) -> f64 {
        let n = self.ratio.len();
        let (of_both, of_wrong, both, wrong) = (&self.of_both[..n], &self.of_wrong[..n], &both[..n], &wrong[..n]);
        let mut lanes = [0.0; PAD];
        for from in (0..n).step_by(PAD) {
            for (lane, sum) in lanes.iter_mut().enumerate() {
                let class = from + lane;
                *sum += of_both[class] * f64::from(both[class]) + of_wrong[class] * f64::from(wrong[class]);
            }
        }
        lanes.iter().sum()
    }

    /// The same of sums over images.
    pub fn value_of_sums(&self, t: &[f64], f: &[f64]) -> f64 {
        let both: f64 = self.of_both.iter().zip(t).map(|(factor, sum)| factor * sum).sum();
        let wrong: f64 = self.of_wrong.iter().zip(f).map(|(factor, sum)| factor * sum).sum();
        both + wrong
    }

    /// Upper bound on the remainder when the sums T and U of each class stay in these ranges.
    #[inline(always)]
    pub fn remainder(&self, t_low: &[f64], t_high: &[f64], u_low: &[f64], u_high: &[f64]) -> f64 {
        let n = self.ratio.len();
        let (weight, ratio, inverse) = (&self.weight[..n], &self.ratio[..n], &self.inverse[..n]);
        let (t_low, t_high, u_low, u_high) = (&t_low[..n], &t_high[..n], &u_low[..n], &u_high[..n]);
        let mut lanes = [0.0; PAD];
        for from in (0..n).step_by(PAD) {
            for (lane, sum) in lanes.iter_mut().enumerate() {
                let c = from + lane;
                let (over_low, over_high) = (1.0 / u_low[c], 1.0 / u_high[c]);
                let (at_low, at_high) = (1.0 - u_low[c] * inverse[c], 1.0 - u_high[c] * inverse[c]);
                let low = larger((t_low[c] * over_low - ratio[c]) * at_low, (t_high[c] * over_low - ratio[c]) * at_low);
                let high =
                    larger((t_low[c] * over_high - ratio[c]) * at_high, (t_high[c] * over_high - ratio[c]) * at_high);
                *sum += weight[c] * larger(low, high);
            }
        }
        self.has_remainder * lanes.iter().sum::<f64>()
    }

    /// Upper bound on the metric when T is at most and D at least this: each term is largest there.
    #[inline(always)]
    pub fn greatest(&self, t_high: &[f64], u_low: &[f64]) -> f64 {
        let n = self.weight.len();
        let (weight, inverse) = (&self.weight[..n], &self.inverse[..n]);
        let (t_high, u_low) = (&t_high[..n], &u_low[..n]);
        let mut lanes = [0.0; PAD];
        for from in (0..n).step_by(PAD) {
            for (lane, sum) in lanes.iter_mut().enumerate() {
                let c = from + lane;
                let over = if self.has_remainder > 0.0 { 1.0 / u_low[c] } else { inverse[c] };
                *sum += weight[c] * (t_high[c] * over);
            }
        }
        lanes.iter().sum()
    }
}

/// The larger number: one instruction, where `f64::max` needs several for NaN, which does not occur here.
#[inline(always)]
pub(crate) fn larger(a: f64, b: f64) -> f64 {
    if a > b { a } else { b }
}

/// The smaller number.
#[inline(always)]
pub(crate) fn smaller(a: f64, b: f64) -> f64 {
    if a < b { a } else { b }
}

/// (exits, n) value of each exit and image at an anchor, times the image's weight.
pub(crate) struct Values<'k> {
    pub anchor: &'k Anchor,
    pub compact: &'k Compact,
    pub exits: &'k [usize],
}

impl Kernel for Values<'_> {
    type Output = Vec<f64>;

    #[inline(always)]
    fn run(self) -> Self::Output {
        let compact = self.compact;
        let mut values = Vec::with_capacity(self.exits.len() * compact.num_images);
        for &exit in self.exits {
            for image in 0..compact.num_images {
                values.push(compact.weight[image] * self.anchor.value(compact.counts(exit, image)));
            }
        }
        values
    }
}
