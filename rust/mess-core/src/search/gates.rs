//! Bounds on one chain whose first image threshold is in one group, gate by gate, by a plane that it shares with the chains
//! that are alike but for the last exit: the secant plane of the mean of their boxes. Any plane holds for any box, with the
//! lift of that box (`bound.rs`), so each chain has a lift of its own, while what images are worth at the exits in common is
//! worked out once.
//!
//! The order of the second gate is cut into runs too: with the two image thresholds in runs (r, s), images that go on from
//! the first gate stop at the second exit when their run there is before s, go on when it is behind, and do either in s.
//! All pixel thresholds of the second gate are bounded at once: an image stops when its run is before s in each of their
//! orders, goes on when it is behind in each, and does either otherwise. Sums over images are put in a table of (r, s),
//! and running sums over it give the bounds of all pairs. With ranges of r and s decided, the second gate's orders are
//! gone through in the same way, one by one, and then the third gate's.
//!
//! Rows are in the order of the first gate, see `tails.rs`.

use super::bound::{Plane, Ranges, larger};
use super::compact::{Compact, GateOrder, LANES, RUNS};
use super::engine::Shared;
use crate::isa::{Isa, Kernel};

/// First and last of some runs.
pub(crate) type Runs = (usize, usize);

/// Runs of the first two gates that may hold something, with the greatest bound in them.
#[derive(Clone, Copy)]
pub(crate) struct Left {
    pub height: f64,
    pub first: Runs,
    pub second: Runs,
}

/// A plane for chains that are alike but for the last exit, with what each image is worth by it at the others.
pub(crate) struct Fitted {
    plane: Plane,
    slopes: Slopes,
    /// (padded n,) values at the second exit, which are taken off all others.
    reference: Vec<f32>,
    /// Their sum.
    constant: f64,
    sums: Magnitudes,
    /// Of each exit, (rows, RUNS).
    rows: Vec<Vec<f32>>,
}

/// What each image is worth at each exit of a chain, less what it is at the second.
pub(crate) struct ChainValues<'f> {
    /// Of each exit, (rows, RUNS).
    rows: Vec<&'f [f32]>,
    last: Vec<f32>,
    /// Lift, and sum of what was taken off.
    pub constant: f64,
    sums: Magnitudes,
}

/// Sums over images and exits of the magnitudes of what was added up.
#[derive(Clone, Copy, Default)]
struct Magnitudes {
    of_values: f64,
    of_rows: f64,
}

impl Left {
    /// From the first runs of both to the last.
    pub fn and(self, other: Self) -> Self {
        let hull = |a: Runs, b: Runs| (a.0.min(b.0), a.1.max(b.1));
        let (first, second) = (hull(self.first, other.first), hull(self.second, other.second));
        Self { height: larger(self.height, other.height), first, second }
    }

    /// One pair of runs more.
    fn extended(known: Option<Self>, height: f64, run: usize, at: usize) -> Self {
        let new = Self { height, first: (run, run), second: (at, at) };
        known.map_or(new, |known| known.and(new))
    }
}

impl Fitted {
    /// The secant plane of each of some boxes, for chains that begin with these exits; `images` as in `tails::Task`.
    pub fn all(shared: &Shared<'_, '_>, exits: &[usize], boxes: &[Ranges], images: &[u32]) -> Vec<Self> {
        let (compact, isa) = (shared.compact, shared.isa);
        let plane = |ranges: &Ranges| Plane::secant(shared.query.scoring.metric, compact, ranges);
        let planes: Vec<Plane> = boxes.iter().map(plane).collect();
        let slopes: Vec<Slopes> = planes.iter().map(Slopes::of).collect();
        let each: Vec<&Slopes> = slopes.iter().collect();
        // [exit][plane]
        let mut values: Vec<Vec<Vec<f32>>> =
            exits.iter().map(|exit| isa.run(ExitValues { slopes: &each, compact, exit: *exit })).collect();
        let fitted = |(number, (plane, slopes)): (usize, (Plane, Slopes))| {
            let reference = std::mem::take(&mut values[1][number]);
            let (mut sums, mut rows) = (Magnitudes::default(), Vec::with_capacity(exits.len()));
            for (at, &exit) in exits.iter().enumerate() {
                let values = if at == 1 { &reference } else { &values[at][number] };
                let (row, of_rows) = isa.run(Arranged { values, reference: &reference, images });
                sums = sums.and(Magnitudes { of_values: magnitude(shared, &plane, exit), of_rows });
                rows.push(row);
            }
            let constant = reference.iter().map(|value| f64::from(*value)).sum();
            Self { plane, slopes, reference, constant, sums, rows }
        };
        planes.into_iter().zip(slopes).enumerate().map(fitted).collect()
    }

