//! Edges: Canny on a grey picture or a label map, and exact label boundaries.
//!
//! Contract of [`canny`] (bit-exact with OpenCV's `cv::Canny`, 4.x and 5.0, with a grey 8-bit input)
//! 1. Gradients: Sobel, aperture 3, 5 or 7, replicated border, int16; at aperture 7 gradient and thresholds are divided
//!    by 16 and the gradient is rounded half to even.
//! 2. Magnitude |dx| + |dy|, or dx^2 + dy^2 against squared thresholds (`l2`; thresholds above 32767 are cut to it).
//! 3. Thresholds are swapped if reversed, then floored. Candidate: magnitude > low (strict); strong: > high (strict).
//! 4. Non-maximum suppression along the gradient with tan 22.5 degrees = 13573 / 2^15: near-horizontal gradients need
//!    `> left, >= right`, near-vertical `> above, >= below`, diagonals strictly more than both. Magnitude outside the
//!    picture is 0, so a border pixel can be an edge.
//! 5. Hysteresis: candidates 8-connected to a strong pixel, serial flood.
//! 6. Empty pictures give empty maps.
//!
//! On label maps low = high = 0 is the default: every change of label that Sobel sees is an edge. Thresholds above 0
//! would depend on the *difference of class ids*, which means nothing.
//!
//! Reference: J. Canny, "A Computational Approach to Edge Detection", IEEE TPAMI 8(6), 1986.

use ndarray::{Array2, ArrayView2};

use crate::error::{Error, Result};

/// A class index of a label map.
pub trait Label: Copy + PartialEq + Send + Sync {
    /// The index as a signed integer.
    fn index(self) -> i32;
}

impl Label for u8 {
    fn index(self) -> i32 {
        i32::from(self)
    }
}

impl Label for i32 {
    fn index(self) -> i32 {
        self
    }
}

/// Labels of a map must be below this, so that gradients of label maps fit 32 bits.
pub const MAX_LABELS: i32 = 1 << 16;

/// What counts as an edge of a label map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EdgeKind {
    /// Canny with low = high = 0, aperture 3, L1.
    #[default]
    Canny,
    /// Pixels with a 4-neighbour of another label; invariant under relabelling.
    Labels,
}

/// Options of [`canny`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CannySettings {
    /// Lower hysteresis threshold, in units of the gradient magnitude.
    pub low: f64,
    /// Upper hysteresis threshold.
    pub high: f64,
    /// Side of the Sobel kernel: 3, 5 or 7.
    pub aperture: usize,
    /// Euclidean magnitude instead of |dx| + |dy|.
    pub l2: bool,
}

/// Edge map (H, W) of an 8-bit grey picture (H, W).
///
/// # Errors
/// [`Error::Value`] for an aperture other than 3, 5, 7 or thresholds that are not finite.
pub fn canny(image: ArrayView2<'_, u8>, settings: &CannySettings) -> Result<Array2<bool>> {
    if ![3, 5, 7].contains(&settings.aperture) {
        return Err(Error::value("aperture", "3, 5 or 7", settings.aperture));
    }
    for (argument, threshold) in [("low", settings.low), ("high", settings.high)] {
        if !threshold.is_finite() {
            return Err(Error::value(argument, "a finite threshold", threshold));
        }
    }
    let (dx, dy) = gradients(image, settings.aperture);
    let (low, high) = integer_thresholds(settings);
    Ok(hysteresis(candidates(&dx, &dy, low, high, settings.l2)))
}

/// Edge map (H, W) of a label map (H, W).
///
/// # Errors
/// [`Error::Value`] for a label outside 0..65536.
pub fn label_edges<L: Label>(labels: ArrayView2<'_, L>, kind: EdgeKind) -> Result<Array2<bool>> {
    if let Some(((row, column), label)) = labels.indexed_iter().find(|(_, l)| !(0..MAX_LABELS).contains(&l.index())) {
        let got = format!("{} at row {row}, column {column}", label.index());
        return Err(Error::value("labels", format!("class indices 0..{}", MAX_LABELS - 1), got));
    }
    Ok(match kind {
        EdgeKind::Canny => {
            let (dx, dy) = gradients(labels, 3);
            hysteresis(candidates(&dx, &dy, 0, 0, false))
        }
        EdgeKind::Labels => boundaries(labels),
    })
}

