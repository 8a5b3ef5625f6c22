//! The pixels between four nodes, in blocks: their labels, and whether they pass.
//!
//! Contract: labels as [`super::pixel`], decisions as [`super::decide`]; a decision that is not certain is left open.
//!
//! Plain algorithm: interpolate each class's logit at each pixel, compare, exponentiate, add. What is done instead:
//! - A label is found by that very arithmetic, among the few classes that can be one.
//! - The difference g_j of a class to the cell's leader is bilinear, so from one row to another it changes by the same
//!   amount each time, and exp(g_j) by the same factor: some rows are computed, the others are products. A pixel's largest
//!   logit is not needed either: with M the largest exp(g_j), S - 1 is (sum - M) / M. Classes far below the leader are left
//!   out. How far that may be off is bounded in [`slack`].

use super::cells::Limits;
use super::exp::exp_of_gap;

/// Pixels, or cells, computed in step.
pub(crate) const LANES: usize = 16;

/// Blocks of rows that sums are continued through, from the first.
pub(crate) const BLOCKS: usize = 4;

/// Not 0, not 1: to be computed.
pub(crate) const OPEN: u8 = 2;

/// How far a sum may be off, relatively, in a picture with `h` rows of nodes; `range` is how far a class's g changes within
/// a cell.
///
/// An exponential is off by 6e-6 at most (see [`exp_of_gap`]), its argument by three roundings of numbers below 200, 4e-5; of
/// a factor, a quarter of that, and it counts three times. Rows are evenly apart but for the rounding of their positions,
/// 4e-7 of the largest.
pub(crate) fn slack(h: usize, range: f32) -> f32 {
    1e-4 + 4e-7 * h as f32 * range
}

/// Weights of the lower nodes, or of the right ones, at a block's pixels: some columns of a cell in one row or several.
pub(crate) type Weights = [f32; LANES];

/// A class at the four nodes: upper left, upper right, lower left, lower right.
pub(crate) type Corners = [f32; 4];

/// a + w (b - a), the difference given.
#[inline(always)]
pub(crate) fn blend(a: f32, difference: f32, weight: f32) -> f32 {
    a + weight * difference
}

/// A value for each lane. Written as one short loop after the other, blocks stay in registers.
#[inline(always)]
pub(crate) fn lanes<T: Copy + Default>(value: impl Fn(usize) -> T) -> [T; LANES] {
    let mut values = [T::default(); LANES];
    for (lane, to) in values.iter_mut().enumerate() {
        *to = value(lane);
    }
    values
}

/// Labels of a block's pixels among `classes`, in ascending order, whose logits are `corners`.
#[inline(always)]
pub(crate) fn label(classes: &[u32], corners: &[Corners], lower: &Weights, right: &Weights) -> [i32; LANES] {
    let (mut labels, mut largest) = ([0; LANES], [f32::NEG_INFINITY; LANES]);
    for (class, [a, b, c, d]) in classes.iter().zip(corners) {
        let (class, fall, right_fall) = (*class as i32, c - a, d - b);
        let left: [f32; LANES] = lanes(|lane| blend(*a, fall, lower[lane]));
        let step: [f32; LANES] = lanes(|lane| blend(*b, right_fall, lower[lane]) - left[lane]);
        let y: [f32; LANES] = lanes(|lane| blend(left[lane], step[lane], right[lane]));
        labels = lanes(|lane| if y[lane] > largest[lane] { class } else { labels[lane] });
        largest = lanes(|lane| if y[lane] > largest[lane] { y[lane] } else { largest[lane] });
    }
    labels
}

/// Where consecutive blocks lie: the weights of the first, and what is added to the lower nodes' from block to block.
pub(crate) struct Place<'p> {
    pub lower: &'p Weights,
    pub right: &'p Weights,
    pub pace: f32,
}

/// Whether pixels pass, 1, 0 or [`OPEN`], from how far other classes than the leader lie above it at the four nodes (upper
/// left, upper right, lower left, lower right). The leader is the label of all pixels, unless `several` classes may be.
#[inline(always)]
pub(crate) fn decide(
    gaps: &[Corners],
    place: &Place<'_>,
    several: bool,
    num_blocks: usize,
    limits: &Limits,
) -> [[u8; LANES]; BLOCKS] {
    let mut passes = [[0; LANES]; BLOCKS];
    match (several, num_blocks) {
        (false, 1) => decide_blocks::<false, 1>(gaps, place, limits, &mut passes),
        (false, 2) => decide_blocks::<false, 2>(gaps, place, limits, &mut passes),
        (false, _) => decide_blocks::<false, BLOCKS>(gaps, place, limits, &mut passes),
        (true, 1) => decide_blocks::<true, 1>(gaps, place, limits, &mut passes),
        (true, 2) => decide_blocks::<true, 2>(gaps, place, limits, &mut passes),
        (true, _) => decide_blocks::<true, BLOCKS>(gaps, place, limits, &mut passes),
    }
    passes
}

#[inline(always)]
fn decide_blocks<const SEVERAL: bool, const N: usize>(
    gaps: &[Corners],
    place: &Place<'_>,
    limits: &Limits,
    passes: &mut [[u8; LANES]],
) {
    let (mut sums, mut most) = ([[1f32; LANES]; N], [[1f32; LANES]; N]);
    let Place { lower, right, pace } = *place;
    for [a, b, c, d] in gaps {
        let (fall, right_fall) = (c - a, d - b);
        let turn = right_fall - fall;
        let left: [f32; LANES] = lanes(|lane| a + lower[lane] * fall);
        let gap: [f32; LANES] = lanes(|lane| left[lane] + right[lane] * (b + lower[lane] * right_fall - left[lane]));
        let mut value: [f32; LANES] = lanes(|lane| exp_of_gap(gap[lane]));
        let factor: [f32; LANES] =
            if N > 1 { lanes(|lane| exp_of_gap(pace * (fall + right[lane] * turn))) } else { [0.0; LANES] };
        for (sums, most) in sums.iter_mut().zip(&mut most) {
            *sums = lanes(|lane| sums[lane] + value[lane]);
            if SEVERAL {
                *most = lanes(|lane| if value[lane] > most[lane] { value[lane] } else { most[lane] });
            }
            value = lanes(|lane| value[lane] * factor[lane]);
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