    /// Chains that go on to this exit, each with a plane and its own box.
    pub fn chains<'f>(
        shared: &Shared<'_, '_>,
        last: usize,
        chains: &[(&'f Self, &Ranges)],
        images: &[u32],
    ) -> impl Iterator<Item = ChainValues<'f>> {
        let isa = shared.isa;
        let slopes: Vec<&Slopes> = chains.iter().map(|(fitted, _)| &fitted.slopes).collect();
        let values = isa.run(ExitValues { slopes: &slopes, compact: shared.compact, exit: last });
        chains.iter().zip(values).map(move |((fitted, ranges), values)| {
            let (last_row, of_rows) = isa.run(Arranged { values: &values, reference: &fitted.reference, images });
            let of_last = Magnitudes { of_values: magnitude(shared, &fitted.plane, last), of_rows };
            ChainValues {
                rows: fitted.rows.iter().map(|row| &row[..]).collect(),
                last: last_row,
                constant: fitted.constant + fitted.plane.lift(ranges),
                sums: fitted.sums.and(of_last),
            }
        })
    }
}

/// Sum over images of the magnitudes that are added up for the values of an exit.
fn magnitude(shared: &Shared<'_, '_>, plane: &Plane, exit: usize) -> f64 {
    let compact = shared.compact;
    let sums = shared.steps.alone(exit);
    let (t, u) = (&sums[..compact.padded()], &sums[2 * compact.padded()..]);
    let of_class = |class: usize| {
        t[class] * plane.of_both[class].abs() + (u[class] - compact.truth[class]) * plane.of_wrong[class].abs()
    };
    (0..compact.classes.len()).map(of_class).sum()
}

impl Magnitudes {
    fn and(self, other: Self) -> Self {
        Self { of_values: self.of_values + other.of_values, of_rows: self.of_rows + other.of_rows }
    }
}

impl ChainValues<'_> {
    /// (rows, RUNS) of exit number `at`.
    #[inline(always)]
    fn row(&self, at: usize) -> &[f32] {
        self.rows.get(at).copied().unwrap_or(&self.last)
    }

    /// Twice what the contract of `tails.rs` says of sums of `num_rows` terms, and of values of 2 P terms, each of two exits.
    /// `largest_cost` is a multiple of the multiplier that no cost exceeds.
    pub fn rounding(&self, num_rows: usize, num_classes: usize, largest_cost: f64) -> f64 {
        let unit = f64::from(f32::EPSILON);
        unit * ((2 * num_rows + 8) as f64 * (self.sums.of_rows + largest_cost)
            + (2 * num_classes + 4) as f64 * 2.0 * self.sums.of_values)
    }
}

/// What a chain of three exits or more is worth at one multiplier: values less costs, which are worked out where they are
/// wanted, as that is quicker than to read them from memory.
pub(crate) struct Worth<'v> {
    values: &'v ChainValues<'v>,
    /// Those of stopping at each exit, times the multiplier.
    costs: Vec<f32>,
    /// The images' parts of the whole.
    shares: &'v [f32],
    sums: RunSums,
}

/// Sums over the images of each run of the first gate.
#[derive(Default)]
pub(crate) struct RunSums {
    /// At the first exit.
    first: [f32; RUNS],
    /// Best of all exits.
    either: [f32; RUNS],
    /// Best exit behind the first.
    tail: [f32; RUNS],
}