/// Horizontal and vertical Sobel gradient, replicated border.
fn gradients<L: Label>(image: ArrayView2<'_, L>, aperture: usize) -> (Array2<i32>, Array2<i32>) {
    let (smooth, derive): (&[i32], &[i32]) = match aperture {
        3 => (&[1, 2, 1], &[-1, 0, 1]),
        5 => (&[1, 4, 6, 4, 1], &[-1, -2, 0, 2, 1]),
        _ => (&[1, 6, 15, 20, 15, 6, 1], &[-1, -4, -5, 0, 5, 4, 1]),
    };
    let (height, width) = image.dim();
    if image.is_empty() {
        return (Array2::zeros((height, width)), Array2::zeros((height, width)));
    }
    let radius = aperture / 2;
    let (mut smoothed, mut derived) = (Array2::<i32>::zeros((height, width)), Array2::<i32>::zeros((height, width)));
    let mut padded = vec![0i32; width + 2 * radius];
    for row in 0..height {
        for (j, value) in padded.iter_mut().enumerate() {
            *value = image[[row, j.saturating_sub(radius).min(width - 1)]].index();
        }
        for column in 0..width {
            let window = &padded[column..column + aperture];
            smoothed[[row, column]] = window.iter().zip(smooth).map(|(v, k)| v * k).sum();
            derived[[row, column]] = window.iter().zip(derive).map(|(v, k)| v * k).sum();
        }
    }
    let vertical = |source: &Array2<i32>, kernel: &[i32]| {
        let mut output = Array2::<i32>::zeros((height, width));
        for (row, mut output_row) in output.rows_mut().into_iter().enumerate() {
            for (tap, &weight) in kernel.iter().enumerate() {
                if weight != 0 {
                    let source_row = source.row((row + tap).saturating_sub(radius).min(height - 1));
                    output_row.zip_mut_with(&source_row, |sum, v| *sum += weight * v);
                }
            }
            if aperture == 7 {
                output_row.mapv_inplace(divide_by_16_half_to_even);
            }
        }
        output
    };
    (vertical(&derived, smooth), vertical(&smoothed, derive))
}

fn divide_by_16_half_to_even(value: i32) -> i32 {
    let (quotient, remainder) = (value.div_euclid(16), value.rem_euclid(16));
    quotient + i32::from(remainder > 8 || (remainder == 8 && quotient % 2 != 0))
}

fn integer_thresholds(settings: &CannySettings) -> (i64, i64) {
    let scale = if settings.aperture == 7 { 16.0 } else { 1.0 };
    let (mut low, mut high) = (settings.low / scale, settings.high / scale);
    if low > high {
        std::mem::swap(&mut low, &mut high);
    }
    let squared = |t: f64| {
        let t = t.min(32767.0);
        if t > 0.0 { t * t } else { t }
    };
    if settings.l2 {
        (low, high) = (squared(low), squared(high));
    }
    let floored = |t: f64| t.floor().clamp(f64::from(i32::MIN), f64::from(i32::MAX)) as i64;
    (floored(low), floored(high))
}

/// What a pixel is before hysteresis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    Nothing,
    Candidate,
    Strong,
}

