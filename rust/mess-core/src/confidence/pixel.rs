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
//!    platform's math library, the instruction set or the thread count; but for the entropy's two logarithms, the
//!    platform's in float64, which show where the rounding to float32 is that close. Against the exact value: within (C + 20) 2^-24
//!    for top-1 and margin (2.5e-6 at 21 classes, 6.1e-5 at 1000), the roundings of the sum S, and four times that for
//!    entropy, which has two sums.
//! 6. Empty pictures (H or W = 0) give empty maps.
//!
//! The arithmetic of a tile of pixels is in [`super::tile`].

use std::ops::Range;

use ndarray::{Array2, ArrayViewMut2};
use rayon::prelude::*;

use super::band::UpsampledPixels;
use super::logits::{Logits, Source, TILE, with_dense};
use super::scratch::with_scratch;
use super::tile::Tile;
use super::upsample::{Upsampled, Upsampling};
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
    let labels = labels_of(logits, labels, size)?;
    let measure = Measure::Confidence(kind);
    let pixels = Pixels::new(logits, upsampling, &measure, isa, plan)?;
    pixels.measure(&measure, 0..size.0, isa, confidence, labels);
    Ok(())
}

/// Label map of logits (C, H, W), upsampled first when `upsampling` is given: the labels of [`confidence_map`].
///
/// `labels` is (H, W) in C order.
///
/// # Errors
/// As [`confidence_map_into`].
pub fn label_map_into<L: LabelOut>(
    logits: &Logits<'_>,
    upsampling: Option<Upsampling>,
    labels: ArrayViewMut2<'_, L>,
    plan: &mut Upsampled,
    isa: Isa,
) -> Result<()> {
    let size = output_size(logits, upsampling)?;
    let labels = labels_of(logits, labels, size)?;
    let pixels = Pixels::new(logits, upsampling, &Measure::Label, isa, plan)?;
    pixels.measure(&Measure::Label, 0..size.0, isa, &mut vec![(); labels.len()], labels);
    Ok(())
}

/// A label map to write into, in C order, if it has room for all classes.
fn labels_of<'l, L: LabelOut>(
    logits: &Logits<'_>,
    labels: ArrayViewMut2<'l, L>,
    size: (usize, usize),
) -> Result<&'l mut [L]> {
    let num_classes = logits.dim().0;
    if num_classes > L::MAX_CLASSES {
        return Err(Error::value("out", format!("labels of more than {} classes", L::MAX_CLASSES), num_classes));
    }
    super::in_c_order("out", labels, size)
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
    /// Nothing.
    Label,
}

/// A value that a measure writes: a confidence (float32), a decision (uint8) or nothing.
pub(crate) trait Measured: Copy + PartialEq + Send + Sync {
    /// The measured values of the first `len` pixels of the tile.
    fn of_tile(tile: &Tile, len: usize) -> &[Self];
    /// Whether all that is wanted of a pixel is its label and how it is decided.
    const DECIDES: bool;
    /// What a pixel decided to pass gets.
    const PASS: Self;
    /// What a pixel decided to fail gets.
    const FAIL: Self;
}

impl Measured for f32 {
    #[inline(always)]
    fn of_tile(tile: &Tile, len: usize) -> &[Self] {
        &tile.work.confidence[..len]
    }
    const DECIDES: bool = false;
    const PASS: Self = 1.0;
    const FAIL: Self = 0.0;
}

impl Measured for u8 {
    #[inline(always)]
    fn of_tile(tile: &Tile, len: usize) -> &[Self] {
        &tile.passes[..len]
    }
    const DECIDES: bool = true;
    const PASS: Self = 1;
    const FAIL: Self = 0;
}

impl Measured for () {
    #[inline(always)]
    fn of_tile(_: &Tile, len: usize) -> &[Self] {
        &[(); TILE][..len]
    }
    const DECIDES: bool = true;
    const PASS: Self = ();
    const FAIL: Self = ();
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
            Self::Full(logits) => share_rows(rows, width, values, labels, |first_row, values, labels| {
                with_scratch(|scratch| {
                    let (tile, mut start) = (&mut *scratch.tile, first_row * width);
                    let tile_len = with_dense!(logits, dense => dense.tile_len(values.len()));
                    for (values, labels) in values.chunks_mut(tile_len).zip(labels.chunks_mut(tile_len)) {
                        let len = values.len();
                        measure_tile(logits, start, len, measure, tile, isa);
                        isa.run(WriteTile { tile: &*tile, values, labels });
                        start += len;
                    }
                });
            }),
            Self::Upsampled(plan) => share_rows(rows, width, values, labels, |first_row, values, labels| {
                with_scratch(|scratch| {
                    isa.run(UpsampledPixels { plan, measure, first_row, values, labels, scratch, isa });
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

/// Measure and label the `len` pixels of logits at full size from pixel `start` on.
///
/// This and its like in [`super::band`] are most of the crate's code, so they are compiled once: not inlined, and not
/// for every kind of map (a release build on two cores: 2.2 minutes instead of 9.4).
#[inline(never)]
fn measure_tile(logits: &Logits<'_>, start: usize, len: usize, measure: &Measure, tile: &mut Tile, isa: Isa) {
    with_dense!(logits, dense => isa.run(MeasureTile { source: &dense.tile(start, len), len, measure, tile }));
}

/// Measure and label one tile.
pub(crate) struct MeasureTile<'p, S> {
    pub source: &'p S,
    pub len: usize,
    pub measure: &'p Measure,
    pub tile: &'p mut Tile,
}

impl<S: Source> Kernel for MeasureTile<'_, S> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        self.tile.measure(self.source, self.len, self.measure);
    }
}

/// Write a tile into the maps.
struct WriteTile<'p, V, L> {
    tile: &'p Tile,
    values: &'p mut [V],
    labels: &'p mut [L],
}

impl<V: Measured, L: LabelOut> Kernel for WriteTile<'_, V, L> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        self.values.copy_from_slice(V::of_tile(self.tile, self.values.len()));
        self.labels.iter_mut().zip(&self.tile.label).for_each(|(to, class)| *to = L::from_class(*class));
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
    fn labels_too_narrow_for_the_classes_are_refused() {
        let mut plan = Upsampled::default();
        for (num_classes, is_fine) in [(256, true), (257, false)] {
            let mut logits = Array3::<f32>::zeros((num_classes, 1, 2));
            logits[[num_classes - 1, 0, 1]] = 1.0;
            let mut labels = Array2::<u8>::zeros((1, 2));
            let said = label_map_into(&logits.view().into(), None, labels.view_mut(), &mut plan, Isa::best());
            assert_eq!(said.is_ok(), is_fine);
            assert_eq!(labels, if is_fine { array![[0, 255]] } else { array![[0, 0]] });
        }
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
