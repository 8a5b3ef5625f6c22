//! How far the sums T and U of the configurations of one chain can lie apart.
//!
//! The images of a first gate, in order of confidence, are cut into `GROUPS` groups of runs. With the image threshold in
//! group g, images of earlier groups take exit 1, those of later groups one of the tail 2..m, those of g any exit. For
//! counts x_1..x_m of an image
//!
//! ```text
//! max(x_1..x_m) <= max(x_1, x_2) + sum over j >= 2 of (x_{j+1} - x_j)+     max(x_2..x_m) <= x_2 + the same sum
//! min(x_1..x_m) >= min(x_1, x_2) - sum over j >= 2 of (x_j - x_{j+1})+     min(x_2..x_m) >= x_2 - the same sum
//! ```
//!
//! (*Proof.* x_k = x_2 + the sum of the steps from 2 to k, and dropping steps that go down only adds; x_1 <= max(x_1,
//! x_2). The second line is the first for -x. ∎) Summed over images, the sums of steps are at most those over all images,
//! which depend on pairs of exits only and are worked out once for all (`Steps`). So the ranges of a chain with the
//! threshold in g are those of (1, 2), worked out once for each first gate and second exit (`Start`), widened by the
//! steps of the chain: a few additions a class. The lift of a plane follows by `bound.rs`.

use rayon::prelude::*;

use super::bound::{Plane, Ranges, larger, smaller};
use super::compact::{Compact, GROUPS, PAD, take};
use crate::isa::{Isa, Kernel};

/// Lanes of a pair of padded arrays.
const WIDE: usize = 2 * PAD;
/// Exits at either end of the steps that are worked out together, and images of them that the caches hold.
const TILE: usize = 8;
const BLOCK: usize = 32;

/// Numbers of one chain for each class: how far T may rise, T fall, F rise, F fall. (4, padded classes)
pub(crate) type Widths = Vec<f64>;

/// Sums over images of the steps between each two exits.
#[derive(Default)]
pub(crate) struct Steps {
    num_exits: usize,
    num_padded: usize,
    /// Where the widths of a pair begin.
    starts: Vec<usize>,
    widths: Vec<f64>,
    /// (E, 4, padded P): T, T, U, U of each exit, in the order of `Start`.
    alone: Vec<f64>,
}

impl Steps {
    pub fn new(compact: &Compact, allowed: &[bool]) -> Self {
        let (num_exits, num_padded) = (compact.num_exits, compact.padded());
        // exits of one point, a few at a time
        let mut exits: Vec<usize> = (0..num_exits).filter(|exit| allowed[*exit]).collect();
        exits.sort_by_key(|exit| compact.points[*exit]); // stable
        let same_point = |a: &usize, b: &usize| compact.points[*a] == compact.points[*b];
        let some: Vec<&[usize]> = exits.chunk_by(same_point).flat_map(|exits| exits.chunks(TILE)).collect();
        let tiles: Vec<(&[usize], &[usize])> = (some.iter().flat_map(|from| some.iter().map(move |to| (*from, *to))))
            .filter(|(from, to)| compact.points[from[0]] < compact.points[to[0]])
            .collect();
        let pairs = |(from, to): &(&'_ [usize], &'_ [usize])| -> Vec<(usize, usize)> {
            from.iter().flat_map(|a| to.iter().map(move |b| (*a, *b))).collect()
        };
        let mut starts = vec![usize::MAX; num_exits * num_exits];
        for (number, (a, b)) in tiles.iter().flat_map(pairs).enumerate() {
            starts[a * num_exits + b] = number * 4 * num_padded;
        }
        let mut alone = vec![0.0; num_exits * 4 * num_padded];
        alone.par_chunks_mut(4 * num_padded).enumerate().for_each(|(exit, alone)| {
            let (of_t, of_u) = alone.split_at_mut(2 * num_padded);
            let ((t, t_too), (u, u_too)) = (of_t.split_at_mut(num_padded), of_u.split_at_mut(num_padded));
            u.copy_from_slice(&compact.truth);
            (0..compact.num_images).for_each(|image| compact.add(exit, image, t, u));
            t_too.copy_from_slice(t);
            u_too.copy_from_slice(u);
        });
        // what falls is what rises less the difference of the sums, all of them integers
        let totals = |exit: usize, which: usize| &alone[(4 * exit + 2 * which) * num_padded..][..num_padded];
        let of_tile = |tile: &(&[usize], &[usize])| {
            let rises = Isa::best().run(Rises { compact, from: tile.0, to: tile.1 });
            let mut widths = Vec::with_capacity(2 * rises.len());
            for (rises, (a, b)) in rises.chunks_exact(2 * num_padded).zip(pairs(tile)) {
                for (which, rises) in rises.chunks_exact(num_padded).enumerate() {
                    let differences = totals(b, which).iter().zip(totals(a, which)).map(|(b, a)| b - a);
                    widths.extend_from_slice(rises);
                    widths.extend(rises.iter().zip(differences).map(|(rise, difference)| rise - difference));
                }
            }
            widths
        };
        let widths = tiles.par_iter().with_max_len(1).flat_map_iter(of_tile).collect();
        Self { num_exits, num_padded, starts, widths, alone }
    }

