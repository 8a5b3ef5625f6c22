//! One tile of pixels: labels and confidences by the arithmetic of [`super::pixel`].
//!
//! Plain algorithm: a pass for the maximum, a pass for the sum. What is done instead: classes in groups of eight (then
//! four, two, one); a group is read from memory for the maximum and from cache for the sum, and the sum so far is
//! multiplied by exp(old maximum - new maximum), exactly 1 where the maximum stood ("online softmax", Milakov and
//! Gimelshein, arXiv:1805.02867, in groups). So logits are read from memory once, along eight streams.

use super::exp::exp_of_gap;
use super::logits::{GROUP, Planes, Source, TILE};
use super::pixel::{ConfidenceKind, Measure};

/// Results of one tile of pixels, and room to work.
pub(crate) struct Tile {
    pub label: [i32; TILE],
    /// 1 or 0, written by a decision.
    pub passes: [u8; TILE],
    pub picks: [u16; TILE],
    /// Labels of picked pixels: known already, not wanted again.
    pub spare_label: [i32; TILE],
    pub work: Work,
}

/// Running values of a tile.
pub(crate) struct Work {
    pub confidence: [f32; TILE],
    pub largest: [f32; TILE],
    pub sum: [f32; TILE],
    /// The largest logit before this group; of a decision: the largest of the first group.
    pub reference: [f32; TILE],
    pub second: [f32; TILE],
    pub weighted: [f32; TILE],
    pub planes: Planes,
}

impl Default for Tile {
    fn default() -> Self {
        let zeros = [0.0; TILE];
        let work = Work {
            confidence: zeros,
            largest: zeros,
            sum: zeros,
            reference: zeros,
            second: zeros,
            weighted: zeros,
            planes: [zeros; GROUP],
        };
        Self { label: [0; TILE], passes: [0; TILE], picks: [0; TILE], spare_label: [0; TILE], work }
    }
}

/// Call `$go!(first, N)` for consecutive groups of N = 8, then 4, 2 and 1 classes.
macro_rules! for_each_group {
    ($num_classes:expr, $go:ident) => {{
        let mut first = 0;
        while $num_classes - first >= 8 {
            $go!(first, 8);
            first += 8;
        }
        if $num_classes - first >= 4 {
            $go!(first, 4);
            first += 4;
        }
        if $num_classes - first >= 2 {
            $go!(first, 2);
            first += 2;
        }
        if $num_classes - first >= 1 {
            $go!(first, 1);
        }
    }};
}
pub(crate) use for_each_group;

impl Tile {
    /// Fill `label`, and `confidence` or `passes`, for the `len` pixels of a source's tile.
    #[inline(always)]
    pub fn measure<S: Source>(&mut self, source: &S, len: usize, measure: &Measure) {
        let label = &mut self.label[..len];
        match measure {
            Measure::Confidence(ConfidenceKind::Top1) => self.work.softmax::<S, false, false>(source, label),
            Measure::Confidence(ConfidenceKind::Margin) => self.work.softmax::<S, true, false>(source, label),
            Measure::Confidence(ConfidenceKind::Entropy) => self.work.softmax::<S, false, true>(source, label),
            Measure::Top1AtLeast(threshold) => self.decide(source, len, *threshold),
            Measure::Label => self.label(source, len),
        }
    }

    /// Fill `label` alone.
    #[inline(always)]
    pub fn label<S: Source>(&mut self, source: &S, len: usize) {
        let (label, largest) = (&mut self.label[..len], &mut self.work.largest[..len]);
        let planes = &mut self.work.planes;
        label.fill(0);
        largest.fill(f32::NEG_INFINITY);
        macro_rules! group {
            ($first:expr, $n:literal) => {
                raise(source.group::<$n>($first, planes), $first as i32, largest, label);
            };
        }
        for_each_group!(source.num_classes(), group);
    }
}

