//! Image confidence of one prediction: the formula of the crate's front page, as one function.
//!
//! Reference: Kouris, Venieris, Laskaridis, Lane, "Multi-Exit Semantic Segmentation Networks", ECCV 2022, section on
//! the input-dependent exit policy.
//!
//! Everything here runs on the calling thread, unless that is a thread of a rayon pool: then rows are shared among the
//! pool's threads. The result is the same.

pub mod edges;
pub mod image;
pub mod mask;
pub mod pixel;
pub mod refine;
pub mod upsample;

use ndarray::{Array1, ArrayView2, ArrayView3};

pub use edges::{CannySettings, EdgeKind, Label, canny, label_edges};
pub use image::{fraction_confident, image_confidence_of_map};
pub use mask::{boundary_mask, dilate, erode};
pub use pixel::{ConfidenceKind, ConfidenceMap, confidence_map};
pub use refine::refine_confidence;
pub use upsample::{Upsampling, upsample_bilinear};

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

/// Image confidence of logits (C, H, W) at each of `pixel_thresholds`, upsampled first when `upsampling` is given.
///
/// # Errors
/// [`Error::Value`] for an empty picture, no class, NaN or +infinity in the logits, a pixel whose logits are all
/// -infinity, a threshold outside [0, 1], or an output stride outside 1..=[`MAX_OUTPUT_STRIDE`].
pub fn image_confidence(
    logits: ArrayView3<'_, f32>,
    pixel_thresholds: &[f32],
    policy: &Policy,
    upsampling: Option<Upsampling>,
) -> Result<Array1<f64>> {
    let map = match upsampling {
        None => confidence_map(logits, policy.confidence)?,
        Some(upsampling) => confidence_map(upsample_bilinear(logits, upsampling)?.view(), policy.confidence)?,
    };
    image_confidence_of_map(map.confidence.view(), map.labels.view(), pixel_thresholds, policy)
}

/// Whether to share work among threads: only inside a rayon pool that the caller chose (`pool.install`). Outside, work is
/// done on the calling thread, and rayon's global pool is never started.
pub(crate) fn is_parallel() -> bool {
    rayon::current_thread_index().is_some()
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
