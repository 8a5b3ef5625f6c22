//! Per-pixel confidence and label of logits.
//!
//! Contract
//! 1. Input: logits (C, H, W), C >= 1, see [`super::logits`]. -infinity is a class that cannot be.
//! 2. Label: the class of the largest logit; of equal ones the lowest class. NaN is never the largest.
//! 3. With m the largest logit and e_j = exp(y_j - m), S = sum of e_j:
//!    top-1 = 1 / S; margin = (1 - e_second) / S, the second largest probability subtracted (0 for ties, 1 when C = 1);
//!    entropy = 1 - H / ln C with H = ln S - (sum of e_j (y_j - m)) / S, clamped to [0, 1] (1 when C = 1).
//! 4. Where softmax is undefined - a NaN, a +infinity, or nothing but -infinity among the pixel's logits - the confidence
//!    is NaN. Such a pixel is below every threshold; it is no error.
//! 5. Arithmetic is float32 in a fixed order with this crate's own exponential, so the bits do not depend on the
//!    platform's math library, the instruction set or the thread count. Against the exact value: within 1e-6 for top-1
//!    and margin up to 1000 classes, 3e-6 for entropy.
//! 6. Empty pictures (H or W = 0) give empty maps.
//!
//! Plain algorithm: a pass for the maximum, a pass for the sum. What is done instead: classes in groups of eight (then
//! four, two, one); a group is read from memory into first-level cache for the maximum and from there for the sum, and
//! the sum so far is multiplied by exp(old maximum - new maximum), exactly 1 where the maximum stood ("online softmax",
//! Milakov and Gimelshein, arXiv:1805.02867, in groups). So logits are read from memory once, along eight streams.

use std::ops::Range;

use ndarray::{Array2, ArrayViewMut2};
use rayon::prelude::*;

use super::exp::exp_of_gap;
use super::logits::{Dense, Format, GROUP, Logits, Planes, Source, TILE, with_dense};
use super::scratch::{Scratch, with_scratch};
use super::upsample::{Upsampled, UpsampledPixels, Upsampling};
use super::{is_parallel, rows_per_task};
use crate::error::{Error, Result};
use crate::isa::{Isa, Kernel};

/// Per-pixel confidence measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ConfidenceKind {
    /// Largest softmax probability.
    #[default]
    Top1,
    /// Largest minus second largest softmax probability.
    Margin,
    /// 1 minus the entropy of the softmax divided by ln C.
    Entropy,
}

/// Confidence in [0, 1] (NaN where undefined) and label of every pixel, both (H, W).
#[derive(Debug, Clone, PartialEq)]
pub struct ConfidenceMap {
    /// float32 confidences.
    pub confidence: Array2<f32>,
    /// Class indices.
    pub labels: Array2<i32>,
}

/// A class index that labels are written as: uint8 (for at most 256 classes) or int32.
pub trait LabelOut: Copy + Send + Sync + Default {
    /// The most classes that fit.
    const MAX_CLASSES: usize;
    /// The index as this type.
    fn from_class(class: i32) -> Self;
}

impl LabelOut for u8 {
    const MAX_CLASSES: usize = 256;
    #[inline(always)]
    fn from_class(class: i32) -> Self {
        class as Self
    }
}

impl LabelOut for i32 {
    const MAX_CLASSES: usize = 1 << 16;
    #[inline(always)]
    fn from_class(class: i32) -> Self {
        class
    }
}

/// Confidence map and label map of logits (C, H, W), upsampled first when `upsampling` is given.
///
/// # Errors
/// [`Error::Value`] when there is no class, more than 65536, or a size without pixels to upsample to.
pub fn confidence_map(
    logits: &Logits<'_>,
    kind: ConfidenceKind,
    upsampling: Option<Upsampling>,
    isa: Isa,
) -> Result<ConfidenceMap> {
    let size = output_size(logits, upsampling)?;
    let mut map = ConfidenceMap { confidence: super::zeros(size)?, labels: super::zeros(size)? };
    let (confidence, labels) = (map.confidence.view_mut(), map.labels.view_mut());
    confidence_map_into(logits, kind, upsampling, confidence, labels, &mut Upsampled::default(), isa)?;
    Ok(map)
}

