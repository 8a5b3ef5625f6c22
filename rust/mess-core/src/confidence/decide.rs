//! Is the top-1 confidence at least a threshold? Without computing the confidence, for most pixels.
//!
//! Contract: the decision equals `confidence >= threshold` with [`super::pixel`]'s float32 confidence, on every input.
//! NaN confidences do not pass, whatever the threshold.
//!
//! Plain algorithm: compute the confidence, compare. What is done instead, and why it is equal: p >= t exactly when
//! S - 1 <= 1/t - 1, S - 1 being the sum over the other classes. `rough_exp` gives that sum up to a factor in
//! [`ROUGH_LOW`, `ROUGH_HIGH`], so unless it lies within that factor of 1/t - 1 (and within the rounding error of the
//! sums) the decision is certain. The few pixels that are left are gathered and computed by the very code of
//! [`super::pixel`]. There is also no running maximum to rescale by: the sum is taken relative to the largest logit of
//! the first group, r, and compared to (1/t - 1) exp(m - r) at the end.

use super::exp::{ROUGH_HIGH, ROUGH_LOW, exp_of_gap, rough_exp};
use super::logits::{Planes, Source};
use super::tile::{Tile, Work, for_each_group, raise};

/// Not 0, not 1: to be computed.
const UNDECIDED: u8 = 2;

/// (S - 1) of a pixel is surely low enough below `lower * limit`, surely too high above `upper * limit`, each widened by
/// `rounding * S`.
pub(crate) struct Bounds {
    pub lower: f32,
    pub upper: f32,
    pub rounding: f32,
}

impl Bounds {
    /// Bounds for a sum of `num_classes` exponentials, each within `[1 - below, 1 + above]` of the exact one.
    ///
    /// The float32 sum of the definition is off by at most C + 8 ceil(C / 8) roundings (additions, rescalings) and the
    /// exponentials' own 4e-6; so is the rough sum: 4 (C + 64) 2^-24 covers both. A further 0.5 % covers the roundings of
    /// the limit itself.
    pub fn new(num_classes: usize, low: f32, high: f32) -> Self {
        let rounding = 4.0 * (num_classes as f32 + 64.0) * (f32::EPSILON / 2.0);
        Self { lower: 0.995 * low, upper: 1.005 * high, rounding }
    }
}

/// 1/t - 1 in float32: the most that S - 1 may be. Infinite at t = 0, and at -0, which is the same threshold.
#[inline(always)]
pub(crate) fn odds(threshold: f32) -> f32 {
    (1.0 / f64::from(threshold.abs()) - 1.0) as f32
}

impl Tile {
    /// Fill `label` and `passes`.
    #[inline(always)]
    pub fn decide<S: Source>(&mut self, source: &S, len: usize, threshold: f32) {
        self.decide_roughly(source, len, threshold);
        let num_picks = self.undecided(len);
        let Self { label, passes, picks, spare_label, work } = self;
        // Gathering one pixel costs about as much as computing four that lie side by side.
        if 4 * num_picks > len {
            work.softmax::<S, false, false>(source, &mut label[..len]);
            for (pass, confidence) in passes[..len].iter_mut().zip(&work.confidence) {
                *pass = u8::from(*confidence >= threshold);
            }
        } else if num_picks > 0 {
            let picks = &picks[..num_picks];
            work.softmax::<_, false, false>(&Picked { source, picks }, &mut spare_label[..num_picks]);
            for (pick, confidence) in picks.iter().zip(&work.confidence) {
                passes[usize::from(*pick)] = u8::from(*confidence >= threshold);
            }
        }
    }

    /// Fill `label`, and `passes` with 1, 0 or `UNDECIDED`.
    #[inline(always)]
    fn decide_roughly<S: Source>(&mut self, source: &S, len: usize, threshold: f32) {
        let Work { largest, sum, reference, weighted: probe, planes, .. } = &mut self.work;
        let (label, passes) = (&mut self.label[..len], &mut self.passes[..len]);
        let (largest, sum) = (&mut largest[..len], &mut sum[..len]);
        let (reference, probe) = (&mut reference[..len], &mut probe[..len]);
        label.fill(0);
        largest.fill(f32::NEG_INFINITY);
        sum.fill(0.0);
        probe.fill(0.0);
        let num_classes = source.num_classes();
        macro_rules! group {
            ($first:expr, $n:literal) => {
                let group = source.group::<$n>($first, planes);
                raise(group, $first as i32, largest, label);
                if $first == 0 {
                    reference.copy_from_slice(largest);
                }
                add_roughly(group, reference, sum, probe);
            };
        }
        for_each_group!(num_classes, group);
        let bounds = Bounds::new(num_classes, ROUGH_LOW, ROUGH_HIGH);
        let odds = odds(threshold);
        for i in 0..len {
            let rise = largest[i] - reference[i];
            let limit = odds * exp_of_gap(rise);
            let others = sum[i] - rough_exp(rise);
            let rounding = sum[i] * bounds.rounding;
            // beyond a rise of 80, or of thousands of classes, the sum has overflowed; the probe is NaN where a logit was
            let usable = (rise <= 80.0) & (sum[i] < f32::INFINITY) & !probe[i].is_nan();
            let surely = usable & (others <= limit * bounds.lower - rounding);
            let surely_not = usable & (others >= limit * bounds.upper + rounding);
            passes[i] = if surely {
                1
            } else if surely_not {
                0
            } else {
                UNDECIDED
            };
        }
    }

    /// Collect the undecided among the first `len` pixels in `picks`; their number.
    #[inline(always)]
    fn undecided(&mut self, len: usize) -> usize {
        let mut count = 0;
        for (chunk, passes) in self.passes[..len].chunks(64).enumerate() {
            if passes.iter().fold(0, |any, pass| any | pass) < UNDECIDED {
                continue;
            }
            for (i, pass) in passes.iter().enumerate() {
                self.picks[count] = (64 * chunk + i) as u16;
                count += usize::from(*pass == UNDECIDED);
            }
        }
        count
    }
}

/// Rough sum of exponentials relative to `reference`; `probe` becomes NaN where a logit is.
#[inline(always)]
fn add_roughly<const N: usize>(planes: [&[f32]; N], reference: &[f32], sum: &mut [f32], probe: &mut [f32]) {
    let len = sum.len();
    let (reference, probe, planes) = (&reference[..len], &mut probe[..len], planes.map(|plane| &plane[..len]));
    for i in 0..len {
        let (mut total, mut gaps) = (sum[i], probe[i]);
        for plane in &planes {
            let gap = plane[i] - reference[i];
            gaps += gap;
            total += rough_exp(gap);
        }
        sum[i] = total;
        probe[i] = gaps;
    }
}

/// Some pixels of a tile, side by side.
struct Picked<'p, S> {
    source: &'p S,
    picks: &'p [u16],
}

impl<S: Source> Source for Picked<'_, S> {
    #[inline(always)]
    fn num_classes(&self) -> usize {
        self.source.num_classes()
    }

    #[inline(always)]
    fn group<'s, const N: usize>(&'s self, first: usize, room: &'s mut Planes) -> [&'s [f32]; N] {
        for (k, values) in room.iter_mut().enumerate().take(N) {
            self.source.pick(first + k, self.picks, values);
        }
        let room = &*room;
        std::array::from_fn(|k| &room[k][..self.picks.len()])
    }

    #[inline(always)]
    fn pick(&self, class: usize, picks: &[u16], values: &mut [f32]) {
        for (value, pick) in values.iter_mut().zip(picks) {
            self.source.pick(class, &[self.picks[usize::from(*pick)]], std::slice::from_mut(value));
        }
    }
}
