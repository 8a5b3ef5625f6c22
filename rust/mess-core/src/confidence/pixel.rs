//! Per-pixel confidence and label of logits.
//!
//! Contract
//! 1. Input: logits (C, H, W) float32, C >= 1; any strides. -infinity is a class that cannot be; NaN, +infinity, and a
//!    pixel whose classes are all -infinity are errors, because softmax is undefined there.
//! 2. Label: the class of the largest logit; of equal ones the lowest class.
//! 3. With m the largest logit and e_j = exp(y_j - m), S = sum of e_j in class order:
//!    top-1 = 1 / S; margin = (1 - e_second) / S, the second largest probability subtracted (0 for ties, 1 when C = 1);
//!    entropy = 1 - H / ln C with H = ln S - (sum of e_j (y_j - m)) / S, clamped to [0, 1] (1 when C = 1).
//! 4. Arithmetic is float32 in a fixed order with this file's own `exp`, so the bits do not depend on the platform's
//!    math library, on vector width or on the thread count. Against the exact value: within 3e-7 for top-1 and margin,
//!    2e-6 for entropy.
//! 5. Empty pictures (H or W = 0) give empty maps.
//!
//! Cost: one pass for the maximum and one for the sum, a block of columns at a time, so the logits of a block are read
//! from memory once and from cache the second time.

use ndarray::{Array2, ArrayView1, ArrayView2, ArrayView3, ArrayViewMut1, Axis, Zip, s};

use super::is_parallel;
use crate::error::{Error, Result};

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

/// Confidence in [0, 1] and label of every pixel, both (H, W).
#[derive(Debug, Clone, PartialEq)]
pub struct ConfidenceMap {
    /// float32 confidences.
    pub confidence: Array2<f32>,
    /// Class indices.
    pub labels: Array2<i32>,
}

/// Confidence map and label map of logits (C, H, W).
///
/// # Errors
/// [`Error::Value`] when there is no class or a logit breaks point 1 of the contract; the message says where.
pub fn confidence_map(logits: ArrayView3<'_, f32>, kind: ConfidenceKind) -> Result<ConfidenceMap> {
    let (num_classes, height, width) = logits.dim();
    if num_classes == 0 {
        return Err(Error::value("logits", "at least one class", format!("shape (0, {height}, {width})")));
    }
    let mut map = ConfidenceMap { confidence: Array2::zeros((height, width)), labels: Array2::zeros((height, width)) };
    if height == 0 || width == 0 {
        return Ok(map);
    }
    let one_row = |row: usize, mut confidence: ArrayViewMut1<'_, f32>, mut labels: ArrayViewMut1<'_, i32>| {
        let logits = logits.index_axis(Axis(1), row);
        let mut scratch = Scratch::default();
        let mut bad = false;
        for start in (0..width).step_by(BLOCK) {
            let end = (start + BLOCK).min(width);
            bad |= scratch.run(logits.slice(s![.., start..end]), kind);
            for i in 0..end - start {
                confidence[start + i] = scratch.confidence[i];
                labels[start + i] = scratch.label[i];
            }
        }
        bad
    };
    let rows = Zip::indexed(map.confidence.rows_mut()).and(map.labels.rows_mut());
    let bad = if is_parallel() {
        rows.par_fold(|| false, |bad, row, confidence, labels| bad | one_row(row, confidence, labels), |a, b| a | b)
    } else {
        rows.fold(false, |bad, row, confidence, labels| bad | one_row(row, confidence, labels))
    };
    if bad { Err(undefined_softmax(logits)) } else { Ok(map) }
}

/// Pixels handled together: their running values stay in first-level cache.
const BLOCK: usize = 256;

/// Running values of one block of pixels. Loops run over whole blocks, so that their length is known and they vectorise;
/// pixels beyond the picture's edge are padding.
struct Scratch {
    logits: [f32; BLOCK],
    largest: [f32; BLOCK],
    second: [f32; BLOCK],
    sum: [f32; BLOCK],
    weighted: [f32; BLOCK],
    confidence: [f32; BLOCK],
    label: [i32; BLOCK],
}

impl Default for Scratch {
    fn default() -> Self {
        let zeros = [0.0; BLOCK];
        Self {
            logits: zeros,
            largest: zeros,
            second: zeros,
            sum: zeros,
            weighted: zeros,
            confidence: zeros,
            label: [0; BLOCK],
        }
    }
}

