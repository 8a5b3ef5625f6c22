//! Bilinear upsampling of logits to the input's size.
//!
//! Contract
//! 1. Input (C, h, w) float32, output (C, H, W); h, w, H, W >= 1. Downsampling works too (no antialiasing).
//! 2. As in PyTorch: align_corners false puts output pixel i at max(0, (i + 0.5) h / H - 0.5), true at
//!    i (h - 1) / (H - 1) (0 when H = 1); the neighbour beyond the last row or column is the last one.
//! 3. Each value is the lerp of two row lerps in float32; equal to `torch.nn.functional.interpolate` within 1e-6 of the
//!    largest magnitude among the four neighbours.
//! 4. A non-finite neighbour with weight 0 is not read, so -infinity does not turn into NaN at grid points.

use ndarray::{Array3, ArrayView2, ArrayView3, ArrayViewMut2, Axis, Zip};

use super::is_parallel;
use crate::error::{Error, Result};

/// Target of an upsampling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Upsampling {
    /// Height and width of the output in pixels.
    pub size: (usize, usize),
    /// PyTorch's `align_corners`: whether corner pixels map to corner pixels.
    pub align_corners: bool,
}

/// Upsample logits (C, h, w) to (C, H, W).
///
/// # Errors
/// [`Error::Value`] when input or output has no pixel.
pub fn upsample_bilinear(logits: ArrayView3<'_, f32>, upsampling: Upsampling) -> Result<Array3<f32>> {
    let (num_classes, h, w) = logits.dim();
    let (height, width) = upsampling.size;
    if height == 0 || width == 0 {
        return Err(Error::value("size", "at least one pixel", format!("({height}, {width})")));
    }
    if h == 0 || w == 0 {
        return Err(Error::value("logits", "at least one pixel", format!("shape ({num_classes}, {h}, {w})")));
    }
    let rows = taps(h, height, upsampling.align_corners);
    let columns = taps(w, width, upsampling.align_corners);
    let mut output = zeros_if_they_fit((num_classes, height, width))?;
    let one_class = |mut plane: ArrayViewMut2<'_, f32>, input: ArrayView2<'_, f32>| {
        for (row, mut output_row) in rows.iter().zip(plane.rows_mut()) {
            for (column, value) in columns.iter().zip(output_row.iter_mut()) {
                let above = column.lerp(|j| input[[row.low, j]]);
                *value = if row.weight == 0.0 {
                    above
                } else {
                    lerp(above, column.lerp(|j| input[[row.high, j]]), row.weight)
                };
            }
        }
    };
    let planes = Zip::from(output.axis_iter_mut(Axis(0))).and(logits.axis_iter(Axis(0)));
    if is_parallel() {
        planes.par_for_each(one_class)
    } else {
        planes.for_each(one_class)
    }
    Ok(output)
}

/// Zeros of `shape`, or an error where memory is refused: a failed allocation would end the process.
fn zeros_if_they_fit(shape: (usize, usize, usize)) -> Result<Array3<f32>> {
    let refused = || Error::value("size", "logits that fit into memory", format!("{shape:?} numbers"));
    let count = shape.0.checked_mul(shape.1).and_then(|n| n.checked_mul(shape.2)).ok_or_else(refused)?;
    let mut values = Vec::new();
    values.try_reserve_exact(count).map_err(|_| refused())?;
    values.resize(count, 0.0);
    Array3::from_shape_vec(shape, values).map_err(|_| refused())
}

/// Two neighbouring samples and the weight of the second.
struct Tap {
    low: usize,
    high: usize,
    weight: f32,
}

impl Tap {
    fn lerp(&self, sample: impl Fn(usize) -> f32) -> f32 {
        if self.weight == 0.0 { sample(self.low) } else { lerp(sample(self.low), sample(self.high), self.weight) }
    }
}

fn lerp(low: f32, high: f32, weight: f32) -> f32 {
    low * (1.0 - weight) + high * weight
}

fn taps(input: usize, output: usize, align_corners: bool) -> Vec<Tap> {
    let scale = match (align_corners, output) {
        (true, 1) => 0.0,
        (true, _) => (input - 1) as f32 / (output - 1) as f32,
        (false, _) => input as f32 / output as f32,
    };
    (0..output)
        .map(|i| {
            let position = if align_corners { scale * i as f32 } else { (scale * (i as f32 + 0.5) - 0.5).max(0.0) };
            let low = (position as usize).min(input - 1);
            let high = (low + 1).min(input - 1);
            let weight = if high == low { 0.0 } else { position - low as f32 };
            Tap { low, high, weight: weight.clamp(0.0, 1.0) }
        })
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn a_row_of_two_becomes_four() {
        let x = array![[[0f32, 4.0]]];
        let plain = upsample_bilinear(x.view(), Upsampling { size: (1, 4), align_corners: false }).unwrap();
        assert_eq!(plain, array![[[0f32, 1.0, 3.0, 4.0]]]);
        let aligned = upsample_bilinear(x.view(), Upsampling { size: (1, 5), align_corners: true }).unwrap();
        assert_eq!(aligned, array![[[0f32, 1.0, 2.0, 3.0, 4.0]]]);
    }

    #[test]
    fn impossible_classes_stay_impossible() {
        let x = array![[[f32::NEG_INFINITY, f32::NEG_INFINITY]]];
        let y = upsample_bilinear(x.view(), Upsampling { size: (2, 4), align_corners: false }).unwrap();
        assert!(y.iter().all(|v| *v == f32::NEG_INFINITY));
    }
}