impl<'v> Worth<'v> {
    pub fn new(isa: Isa, values: &'v ChainValues<'v>, costs: Vec<f32>, shares: &'v [f32]) -> Self {
        let mut worth = Self { values, costs, shares, sums: RunSums::default() };
        worth.sums = isa.run(&worth);
        worth
    }

    /// What the images of one row are worth at the first exit, at the second, and at the best behind that.
    #[inline(always)]
    fn of_row(&self, row: usize) -> [[f32; RUNS]; 3] {
        let mut behind = self.at_exit(row, 2);
        for at in 3..self.costs.len() {
            let here = self.at_exit(row, at);
            for lane in 0..RUNS {
                behind[lane] = larger(here[lane], behind[lane]);
            }
        }
        [self.at_exit(row, 0), self.at_exit(row, 1), behind]
    }

    #[inline(always)]
    fn at_exit(&self, row: usize, at: usize) -> [f32; RUNS] {
        let (values, cost) = (&self.values.row(at).as_chunks::<RUNS>().0[row], self.costs[at]);
        let shares = &self.shares.as_chunks::<RUNS>().0[row];
        let mut worth = [0.0; RUNS];
        for lane in 0..RUNS {
            worth[lane] = values[lane] - cost * shares[lane];
        }
        worth
    }

    /// The greatest bound with the first threshold in any of these runs, whatever the other gates are.
    pub fn greatest(&self, (first_run, last_run): Runs) -> f64 {
        let RunSums { first, either, tail } = &self.sums;
        let mut going_on: f64 = tail[last_run + 1..].iter().map(|sum| f64::from(*sum)).sum();
        let mut stopped: f64 = first[..=last_run].iter().map(|sum| f64::from(*sum)).sum();
        let mut greatest = f64::NEG_INFINITY;
        for run in (first_run..=last_run).rev() {
            stopped -= f64::from(first[run]);
            greatest = larger(greatest, stopped + f64::from(either[run]) + going_on);
            going_on += f64::from(tail[run]);
        }
        greatest
    }

    /// The greatest bound of all pairs of runs of the first two gates, with the first one among these, and those in which
    /// a bound is `needed`.
    ///
    /// `runs_of` are the first and the last run of each image over the orders of the second gate.
    pub fn pairs(
        &self,
        isa: Isa,
        runs_of: [&[u8]; 2],
        (first_run, last_run): Runs,
        needed: f64,
    ) -> (f64, Option<Left>) {
        let sums = isa.run(PairSums { worth: self, runs_of, from: first_run });
        let (mut greatest, mut left) = (f64::NEG_INFINITY, None);
        let (mut loss, mut gain) = ([0.0f64; RUNS], [0.0f64; RUNS]);
        let mut going_on = 0.0;
        let mut stopped: f64 = self.sums.first.iter().map(|sum| f64::from(*sum)).sum();
        for run in (first_run..RUNS).rev() {
            stopped -= f64::from(self.sums.first[run]);
            if run <= last_run {
                let mut bound = stopped + f64::from(self.sums.either[run]) + going_on;
                for at in 0..RUNS {
                    bound += gain[at];
                    greatest = larger(greatest, bound);
                    if bound >= needed {
                        left = Some(Left::extended(left, bound, run, at));
                    }
                    bound += loss[at];
                }
            }
            going_on += f64::from(sums.behind[run]);
            for at in 0..RUNS {
                loss[at] += f64::from(sums.loss[run][at]);
                gain[at] += f64::from(sums.gain[run][at]);
            }
        }
        (greatest, left)
    }

