//! Rows: one number for each image, in the order of a first gate.
//!
//! A row is (rows, RUNS): a run of images is one lane, see `tails`. Entries beyond the last image are 0.

use super::bound::larger;
use super::compact::RUNS;
use crate::isa::Kernel;

/// Values of images in the order of a task, 0 where there is no image.
pub(crate) fn arranged<T: Copy + Default>(images: &[u32], values: &[T]) -> Vec<T> {
    images.iter().map(|image| values.get(*image as usize).copied().unwrap_or_default()).collect()
}

/// For each run, the sum over its images of the best of (first exit, tail), and of the tail alone.
pub(crate) struct TailSums<'k> {
    pub best: &'k [f32],
    pub last: &'k [f32],
    /// Cost of stopping at the last exit.
    pub cost: f32,
    pub shares: &'k [f32],
    pub first: &'k [f32],
}

impl Kernel for TailSums<'_> {
    type Output = [[f32; RUNS]; 2];

    #[inline(always)]
    fn run(self) -> Self::Output {
        let (mut free, mut tail) = ([0.0f32; RUNS], [0.0f32; RUNS]);
        let rows = self.best.chunks_exact(RUNS).zip(self.last.chunks_exact(RUNS));
        let costs = self.shares.chunks_exact(RUNS).zip(self.first.chunks_exact(RUNS));
        for ((best, last), (share, first)) in rows.zip(costs) {
            for lane in 0..RUNS {
                let here = last[lane] - self.cost * share[lane];
                let behind = larger(best[lane], here);
                tail[lane] += behind;
                free[lane] += larger(first[lane], behind);
            }
        }
        [free, tail]
    }
}

/// Sum of a (rows, RUNS) array over the runs before each one.
pub(crate) fn sums_before(values: &[f32]) -> [f64; RUNS] {
    let (mut sums, mut before) = ([0.0; RUNS], [0.0; RUNS]);
    for row in values.as_chunks::<RUNS>().0 {
        sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += f64::from(*value));
    }
    for run in 1..RUNS {
        before[run] = before[run - 1] + sums[run - 1];
    }
    before
}

/// The greatest, over runs, of what is before it, what `TailSums` says of it, and the tails of all runs behind it.
pub(crate) fn greatest_of_runs(before: &[f64; RUNS], [free, tail]: &[[f32; RUNS]; 2]) -> f64 {
    const PARTS: usize = 4;
    const LENGTH: usize = RUNS / PARTS;
    // side by side, as additions in one row wait for each other
    let (mut behind, mut greatest) = ([0.0; PARTS], [f64::NEG_INFINITY; PARTS]);
    for at in (0..LENGTH).rev() {
        for part in 0..PARTS {
            let run = part * LENGTH + at;
            greatest[part] = larger(greatest[part], before[run] + f64::from(free[run]) + behind[part]);
            behind[part] += f64::from(tail[run]);
        }
    }
    let (mut behind_all, mut most) = (0.0, f64::NEG_INFINITY);
    for (greatest, behind) in greatest.iter().zip(&behind).rev() {
        most = larger(most, greatest + behind_all);
        behind_all += behind;
    }
    most
}

/// Values less the cost of the images' shares.
pub(crate) struct LessCost<'k> {
    pub values: &'k [f32],
    pub cost: f32,
    pub shares: &'k [f32],
}

impl Kernel for LessCost<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run(self) -> Self::Output {
        self.values.iter().zip(self.shares).map(|(value, share)| value - self.cost * share).collect()
    }
}

/// Raise what images are worth to their values at another exit less the cost, where that is more.
pub(crate) struct Raise<'k> {
    pub best: &'k mut [f32],
    pub values: &'k [f32],
    pub cost: f32,
    pub shares: &'k [f32],
}

impl Kernel for Raise<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (best, (value, share)) in self.best.iter_mut().zip(self.values.iter().zip(self.shares)) {
            let here = value - self.cost * share;
            *best = larger(here, *best);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::array::uniform32;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against the definition; the sums of these numbers are exact.
        #[test]
        fn the_greatest_of_all_runs(
            before in uniform32(-99i16..99),
            free in uniform32(-99i16..99),
            tail in uniform32(-99i16..99),
        ) {
            let of_run = |run: usize| before[run] + free[run] + tail[run + 1..].iter().sum::<i16>();
            let most = (0..RUNS).map(of_run).max().map(f64::from);
            let found = greatest_of_runs(&before.map(f64::from), &[free.map(f32::from), tail.map(f32::from)]);
            prop_assert_eq!(Some(found), most);
        }
    }
}
