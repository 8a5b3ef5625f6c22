//! Admissible bounds on the accuracy of a mixture of exits.
//!
//! A metric is a sum over classes of w T / D with T the intersection summed over images and D either the ground truth G,
//! a constant, or the union U = G + F, with F the wrongly predicted pixels. T and F are sums over images of what the
//! exit that an image takes contributes, so only the division keeps the value from separating into images.
//!
//! # Planes
//!
//! Let the sums of a set of configurations stay in a box Tl <= T <= Th, 0 < Ul <= U <= Uh for each class. For *any* slopes
//! a, b and all of the set
//!
//! ```text
//! w T / U <= a T + b U + greatest of (w t / u - a t - b u) over the four corners of the box
//! ```
//!
//! *Proof.* The gap w T / U - a T - b U is affine in T for fixed U, so its maximum over T is at Tl or Th; for fixed T >= 0 it
//! is convex in U > 0, so its maximum over U is at Ul or Uh. ∎
//!
//! With the constants gathered in `lift`, `lift + sum over images of the largest value among the exits that the image can
//! reach` is an upper bound on the accuracy of each configuration of the set: the affine part is a sum over images, and
//! every configuration gives every image one of the exits that it can reach. Slopes may be fitted to one box and used for
//! others; the lift makes up for it.
//!
//! Which slopes? The concave envelope of T / U over the box consists of two planes, which agree with it at (Tl, Uh), (Th,
//! Ul) and one more corner:
//!
//! ```text
//! 1 / Uh in T, -Th / (Ul Uh) in U      and      1 / Ul in T, -Tl / (Ul Uh) in U.
//! ```
//!
//! Both are too large at the fourth corner by (Th - Tl)(1/Ul - 1/Uh). Their mean, the *secant* plane, is exact at both ends
//! of a chain's trade-off: where the poorer exits are taken T is low and U high, where the better ones are, T is high and U
//! low. Ascents, which prove nothing, use the *tangent* plane at what they have reached. For metrics that divide by G both
//! are w / G in T, exactly, and the lift is 0.
//!
//! # Cost
//!
//! The mean cost separates into images too. For any multiplier m >= 0 (accuracy per cost), every configuration of the
//! set with accuracy A and cost K satisfies
//!
//! ```text
//! A - m K <= lift + sum over images of max over reachable exits (value - m cost) =: h(m)
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

/// Slopes for each class, (padded P,) each.
#[derive(Debug, Clone)]
pub(crate) struct Plane {
    /// Weight of each class in the metric, and its ground truth.
    weight: Vec<f64>,
    truth: Vec<f64>,
    has_union: bool,
    /// Value of a pixel of the intersection.
    pub of_both: Vec<f64>,
    /// Value of a wrongly predicted pixel.
    pub of_wrong: Vec<f64>,
}

/// Closed ranges of the sums T and U of each class, (padded P,) each.
#[derive(Debug, Clone)]
pub(crate) struct Ranges {
    pub t_low: Vec<f64>,
    pub t_high: Vec<f64>,
    pub u_low: Vec<f64>,
    pub u_high: Vec<f64>,
}

impl Ranges {
    /// All zero.
    pub fn new(padded: usize) -> Self {
        let zeros = || vec![0.0; padded];
        Self { t_low: zeros(), t_high: zeros(), u_low: zeros(), u_high: zeros() }
    }

    /// The mean of some, end by end; none of none.
    pub fn mean(of: &[&Self]) -> Option<Self> {
        let mean = |ends: fn(&Self) -> &Vec<f64>| -> Vec<f64> {
            let at = |class: usize| of.iter().map(|ranges| ends(ranges)[class]).sum::<f64>() / of.len() as f64;
            (0..ends(of[0]).len()).map(at).collect()
        };
        let all = || Self {
            t_low: mean(|r| &r.t_low),
            t_high: mean(|r| &r.t_high),
            u_low: mean(|r| &r.u_low),
            u_high: mean(|r| &r.u_high),
        };
        (!of.is_empty()).then(all)
    }
}

impl Plane {
    /// The tangent at sums `t` and `f`.
    pub fn tangent(metric: Metric, compact: &Compact, t: &[f64], f: &[f64]) -> Self {
        Self::new(metric, compact, |class| {
            let over = 1.0 / (compact.truth[class] + f[class]);
            (over, -t[class] * over * over)
        })
    }

    /// The secant plane of a box. Its slopes are float32 numbers.
    pub fn secant(metric: Metric, compact: &Compact, ranges: &Ranges) -> Self {
        let mut plane = Self::new(metric, compact, |class| {
            let (low, high) = (1.0 / ranges.u_low[class], 1.0 / ranges.u_high[class]);
            (0.5 * (low + high), -0.5 * (ranges.t_low[class] + ranges.t_high[class]) * low * high)
        });
        plane.of_both.iter_mut().chain(&mut plane.of_wrong).for_each(|slope| *slope = f64::from(*slope as f32));
        plane
    }

