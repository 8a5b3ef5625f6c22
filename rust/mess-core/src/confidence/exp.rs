//! Two exponentials of a logit gap: one accurate, one that costs four instructions and is off by a known factor.
//!
//! Both are plain float32 arithmetic in a fixed order, so they give the same bits on every machine and instruction set.

/// exp(x) for x in [-inf, 80]: relative error below 4e-6, below 6e-7 for |x| <= 8, and absolute error below 1e-7
/// for x <= 0; 0 below -87.3 (where float32 would be subnormal), exactly 1 at 0, NaN for NaN.
///
/// x log2 e = k + r with |r| <= 1/2, then a minimax polynomial for 2^r (Remez, degree 6, constant term held at 1 so that
/// exp(0) = 1), then 2^k through the exponent bits. The product x log2 e is rounded once: its error, |x| 2^-24, does not
/// matter where exp(x) is small, and a softmax only adds these.
#[inline(always)]
pub(crate) fn exp_of_gap(x: f32) -> f32 {
    // Adding 1.5 * 2^23 rounds to the nearest integer, which then stands in the low bits of the sum.
    const ROUND: f32 = 12_582_912.0;
    let exponent = if x < LOWEST { LOWEST } else { x } * std::f32::consts::LOG2_E;
    let shifted = exponent + ROUND;
    let r = exponent - (shifted - ROUND);
    let mut p = 0.000_155_946_78;
    p = p * r + 0.001_340_664_3;
    p = p * r + 0.009_617_693;
    p = p * r + 0.055_503_103;
    p = p * r + 0.240_226_52;
    p = p * r + 0.693_147_24;
    p = p * r + 1.0;
    let bits = shifted.to_bits().wrapping_add(127u32.wrapping_sub(ROUND.to_bits()));
    if x < LOWEST { 0.0 } else { p * f32::from_bits(bits << 23) }
}

const LOWEST: f32 = -87.3;

/// exp(x) times a factor in [[`ROUGH_LOW`], [`ROUGH_HIGH`]], for x <= 88; exactly 1 at 0, 2^-126 far below, arbitrary
/// for NaN and above 88.
///
/// x log2 e + 127 in fixed point with 8 fraction bits, shifted into the exponent field: 2^k (1 + f) instead of 2^(k + f)
/// (Schraudolph, "A fast, compact approximation of the exponential function", Neural Computation 11, 1999).
#[inline(always)]
pub(crate) fn rough_exp(x: f32) -> f32 {
    // In [2^15, 2^16) one unit in the last place is 2^-8; the high bits fall off in the shift.
    const BASE: f32 = 49_152.0;
    let fixed = x * std::f32::consts::LOG2_E + (BASE + 127.0);
    let clamped = if fixed < BASE + 1.0 { BASE + 1.0 } else { fixed };
    f32::from_bits(clamped.to_bits() << 15)
}

/// (1 + f) / 2^f lies in [1, 1.0615]; rounding to 8 fraction bits adds a factor 2^(+-1/512).
pub(crate) const ROUGH_LOW: f32 = 0.9985;
/// See [`ROUGH_LOW`].
pub(crate) const ROUGH_HIGH: f32 = 1.0631;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_stay_within_their_bounds() {
        assert_eq!((exp_of_gap(0.0), rough_exp(0.0)), (1.0, 1.0));
        assert_eq!(exp_of_gap(f32::NEG_INFINITY), 0.0);
        assert!(exp_of_gap(f32::NAN).is_nan());
        assert!(rough_exp(f32::NEG_INFINITY) < 1.2e-38);
        for step in -870_000i32..=800_000 {
            let x = step as f32 * 1e-4;
            let exact = f64::from(x).exp();
            let accurate = f64::from(exp_of_gap(x));
            let relative = if x.abs() <= 8.0 { 6e-7 * exact } else { 4e-6 * exact };
            let tolerance = if x > 0.0 { relative } else { relative.min(1e-7) };
            assert!((accurate - exact).abs() <= tolerance, "{x}: {accurate} {exact}");
            let factor = f64::from(rough_exp(x)) / exact;
            assert!((f64::from(ROUGH_LOW)..=f64::from(ROUGH_HIGH)).contains(&factor), "{x}: {factor}");
        }
    }
}