impl Scratch {
    #[allow(clippy::needless_range_loop)] // five arrays in step: an index says it best
    /// Fill `confidence` and `label` for logits (C, n) with n <= BLOCK; true when some softmax is undefined.
    fn run(&mut self, logits: ArrayView2<'_, f32>, kind: ConfidenceKind) -> bool {
        let (num_classes, n) = logits.dim();
        self.largest.fill(f32::NEG_INFINITY);
        self.second.fill(f32::NEG_INFINITY);
        self.label.fill(0);
        let mut undefined = [0u32; BLOCK]; // as wide as a float, so that the loop vectorises
        for (class, plane) in logits.rows().into_iter().enumerate() {
            self.load(plane);
            for i in 0..BLOCK {
                let y = self.logits[i];
                undefined[i] |= u32::from(y.is_nan()) | u32::from(y == f32::INFINITY);
                let higher = y > self.largest[i];
                self.label[i] = if higher { class as i32 } else { self.label[i] };
                if kind == ConfidenceKind::Margin {
                    let runner_up = if higher { self.largest[i] } else { y };
                    self.second[i] = if runner_up > self.second[i] { runner_up } else { self.second[i] };
                }
                self.largest[i] = if higher { y } else { self.largest[i] };
            }
        }
        if undefined.iter().any(|flag| *flag != 0) || self.largest[..n].contains(&f32::NEG_INFINITY) {
            return true;
        }
        self.sum.fill(0.0);
        self.weighted.fill(0.0);
        for plane in logits.rows() {
            self.load(plane);
            for i in 0..BLOCK {
                let gap = self.logits[i] - self.largest[i];
                let e = exp_of_gap(gap);
                self.sum[i] += e;
                if kind == ConfidenceKind::Entropy {
                    self.weighted[i] += if e > 0.0 { e * gap } else { 0.0 };
                }
            }
        }
        for i in 0..n {
            let sum = self.sum[i];
            self.confidence[i] = match kind {
                ConfidenceKind::Top1 => 1.0 / sum,
                ConfidenceKind::Margin => (1.0 - exp_of_gap(self.second[i] - self.largest[i])) / sum,
                ConfidenceKind::Entropy if num_classes == 1 => 1.0,
                ConfidenceKind::Entropy => {
                    let entropy = f64::from(sum).ln() - f64::from(self.weighted[i]) / f64::from(sum);
                    (1.0 - entropy / (num_classes as f64).ln()).clamp(0.0, 1.0) as f32
                }
            };
        }
        false
    }

    /// Bring one class of the block into `logits`, whatever its stride; the padding stays 0.
    fn load(&mut self, plane: ArrayView1<'_, f32>) {
        match plane.as_slice() {
            Some(values) => self.logits[..values.len()].copy_from_slice(values),
            None => self.logits.iter_mut().zip(plane).for_each(|(to, from)| *to = *from),
        }
    }
}

/// exp(x) for x <= 0, relative error below 1.5e-7; 0 below -87.3 (where float32 would be subnormal), exactly 1 at 0.
///
/// x = k ln 2 + r with |r| <= ln 2 / 2 (Cody and Waite, "Software Manual for the Elementary Functions", 1980), then the
/// degree-7 Taylor polynomial of e^r, then 2^k through the exponent bits.
#[inline]
pub(crate) fn exp_of_gap(x: f32) -> f32 {
    const LN2_HIGH: f32 = 0.693_359_4; // 355 / 512: k * LN2_HIGH is exact for the k met here
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding 1.5 * 2^23 rounds to the nearest integer, which then stands in the low bits of the sum.
    const ROUND: f32 = 12_582_912.0;
    let clamped = if x > -87.3 { x } else { -87.3 };
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let k = shifted - ROUND;
    let r = (clamped - k * LN2_HIGH) - k * LN2_LOW;
    let mut p = 1.0 / 5040.0;
    p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127);
    let scale = f32::from_bits(exponent << 23);
    if x > -87.3 { p * scale } else { 0.0 }
}

/// The error for the first logit, in memory order of (class, row, column), that makes a softmax undefined.
fn undefined_softmax(logits: ArrayView3<'_, f32>) -> Error {
    let expected = "numbers or -infinity, at least one number a pixel";
    match logits.indexed_iter().find(|(_, y)| y.is_nan() || **y == f32::INFINITY) {
        Some(((class, row, column), y)) => {
            Error::value("logits", expected, format!("{y} at class {class}, row {row}, column {column}"))
        }
        None => Error::value("logits", expected, "a pixel whose logits are all -infinity"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use ndarray::array;
    use proptest::prelude::*;

    #[test]
    fn two_classes_by_hand() {
        // logits (ln 3, 0): p = (3/4, 1/4)
        let map = confidence_map(array![[[3f32.ln()]], [[0.0]]].view(), ConfidenceKind::Top1).unwrap();
        assert!((map.confidence[[0, 0]] - 0.75).abs() < 1e-6);
        assert_eq!(map.labels[[0, 0]], 0);
        let margin = confidence_map(array![[[3f32.ln()]], [[0.0]]].view(), ConfidenceKind::Margin).unwrap();
        assert!((margin.confidence[[0, 0]] - 0.5).abs() < 1e-6);
    }

    #[test]
    fn ties_take_the_lowest_class_and_uniform_entropy_is_zero() {
        let logits = array![[[1f32]], [[1.0]], [[1.0]], [[1.0]]];
        assert_eq!(confidence_map(logits.view(), ConfidenceKind::Margin).unwrap().confidence[[0, 0]], 0.0);
        let map = confidence_map(logits.view(), ConfidenceKind::Entropy).unwrap();
        assert_eq!(map.labels[[0, 0]], 0);
        assert!(map.confidence[[0, 0]] < 1e-6);
    }

    #[test]
    fn undefined_softmax_is_refused_by_place() {
        for y in [f32::NAN, f32::INFINITY] {
            let error = confidence_map(array![[[0f32, y]]].view(), ConfidenceKind::Top1).unwrap_err();
            assert!(error.to_string().contains("class 0, row 0, column 1"), "{error}");
        }
        let error = confidence_map(array![[[f32::NEG_INFINITY]]].view(), ConfidenceKind::Top1).unwrap_err();
        assert!(error.to_string().contains("all -infinity"), "{error}");
    }

    proptest! {
        #[test]
        fn exp_is_close_to_the_exact_one(x in -87.0f32..=0.0) {
            let exact = f64::from(x).exp();
            prop_assert!((f64::from(exp_of_gap(x)) / exact - 1.0).abs() < 1.5e-7);
        }
    }
}
