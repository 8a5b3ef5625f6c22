//! Medians of 3 x 3 and 5 x 5 windows by compare-exchange networks, neighbouring pixels in step.
//!
//! Networks: Paeth (Graphics Gems, 1990) and Devillard ("Fast median search", 1998); 19 and 99 exchanges. That they put
//! the median into the middle is tested on all 2^9 and a sample of the 2^25 binary inputs (zero-one principle).

use std::ops::Range;

use super::{Masked, value};
use crate::isa::Kernel;

/// Medians of the masked pixels of some rows.
pub(super) struct Rows<'p, const WINDOW: usize> {
    pub picture: Masked<'p>,
    pub rows: Range<usize>,
    pub refined: &'p mut [f32],
}

/// Pixels computed together where one of them is masked.
const BLOCK: usize = 64;

impl<const WINDOW: usize> Kernel for Rows<'_, WINDOW> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let Self { picture, rows, refined } = self;
        let width = picture.size.1;
        for (row, refined) in rows.zip(refined.chunks_exact_mut(width)) {
            let mask = picture.mask_row(row);
            for start in (0..width).step_by(BLOCK) {
                let len = BLOCK.min(width - start);
                let mask = &mask[start..start + len];
                if mask.iter().fold(0, |any, bit| any | bit) == 0 {
                    continue;
                }
                let mut lines = [[0; BLOCK + 4]; WINDOW];
                for (dy, to) in lines.iter_mut().enumerate() {
                    let from = &picture.line(row + dy)[start..start + len + WINDOW - 1];
                    to[..from.len()].copy_from_slice(from);
                }
                let medians = medians_of_block(&lines);
                for ((refined, bit), median) in refined[start..start + len].iter_mut().zip(mask).zip(medians) {
                    *refined = if *bit != 0 { value(median) } else { *refined };
                }
            }
        }
    }
}

/// All arrays have constant lengths, so that the loop has no bounds to check and vectorises.
#[inline(always)]
fn medians_of_block<const WINDOW: usize>(lines: &[[i32; BLOCK + 4]; WINDOW]) -> [i32; BLOCK] {
    let mut medians = [0; BLOCK];
    for i in 0..BLOCK {
        let mut window = [0; 25];
        for dy in 0..WINDOW {
            for dx in 0..WINDOW {
                window[dy * WINDOW + dx] = lines[dy][i + dx];
            }
        }
        medians[i] = if WINDOW == 3 { median_of_9(window) } else { median_of_25(window) };
    }
    medians
}

/// Exchange pairs of `$values` so that the first is not the larger.
macro_rules! exchange {
    ($values:ident: $($a:literal : $b:literal)*) => {
        $(let (low, high) = ($values[$a].min($values[$b]), $values[$a].max($values[$b]));
        $values[$a] = low;
        $values[$b] = high;)*
    };
}

#[inline(always)]
fn median_of_9(mut v: [i32; 25]) -> i32 {
    exchange!(v:
            1:2 4:5 7:8 0:1 3:4 6:7 1:2 4:5 7:8 0:3 5:8 4:7
            3:6 1:4 2:5 4:7 4:2 6:4 4:2);
    v[4]
}

#[inline(always)]
fn median_of_25(mut v: [i32; 25]) -> i32 {
    exchange!(v:
            0:1 3:4 2:4 2:3 6:7 5:7 5:6 9:10 8:10 8:9 12:13 11:13
            11:12 15:16 14:16 14:15 18:19 17:19 17:18 21:22 20:22 20:21 23:24 2:5
            3:6 0:6 0:3 4:7 1:7 1:4 11:14 8:14 8:11 12:15 9:15 9:12
            13:16 10:16 10:13 20:23 17:23 17:20 21:24 18:24 18:21 19:22 8:17 9:18
            0:18 0:9 10:19 1:19 1:10 11:20 2:20 2:11 12:21 3:21 3:12 13:22
            4:22 4:13 14:23 5:23 5:14 15:24 6:24 6:15 7:16 7:19 13:21 15:23
            7:13 7:15 1:9 3:11 5:17 11:17 9:17 4:10 6:12 7:14 4:6 4:7
            12:14 10:14 6:7 10:12 6:10 6:17 12:17 7:17 7:10 12:18 7:12 10:18
            12:20 10:20 10:12);
    v[12]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nine_on_all_binary_inputs() {
        for bits in 0..1 << 9 {
            let mut values = [0; 25];
            (0..9).for_each(|i| values[i] = bits >> i & 1);
            assert_eq!(median_of_9(values), i32::from(bits.count_ones() >= 5));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]
        #[test]
        fn twenty_five_on_binary_inputs(bits in 0i32..1 << 25) {
            let values = std::array::from_fn(|i| bits >> i & 1);
            prop_assert_eq!(median_of_25(values), i32::from(bits.count_ones() >= 13));
        }
    }
}
