//! Refined confidence: near label boundaries, the median of the confidences around.
//!
//! Contract
//! 1. Input: confidence (H, W) float32 without NaN (infinities are ordered as usual), mask (H, W), an odd window.
//! 2. Where the mask is true the output is the median of the window x window values around the pixel; elsewhere the
//!    confidence itself, bit for bit.
//! 3. Border: replicated, so every window is full and odd and the median is one of its elements
//!    (`scipy.ndimage.median_filter(mode="nearest")`).
//! 4. Empty pictures give empty maps.
//!
//! Cost: window^2 per masked pixel (gather and select). The thresholded image confidence does not come this way: see
//! `image`, whose cost does not depend on the window.

use ndarray::{Array2, ArrayView2, ArrayViewMut1, Zip};

use super::is_parallel;
use crate::error::{Error, Result};

/// Largest window side.
pub const MAX_WINDOW: usize = 1025;

/// Confidence (H, W) with masked pixels replaced by the median of their window.
///
/// # Errors
/// [`Error::Value`] for an even or too large window, a mask of another shape, or NaN.
pub fn refine_confidence(
    confidence: ArrayView2<'_, f32>,
    mask: ArrayView2<'_, bool>,
    window: usize,
) -> Result<Array2<f32>> {
    if window.is_multiple_of(2) || window > MAX_WINDOW {
        return Err(Error::value("window", format!("an odd number of pixels, 1..={MAX_WINDOW}"), window));
    }
    if mask.dim() != confidence.dim() {
        return Err(Error::value("mask", format!("shape {:?}", confidence.dim()), format!("{:?}", mask.dim())));
    }
    check_no_nan(confidence)?;
    let (height, width) = confidence.dim();
    let radius = (window / 2) as isize;
    let mut refined = confidence.to_owned();
    let one_row = |row: usize, mut output: ArrayViewMut1<'_, f32>| {
        let mut values = Vec::with_capacity(window * window);
        for column in 0..width {
            if !mask[[row, column]] {
                continue;
            }
            values.clear();
            for dy in -radius..=radius {
                let source = confidence.row(clamped(row, dy, height));
                values.extend((-radius..=radius).map(|dx| source[clamped(column, dx, width)]));
            }
            let middle = values.len() / 2;
            output[column] = *values.select_nth_unstable_by(middle, f32::total_cmp).1;
        }
    };
    let rows = Zip::indexed(refined.rows_mut());
    if is_parallel() {
        rows.par_for_each(one_row)
    } else {
        rows.for_each(one_row)
    }
    Ok(refined)
}

/// `index + offset`, brought back to `0..length` (length >= 1).
fn clamped(index: usize, offset: isize, length: usize) -> usize {
    index.saturating_add_signed(offset).min(length - 1)
}

pub(crate) fn check_no_nan(confidence: ArrayView2<'_, f32>) -> Result<()> {
    match confidence.indexed_iter().find(|(_, c)| c.is_nan()) {
        None => Ok(()),
        Some(((row, column), _)) => {
            Err(Error::value("confidence", "numbers", format!("NaN at row {row}, column {column}")))
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn the_median_removes_a_dip_where_the_mask_is() {
        let confidence = array![[0.9f32, 0.8, 0.1, 0.8, 0.9]];
        let mask = array![[false, false, true, false, false]];
        let refined = refine_confidence(confidence.view(), mask.view(), 3).unwrap();
        assert_eq!(refined, array![[0.9f32, 0.8, 0.8, 0.8, 0.9]]);
    }

    #[test]
    fn bad_arguments_are_named() {
        let confidence = array![[0.5f32, f32::NAN]];
        let mask = array![[true, true]];
        let message = |w| refine_confidence(confidence.view(), mask.view(), w).unwrap_err().to_string();
        assert!(message(4).starts_with("window: expected an odd number"));
        assert!(message(3).contains("NaN at row 0, column 1"));
    }
}