    /// Ranges of a chain of one exit, (4, padded P): T, T, U, U.
    pub fn alone(&self, exit: usize) -> &[f64] {
        &self.alone[exit * 4 * self.num_padded..][..4 * self.num_padded]
    }

    /// Widths of a chain with no step.
    pub fn none(&self) -> Widths {
        vec![0.0; 4 * self.num_padded]
    }

    /// Widths of all steps of a chain.
    pub fn along(&self, exits: &[usize]) -> Widths {
        let mut widths = self.none();
        for pair in exits.windows(2) {
            let before = widths.clone();
            self.extend(&before, pair[0], pair[1], &mut widths);
        }
        widths
    }

    /// The widest step from one of some exits to one of others.
    pub fn widest(&self, from: &[usize], to: &[usize]) -> Widths {
        let mut widest = self.none();
        for (a, b) in from.iter().flat_map(|a| to.iter().map(move |b| (*a, *b))) {
            let start = self.starts[a * self.num_exits + b];
            let step = &self.widths[start..start + widest.len()];
            widest.iter_mut().zip(step).for_each(|(widest, step)| *widest = larger(*widest, *step));
        }
        widest
    }

    /// Widths of a chain that ends with `last` when `next` follows.
    pub fn extend(&self, before: &[f64], last: usize, next: usize, widths: &mut Widths) {
        let start = self.starts[last * self.num_exits + next];
        let step = &self.widths[start..start + 4 * self.num_padded];
        widths.clear();
        widths.extend(before.iter().zip(step).map(|(a, b)| a + b));
    }
}

/// Ranges of the chain (first exit, second exit) with the image threshold in each group, (GROUPS, 4, padded classes):
/// greatest T, least T, greatest U, least U.
pub(crate) struct Start {
    num_padded: usize,
    ranges: Vec<f64>,
}

impl Start {
    /// `group_of[image]` is the image's group in the order of the first gate.
    pub fn new(compact: &Compact, first: usize, second: usize, group_of: &[u8]) -> Self {
        let num_padded = compact.padded();
        let sums = Isa::best().run(GroupSums { compact, first, second, group_of });
        // sums of float32 terms are off by at most this part of themselves; what is smaller is both less what is larger
        let off = (compact.num_images + 2) as f64 * f64::from(f32::EPSILON) / 2.0;
        let sum = |group: usize, of: usize, which: usize, class: usize| {
            f64::from(sums[(group * 6 + 2 * of + which) * num_padded + class])
        };
        let mut ranges = vec![0.0; GROUPS * 4 * num_padded];
        for class in 0..num_padded {
            for which in 0..2 {
                let base = if which == 0 { 0.0 } else { compact.truth[class] };
                let mut behind: f64 = (0..GROUPS).map(|group| sum(group, 1, which, class)).sum();
                let mut before = 0.0;
                for group in 0..GROUPS {
                    behind -= sum(group, 1, which, class);
                    let [one, two, high] = [0, 1, 2].map(|of| sum(group, of, which, class));
                    let sure = before + behind.max(0.0);
                    let slack = 2.0 * off * (sure + one + two + high);
                    ranges[(group * 4 + 2 * which) * num_padded + class] = base + sure + high + slack;
                    ranges[(group * 4 + 2 * which + 1) * num_padded + class] = base + sure + one + two - high - slack;
                    before += sum(group, 0, which, class);
                }
            }
        }
        Self { num_padded, ranges }
    }

    /// The ranges with the threshold in a group, (4, padded P).
    #[inline(always)]
    pub fn of(&self, group: usize) -> &[f64] {
        &self.ranges[group * 4 * self.num_padded..][..4 * self.num_padded]
    }
}

/// Ranges of T and of U of a chain that begins with these ranges, (4, padded P) as in `Start`, and goes on with these
/// steps.
#[inline(always)]
pub(crate) fn widen(start: &[f64], widths: &[f64], truth: &[f64], ranges: &mut Ranges) {
    let n = truth.len();
    let (of_both, of_wrong) = widths.split_at(2 * n);
    let ((t_rise, t_fall), (f_rise, f_fall)) = (of_both.split_at(n), of_wrong.split_at(n));
    let (t_low, t_high) = (&mut ranges.t_low[..n], &mut ranges.t_high[..n]);
    let (u_low, u_high) = (&mut ranges.u_low[..n], &mut ranges.u_high[..n]);
    for class in 0..n {
        t_high[class] = smaller(start[class] + t_rise[class], truth[class]);
        t_low[class] = larger(start[n + class] - t_fall[class], 0.0);
        u_high[class] = start[2 * n + class] + f_rise[class];
        u_low[class] = larger(start[3 * n + class] - f_fall[class], truth[class]);
    }
}

