//! Windows over byte maps, a row at a time: running column counts, and sums or maxima along a row in log2(width) passes.
//!
//! Both cost the same whatever the height of the window, and nearly the same whatever its width.

use std::ops::{Add, Sub};

/// A counter wide enough for a window's pixels.
pub(crate) trait Count:
    Copy + Default + Ord + From<u8> + Add<Output = Self> + Sub<Output = Self> + Send + Sync
{
    /// The sum, wrapping: what lies beyond the picture's edge is added up too, and may be anything.
    fn plus(self, other: Self) -> Self;
}

impl Count for u16 {
    #[inline(always)]
    fn plus(self, other: Self) -> Self {
        self.wrapping_add(other)
    }
}

impl Count for u32 {
    #[inline(always)]
    fn plus(self, other: Self) -> Self {
        self.wrapping_add(other)
    }
}

/// Add a row of ones and zeros to the counts of their columns.
#[inline(always)]
pub(crate) fn add_row<T: Count>(counts: &mut [T], row: &[u8]) {
    counts.iter_mut().zip(row).for_each(|(count, bit)| *count = *count + T::from(*bit));
}

/// Take a row away again.
#[inline(always)]
pub(crate) fn drop_row<T: Count>(counts: &mut [T], row: &[u8]) {
    counts.iter_mut().zip(row).for_each(|(count, bit)| *count = *count - T::from(*bit));
}

/// Rows are worked on in whole pieces of this many elements, so that no loop ends with single steps; what lies beyond the
/// picture's edge is arbitrary.
pub(crate) const PIECE: usize = 64;

/// Rows whose windows are combined together, laid end to end with their borders between: a pass over one row alone would
/// read what the pass before has only just written, and wait for it.
pub(crate) const ROWS: usize = 16;

/// Elements that [`sliding`] needs in `values` and in `spare`.
pub(crate) fn sliding_room(len: usize, window: usize) -> usize {
    len + window + PIECE
}

/// Combine every `window` consecutive values: `result[i] = values[i] + ... + values[i + window - 1]` for an associative
/// `join`. The length of `result` is a multiple of [`PIECE`]; `values` (overwritten) and `spare` are [`sliding_room`] long.
///
/// Values of 2^b consecutive elements come from those of 2^(b-1); a window is one run for each bit of its length.
#[inline(always)]
pub(crate) fn sliding<T: Copy>(
    values: &mut [T],
    spare: &mut [T],
    result: &mut [T],
    window: usize,
    join: impl Fn(T, T) -> T,
) {
    let len = result.len();
    debug_assert!(len.is_multiple_of(PIECE) && values.len() >= sliding_room(len, window));
    let (mut powers, mut next) = (values, spare);
    let mut run = 1; // powers[i] joins `run` values from i on
    let mut offset = 0;
    loop {
        if window & run != 0 {
            if offset == 0 {
                result.copy_from_slice(&powers[..len]);
            } else {
                result.iter_mut().zip(&powers[offset..]).for_each(|(total, more)| *total = join(*total, *more));
            }
            offset += run;
        }
        if 2 * run > window {
            return;
        }
        let usable = (len + window - 2 * run).next_multiple_of(PIECE);
        for ((to, a), b) in next[..usable].iter_mut().zip(&powers[..usable]).zip(&powers[run..]) {
            *to = join(*a, *b);
        }
        std::mem::swap(&mut powers, &mut next);
        run *= 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn sliding_equals_the_sum_of_each_window(values in prop::collection::vec(0u32..9, 1024), window in 1usize..=300) {
            let mut result = vec![0; PIECE];
            sliding(&mut values.clone(), &mut values.clone(), &mut result, window, |a, b| a + b);
            for (i, total) in result.iter().enumerate() {
                prop_assert_eq!(*total, values[i..i + window].iter().sum::<u32>());
            }
        }
    }
}