    /// The runs among those that are left in which a bound is `needed` for one of the orders of the second gate.
    ///
    /// `orders` are the runs of each image in each of them. Here what images of run r of the first gate are worth that stop
    /// there or go on depends on s too.
    ///
    /// *Admissible*: with this order and a pair of runs (r, s) every image is given the best of what it may do, and a run
    /// of an order has at most as many images as there are rows, which `rounding` counts with. ∎
    pub fn in_orders(&self, isa: Isa, orders: &[Vec<u8>], of: Left, needed: f64) -> Option<Left> {
        let (first_run, last_run) = of.first;
        let gains = isa.run(Gains { worth: self, first_run, last_run });
        let mut left = None;
        for runs in orders {
            let OrderSums { going_on, either } = isa.run(OrderOf { gains: &gains, runs, first_run, last_run });
            let mut passed: f64 = gains.going_on[first_run..].iter().map(|sum| f64::from(*sum)).sum();
            let mut stopped: f64 = self.sums.first[..first_run].iter().map(|sum| f64::from(*sum)).sum();
            for run in first_run..=last_run {
                passed -= f64::from(gains.going_on[run]);
                let mut bound = stopped + f64::from(gains.either[run]) + passed;
                stopped += f64::from(self.sums.first[run]);
                let behind = &going_on[run - first_run + 1..];
                let mut lost = 0.0;
                for at in 0..=of.second.1 {
                    bound += lost;
                    lost = 0.0;
                    for [may, must] in behind.iter().chain([&either[run - first_run]]).map(|sums| sums[at]) {
                        bound += f64::from(may);
                        lost += f64::from(must);
                    }
                    if bound >= needed && at >= of.second.0 {
                        left = Some(Left::extended(left, bound, run, at));
                    }
                }
            }
        }
        left
    }

    /// Whether a bound is `needed` for any of these orders of the third gate and any run of it, with those of the first
    /// two in these ranges.
    pub fn has_third<'g>(
        &self,
        images: &[u32],
        second_runs: [&[u8]; 2],
        (first_range, second_range): (Runs, Runs),
        orders: impl Iterator<Item = &'g GateOrder>,
        needed: f64,
    ) -> bool {
        let mut gains = vec![0.0f32; images.len()];
        let mut going_on = 0.0;
        let [from, until] = second_runs;
        for (at, gains) in gains.chunks_exact_mut(RUNS).enumerate() {
            let worth = |exit: usize, lane: usize| {
                self.values.row(exit)[at * RUNS + lane] - self.costs[exit] * self.shares[at * RUNS + lane]
            };
            let mut sum = 0.0;
            for (lane, gain) in gains.iter_mut().enumerate() {
                let [from, until] = [from, until].map(|runs| usize::from(runs[at * RUNS + lane]));
                let mut best = if lane <= first_range.1 { worth(0, lane) } else { f32::NEG_INFINITY };
                if lane >= first_range.0 && from <= second_range.1 {
                    best = best.max(worth(1, lane));
                }
                let (mut stops, mut goes_on) = (best, best);
                if lane >= first_range.0 && until >= second_range.0 {
                    stops = best.max(worth(2, lane));
                    goes_on = (3..self.costs.len()).map(|exit| worth(exit, lane)).fold(best, f32::max);
                }
                *gain = stops - goes_on;
                sum += f64::from(goes_on);
            }
            going_on += sum;
        }
        for order in orders {
            let (mut certain, mut free) = ([0.0f32; RUNS], [0.0f32; RUNS]);
            for (gain, image) in gains.iter().zip(images) {
                if let Some(run) = order.runs.get(*image as usize) {
                    certain[usize::from(*run) % RUNS] += gain;
                    free[usize::from(*run) % RUNS] += gain.max(0.0);
                }
            }
            let mut stopping = 0.0;
            for run in 0..RUNS {
                if going_on + stopping + f64::from(free[run]) >= needed {
                    return true;
                }
                stopping += f64::from(certain[run]);
            }
        }
        false
    }
}

impl Kernel for &Worth<'_> {
    type Output = RunSums;

    #[inline(always)]
    fn run(self) -> Self::Output {
        let mut sums = RunSums::default();
        for row in 0..self.shares.len() / RUNS {
            let [first, second, behind] = self.of_row(row);
            for lane in 0..RUNS {
                let tail = larger(second[lane], behind[lane]);
                sums.first[lane] += first[lane];
                sums.either[lane] += larger(first[lane], tail);
                sums.tail[lane] += tail;
            }
        }
        sums
    }
}

