//! Image confidence: the share of pixels whose refined confidence reaches the pixel threshold.
//!
//! Contract
//! 1. Both comparisons of the policy are inclusive: a pixel counts when refined confidence >= pixel threshold; an image
//!    leaves when image confidence >= image threshold. Thresholds are float32 here, in [0, 1].
//! 2. The result is (number of pixels that count) / (H W) in float64, so it is exact for every picture below 2^53 pixels.
//! 3. NaN confidences, empty pictures and shapes that differ are errors.
//!
//! Plain algorithm: refine (median), compare, count. What is done instead, and why it is equal: the median over an odd
//! window of w^2 values is >= t exactly when at least (w^2 + 1) / 2 of them are >= t. So only the binary map c >= t is
//! needed; its window counts come from sliding sums over rows, then over columns, at a cost that does not depend on w.

use ndarray::{Array1, ArrayView2};

use super::edges::Label;
use super::mask::boundary_mask;
use super::refine::check_no_nan;
use super::{Policy, check_output_stride, non_empty};
use crate::error::{Error, Result};

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
) -> Result<Array1<f64>> {
    non_empty("confidence", confidence)?;
    if labels.dim() != confidence.dim() {
        return Err(Error::value("labels", format!("shape {:?}", confidence.dim()), format!("{:?}", labels.dim())));
    }
    check_output_stride(policy.output_stride)?;
    check_no_nan(confidence)?;
    for &threshold in pixel_thresholds {
        check_threshold(threshold)?;
    }
    let mask = policy.refine.then(|| boundary_mask(labels, policy.output_stride, policy.edges)).transpose()?;
    let pixels = confidence.len() as f64;
    Ok(pixel_thresholds
        .iter()
        .map(|&threshold| {
            let count = match &mask {
                None => confidence.iter().filter(|c| **c >= threshold).count(),
                Some(mask) => count_refined(confidence, mask.view(), threshold, 2 * policy.output_stride),
            };
            count as f64 / pixels
        })
        .collect())
}

/// Share of the pixels of a map (H, W) that are >= `threshold`.
///
/// # Errors
/// [`Error::Value`] for NaN, an empty picture, or a threshold outside [0, 1].
pub fn fraction_confident(confidence: ArrayView2<'_, f32>, threshold: f32) -> Result<f64> {
    non_empty("confidence", confidence)?;
    check_no_nan(confidence)?;
    check_threshold(threshold)?;
    Ok(confidence.iter().filter(|c| **c >= threshold).count() as f64 / confidence.len() as f64)
}

fn check_threshold(threshold: f32) -> Result<()> {
    if !(0.0..=1.0).contains(&threshold) {
        return Err(Error::value("pixel_threshold", "a number in [0, 1]", threshold));
    }
    Ok(())
}

/// Pixels whose refined confidence is >= `threshold`; windows reach `radius` pixels, border replicated.
fn count_refined(confidence: ArrayView2<'_, f32>, mask: ArrayView2<'_, bool>, threshold: f32, radius: usize) -> usize {
    let (height, width) = confidence.dim();
    let side = 2 * radius as u64 + 1;
    let majority = (side * side).div_ceil(2) as u32;
    // in_row[r][c]: how many of the 2 radius + 1 values around (r, c) in row r are >= threshold
    let mut in_row = vec![0u32; height * width];
    for (row, counts) in confidence.rows().into_iter().zip(in_row.chunks_exact_mut(width)) {
        let passes = |i: isize| u32::from(row[i.clamp(0, width as isize - 1) as usize] >= threshold);
        let r = radius as isize;
        let mut count: u32 = (-r..=r).map(passes).sum();
        counts[0] = count;
        for (i, slot) in counts.iter_mut().enumerate().skip(1) {
            let i = i as isize;
            count = count + passes(i + r) - passes(i - r - 1);
            *slot = count;
        }
    }
    let counts_of = |r: isize| {
        let r = r.clamp(0, height as isize - 1) as usize;
        &in_row[r * width..(r + 1) * width]
    };
    let r = radius as isize;
    let mut in_window = vec![0u32; width];
    for row in -r..=r {
        in_window.iter_mut().zip(counts_of(row)).for_each(|(sum, c)| *sum += c);
    }
    let mut total = 0;
    for row in 0..height {
        if row > 0 {
            let entering = counts_of(row as isize + r);
            let leaving = counts_of(row as isize - r - 1);
            for ((sum, entering), leaving) in in_window.iter_mut().zip(entering).zip(leaving) {
                *sum = *sum + entering - leaving;
            }
        }
        for column in 0..width {
            let counts = if mask[[row, column]] {
                in_window[column] >= majority
            } else {
                confidence[[row, column]] >= threshold
            };
            total += usize::from(counts);
        }
    }
    total
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::confidence::{EdgeKind, refine_confidence};
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
            let fast = image_confidence_of_map(confidence.view(), labels.view(), &thresholds, &policy).unwrap();
            let mask = boundary_mask(labels.view(), output_stride, edges).unwrap();
            let refined = refine_confidence(confidence.view(), mask.view(), 4 * output_stride + 1).unwrap();
            for (fast, threshold) in fast.iter().zip(&thresholds) {
                prop_assert_eq!(*fast, fraction_confident(refined.view(), *threshold).unwrap());
            }
        }
    }
}