    /// `slopes` are those of T / U.
    fn new(metric: Metric, compact: &Compact, slopes: impl Fn(usize) -> (f64, f64)) -> Self {
        let (classes, padded) = (compact.classes.len(), compact.padded());
        let mut weight = metric.class_weights(&compact.truth[..classes]);
        weight.resize(padded, 0.0);
        let has_union = metric.has_union();
        let of_class = |class: usize| if has_union { slopes(class) } else { (1.0 / compact.truth[class], 0.0) };
        let (of_both, of_wrong) =
            (0..padded).map(|class| (of_class(class), weight[class])).map(|((a, b), w)| (w * a, w * b)).unzip();
        Self { weight, truth: compact.truth.clone(), has_union, of_both, of_wrong }
    }

    /// What (intersection, wrongly predicted) of an image adds.
    #[inline(always)]
    pub fn value(&self, (both, wrong): (&[u32], &[u32])) -> f64 {
        let slopes = self.of_both.as_chunks::<PAD>().0.iter().zip(self.of_wrong.as_chunks::<PAD>().0);
        let counts = both.as_chunks::<PAD>().0.iter().zip(wrong.as_chunks::<PAD>().0);
        let mut lanes = [0.0; PAD];
        for ((of_both, of_wrong), (both, wrong)) in slopes.zip(counts) {
            for lane in 0..PAD {
                lanes[lane] += of_both[lane] * f64::from(both[lane]) + of_wrong[lane] * f64::from(wrong[lane]);
            }
        }
        sum_of(lanes)
    }

    /// The same of sums over images.
    pub fn value_of_sums(&self, t: &[f64], f: &[f64]) -> f64 {
        let both: f64 = self.of_both.iter().zip(t).map(|(factor, sum)| factor * sum).sum();
        let wrong: f64 = self.of_wrong.iter().zip(f).map(|(factor, sum)| factor * sum).sum();
        both + wrong
    }

    /// The constant that lifts the plane above the metric in this box, that of the ground truth in U = G + F included.
    #[inline(always)]
    pub fn lift(&self, ranges: &Ranges) -> f64 {
        let n = self.weight.len();
        let (weight, truth, of_both, of_wrong) =
            (&self.weight[..n], &self.truth[..n], &self.of_both[..n], &self.of_wrong[..n]);
        let (t_low, t_high) = (&ranges.t_low[..n], &ranges.t_high[..n]);
        let (u_low, u_high) = (&ranges.u_low[..n], &ranges.u_high[..n]);
        let mut lanes = [0.0; PAD];
        for from in (0..n).step_by(PAD) {
            for (lane, sum) in lanes.iter_mut().enumerate() {
                let c = from + lane;
                let (low, high) = if self.has_union { (u_low[c], u_high[c]) } else { (truth[c], truth[c]) };
                let (over_low, over_high) = (weight[c] / low - of_both[c], weight[c] / high - of_both[c]);
                let at_low = larger(t_low[c] * over_low, t_high[c] * over_low) - of_wrong[c] * low;
                let at_high = larger(t_low[c] * over_high, t_high[c] * over_high) - of_wrong[c] * high;
                *sum += larger(at_low, at_high) + of_wrong[c] * truth[c];
            }
        }
        sum_of(lanes)
    }

    /// Upper bound on the metric in this box: each term is largest where T is and U is not.
    #[inline(always)]
    pub fn greatest(&self, ranges: &Ranges) -> f64 {
        let n = self.weight.len();
        let (weight, truth) = (&self.weight[..n], &self.truth[..n]);
        let (t_high, u_low) = (&ranges.t_high[..n], &ranges.u_low[..n]);
        let mut lanes = [0.0; PAD];
        for from in (0..n).step_by(PAD) {
            for (lane, sum) in lanes.iter_mut().enumerate() {
                let c = from + lane;
                *sum += weight[c] * (t_high[c] / if self.has_union { u_low[c] } else { truth[c] });
            }
        }
        sum_of(lanes)
    }
}

/// The sum of all lanes, by halves: additions that need not wait for each other.
#[inline(always)]
fn sum_of(lanes: [f64; PAD]) -> f64 {
    let [a, b, c, d, e, f, g, h] = lanes;
    ((a + e) + (c + g)) + ((b + f) + (d + h))
}

/// The larger number: one instruction, where `f64::max` needs several for NaN, which does not occur here.
#[inline(always)]
pub(crate) fn larger<T: PartialOrd>(a: T, b: T) -> T {
    if a > b { a } else { b }
}

/// The smaller number.
#[inline(always)]
pub(crate) fn smaller(a: f64, b: f64) -> f64 {
    if a < b { a } else { b }
}

/// (exits, n) value of each exit and image by a plane, times the image's weight.
pub(crate) struct Values<'k> {
    pub plane: &'k Plane,
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
                values.push(compact.weight[image] * self.plane.value(compact.counts(exit, image)));
            }
        }
        values
    }
}