/// What images gain by stopping at the second exit: if they may, and, a loss, if they have to although they would not.
type Gain = [f32; 2];

/// Gains of all images, with the first image threshold in some runs.
struct Gains<'k> {
    worth: &'k Worth<'k>,
    first_run: usize,
    last_run: usize,
}

struct GainTable {
    /// (rows, RUNS) of images that get to the second gate.
    passing: Vec<[Gain; RUNS]>,
    /// (rows, last_run - first_run + 1) of those that may stop at the first one as well.
    free: Vec<Gain>,
    /// Sums over the images of each run of the first gate: behind the second one; the best of that and the first exit.
    going_on: [f32; RUNS],
    either: [f32; RUNS],
}

impl Kernel for Gains<'_> {
    type Output = GainTable;

    #[inline(always)]
    fn run(self) -> Self::Output {
        let num_rows = self.worth.shares.len() / RUNS;
        let width = self.last_run - self.first_run + 1;
        let mut table = GainTable {
            passing: vec![[[0.0; 2]; RUNS]; num_rows],
            free: Vec::with_capacity(num_rows * width),
            going_on: [0.0; RUNS],
            either: [0.0; RUNS],
        };
        let gain = |stops: f32, goes_on: f32| {
            [larger(stops - goes_on, 0.0), if stops < goes_on { stops - goes_on } else { 0.0 }]
        };
        for row in 0..num_rows {
            let [first, here, behind] = self.worth.of_row(row);
            for lane in self.first_run..RUNS {
                table.passing[row][lane] = gain(here[lane], behind[lane]);
                table.going_on[lane] += behind[lane];
            }
            for lane in self.first_run..=self.last_run {
                let goes_on = larger(first[lane], behind[lane]);
                table.free.push(gain(larger(first[lane], here[lane]), goes_on));
                table.either[lane] += goes_on;
            }
        }
        table
    }
}

/// Sums of gains over the images of each run of one order of the second gate.
struct OrderOf<'k> {
    gains: &'k GainTable,
    runs: &'k [u8],
    first_run: usize,
    last_run: usize,
}

struct OrderSums {
    /// Of those that pass the first gate, for each of the runs in question, and for all behind them together.
    going_on: Vec<[Gain; RUNS]>,
    /// Of those that may do either, for each of the runs in question.
    either: Vec<[Gain; RUNS]>,
}

impl Kernel for OrderOf<'_> {
    type Output = OrderSums;

    #[inline(always)]
    fn run(self) -> Self::Output {
        let Self { gains, runs, first_run, last_run } = self;
        let width = last_run - first_run + 1;
        let mut sums = OrderSums { going_on: vec![[[0.0; 2]; RUNS]; width + 1], either: vec![[[0.0; 2]; RUNS]; width] };
        let add = |sums: &mut [Gain; RUNS], run: u8, gain: Gain| {
            let sum = &mut sums[usize::from(run) % RUNS];
            *sum = [sum[0] + gain[0], sum[1] + gain[1]];
        };
        for (row, runs) in runs.as_chunks::<RUNS>().0.iter().enumerate() {
            let passing = &gains.passing[row];
            let free = &gains.free[row * width..][..width];
            let undecided = runs[first_run..].iter().zip(&passing[first_run..]).zip(free);
            for (number, ((run, passing), free)) in undecided.enumerate() {
                add(&mut sums.going_on[number], *run, *passing);
                add(&mut sums.either[number], *run, *free);
            }
            for (run, gain) in runs[last_run + 1..].iter().zip(&passing[last_run + 1..]) {
                add(&mut sums.going_on[width], *run, *gain);
            }
        }
        sums
    }
}

/// For each of some planes, (padded n,) value of one exit for each image, times the image's weight: from counts with images
/// innermost, about P n / 2 operations on vectors of 8 a plane, or fewer where images have few of the classes.
pub(crate) struct ExitValues<'k> {
    pub slopes: &'k [&'k Slopes],
    pub compact: &'k Compact,
    pub exit: usize,
}

/// Of a plane, in float32: of each class for intersections, and for wrongly predicted pixels.
pub(crate) struct Slopes(Vec<[f32; 2]>);

