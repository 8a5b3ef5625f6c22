//! Image confidence: the share of pixels whose refined confidence reaches the pixel threshold.
//!
//! Contract
//! 1. Both comparisons of the policy are inclusive: a pixel counts when refined confidence >= pixel threshold; an image
//!    leaves when image confidence >= image threshold. Pixel thresholds are float32 here, in [0, 1]; an image threshold is
//!    float64, and one above 1 lets no image leave.
//! 2. The result is (number of pixels that count) / (H W) in float64, so it is exact for every picture below 2^53 pixels.
//! 3. A NaN confidence is below every threshold. Empty pictures and shapes that differ are errors.
//!
//! Plain algorithm: confidence map, refine (median), compare, count. What is done instead, and why it is equal:
//! - The median over an odd window of w^2 values is >= t exactly when at least (w^2 + 1) / 2 of them are >= t. So only the
//!   binary map c >= t is needed, and [`super::decide`] finds it without computing c. Its window counts come from running
//!   sums, at a cost that does not depend on the window's height.
//! - Rows are computed in strips, each stage as far as the one before allows: edges need labels of two rows around, the
//!   mask edges of s rows, the window 2 s rows. Whether an image leaves is certain as soon as enough rows are final, or so
//!   few are left that they cannot change it; the rest is not looked at.

use std::ops::Range;

use ndarray::ArrayView2;
use rayon::prelude::*;

use super::edges::{Label, check_labels, label_edge_rows};
use super::logits::Logits;
use super::mask::{Morphology, morphology_rows};
use super::pixel::{ConfidenceKind, LabelOut, Measure, Pixels, output_size};
use super::rows::{Count, PIECE, ROWS, add_row, drop_row, sliding, sliding_room};
use super::scratch::room;
use super::upsample::{Upsampled, Upsampling};
use super::{Policy, check_output_stride, in_standard_layout, is_parallel, non_empty, num_pixels, rows_per_task};
use crate::error::{Error, Result};
use crate::isa::{Isa, Kernel};

/// Buffers of one picture, kept from call to call so that nothing is allocated once they have grown.
#[derive(Default)]
pub struct Workspace {
    pub(crate) plan: Upsampled,
    narrow_labels: Vec<u8>,
    wide_labels: Vec<i32>,
    maps: Maps,
}

impl Workspace {
    /// What upsampling keeps.
    pub fn plan(&mut self) -> &mut Upsampled {
        &mut self.plan
    }

    /// Room for a picture, or an error where memory is refused: a failed allocation would end the process.
    fn reserve(&mut self, pixels: usize, num_classes: usize) -> Result<()> {
        if num_classes <= u8::MAX_CLASSES {
            grow("size", &mut self.narrow_labels, pixels)?;
        } else {
            grow("size", &mut self.wide_labels, pixels)?;
        }
        self.maps.reserve("size", pixels)
    }
}

impl Maps {
    /// The same for what becomes of the labels; `confidence` aside, which not all need.
    fn reserve(&mut self, argument: &'static str, pixels: usize) -> Result<()> {
        grow(argument, &mut self.passes, pixels)?;
        grow(argument, &mut self.edges, pixels)?;
        grow(argument, &mut self.mask, pixels)
    }
}

/// Room for `pixels` in all, or an error.
fn grow<T>(argument: &'static str, buffer: &mut Vec<T>, pixels: usize) -> Result<()> {
    let refused = |_| Error::value(argument, "maps that fit into memory", format!("{pixels} pixels"));
    buffer.try_reserve(pixels.saturating_sub(buffer.len())).map_err(refused)
}

impl std::fmt::Debug for Workspace {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Workspace").field("pixels", &self.maps.passes.len()).finish_non_exhaustive()
    }
}

/// What becomes of the labels.
#[derive(Default)]
struct Maps {
    confidence: Vec<f32>,
    passes: Vec<u8>,
    edges: Vec<u8>,
    mask: Vec<u8>,
}