/// [`confidence_map`] into buffers of the caller, both (H, W) in C order.
///
/// # Errors
/// As [`confidence_map`], and for buffers of another shape or order, or labels too narrow for the classes.
pub fn confidence_map_into<L: LabelOut>(
    logits: &Logits<'_>,
    kind: ConfidenceKind,
    upsampling: Option<Upsampling>,
    confidence: ArrayViewMut2<'_, f32>,
    labels: ArrayViewMut2<'_, L>,
    plan: &mut Upsampled,
    isa: Isa,
) -> Result<()> {
    let size = output_size(logits, upsampling)?;
    let confidence = super::in_c_order("out", confidence, size)?;
    let labels = super::in_c_order("out", labels, size)?;
    let measure = Measure::Confidence(kind);
    let pixels = Pixels::new(logits, upsampling, &measure, isa, plan)?;
    pixels.measure(&measure, 0..size.0, isa, confidence, labels);
    Ok(())
}

/// (H, W) of the maps.
pub(crate) fn output_size(logits: &Logits<'_>, upsampling: Option<Upsampling>) -> Result<(usize, usize)> {
    let (num_classes, height, width) = logits.dim();
    if num_classes == 0 {
        return Err(Error::value("logits", "at least one class", format!("shape (0, {height}, {width})")));
    }
    if num_classes > i32::MAX_CLASSES {
        return Err(Error::value("logits", "at most 65536 classes", format!("shape {:?}", logits.dim())));
    }
    match upsampling {
        None => Ok((height, width)),
        Some(upsampling) => upsampling.checked(logits),
    }
}

/// What is written beside the label of every pixel.
pub(crate) enum Measure {
    /// Its confidence.
    Confidence(ConfidenceKind),
    /// 1 where its top-1 confidence is at least the threshold, else 0; see [`super::decide`].
    Top1AtLeast(f32),
}

/// A value that a measure writes: a confidence (float32) or a decision (uint8).
pub(crate) trait Measured: Copy + Send + Sync {
    /// The measured values of the first `len` pixels of the tile.
    fn of_tile(tile: &Tile, len: usize) -> &[Self];
    /// What a pixel decided to pass gets.
    const PASS: Self;
}

impl Measured for f32 {
    #[inline(always)]
    fn of_tile(tile: &Tile, len: usize) -> &[Self] {
        &tile.work.confidence[..len]
    }
    const PASS: Self = 1.0;
}

impl Measured for u8 {
    #[inline(always)]
    fn of_tile(tile: &Tile, len: usize) -> &[Self] {
        &tile.passes[..len]
    }
    const PASS: Self = 1;
}

/// Logits at full size, or to be upsampled.
pub(crate) enum Pixels<'p, 'a> {
    Full(&'p Logits<'a>),
    Upsampled(&'p Upsampled),
}

impl<'p, 'a> Pixels<'p, 'a> {
    /// The pixels of logits; what upsampling needs is prepared in `plan`.
    pub fn new(
        logits: &'p Logits<'a>,
        upsampling: Option<Upsampling>,
        measure: &Measure,
        isa: Isa,
        plan: &'p mut Upsampled,
    ) -> Result<Self> {
        Ok(match upsampling {
            None => Self::Full(logits),
            Some(upsampling) => {
                plan.prepare(logits, upsampling, measure, isa)?;
                Self::Upsampled(plan)
            }
        })
    }