impl Slopes {
    pub fn of(plane: &Plane) -> Self {
        Self(plane.of_both.iter().zip(&plane.of_wrong).map(|(both, wrong)| [*both as f32, *wrong as f32]).collect())
    }
}

impl Kernel for ExitValues<'_> {
    type Output = Vec<Vec<f32>>;

    #[inline(always)]
    fn run(self) -> Self::Output {
        let mut values = vec![vec![0.0f32; self.compact.padded_images()]; self.slopes.len()];
        for (number, (classes, counts)) in self.compact.columns(self.exit).blocks().enumerate() {
            for (Slopes(slopes), values) in self.slopes.iter().zip(&mut values) {
                let mut sums = [[0.0f32; LANES]; 2];
                for (class, counts) in classes.iter().zip(counts) {
                    let slopes = slopes[*class as usize];
                    for ((sums, counts), slope) in sums.iter_mut().zip(counts).zip(slopes) {
                        for (sum, count) in sums.iter_mut().zip(counts) {
                            *sum += slope * count;
                        }
                    }
                }
                let [of_both, of_wrong] = sums;
                for (lane, value) in values.as_chunks_mut::<LANES>().0[number].iter_mut().enumerate() {
                    *value = of_both[lane] + of_wrong[lane];
                }
            }
        }
        values
    }
}

/// Values of one exit less those of a reference, in the order of `images`; and the sum of their magnitudes.
struct Arranged<'k> {
    values: &'k [f32],
    reference: &'k [f32],
    /// Image of each entry; a padding image has no value.
    images: &'k [u32],
}

impl Kernel for Arranged<'_> {
    type Output = (Vec<f32>, f64);

    #[inline(always)]
    fn run(self) -> Self::Output {
        let last = self.values.len().min(self.reference.len()) - 1;
        let mut row = vec![0.0f32; self.images.len()];
        let mut magnitudes = [0.0f32; RUNS];
        for (row, images) in row.as_chunks_mut::<RUNS>().0.iter_mut().zip(self.images.as_chunks::<RUNS>().0) {
            for lane in 0..RUNS {
                let image = (images[lane] as usize).min(last);
                row[lane] = self.values[image] - self.reference[image];
            }
            for lane in 0..RUNS {
                magnitudes[lane] += row[lane].abs();
            }
        }
        (row, magnitudes.iter().map(|sum| f64::from(*sum)).sum())
    }
}

/// Sums over the images of each pair of runs of the first two gates.
struct PairSums<'k> {
    worth: &'k Worth<'k>,
    runs_of: [&'k [u8]; 2],
    /// First run that matters.
    from: usize,
}

struct PairTable {
    /// Best exit behind the second, of each run of the first gate.
    behind: [f32; RUNS],
    /// (RUNS, RUNS) what images gain that may stop at the second exit, where they first may.
    gain: Box<[[f32; RUNS]; RUNS]>,
    /// What those lose that have to, where they last may go on.
    loss: Box<[[f32; RUNS]; RUNS]>,
}

impl Kernel for PairSums<'_> {
    type Output = PairTable;

    #[inline(always)]
    fn run(self) -> Self::Output {
        let mut table =
            PairTable { behind: [0.0; RUNS], gain: Box::new([[0.0; RUNS]; RUNS]), loss: Box::new([[0.0; RUNS]; RUNS]) };
        let [from, until] = self.runs_of.map(|runs| runs.as_chunks::<RUNS>().0);
        for (row, (from, until)) in from.iter().zip(until).enumerate() {
            let [_, here, behind] = self.worth.of_row(row);
            table.behind.iter_mut().zip(&behind).for_each(|(sum, behind)| *sum += behind);
            for lane in self.from..RUNS {
                let gain = here[lane] - behind[lane];
                table.gain[lane][usize::from(from[lane]) % RUNS] += larger(gain, 0.0);
                table.loss[lane][usize::from(until[lane]) % RUNS] += if gain < 0.0 { gain } else { 0.0 };
            }
        }
        table
    }
}