/// Image confidence of logits (C, H, W) at each of `pixel_thresholds`, upsampled first when `upsampling` is given.
///
/// # Errors
/// [`Error::Value`] for an empty picture, no class, a threshold outside [0, 1], or an output stride outside
/// 1..=[`super::MAX_OUTPUT_STRIDE`].
pub fn image_confidence(
    logits: &Logits<'_>,
    pixel_thresholds: &[f32],
    policy: &Policy,
    upsampling: Option<Upsampling>,
    workspace: &mut Workspace,
    isa: Isa,
) -> Result<Vec<f64>> {
    let size = checked(logits, pixel_thresholds, policy, upsampling)?;
    if let ([threshold], ConfidenceKind::Top1) = (pixel_thresholds, policy.confidence) {
        let counted = count(logits, *threshold, policy, upsampling, size, None, workspace, isa)?;
        return Ok(vec![counted as f64 / (size.0 * size.1) as f64]);
    }
    let measure = Measure::Confidence(policy.confidence);
    workspace.reserve(size.0 * size.1, logits.dim().0)?;
    let Workspace { plan, narrow_labels, wide_labels, maps } = workspace;
    let pixels = Pixels::new(logits, upsampling, &measure, isa, plan)?;
    let len = size.0 * size.1;
    let mut confidence = std::mem::take(&mut maps.confidence);
    grow("size", &mut confidence, len)?;
    let values = room(&mut confidence, len);
    let counts = if logits.dim().0 <= u8::MAX_CLASSES {
        let labels = room(narrow_labels, len);
        pixels.measure(&measure, 0..size.0, isa, values, labels);
        count_of_map(values, labels, size, pixel_thresholds, policy, maps, isa)
    } else {
        let labels = room(wide_labels, len);
        pixels.measure(&measure, 0..size.0, isa, values, labels);
        count_of_map(values, labels, size, pixel_thresholds, policy, maps, isa)
    };
    maps.confidence = confidence;
    Ok(counts.into_iter().map(|count| count as f64 / len as f64).collect())
}

/// Whether the image confidence of logits (C, H, W) is at least `image_threshold`; stops as soon as that is certain.
///
/// # Errors
/// As [`image_confidence`], and for an image threshold that is NaN.
#[allow(clippy::too_many_arguments)]
pub fn should_exit(
    logits: &Logits<'_>,
    pixel_threshold: f32,
    image_threshold: f64,
    policy: &Policy,
    upsampling: Option<Upsampling>,
    workspace: &mut Workspace,
    isa: Isa,
) -> Result<bool> {
    let size = checked(logits, &[pixel_threshold], policy, upsampling)?;
    if image_threshold.is_nan() {
        return Err(Error::value("image_threshold", "a number", image_threshold));
    }
    match pixels_needed(image_threshold, size.0 * size.1) {
        None => Ok(false),
        Some(0) => Ok(true),
        Some(needed) => {
            let counted = count(logits, pixel_threshold, policy, upsampling, size, Some(needed), workspace, isa)?;
            Ok(counted >= needed)
        }
    }
}

/// The least count whose share of `pixels` is at least `image_threshold`; none if all of them are too few.
fn pixels_needed(image_threshold: f64, pixels: usize) -> Option<usize> {
    let enough = |count: usize| count as f64 / pixels as f64 >= image_threshold;
    if !enough(pixels) {
        return None;
    }
    // the product is within one of the answer
    let guess = (image_threshold * pixels as f64).ceil().clamp(0.0, pixels as f64) as usize;
    (guess.saturating_sub(2)..=pixels).find(|count| enough(*count))
}

/// (H, W) of the policy's maps.
fn checked(
    logits: &Logits<'_>,
    pixel_thresholds: &[f32],
    policy: &Policy,
    upsampling: Option<Upsampling>,
) -> Result<(usize, usize)> {
    let (height, width) = output_size(logits, upsampling)?;
    if height == 0 || width == 0 {
        return Err(Error::value("logits", "at least one pixel", format!("shape {:?}", logits.dim())));
    }
    if height.checked_mul(width).is_none_or(|pixels| pixels > super::MAX_PIXELS) {
        return Err(Error::value("size", "a picture that fits into memory", format!("({height}, {width})")));
    }
    check_output_stride(policy.output_stride)?;
    pixel_thresholds.iter().try_for_each(|threshold| check_threshold(*threshold))?;
    Ok((height, width))
}

fn check_threshold(threshold: f32) -> Result<()> {
    if !(0.0..=1.0).contains(&threshold) {
        return Err(Error::value("pixel_threshold", "a number in [0, 1]", threshold));
    }
    Ok(())
}

/// Rows of a strip, when strips are worked on by one thread.
const STRIP: usize = 16;

