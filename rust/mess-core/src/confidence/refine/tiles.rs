//! Medians of large windows: the pixels of a tile share the work, because their windows overlap almost entirely.
//!
//! For a tile of 16 x 16 pixels, the region that its windows cover together:
//! 1. Bracket. A sorted sample of the region gives candidate values. For one of them, the number of smaller values in each
//!    of the tile's windows comes from running sums, as in [`crate::confidence::image`]. A search from where the last
//!    tile's medians were finds the largest sample that is below or at every median, and the smallest above every median.
//! 2. Candidates. The region's values inside the bracket, a part of it, are collected with their places and sorted.
//! 3. Ranks. Which candidates lie in the rows of a window is a set of bits, and which in its columns: their intersection
//!    is the window's candidates in order, and the median is its element of rank (w^2 - 1) / 2 minus the count of smaller
//!    values.
//!
//! Exact for every input: the bracket is proven by counts, and every value inside it is looked at. Only the time depends
//! on the values (ties and noise make more candidates).

use std::ops::Range;

use super::{Masked, value};
use crate::confidence::scratch::room;
use crate::isa::Kernel;

/// Medians of the masked pixels of some rows.
pub(super) struct Rows<'p> {
    pub picture: Masked<'p>,
    pub rows: Range<usize>,
    pub refined: &'p mut [f32],
    pub buffers: &'p mut Buffers,
}

/// Side of a tile.
const SIDE: usize = 16;

/// A number for each pixel of a tile.
type PerPixel = [[i32; SIDE]; SIDE];

/// Room for one tile.
#[derive(Default)]
pub(crate) struct Buffers {
    sample: Vec<i32>,
    columns: Vec<i32>,
    /// Key (offset to unsigned), row and column in the region, packed so that sorting orders by key.
    candidates: Vec<u64>,
    /// For each row (then column) of the tile, the candidates that its windows contain, as bits.
    in_rows: Vec<u64>,
    in_columns: Vec<u64>,
    below: PerPixel,
    below_low: PerPixel,
    /// Least and largest median of the last tile.
    hint: (i32, i32),
}

impl Kernel for Rows<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let Self { picture, rows, refined, buffers } = self;
        let width = picture.size.1;
        for row in rows.clone().step_by(SIDE) {
            for column in (0..width).step_by(SIDE) {
                let (height, width_here) = (SIDE.min(rows.end - row), SIDE.min(width - column));
                let tile = Tile { picture, row, column, height, width: width_here };
                let mut wanted = [[false; SIDE]; SIDE];
                let mut any = false;
                for (dy, wanted) in wanted.iter_mut().enumerate().take(height) {
                    for (dx, bit) in picture.mask_row(row + dy)[column..column + width_here].iter().enumerate() {
                        wanted[dx] = *bit != 0;
                        any |= wanted[dx];
                    }
                }
                if !any {
                    continue;
                }
                let medians = tile.medians(&wanted, buffers);
                for (dy, (wanted, medians)) in wanted.iter().zip(&medians).enumerate().take(height) {
                    let line = &mut refined[(row - rows.start + dy) * width + column..][..width_here];
                    for ((refined, wanted), median) in line.iter_mut().zip(wanted).zip(medians) {
                        *refined = if *wanted { value(*median) } else { *refined };
                    }
                }
            }
        }
    }
}

/// Pixels whose medians are computed together.
struct Tile<'p> {
    picture: Masked<'p>,
    row: usize,
    column: usize,
    height: usize,
    width: usize,
}

