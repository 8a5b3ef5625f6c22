//! The affine upper bound that fits one chain: the mean plane of the concave envelope over its box.
//!
//! Over a box Tl <= T <= Th, 0 < Ul <= U <= Uh, T / U is affine in T and convex in U, so it is below any affine function
//! that is not below it at the four corners (`bound.rs` gives the argument for the remainder; it is the same). Two such
//! functions agree with it at (Tl, Uh), (Th, Ul) and one more corner, (Th, Uh) or (Tl, Ul): with slopes
//!
//! ```text
//! 1 / Uh in T, -Th / (Ul Uh) in U      and      1 / Ul in T, -Tl / (Ul Uh) in U.
//! ```
//!
//! *Proof.* At the fourth corner the first exceeds T / U by Th/Ul - (Th - Tl)/Uh - Tl/Ul = (Th - Tl)(1/Ul - 1/Uh) >= 0, the
//! second by Tl/Uh + (Th - Tl)/Ul - Th/Uh, the same. ∎ Their mean is used. Unlike the tangent at an anchor with its
//! remainder it is exact at both ends of a chain's trade-off: where the poorer exits are taken T is low and U high, where
//! the better ones are, T is high and U low. Its values are worked out for each chain that the anchor cannot exclude,
//! from counts that are kept a second time with images innermost, so that it costs about 2 P n / 16 vector operations an
//! exit.

use super::bound::larger;
use super::compact::{Compact, LANES, RUNS};
use super::objective::Metric;
use crate::isa::Kernel;

/// constant + sum over classes of of_both x T + of_wrong x F.
pub(crate) struct Envelope {
    pub of_both: Vec<f32>,
    pub of_wrong: Vec<f32>,
    pub constant: f64,
}

impl Envelope {
    /// For sums in these ranges, (padded P,) each.
    pub fn new(metric: Metric, compact: &Compact, [t_low, t_high, u_low, u_high]: [&[f64]; 4]) -> Self {
        let classes = compact.classes.len();
        let weights = metric.class_weights(&compact.truth[..classes]);
        let mut envelope =
            Self { of_both: vec![0.0; compact.padded()], of_wrong: vec![0.0; compact.padded()], constant: 0.0 };
        for (class, weight) in weights.into_iter().enumerate() {
            if !metric.has_union() {
                envelope.of_both[class] = (weight / compact.truth[class]) as f32;
                continue;
            }
            let (low, high) = (1.0 / u_low[class], 1.0 / u_high[class]);
            // any slopes will do as long as the constant lifts the plane above all corners: so round them first
            let in_t = (weight * 0.5 * (low + high)) as f32;
            let in_u = (-weight * 0.5 * (t_low[class] + t_high[class]) * low * high) as f32;
            let gap = |t: f64, over: f64, u: f64| weight * t * over - (f64::from(in_t) * t + f64::from(in_u) * u);
            let corners = [
                gap(t_low[class], low, u_low[class]),
                gap(t_low[class], high, u_high[class]),
                gap(t_high[class], low, u_low[class]),
                gap(t_high[class], high, u_high[class]),
            ];
            envelope.of_both[class] = in_t;
            envelope.of_wrong[class] = in_u;
            // U = G + F
            envelope.constant += corners.into_iter().fold(f64::NEG_INFINITY, larger);
            envelope.constant += f64::from(in_u) * compact.truth[class];
        }
        envelope
    }
}

/// (padded n,) value of one exit for each image.
pub(crate) struct ExitValues<'k> {
    pub envelope: &'k Envelope,
    pub compact: &'k Compact,
    pub exit: usize,
}

impl Kernel for ExitValues<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run(self) -> Self::Output {
        let (columns, classes) = (self.compact.columns(self.exit), self.compact.classes.len());
        let length = self.compact.padded_images();
        let (both, wrong) = columns.split_at(classes * length);
        let mut values = vec![0.0f32; length];
        for (block, values) in values.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
            let from = block * LANES;
            let mut sums = [0.0f32; LANES];
            for class in 0..classes {
                let (of_both, of_wrong) = (self.envelope.of_both[class], self.envelope.of_wrong[class]);
                let (both, wrong) = (&both[class * length + from..], &wrong[class * length + from..]);
                for ((sum, both), wrong) in sums.iter_mut().zip(&both[..LANES]).zip(&wrong[..LANES]) {
                    *sum += of_both * both + of_wrong * wrong;
                }
            }
            *values = sums;
        }
        values
    }
}

/// Values of one exit less those of a reference and less the cost of stopping there, in the order of `images`; and the
/// sum of their magnitudes.
pub(crate) struct Worths<'k> {
    pub values: &'k [f32],
    pub reference: &'k [f32],
    /// Image of each entry; a padding image has no value.
    pub images: &'k [u32],
    pub shares: &'k [f32],
    pub cost: f32,
}

impl Kernel for Worths<'_> {
    type Output = (Vec<f32>, f64);

    #[inline(always)]
    fn run(self) -> Self::Output {
        let last = self.values.len().min(self.reference.len()) - 1;
        let mut worths = vec![0.0f32; self.images.len()];
        let mut magnitudes = [0.0f32; RUNS];
        let rows = self.images.as_chunks::<RUNS>().0.iter().zip(self.shares.as_chunks::<RUNS>().0);
        for (worths, (images, shares)) in worths.as_chunks_mut::<RUNS>().0.iter_mut().zip(rows) {
            for lane in 0..RUNS {
                let image = (images[lane] as usize).min(last);
                worths[lane] = self.values[image] - self.reference[image];
            }
            for lane in 0..RUNS {
                worths[lane] -= self.cost * shares[lane];
                magnitudes[lane] += worths[lane].abs();
            }
        }
        (worths, magnitudes.iter().map(|sum| f64::from(*sum)).sum())
    }
}