/// Number of pixels that count; with `needed`, any number on the same side of it.
#[allow(clippy::too_many_arguments)]
fn count(
    logits: &Logits<'_>,
    threshold: f32,
    policy: &Policy,
    upsampling: Option<Upsampling>,
    size: (usize, usize),
    needed: Option<usize>,
    workspace: &mut Workspace,
    isa: Isa,
) -> Result<usize> {
    let measure = match policy.confidence {
        ConfidenceKind::Top1 => Measure::Top1AtLeast(threshold),
        kind => Measure::Confidence(kind),
    };
    workspace.reserve(size.0 * size.1, logits.dim().0)?;
    let Workspace { plan, narrow_labels, wide_labels, maps } = workspace;
    let pixels = Pixels::new(logits, upsampling, &measure, isa, plan)?;
    let strips = Strips { pixels: &pixels, measure: &measure, threshold, policy, size, needed, isa };
    Ok(if logits.dim().0 <= u8::MAX_CLASSES {
        strips.count(room(narrow_labels, size.0 * size.1), maps)
    } else {
        strips.count(room(wide_labels, size.0 * size.1), maps)
    })
}

/// A picture to be decided strip by strip.
struct Strips<'p, 'a> {
    pixels: &'p Pixels<'p, 'a>,
    measure: &'p Measure,
    threshold: f32,
    policy: &'p Policy,
    size: (usize, usize),
    needed: Option<usize>,
    isa: Isa,
}

impl Strips<'_, '_> {
    fn count<L: LabelOut + Label>(&self, labels: &mut [L], maps: &mut Maps) -> usize {
        let (size, isa, Policy { output_stride, edges: edge_kind, .. }) = (self.size, self.isa, *self.policy);
        let (height, width) = size;
        let Maps { confidence, passes, edges, mask } = maps;
        let (passes, edges) = (room(passes, height * width), room(edges, height * width));
        let mask = room(mask, height * width);
        let strip = match (self.needed, is_parallel()) {
            (None, true) => height,
            (_, true) => 4 * STRIP * rayon::current_num_threads(),
            (Some(_), false) => STRIP,
            (None, false) => 4 * STRIP,
        };
        let at = |rows: Range<usize>| rows.start * width..rows.end * width;
        // how many rows of each stage are done
        let (mut labelled, mut edged, mut masked, mut final_rows) = (0, 0, 0, 0);
        let mut counted = 0;
        while final_rows < height {
            let rows = labelled..(labelled + strip).min(height);
            let (passes_now, labels_now) = (&mut passes[at(rows.clone())], &mut labels[at(rows.clone())]);
            if matches!(self.measure, Measure::Top1AtLeast(_)) {
                self.pixels.measure(self.measure, rows.clone(), isa, passes_now, labels_now);
            } else {
                let values = room(confidence, passes_now.len());
                self.pixels.measure(self.measure, rows.clone(), isa, values, labels_now);
                isa.run(AtLeast { confidence: values, threshold: self.threshold, passes: passes_now });
            }
            labelled = rows.end;
            let reached = |done: usize, reach: usize| if done == height { height } else { done.saturating_sub(reach) };
            let mut ready = labelled;
            if self.policy.refine {
                let rows = edged..reached(labelled, 2).max(edged);
                label_edge_rows(labels, size, edge_kind, rows.clone(), &mut edges[at(rows.clone())], isa);
                edged = rows.end;
                let rows = masked..reached(edged, output_stride).max(masked);
                let now = &mut mask[at(rows.clone())];
                morphology_rows(edges, size, output_stride, Morphology::Dilate, rows.clone(), now, isa);
                masked = rows.end;
                ready = masked.min(reached(labelled, 2 * output_stride)).max(final_rows);
            }
            let mask = self.policy.refine.then_some(&*mask);
            counted += count_rows(passes, mask, size, 2 * output_stride, final_rows..ready, isa);
            final_rows = ready;
            let open = (height - final_rows) * width;
            if self.needed.is_some_and(|needed| counted >= needed || counted + open < needed) {
                return counted;
            }
        }
        counted
    }
}

