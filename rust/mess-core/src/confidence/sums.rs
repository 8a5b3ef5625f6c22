//! The sums of exponentials of the pixels between four nodes, with few exponentials.
//!
//! Contract: as [`super::decide`]; a decision that is not certain from these sums is left open.
//!
//! Plain algorithm: interpolate each class's logit at each pixel, exponentiate, add. What is done instead, and why it is
//! nearly equal: the difference g_j of a class to the cell's leader is bilinear, so from one row to another it changes by
//! the same amount each time, and exp(g_j) by the same factor. A few rows are computed, the others are products. A pixel's
//! largest logit is not needed either: with M the largest exp(g_j), S - 1 is (sum - M) / M. Classes far below the leader
//! are left out. How far that may be off is bounded in [`slack`].

use super::cells::Limits;
use super::exp::exp_of_gap;

/// Pixels computed in step: some columns of a cell in one row or several.
pub(crate) const LANES: usize = 16;

/// Blocks of rows that are continued from the first.
pub(crate) const BLOCKS: usize = 4;

/// Not 0, not 1: to be computed.
pub(crate) const OPEN: u8 = 2;

/// How far a sum may be off, relatively, in a picture with `h` rows of nodes; `range` is how far a class's g changes within
/// a cell.
///
/// An exponential is off by 6e-6 at most (see [`exp_of_gap`]), and the factor's error counts three times. Rows are evenly
/// apart but for the rounding of their positions, 4e-7 of the largest.
pub(crate) fn slack(h: usize, range: f32) -> f32 {
    3e-5 + 4e-7 * h as f32 * range
}

/// Weights of the lower and the right nodes at the first block's pixels, and what is added to the lower ones' from block to
/// block.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Weights {
    pub lower: [f32; LANES],
    pub right: [f32; LANES],
    pub pace: f32,
}

/// Whether pixels pass, 1, 0 or [`OPEN`], from how far other classes than the leader lie above it at the four nodes (upper
/// left, upper right, lower left, lower right). The leader is the label of all pixels, unless `several` classes may be.
#[inline(always)]
pub(crate) fn decide(
    gaps: &[[f32; 4]],
    weights: &Weights,
    several: bool,
    num_blocks: usize,
    limits: &Limits,
) -> [[u8; LANES]; BLOCKS] {
    let mut passes = [[0; LANES]; BLOCKS];
    match (several, num_blocks) {
        (false, 1) => decide_blocks::<false, 1>(gaps, weights, limits, &mut passes),
        (false, 2) => decide_blocks::<false, 2>(gaps, weights, limits, &mut passes),
        (false, _) => decide_blocks::<false, BLOCKS>(gaps, weights, limits, &mut passes),
        (true, 1) => decide_blocks::<true, 1>(gaps, weights, limits, &mut passes),
        (true, 2) => decide_blocks::<true, 2>(gaps, weights, limits, &mut passes),
        (true, _) => decide_blocks::<true, BLOCKS>(gaps, weights, limits, &mut passes),
    }
    passes
}

#[inline(always)]
fn decide_blocks<const SEVERAL: bool, const N: usize>(
    gaps: &[[f32; 4]],
    weights: &Weights,
    limits: &Limits,
    passes: &mut [[u8; LANES]],
) {
    let mut sums = [[1f32; LANES]; N];
    let mut most = [[1f32; LANES]; N];
    for [a, b, c, d] in gaps {
        let (fall, right_fall) = (c - a, d - b);
        let turn = right_fall - fall;
        let (mut values, mut factors) = ([0f32; LANES], [0f32; LANES]);
        for lane in 0..LANES {
            let (lower, right) = (weights.lower[lane], weights.right[lane]);
            let left = a + lower * fall;
            values[lane] = exp_of_gap(left + right * (b + lower * right_fall - left));
            if N > 1 {
                factors[lane] = exp_of_gap(weights.pace * (fall + right * turn));
            }
        }
        for block in 0..N {
            for lane in 0..LANES {
                let value = values[lane];
                sums[block][lane] += value;
                if SEVERAL {
                    most[block][lane] = if value > most[block][lane] { value } else { most[block][lane] };
                }
                values[lane] = value * factors[lane];
            }
        }
    }
    for block in 0..N {
        for lane in 0..LANES {
            let (sum, most) = (sums[block][lane], most[block][lane]);
            let (others, limit, rounding) = (sum - most, limits.odds * most, sum * limits.rounding);
            let surely = others <= limit * limits.low - rounding;
            let surely_not = others >= limit * limits.high + rounding;
            passes[block][lane] = if surely {
                1
            } else if surely_not {
                0
            } else {
                OPEN
            };
        }
    }
}
