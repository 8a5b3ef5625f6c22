//! Image confidence of one prediction: the formula of the crate's front page, as one function.
//!
//! Reference: Kouris, Venieris, Laskaridis, Lane, "Multi-Exit Semantic Segmentation Networks", ECCV 2022, section on
//! the input-dependent exit policy.
//!
//! Everything here runs on the calling thread, unless that is a thread of a rayon pool: then rows are shared among the
//! pool's threads. The result is the same.

mod band;
mod blocks;
mod cells;
mod decide;
pub mod edges;
mod exp;
pub mod image;
pub mod logits;
pub mod mask;
pub mod pixel;
pub mod refine;
mod rows;
mod scratch;
mod tile;
pub mod upsample;

use std::ops::Range;

use ndarray::{Array2, ArrayView2, ArrayViewMut2, CowArray, Ix2};
use rayon::prelude::*;

pub use edges::{CannySettings, EdgeKind, Label, canny, canny_into, label_edges, label_edges_into};
pub use image::{Workspace, fraction_confident, image_confidence, image_confidence_of_map, should_exit};
pub use logits::Logits;
pub use mask::{Morphology, boundary_mask, boundary_mask_into, dilate, erode, morphology_into};
pub use pixel::{ConfidenceKind, ConfidenceMap, LabelOut, confidence_map, confidence_map_into, label_map_into};
pub use refine::{refine_confidence, refine_confidence_into};
pub use upsample::{Upsampled, Upsampling};

use crate::error::{Error, Result};

/// How an image confidence is computed; the pixel thresholds are given beside it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Policy {
    /// Input pixels per feature pixel at the exit: sets the mask's kernel `s` and the median's window `4 s + 1`.
    pub output_stride: usize,
    /// Replace confidences near label boundaries by a windowed median; otherwise use them as they are.
    pub refine: bool,
    /// What counts as a label boundary.
    pub edges: EdgeKind,
    /// Per-pixel confidence measure.
    pub confidence: ConfidenceKind,
}

impl Default for Policy {
    fn default() -> Self {
        Self { output_stride: 8, refine: true, edges: EdgeKind::Canny, confidence: ConfidenceKind::Top1 }
    }
}

/// Largest output stride accepted; the window is then 1025 pixels wide.
pub const MAX_OUTPUT_STRIDE: usize = 256;

/// Whether to share work among threads: only inside a rayon pool that the caller chose (`pool.install`). Outside, work is
/// done on the calling thread, and rayon's global pool is never started.
pub(crate) fn is_parallel() -> bool {
    rayon::current_thread_index().is_some()
}

/// Rows of one task when `num_rows` are shared among the pool's threads: two tasks a thread even out what differs.
pub(crate) fn rows_per_task(num_rows: usize) -> usize {
    num_rows.div_ceil(2 * rayon::current_num_threads()).max(1)
}

/// Call `one(rows, buffer of those rows)` on all rows at once, or on pieces shared among the pool's threads.
pub(crate) fn share_map_rows<T: Send>(
    rows: Range<usize>,
    width: usize,
    out: &mut [T],
    one: impl Fn(Range<usize>, &mut [T]) + Sync,
) {
    if !is_parallel() {
        return one(rows, out);
    }
    let per_task = rows_per_task(rows.len());
    out.par_chunks_mut(per_task * width).enumerate().for_each(|(task, out)| {
        let start = rows.start + task * per_task;
        one(start..(start + per_task).min(rows.end), out);
    });
}

/// Most pixels of a picture.
pub(crate) const MAX_PIXELS: usize = 1 << 40;

/// Of a picture of `size`, which may be no larger.
pub(crate) fn num_pixels(argument: &'static str, size: (usize, usize)) -> Result<usize> {
    let count = size.0.checked_mul(size.1).filter(|count| *count <= MAX_PIXELS);
    count.ok_or_else(|| Error::value(argument, "maps that fit into memory", format!("{size:?} pixels")))
}

/// A map in C order: itself or a copy, or an error where memory is refused (a view may repeat one number).
pub(crate) fn in_standard_layout<'a, T: Copy>(
    argument: &'static str,
    map: ArrayView2<'a, T>,
) -> Result<CowArray<'a, T, Ix2>> {
    if map.is_standard_layout() {
        return Ok(map.into());
    }
    let size = map.dim();
    let refused = || Error::value(argument, "maps that fit into memory", format!("{size:?} pixels"));
    let mut values = Vec::new();
    values.try_reserve_exact(num_pixels(argument, size)?).map_err(|_| refused())?;
    values.extend(map.iter().copied());
    Ok(Array2::from_shape_vec(size, values).map_err(|_| refused())?.into())
}

/// Zeros of `size`, or an error where memory is refused: a failed allocation would end the process.
pub(crate) fn zeros<T: Clone + Default>(size: (usize, usize)) -> Result<Array2<T>> {
    let refused = || Error::value("size", "maps that fit into memory", format!("{size:?} pixels"));
    let count = num_pixels("size", size)?;
    let mut values = Vec::new();
    values.try_reserve_exact(count).map_err(|_| refused())?;
    values.resize(count, T::default());
    Array2::from_shape_vec(size, values).map_err(|_| refused())
}

/// The elements of a caller's buffer of `size`, which must be in C order.
pub(crate) fn in_c_order<'a, T>(
    argument: &'static str,
    buffer: ArrayViewMut2<'a, T>,
    size: (usize, usize),
) -> Result<&'a mut [T]> {
    let (got, strides) = (buffer.dim(), buffer.strides().to_vec());
    if got != size {
        return Err(Error::value(argument, format!("shape {size:?}"), format!("{got:?}")));
    }
    buffer
        .into_slice()
        .ok_or_else(|| Error::value(argument, "a C-contiguous array", format!("strides {strides:?} (in elements)")))
}

/// The elements of an array in standard layout.
pub(crate) fn slice_of<'a, T>(array: &'a CowArray<'_, T, Ix2>) -> &'a [T] {
    let slice = array.as_slice();
    debug_assert!(slice.is_some(), "standard layout");
    slice.unwrap_or(&[])
}

/// `(height, width)` of a map, refused when it has no pixel.
pub(crate) fn non_empty<T>(argument: &'static str, map: ArrayView2<'_, T>) -> Result<(usize, usize)> {
    let (height, width) = map.dim();
    if height == 0 || width == 0 {
        return Err(Error::value(argument, "at least one pixel", format!("shape ({height}, {width})")));
    }
    Ok((height, width))
}

pub(crate) fn check_output_stride(output_stride: usize) -> Result<()> {
    if !(1..=MAX_OUTPUT_STRIDE).contains(&output_stride) {
        return Err(Error::value("output_stride", format!("1..={MAX_OUTPUT_STRIDE} pixels"), output_stride));
    }
    Ok(())
}