impl Work {
    /// Labels and confidences of a source's tile, as long as `label`.
    #[inline(always)]
    pub fn softmax<S: Source, const MARGIN: bool, const ENTROPY: bool>(&mut self, source: &S, label: &mut [i32]) {
        let len = label.len();
        let Self { confidence, largest, sum, reference, second, weighted, planes } = self;
        let confidence = &mut confidence[..len];
        let (largest, sum, before) = (&mut largest[..len], &mut sum[..len], &mut reference[..len]);
        let (second, weighted) = (&mut second[..len], &mut weighted[..len]);
        label.fill(0);
        largest.fill(f32::NEG_INFINITY);
        sum.fill(0.0);
        second.fill(f32::NEG_INFINITY);
        weighted.fill(0.0);
        let num_classes = source.num_classes();
        macro_rules! group {
            ($first:expr, $n:literal) => {
                let group = source.group::<$n>($first, planes);
                before.copy_from_slice(largest);
                if MARGIN {
                    raise_both(group, $first as i32, largest, second, label);
                } else {
                    raise(group, $first as i32, largest, label);
                }
                if ENTROPY {
                    add_weighted(group, before, largest, sum, weighted);
                } else {
                    add(group, before, largest, sum);
                }
            };
        }
        for_each_group!(num_classes, group);
        if MARGIN {
            for i in 0..len {
                let share = (1.0 - exp_of_gap(second[i] - finite(largest[i]))) / sum[i];
                confidence[i] = if sum[i] >= 1.0 { share } else { f32::NAN };
            }
        } else if ENTROPY {
            let most = (num_classes as f64).ln();
            for i in 0..len {
                let (sum, weighted) = (f64::from(sum[i]), f64::from(weighted[i]));
                let share = if num_classes == 1 { 1.0 } else { 1.0 - (sum.ln() - weighted / sum) / most };
                confidence[i] = if sum >= 1.0 { share.clamp(0.0, 1.0) as f32 } else { f32::NAN };
            }
        } else {
            top1(sum, confidence);
        }
    }
}

/// 1 / S, or NaN where not even the largest class added its 1.
#[inline(always)]
fn top1(sum: &[f32], confidence: &mut [f32]) {
    for (confidence, sum) in confidence.iter_mut().zip(sum) {
        *confidence = if *sum >= 1.0 { 1.0 / sum } else { f32::NAN };
    }
}

/// Gaps are taken to this instead of -infinity, whose gap to itself is undefined.
#[inline(always)]
fn finite(largest: f32) -> f32 {
    if largest < -f32::MAX { -f32::MAX } else { largest }
}

/// Largest logit so far and its class.
#[inline(always)]
pub(crate) fn raise<const N: usize>(planes: [&[f32]; N], first: i32, largest: &mut [f32], label: &mut [i32]) {
    let len = largest.len();
    let (label, planes) = (&mut label[..len], planes.map(|plane| &plane[..len]));
    for i in 0..len {
        let (mut top, mut class) = (largest[i], label[i]);
        for (k, plane) in planes.iter().enumerate() {
            let y = plane[i];
            let higher = y > top;
            class = if higher { first + k as i32 } else { class };
            top = if higher { y } else { top };
        }
        largest[i] = top;
        label[i] = class;
    }
}

/// The same, with the second largest.
#[inline(always)]
fn raise_both<const N: usize>(
    planes: [&[f32]; N],
    first: i32,
    largest: &mut [f32],
    second: &mut [f32],
    label: &mut [i32],
) {
    let len = largest.len();
    let (second, label, planes) = (&mut second[..len], &mut label[..len], planes.map(|plane| &plane[..len]));
    for i in 0..len {
        let (mut top, mut next, mut class) = (largest[i], second[i], label[i]);
        for (k, plane) in planes.iter().enumerate() {
            let y = plane[i];
            let higher = y > top;
            class = if higher { first + k as i32 } else { class };
            let lower = if higher { top } else { y };
            next = if lower > next { lower } else { next };
            top = if higher { y } else { top };
        }
        largest[i] = top;
        second[i] = next;
        label[i] = class;
    }
}

/// Sum of exponentials so far, relative to the new maximum.
#[inline(always)]
fn add<const N: usize>(planes: [&[f32]; N], before: &[f32], largest: &[f32], sum: &mut [f32]) {
    let len = sum.len();
    let (before, largest, planes) = (&before[..len], &largest[..len], planes.map(|plane| &plane[..len]));
    for i in 0..len {
        let top = finite(largest[i]);
        let mut total = sum[i] * exp_of_gap(finite(before[i]) - top);
        for plane in &planes {
            total += exp_of_gap(plane[i] - top);
        }
        sum[i] = total;
    }
}

/// The same, with the sum of e_j (y_j - m): when m rises by d, it becomes (weighted - d sum) exp(-d).
#[inline(always)]
fn add_weighted<const N: usize>(
    planes: [&[f32]; N],
    before: &[f32],
    largest: &[f32],
    sum: &mut [f32],
    weighted: &mut [f32],
) {
    let len = sum.len();
    let (before, largest, weighted) = (&before[..len], &largest[..len], &mut weighted[..len]);
    let planes = planes.map(|plane| &plane[..len]);
    for i in 0..len {
        let top = finite(largest[i]);
        let gap = finite(before[i]) - top;
        let scale = exp_of_gap(gap);
        let mut total = sum[i] * scale;
        let mut moment = if scale > 0.0 { (weighted[i] + gap * sum[i]) * scale } else { 0.0 };
        for plane in &planes {
            let gap = plane[i] - top;
            let e = exp_of_gap(gap);
            total += e;
            moment += if e > 0.0 { e * gap } else { 0.0 };
        }
        sum[i] = total;
        weighted[i] = moment;
    }
}