/// Image confidence of a confidence map (H, W) and label map (H, W) at each of `pixel_thresholds`.
///
/// `policy.confidence` is not used: the map is what it is.
///
/// # Errors
/// [`Error::Value`] as in the contract, and for a threshold outside [0, 1], an output stride outside 1..=256, or a label
/// outside 0..65536.
pub fn image_confidence_of_map<L: Label>(
    confidence: ArrayView2<'_, f32>,
    labels: ArrayView2<'_, L>,
    pixel_thresholds: &[f32],
    policy: &Policy,
    workspace: &mut Workspace,
    isa: Isa,
) -> Result<Vec<f64>> {
    let size = non_empty("confidence", confidence)?;
    if labels.dim() != size {
        return Err(Error::value("labels", format!("shape {size:?}"), format!("{:?}", labels.dim())));
    }
    check_output_stride(policy.output_stride)?;
    pixel_thresholds.iter().try_for_each(|threshold| check_threshold(*threshold))?;
    workspace.maps.reserve("confidence", num_pixels("confidence", size)?)?;
    check_labels(labels)?;
    let (confidence, labels) = (in_standard_layout("confidence", confidence)?, in_standard_layout("labels", labels)?);
    let (confidence, labels) = (super::slice_of(&confidence), super::slice_of(&labels));
    let counts = count_of_map(confidence, labels, size, pixel_thresholds, policy, &mut workspace.maps, isa);
    Ok(counts.into_iter().map(|count| count as f64 / confidence.len() as f64).collect())
}

fn count_of_map<L: Label>(
    confidence: &[f32],
    labels: &[L],
    size: (usize, usize),
    pixel_thresholds: &[f32],
    policy: &Policy,
    maps: &mut Maps,
    isa: Isa,
) -> Vec<usize> {
    let Maps { passes, edges, mask, .. } = maps;
    let (passes, edges) = (room(passes, confidence.len()), room(edges, confidence.len()));
    let mask = room(mask, confidence.len());
    if policy.refine {
        label_edge_rows(labels, size, policy.edges, 0..size.0, edges, isa);
        morphology_rows(edges, size, policy.output_stride, Morphology::Dilate, 0..size.0, mask, isa);
    }
    let mask = policy.refine.then_some(&*mask);
    let at_each = pixel_thresholds.iter().map(|&threshold| {
        isa.run(AtLeast { confidence, threshold, passes: &mut *passes });
        count_rows(passes, mask, size, 2 * policy.output_stride, 0..size.0, isa)
    });
    at_each.collect()
}

/// Share of the pixels of a map (H, W) that are >= `threshold`.
///
/// # Errors
/// [`Error::Value`] for an empty picture or a threshold outside [0, 1].
pub fn fraction_confident(confidence: ArrayView2<'_, f32>, threshold: f32) -> Result<f64> {
    non_empty("confidence", confidence)?;
    check_threshold(threshold)?;
    Ok(confidence.iter().filter(|c| **c >= threshold).count() as f64 / confidence.len() as f64)
}

/// The binary map confidence >= threshold.
struct AtLeast<'p> {
    confidence: &'p [f32],
    threshold: f32,
    passes: &'p mut [u8],
}

impl Kernel for AtLeast<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let pairs = self.passes.iter_mut().zip(self.confidence);
        pairs.for_each(|(pass, confidence)| *pass = u8::from(*confidence >= self.threshold));
    }
}

/// Pixels of `rows` that count: where masked, those whose window (`radius` around, border replicated) mostly passes;
/// elsewhere those that pass.
fn count_rows(
    passes: &[u8],
    mask: Option<&[u8]>,
    size: (usize, usize),
    radius: usize,
    rows: Range<usize>,
    isa: Isa,
) -> usize {
    if rows.is_empty() {
        return 0;
    }
    let one = |rows: Range<usize>| {
        super::scratch::with_scratch(|scratch| match mask {
            None => passes[rows.start * size.1..rows.end * size.1].iter().map(|pass| usize::from(*pass)).sum(),
            Some(mask) if 2 * radius < 255 => {
                isa.run(CountRefined { passes, mask, size, radius, rows, buffers: &mut scratch.narrow_counts })
            }
            Some(mask) => isa.run(CountRefined { passes, mask, size, radius, rows, buffers: &mut scratch.wide_counts }),
        })
    };
    if !is_parallel() {
        return one(rows);
    }
    let per_task = rows_per_task(rows.len());
    let tasks = (rows.start..rows.end).into_par_iter().step_by(per_task);
    tasks.map(|start| one(start..(start + per_task).min(rows.end))).sum()
}