    /// Measure and label the pixels of `rows`, into buffers that hold just those rows.
    pub fn measure<V: Measured, L: LabelOut>(
        &self,
        measure: &Measure,
        rows: Range<usize>,
        isa: Isa,
        values: &mut [V],
        labels: &mut [L],
    ) {
        if values.is_empty() {
            return;
        }
        let width = values.len() / rows.len();
        match self {
            Self::Full(logits) => with_dense!(logits, dense => {
                share_rows(rows, width, values, labels, |first_row, values, labels| {
                    with_scratch(|scratch| {
                        let (dense, start) = (&dense, first_row * width);
                        isa.run(DensePixels { dense, measure, start, values, labels, scratch });
                    });
                });
            }),
            Self::Upsampled(plan) => share_rows(rows, width, values, labels, |first_row, values, labels| {
                with_scratch(|scratch| {
                    isa.run(UpsampledPixels { plan, measure, first_row, values, labels, scratch });
                });
            }),
        }
    }
}

/// Call `one(first row, values, labels)` on all rows at once, or on pieces shared among the pool's threads.
fn share_rows<V: Send, L: Send>(
    rows: Range<usize>,
    width: usize,
    values: &mut [V],
    labels: &mut [L],
    one: impl Fn(usize, &mut [V], &mut [L]) + Sync,
) {
    if !is_parallel() {
        return one(rows.start, values, labels);
    }
    let per_task = rows_per_task(rows.len());
    values
        .par_chunks_mut(per_task * width)
        .zip(labels.par_chunks_mut(per_task * width))
        .enumerate()
        .for_each(|(task, (values, labels))| one(rows.start + task * per_task, values, labels));
}

/// Consecutive pixels of logits at full size.
struct DensePixels<'p, 'a, F: Format, V, L> {
    dense: &'p Dense<'a, F>,
    measure: &'p Measure,
    start: usize,
    values: &'p mut [V],
    labels: &'p mut [L],
    scratch: &'p mut Scratch,
}

impl<F: Format, V: Measured, L: LabelOut> Kernel for DensePixels<'_, '_, F, V, L> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let tile_len = self.dense.tile_len(self.values.len());
        let tile = &mut *self.scratch.tile;
        let pieces = self.values.chunks_mut(tile_len).zip(self.labels.chunks_mut(tile_len));
        for (index, (values, labels)) in pieces.enumerate() {
            let len = values.len();
            tile.measure(&self.dense.tile(self.start + index * tile_len, len), len, self.measure);
            values.copy_from_slice(V::of_tile(tile, len));
            labels.iter_mut().zip(&tile.label).for_each(|(to, class)| *to = L::from_class(*class));
        }
    }
}

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
        }
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
pub(crate) fn top1(sum: &[f32], confidence: &mut [f32]) {
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
pub(crate) fn add<const N: usize>(planes: [&[f32]; N], before: &[f32], largest: &[f32], sum: &mut [f32]) {
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use ndarray::{Array3, array};

    fn map(logits: &Array3<f32>, kind: ConfidenceKind) -> ConfidenceMap {
        confidence_map(&logits.view().into(), kind, None, Isa::best()).unwrap()
    }

    #[test]
    fn two_classes_by_hand() {
        let logits = array![[[3f32.ln(), 0.0]], [[0.0, 0.0]]];
        let top1 = map(&logits, ConfidenceKind::Top1);
        assert_eq!(top1.labels, array![[0, 0]]);
        assert!((top1.confidence[[0, 0]] - 0.75).abs() < 1e-6);
        assert_eq!(top1.confidence[[0, 1]], 0.5);
        assert!((map(&logits, ConfidenceKind::Margin).confidence[[0, 0]] - 0.5).abs() < 1e-6);
        assert!(map(&logits, ConfidenceKind::Entropy).confidence[[0, 1]].abs() < 1e-6);
    }

    #[test]
    fn where_softmax_is_undefined_the_confidence_is_nan() {
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        let logits =
            array![[[nan, 1.0, -inf, -inf, 5.0]], [[1.0, inf, -inf, 1.0, -inf]], [[0.0, 0.0, -inf, -inf, nan]]];
        for kind in [ConfidenceKind::Top1, ConfidenceKind::Margin, ConfidenceKind::Entropy] {
            let map = map(&logits, kind);
            assert_eq!(map.confidence.mapv(f32::is_nan), array![[true, true, true, false, true]]);
            assert_eq!(map.confidence[[0, 3]], 1.0);
            assert_eq!(map.labels, array![[1, 1, 0, 1, 0]]);
        }
    }
}