impl Tile<'_> {
    /// Row `dy` of the region that the tile's windows cover.
    #[inline(always)]
    fn line(&self, dy: usize) -> &[i32] {
        &self.picture.line(self.row + dy)[self.column..self.column + self.picture.window + self.width - 1]
    }

    /// Keys of the medians of the wanted pixels.
    #[inline(always)]
    fn medians(&self, wanted: &[[bool; SIDE]; SIDE], buffers: &mut Buffers) -> PerPixel {
        let rank = (self.picture.window * self.picture.window / 2) as i32;
        let (low, high) = self.bracket(rank, wanted, buffers);
        let Buffers { candidates, in_rows, in_columns, below_low, hint, .. } = buffers;
        let (least, most) = self.collect(low, high, candidates);
        if least == most {
            *hint = (least, most);
            return [[least; SIDE]; SIDE];
        }
        candidates.sort_unstable();
        let words = candidates.len().div_ceil(64);
        let (in_rows, in_columns) = (room(in_rows, (SIDE + 1) * words), room(in_columns, (SIDE + 1) * words));
        self.contained(candidates, |candidate| candidate >> 16 & 0xffff, in_rows);
        self.contained(candidates, |candidate| candidate & 0xffff, in_columns);
        let mut medians = [[0; SIDE]; SIDE];
        *hint = (i32::MAX, i32::MIN);
        for (dy, medians) in medians.iter_mut().enumerate().take(self.height) {
            let rows = &in_rows[dy * words..(dy + 1) * words];
            for (dx, median) in medians.iter_mut().enumerate().take(self.width) {
                if wanted[dy][dx] {
                    let columns = &in_columns[dx * words..(dx + 1) * words];
                    let place = place_of_rank(rows, columns, (rank - below_low[dy][dx]) as u32);
                    *median = unpacked(candidates[place]);
                    *hint = (hint.0.min(*median), hint.1.max(*median));
                }
            }
        }
        medians
    }

    /// The candidates that lie in the windows of each row of the tile, `coordinate` being their row in the region; the same
    /// of columns. A candidate at y is contained from row y - window + 1 to row y: it is marked where it comes and where it
    /// goes, and the marks are accumulated.
    #[inline(always)]
    fn contained(&self, candidates: &[u64], coordinate: impl Fn(u64) -> u64, sets: &mut [u64]) {
        let words = candidates.len().div_ceil(64);
        sets.fill(0);
        for (index, candidate) in candidates.iter().enumerate() {
            let (at, bit) = (coordinate(*candidate) as usize, 1u64 << (index % 64));
            sets[(at + 1).saturating_sub(self.picture.window) * words + index / 64] ^= bit;
            sets[(at + 1).min(SIDE) * words + index / 64] ^= bit;
        }
        for row in 1..SIDE {
            let (before, here) = sets.split_at_mut(row * words);
            here[..words].iter_mut().zip(&before[(row - 1) * words..]).for_each(|(here, before)| *here ^= before);
        }
    }

    /// A range of values that holds the medians of all wanted pixels; `below_low` gets the counts of smaller ones.
    #[inline(always)]
    fn bracket(&self, rank: i32, wanted: &[[bool; SIDE]; SIDE], buffers: &mut Buffers) -> (i32, i32) {
        let Buffers { sample, columns, below, below_low, hint, .. } = buffers;
        let region = (self.picture.window + self.height - 1) * (self.picture.window + self.width - 1);
        let stride = (region / SAMPLES.min(region)).max(1) | 1; // odd, so that it does not stay in a few columns
        sample.clear();
        let line = self.picture.window + self.width - 1;
        let mut at = stride / 2;
        while at < region {
            sample.push(self.line(at / line)[at % line]);
            at += stride;
        }
        sample.sort_unstable();
        sample.dedup();
        let (mut low, mut high) = (i32::MIN, i32::MAX);
        *below_low = [[0; SIDE]; SIDE];
        // Samples before `safe` are at or below every median, from `failed` on not; samples from `above` on are above every
        // median, before `not_above` not. Each probe tells something about both.
        let (mut safe, mut failed) = (0, sample.len());
        let (mut not_above, mut above) = (0, sample.len());
        let (mut steps, mut searching_low) = (0usize, true);
        loop {
            let (from, to) = if searching_low { (safe, failed) } else { (not_above, above) };
            if to.saturating_sub(from) <= ENOUGH {
                if !searching_low {
                    return (low, high);
                }
                (searching_low, steps) = (false, 0);
                continue;
            }
            // at first around the hint, in growing steps; then halving
            let guess = sample.partition_point(|v| *v < if searching_low { hint.0 } else { hint.1 });
            let probe = match steps {
                0 if searching_low => guess.saturating_sub(1),
                0 => guess + 1,
                1 if searching_low => guess.saturating_sub(4),
                1 => guess + 4,
                _ => usize::midpoint(from, to),
            };
            let probe = if (from..to).contains(&probe) { probe } else { usize::midpoint(from, to) };
            steps += 1;
            self.count_below(sample[probe], wanted, columns, below);
            let (none_below, all_below) = compare(below, wanted, rank);
            if none_below {
                (safe, low) = (probe + 1, sample[probe]);
                not_above = not_above.max(probe + 1);
                *below_low = *below;
            } else if all_below {
                (above, high) = (probe, sample[probe].saturating_sub(1));
                failed = failed.min(probe);
            } else {
                failed = failed.min(probe);
                not_above = not_above.max(probe + 1);
            }
        }
    }

    /// How many values of each wanted pixel's window are smaller than `threshold`.
    #[inline(always)]
    fn count_below(&self, threshold: i32, wanted: &[[bool; SIDE]; SIDE], columns: &mut Vec<i32>, below: &mut PerPixel) {
        let window = self.picture.window;
        let columns = room(columns, window + SIDE - 1);
        columns.fill(0);
        let len = window + self.width - 1;
        let columns = &mut columns[..len];
        // the first window but its last row: an even number of rows
        for dy in (0..window - 1).step_by(2) {
            for ((count, a), b) in columns.iter_mut().zip(self.line(dy)).zip(self.line(dy + 1)) {
                *count += i32::from(*a < threshold) + i32::from(*b < threshold);
            }
        }
        for (dy, below) in below.iter_mut().enumerate().take(self.height) {
            let enters = self.line(dy + window - 1);
            if dy == 0 {
                columns.iter_mut().zip(enters).for_each(|(count, v)| *count += i32::from(*v < threshold));
            } else {
                for ((count, enters), leaves) in columns.iter_mut().zip(enters).zip(self.line(dy - 1)) {
                    *count += i32::from(*enters < threshold) - i32::from(*leaves < threshold);
                }
            }
            if wanted[dy].contains(&true) {
                let mut count: i32 = columns[..window].iter().sum();
                below[0] = count;
                for dx in 1..self.width {
                    count += columns[dx + window - 1] - columns[dx - 1];
                    below[dx] = count;
                }
            }
        }
    }

    /// Fill `candidates` with the region's values in the bracket; the least and the largest of them.
    #[inline(always)]
    fn collect(&self, low: i32, high: i32, candidates: &mut Vec<u64>) -> (i32, i32) {
        let line_len = self.picture.window + self.width - 1;
        let num_lines = self.picture.window + self.height - 1;
        let (mut least, mut most) = (i32::MAX, i32::MIN);
        // written without a branch, so there must be room for one more than are inside
        let found = room(candidates, line_len * num_lines + 1);
        let mut count = 0;
        for dy in 0..num_lines {
            for (dx, v) in self.line(dy).iter().enumerate() {
                found[count] = packed(*v, dy, dx);
                count += usize::from((low <= *v) & (*v <= high));
            }
        }
        candidates.truncate(count);
        for candidate in candidates.iter() {
            let v = unpacked(*candidate);
            (least, most) = (least.min(v), most.max(v));
        }
        (least, most)
    }
}