/// Column counts of the window, such lines with replicated ends, their window sums.
#[derive(Default)]
pub(crate) struct CountBuffers<T> {
    columns: Vec<T>,
    lines: Vec<T>,
    spare: Vec<T>,
    windows: Vec<T>,
}

struct CountRefined<'p, T> {
    passes: &'p [u8],
    mask: &'p [u8],
    size: (usize, usize),
    radius: usize,
    rows: Range<usize>,
    buffers: &'p mut CountBuffers<T>,
}

impl<T: Count + TryFrom<usize>> Kernel for CountRefined<'_, T> {
    type Output = usize;
    #[inline(always)]
    fn run(self) -> usize {
        let Self { passes, mask, size: (height, width), radius, rows, buffers } = self;
        let side = 2 * radius + 1;
        let Ok(majority) = T::try_from((side * side).div_ceil(2)) else { return 0 };
        let row = |row: usize| &passes[row * width..(row + 1) * width];
        let clamped = |r: usize, up: usize| (r + up).saturating_sub(radius).min(height - 1);
        let CountBuffers { columns, lines, spare, windows } = buffers;
        let stride = (width + 2 * radius).next_multiple_of(PIECE);
        let columns = room(columns, width);
        let lines = room(lines, sliding_room(ROWS * stride, side));
        let spare = room(spare, sliding_room(ROWS * stride, side));
        let windows = room(windows, ROWS * stride);
        columns.fill(T::default());
        for up in 0..2 * radius {
            add_row(columns, row(clamped(rows.start, up)));
        }
        let mut total = 0;
        for start in rows.clone().step_by(ROWS) {
            let some = start..(start + ROWS).min(rows.end);
            for (r, line) in some.clone().zip(lines.chunks_exact_mut(stride)) {
                add_row(columns, row(clamped(r, 2 * radius)));
                line[..radius].fill(columns[0]);
                line[radius..radius + width].copy_from_slice(columns);
                line[radius + width..].fill(columns[width - 1]);
                drop_row(columns, row(clamped(r, 0)));
            }
            let masked = &mask[some.start * width..some.end * width];
            if masked.iter().fold(0, |any, bit| any | bit) == 0 {
                total +=
                    passes[some.start * width..some.end * width].iter().map(|pass| usize::from(*pass)).sum::<usize>();
                continue;
            }
            let windows = &mut windows[..some.len() * stride];
            sliding(lines, spare, windows, side, T::plus);
            for (r, windows) in some.zip(windows.chunks_exact(stride)) {
                let masked = &mask[r * width..(r + 1) * width];
                let mut counted = 0u32;
                for ((bit, window), pass) in masked.iter().zip(windows).zip(row(r)) {
                    counted += u32::from(if *bit != 0 { u8::from(*window >= majority) } else { *pass });
                }
                total += counted as usize;
            }
        }
        total
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::confidence::{EdgeKind, boundary_mask, refine_confidence};
    use ndarray::Array2;
    use proptest::prelude::*;

    proptest! {
        /// The counting path equals the definition: refine, compare, count.
        #[test]
        fn counting_equals_the_float_median(
            height in 1usize..9,
            width in 1usize..9,
            output_stride in 1usize..5,
            tenths in prop::collection::vec(0u8..=10, 64),
            classes in prop::collection::vec(0u8..3, 64),
            labels_edges in any::<bool>(),
        ) {
            let confidence = Array2::from_shape_fn((height, width), |(r, c)| f32::from(tenths[8 * r + c]) / 10.0);
            let labels = Array2::from_shape_fn((height, width), |(r, c)| classes[8 * r + c]);
            let edges = if labels_edges { EdgeKind::Labels } else { EdgeKind::Canny };
            let policy = Policy { output_stride, edges, ..Policy::default() };
            let thresholds: Vec<f32> = (0..=10u8).map(|t| f32::from(t) / 10.0).collect();
            let fast = image_confidence_of_map(confidence.view(), labels.view(), &thresholds, &policy, &mut Workspace::default(), Isa::best()).unwrap();
            let mask = boundary_mask(labels.view(), output_stride, edges, Isa::best()).unwrap();
            let refined = refine_confidence(confidence.view(), mask.view(), 4 * output_stride + 1, Isa::best()).unwrap();
            for (fast, threshold) in fast.iter().zip(&thresholds) {
                prop_assert_eq!(*fast, fraction_confident(refined.view(), *threshold).unwrap());
            }
        }
    }
}