/// How far T and F may rise in the step from each of some exits to each of others, (from, to, 2, padded P).
struct Rises<'k> {
    compact: &'k Compact,
    from: &'k [usize],
    to: &'k [usize],
}

impl Kernel for Rises<'_> {
    type Output = Vec<f64>;

    #[inline(always)]
    fn run(self) -> Self::Output {
        let compact = self.compact;
        let width = 2 * compact.padded();
        let mut rises = vec![0.0; self.from.len() * self.to.len() * width];
        let mut sums = vec![0u32; width];
        let mut first = 0;
        for same in compact.summable(&compact.weight, BLOCK, |weight| *weight) {
            let rows = |exit: &usize| compact.of_images(*exit, first, same.len()).chunks_exact(width);
            let pairs = self.from.iter().flat_map(|from| self.to.iter().map(move |to| (from, to)));
            for (rises, (from, to)) in rises.chunks_exact_mut(width).zip(pairs) {
                for (a, b) in rows(from).zip(rows(to)) {
                    for (sums, (a, b)) in wide_mut(&mut sums).iter_mut().zip(wide(a).iter().zip(wide(b))) {
                        let mut now = *sums; // a copy, and no saturating_sub, become vectors
                        for lane in 0..WIDE {
                            now[lane] += b[lane].max(a[lane]) - a[lane];
                        }
                        *sums = now;
                    }
                }
                take(&mut sums, same[0], rises);
            }
            first += same.len();
        }
        rises
    }
}

/// (GROUPS, 6, padded P): T and F of the first exit, of the second, of the larger.
struct GroupSums<'k> {
    compact: &'k Compact,
    first: usize,
    second: usize,
    group_of: &'k [u8],
}

impl Kernel for GroupSums<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run(self) -> Self::Output {
        let n = self.compact.padded();
        let mut sums = vec![0.0f32; GROUPS * 6 * n];
        for image in 0..self.compact.num_images {
            let weight = self.compact.weight[image] as f32;
            let sums = &mut sums[usize::from(self.group_of[image]) * 6 * n..][..6 * n];
            let (ones, rest) = sums.split_at_mut(2 * n);
            let (twos, highs) = rest.split_at_mut(2 * n);
            let a = wide(self.compact.both_counts(self.first, image));
            let b = wide(self.compact.both_counts(self.second, image));
            for (chunk, (a, b)) in a.iter().zip(b).enumerate() {
                let (x, y) = (scaled(a, weight), scaled(b, weight));
                add(&mut wide_mut(ones)[chunk], &x);
                add(&mut wide_mut(twos)[chunk], &y);
                add(&mut wide_mut(highs)[chunk], &larger_of(&x, &y));
            }
        }
        sums
    }
}

/// Arrays of `WIDE` numbers, which become one vector each.
#[inline(always)]
fn wide(counts: &[u32]) -> &[[u32; WIDE]] {
    counts.as_chunks().0
}

#[inline(always)]
fn wide_mut<T>(sums: &mut [T]) -> &mut [[T; WIDE]] {
    sums.as_chunks_mut().0
}

#[inline(always)]
fn scaled(counts: &[u32; WIDE], weight: f32) -> [f32; WIDE] {
    let mut scaled = [0.0; WIDE];
    scaled.iter_mut().zip(counts).for_each(|(value, count)| *value = weight * *count as f32);
    scaled
}

#[inline(always)]
fn add(sums: &mut [f32; WIDE], values: &[f32; WIDE]) {
    sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
}

#[inline(always)]
fn larger_of(a: &[f32; WIDE], b: &[f32; WIDE]) -> [f32; WIDE] {
    let mut most = *a;
    most.iter_mut().zip(b).for_each(|(a, b)| *a = larger(*a, *b));
    most
}

/// What is known of a group of configurations besides the affine part of their bound.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Spread {
    /// Of the plane, over the group's box.
    pub lift: f64,
    /// Upper bound on the metric.
    pub greatest: f64,
}

/// Spreads of a chain that begins with each of these ranges. They are those of `Start::of`, one for each group, with the
/// steps from the second exit on; or `Steps::alone` of the first exit, with all steps.
pub(crate) struct Spreads<'k, const N: usize> {
    pub plane: &'k Plane,
    pub truth: &'k [f64],
    pub starts: [&'k [f64]; N],
    pub widths: &'k [f64],
}

impl<const N: usize> Kernel for Spreads<'_, N> {
    type Output = [Spread; N];

    #[inline(always)]
    fn run(self) -> Self::Output {
        let mut spreads = [Spread::default(); N];
        let mut ranges = Ranges::new(self.truth.len());
        for (spread, start) in spreads.iter_mut().zip(self.starts) {
            widen(start, self.widths, self.truth, &mut ranges);
            *spread = Spread { lift: self.plane.lift(&ranges), greatest: self.plane.greatest(&ranges) };
        }
        spreads
    }
}