/// Index of the `rank`-th bit (from 0) that is set in both.
#[inline(always)]
fn place_of_rank(rows: &[u64], columns: &[u64], mut rank: u32) -> usize {
    for (word, (rows, columns)) in rows.iter().zip(columns).enumerate() {
        let mut both = rows & columns;
        let count = both.count_ones();
        if rank < count {
            let mut place = 64 * word;
            for half in [32, 16, 8, 4, 2, 1] {
                let lower = (both & ((1 << half) - 1)).count_ones();
                if rank >= lower {
                    rank -= lower;
                    both >>= half;
                    place += half;
                }
            }
            return place;
        }
        rank -= count;
    }
    debug_assert!(false, "the bracket holds every wanted median");
    0
}

/// Samples of a region.
const SAMPLES: usize = 64;

/// A bracket is good enough when it is this many samples too wide at either end: another probe would cost as much as the
/// candidates that it saves.
const ENOUGH: usize = 2;

#[inline(always)]
fn packed(key: i32, y: usize, x: usize) -> u64 {
    u64::from(key as u32 ^ 0x8000_0000) << 32 | (y as u64) << 16 | x as u64
}

#[inline(always)]
fn unpacked(candidate: u64) -> i32 {
    ((candidate >> 32) as u32 ^ 0x8000_0000) as i32
}

/// Whether no wanted median is below a threshold, and whether all are: a median is not below it exactly when at most `rank`
/// values are smaller.
#[inline(always)]
fn compare(below: &PerPixel, wanted: &[[bool; SIDE]; SIDE], rank: i32) -> (bool, bool) {
    let (mut none_below, mut all_below) = (true, true);
    for (below, wanted) in below.iter().flatten().zip(wanted.iter().flatten()) {
        none_below &= !wanted | (*below <= rank);
        all_below &= !wanted | (*below > rank);
    }
    (none_below, all_below)
}