/// Threshold and non-maximum suppression.
fn candidates(dx: &Array2<i32>, dy: &Array2<i32>, low: i64, high: i64, l2: bool) -> Array2<Mark> {
    const TAN_22_5: i64 = 13573; // in 1 / 2^15
    let (height, width) = dx.dim();
    let size = |x: i32, y: i32| {
        let (x, y) = (i64::from(x), i64::from(y));
        if l2 { x * x + y * y } else { x.abs() + y.abs() }
    };
    // one column and one row of zeros around: outside the picture the magnitude is 0
    let mut magnitude = Array2::<i64>::zeros((height + 2, width + 2));
    for ((row, column), &x) in dx.indexed_iter() {
        magnitude[[row + 1, column + 1]] = size(x, dy[[row, column]]);
    }
    Array2::from_shape_fn((height, width), |(row, column)| {
        let (r, c) = (row + 1, column + 1);
        let m = magnitude[[r, c]];
        if m <= low {
            return Mark::Nothing;
        }
        let (x, y) = (i64::from(dx[[row, column]]), i64::from(dy[[row, column]]));
        let (flat, steep) = (x.abs() * TAN_22_5, y.abs() << 15);
        let is_maximum = if steep < flat {
            m > magnitude[[r, c - 1]] && m >= magnitude[[r, c + 1]]
        } else if steep > flat + (x.abs() << 16) {
            m > magnitude[[r - 1, c]] && m >= magnitude[[r + 1, c]]
        } else if (x < 0) != (y < 0) {
            m > magnitude[[r - 1, c + 1]] && m > magnitude[[r + 1, c - 1]]
        } else {
            m > magnitude[[r - 1, c - 1]] && m > magnitude[[r + 1, c + 1]]
        };
        match (is_maximum, m > high) {
            (false, _) => Mark::Nothing,
            (true, false) => Mark::Candidate,
            (true, true) => Mark::Strong,
        }
    })
}

/// Strong pixels and every candidate 8-connected to one.
fn hysteresis(mut marks: Array2<Mark>) -> Array2<bool> {
    let (height, width) = marks.dim();
    let mut edges = Array2::from_elem((height, width), false);
    let mut stack: Vec<(usize, usize)> =
        marks.indexed_iter().filter(|(_, m)| **m == Mark::Strong).map(|(at, _)| at).collect();
    for &at in &stack {
        edges[at] = true;
    }
    while let Some((row, column)) = stack.pop() {
        for r in row.saturating_sub(1)..(row + 2).min(height) {
            for c in column.saturating_sub(1)..(column + 2).min(width) {
                if marks[[r, c]] == Mark::Candidate {
                    marks[[r, c]] = Mark::Strong;
                    edges[[r, c]] = true;
                    stack.push((r, c));
                }
            }
        }
    }
    edges
}

fn boundaries<L: Label>(labels: ArrayView2<'_, L>) -> Array2<bool> {
    let (height, width) = labels.dim();
    Array2::from_shape_fn((height, width), |(r, c)| {
        let here = labels[[r, c]];
        (r > 0 && labels[[r - 1, c]] != here)
            || (r + 1 < height && labels[[r + 1, c]] != here)
            || (c > 0 && labels[[r, c - 1]] != here)
            || (c + 1 < width && labels[[r, c + 1]] != here)
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use ndarray::array;

    fn drawn(edges: &Array2<bool>) -> Vec<String> {
        edges.rows().into_iter().map(|row| row.iter().map(|e| if *e { '#' } else { '.' }).collect()).collect()
    }

    #[test]
    fn a_vertical_step_is_one_column_of_canny_edges() {
        let labels = array![[0u8, 0, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1]];
        // equal magnitudes left and right of the step: `> left, >= right` keeps the left one
        assert_eq!(drawn(&label_edges(labels.view(), EdgeKind::Canny).unwrap()), [".#..", ".#..", ".#.."]);
        assert_eq!(drawn(&label_edges(labels.view(), EdgeKind::Labels).unwrap()), [".##.", ".##.", ".##."]);
    }

    #[test]
    fn wide_labels_behave_like_narrow_ones() {
        let narrow = array![[0u8, 3, 3], [0, 3, 7]];
        let wide = narrow.mapv(|v| i32::from(v) * 9000);
        assert_eq!(
            label_edges(narrow.view(), EdgeKind::Canny).unwrap(),
            label_edges(wide.view(), EdgeKind::Canny).unwrap()
        );
        assert!(label_edges(array![[-1]].view(), EdgeKind::Labels).is_err());
        assert!(label_edges(array![[MAX_LABELS]].view(), EdgeKind::Canny).is_err());
    }

    #[test]
    fn halves_round_to_even() {
        let rounded: Vec<i32> = [-24, -8, 8, 24, 7, 9].into_iter().map(divide_by_16_half_to_even).collect();
        assert_eq!(rounded, [-2, 0, 0, 2, 0, 1]);
    }
}
