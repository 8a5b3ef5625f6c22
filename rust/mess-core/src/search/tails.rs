//! Branch and bound over chains: which exits can follow a first gate at all, and which second gate.
//!
//! One task is one first gate (exit, pixel threshold) of one family of chains. Its images, in order of confidence, are cut
//! into `RUNS` runs of equal length, and a bound is worked out for all runs at once: with the image threshold somewhere
//! inside run r, the images of earlier runs stop at the first exit, those of later runs go on, those of r do either.
//! Behind the gate every image takes the best exit of the tail. Sums over the images of a run are lanes of vector
//! registers, so a chain costs about n / 8 vector instructions. (*Admissible*: every configuration of the chain with its
//! image threshold in r gives each image one of the exits that it is allowed here, and the bound of `bound.rs` is a sum
//! over images of the best of them. ∎)
//!
//! The affine bound has the family's anchor (`field`); its remainder comes from `spread`, first for the chain as a whole,
//! then, if that does not exclude it, for groups of runs. What survives is bounded with the chain's own `envelope`, for
//! each pixel threshold of its second gate, whose order is cut into runs too: with the two image thresholds in runs
//! (r, s), images that go on from the first gate stop at the second exit when their run there is before s, go on when it
//! is behind, and do either in s. Sums over images are put in a table of (r, s), and running sums over it give the bounds
//! of all pairs. What survives that is left to `regions`.
//!
//! # Rounding
//!
//! Sums here are float32. A sum of k terms in any order is off by at most k u times the sum of their magnitudes, with u =
//! 2^-24 (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 4.2), and the terms themselves, of
//! three operations, by 3 u each. `Task::rounding` and `Worth::rounding` add that up; they are part of the margin by which
//! a bound must miss.

use std::sync::Arc;

use super::bound::MARGIN;
use super::compact::{GROUPS, RUNS};
use super::engine::Shared;
use super::envelope::{Envelope, ExitValues, Worths};
use super::field::Field;
use super::incumbent::Targets;
use super::regions::{Chain, GateRange, Regions};
use super::spread::{Spread, Spreads, Start, Widths, widened};
use super::table::Costs;
use crate::isa::Kernel;

/// All configurations whose first gate is (exit, pixel threshold).
pub(crate) struct Task<'s, 'a, 't> {
    shared: &'s Shared<'a, 't>,
    field: &'s Field,
    exit: usize,
    pixel: usize,
    costs: Costs<'t>,
    num_rows: usize,
    /// All arrays are (rows, RUNS): a run of images is one lane; entries beyond the last image are 0.
    shares: Vec<f32>,
    /// Image of each entry, the number of images where there is none.
    images: Vec<u32>,
    /// Value less cost of stopping at the first exit.
    first: Vec<f32>,
    /// Sum of `first` over the runs before each one.
    stopped_before: [f64; RUNS],
    /// (n,) group of each image, for `spread`.
    group_of: &'s [u8],
    /// Exits at each point behind the first, with their values in the order of this gate.
    deeper: Vec<Vec<(usize, Vec<f32>)>>,
    targets: Arc<Targets>,
    version: u64,
    /// For each pixel threshold, the runs of the current second exit's gate.
    second_runs: Vec<Vec<u8>>,
    candidates: Vec<Candidate>,
    explored: u64,
}

/// A chain with one or two gates narrowed, and its bound.
struct Candidate {
    height: f64,
    exits: Vec<usize>,
    gates: Vec<GateRange>,
}

/// The way from a first gate to the next exit.
struct Path<'p> {
    /// Heads and policies of the exits behind the first one.
    on_the_way: f64,
    /// (rows, RUNS) the best that those exits are worth.
    best: &'p [f32],
    /// Steps from the second exit on, and from the first.
    widths: &'p Widths,
    all_widths: &'p Widths,
}

impl<'s, 'a, 't> Task<'s, 'a, 't> {
    pub fn new(shared: &'s Shared<'a, 't>, field: &'s Field, exit: usize, pixel: usize) -> Self {
        let compact = shared.compact;
        let order = compact.gate(exit, pixel);
        let num_rows = compact.num_images.div_ceil(RUNS);
        let mut images = vec![compact.num_images as u32; num_rows * RUNS];
        for (lane, run) in order.images.chunks(num_rows).enumerate() {
            run.iter().enumerate().for_each(|(row, image)| images[row * RUNS + lane] = *image);
        }
        let costs = shared.table.costs(shared.query.scoring.column);
        let shares: Vec<f32> = compact.weight.iter().map(|weight| (weight / compact.total_weight) as f32).collect();
        let shares = arranged(&images, &shares);
        let stop_cost = (field.multiplier * costs.backbone[exit]) as f32;
        let mut first = arranged(&images, field.row(exit));
        first.iter_mut().zip(&shares).for_each(|(value, share)| *value -= stop_cost * share);
        let mut stopped_before = [0.0; RUNS];
        for lane in 1..RUNS {
            let run = first.iter().skip(lane - 1).step_by(RUNS).map(|value| f64::from(*value));
            stopped_before[lane] = stopped_before[lane - 1] + run.sum::<f64>();
        }
        let deeper = field.exits[1..]
            .iter()
            .map(|exits| exits.iter().map(|next| (*next, arranged(&images, field.row(*next)))).collect());
        let deeper = deeper.collect();
        let (version, targets) = shared.targets(field.band);
        Self {
            shared,
            field,
            exit,
            pixel,
            costs,
            num_rows,
            shares,
            images,
            first,
            stopped_before,
            group_of: &order.groups,
            deeper,
            targets,
            version,
            second_runs: Vec::new(),
            candidates: Vec::new(),
            explored: 0,
        }
    }

    /// Find everything better than what is known.
    pub fn run(mut self) {
        let best = vec![f32::NEG_INFINITY; self.num_rows * RUNS];
        let widths = self.shared.steps.none();
        for index in 0..self.deeper[0].len() {
            let second = self.deeper[0][index].0;
            let mut start = None;
            let path = Path { on_the_way: 0.0, best: &best, widths: &widths, all_widths: &widths };
            if self.deeper.len() > 1 {
                let compact = self.shared.compact;
                let runs_of = |pixel| arranged(&self.images, &compact.gate(second, pixel).runs);
                self.second_runs = (0..compact.num_pixels).map(runs_of).collect();
            }
            self.follow(&mut vec![self.exit], index, &path, &mut start);
        }
        self.shared.control.count(self.explored, 0);
        let mut candidates = std::mem::take(&mut self.candidates);
        candidates.sort_by(|a, b| b.height.total_cmp(&a.height));
        for Candidate { exits, gates, .. } in candidates {
            if self.shared.control.stopped() {
                return;
            }
            if let Some(chain) = Chain::new(self.shared, &exits) {
                let mut regions = Regions::new(self.shared, &chain, self.field.band);
                regions.search(gates, self.field.multiplier);
                self.shared.control.count(regions.explored, regions.evaluated);
            }
        }
    }

    /// Bound every chain that goes on from `exits` to exit number `index` of the next point.
    fn follow(&mut self, exits: &mut Vec<usize>, index: usize, path: &Path<'_>, start: &mut Option<Start>) {
        if self.shared.control.stopped() {
            return;
        }
        if self.shared.incumbents.version() != self.version {
            (self.version, self.targets) = self.shared.targets(self.field.band);
        }
        let (compact, isa) = (self.shared.compact, self.shared.isa);
        let (last, point) = (exits[exits.len() - 1], exits.len() - 1);
        let (next, values) = &self.deeper[point][index];
        let next = *next;
        let (mut widths, mut all_widths) = (path.widths.clone(), Vec::new());
        self.shared.steps.extend(path.all_widths, last, next, &mut all_widths);
        if point > 0 {
            self.shared.steps.extend(path.widths, last, next, &mut widths);
        }
        let (backbone, head) = (self.costs.backbone[next], self.costs.head[next]);
        exits.push(next);
        if point + 1 == self.deeper.len() {
            self.explored += 1;
            let cost = (self.field.multiplier * (backbone + path.on_the_way + head)) as f32;
            let (best, last) = (path.best, &values[..]);
            let sums = self.shared.isa.run(TailSums { best, last, cost, shares: &self.shares, first: &self.first });
            // the ranges of any assignment of the chain's exits are quick to have and often enough
            let (anchor, truth) = (&self.field.anchor, &compact.truth[..]);
            let starts = [self.shared.steps.alone(self.exit)];
            let [whole] = isa.run(Spreads { anchor, truth, starts, widths: &all_widths });
            if self.runs_alive(&sums, &[whole; GROUPS]).is_some() {
                let (exit, groups) = (self.exit, self.group_of);
                let start = start.get_or_insert_with(|| Start::new(compact, exit, exits[1], groups));
                let starts = std::array::from_fn(|group| start.of(group));
                let spreads = isa.run(Spreads { anchor, truth, starts, widths: &widths });
                match self.runs_alive(&sums, &spreads) {
                    Some((height, runs)) if exits.len() == 2 => {
                        let gates = self.first_gate(runs).into_iter().collect::<Vec<_>>();
                        if !gates.is_empty() {
                            self.candidates.push(Candidate { height, exits: exits.clone(), gates });
                        }
                    }
                    Some((_, (first, last))) => {
                        let groups = first / (RUNS / GROUPS)..=last / (RUNS / GROUPS);
                        for (group, spread) in spreads.iter().enumerate().filter(|(group, _)| groups.contains(group)) {
                            if spread.greatest >= self.least() {
                                self.second_gates(exits, group, (first, last), start, &widths);
                            }
                        }
                    }
                    None => {}
                }
            }
        } else {
            let on_the_way = path.on_the_way + head + self.costs.policy[next];
            let cost = (self.field.multiplier * (backbone + on_the_way)) as f32;
            let worth = values.iter().zip(&self.shares).zip(path.best);
            let best: Vec<f32> = worth.map(|((value, share), best)| best.max(value - cost * share)).collect();
            let path = Path { on_the_way, best: &best, widths: &widths, all_widths: &all_widths };
            for index in 0..self.deeper[point + 1].len() {
                self.follow(exits, index, &path, start);
            }
        }
        exits.pop();
    }

    /// What a bound has to reach, less what all configurations have in common.
    fn needed(&self) -> f64 {
        self.needed_of(self.field.anchor.constant + self.field.reference, self.rounding())
    }

    fn needed_of(&self, constant: f64, rounding: f64) -> f64 {
        let multiplier = self.field.multiplier;
        let at_first = self.costs.head[self.exit] + self.costs.policy[self.exit]; // which every image pays
        let margin = MARGIN * (1.0 + multiplier * self.shared.ceiling);
        -self.targets.slack(multiplier) - (constant - multiplier * at_first) - rounding - margin
    }

    /// The least accuracy of any target.
    fn least(&self) -> f64 {
        self.targets.corners.first().map_or(f64::INFINITY, |(_, accuracy)| accuracy - MARGIN)
    }

    /// Each bound is made of at most rows + 3 RUNS additions, of terms of up to twice the magnitude of a value.
    fn rounding(&self) -> f64 {
        2.0 * (self.num_rows + 3 * RUNS + 3) as f64 * f64::from(f32::EPSILON) * self.field.magnitude
    }

    /// The bound of a chain, and the first and the last run in which it reaches a target.
    fn runs_alive(&self, sums: &[[f32; RUNS]; 2], spreads: &[Spread; GROUPS]) -> Option<(f64, (usize, usize))> {
        let (needed, least) = (self.needed(), self.least());
        let mut alive: Option<(f64, (usize, usize))> = None;
        let mut going_on = 0.0;
        for run in (0..RUNS).rev() {
            let Spread { remainder, greatest } = spreads[run / (RUNS / GROUPS)];
            let bound = self.stopped_before[run] + f64::from(sums[0][run]) + going_on + remainder;
            going_on += f64::from(sums[1][run]);
            if bound >= needed && greatest >= least {
                alive = Some(match alive {
                    None => (bound, (run, run)),
                    Some((height, (_, last))) => (height.max(bound), (run, last)),
                });
            }
        }
        alive
    }

    /// Bound a chain with the first image threshold in one group, by the envelope of its box, for each pixel threshold of
    /// its second gate.
    fn second_gates(&mut self, exits: &[usize], group: usize, alive: (usize, usize), start: &Start, widths: &Widths) {
        let compact = self.shared.compact;
        let n = compact.padded();
        let [mut t_low, mut t_high, mut u_low, mut u_high] = [(); 4].map(|()| vec![0.0; n]);
        widened(start.of(group), widths, &compact.truth, [&mut t_low, &mut t_high, &mut u_low, &mut u_high]);
        let metric = self.shared.query.scoring.metric;
        let envelope = Envelope::new(metric, compact, [&t_low, &t_high, &u_low, &u_high]);
        let worth = self.worth(exits, &envelope);
        let first_run = (group * (RUNS / GROUPS)).max(alive.0);
        let last_run = ((group + 1) * (RUNS / GROUPS) - 1).min(alive.1);
        if !self.is_alive(&worth, (first_run, last_run)) {
            return;
        }
        for pixel in 0..compact.num_pixels {
            let Some((height, first_runs, second_runs)) = self.pairs(&worth, pixel, (first_run, last_run)) else {
                continue;
            };
            let order = compact.gate(exits[1], pixel);
            let (Some(first), Some((low, high))) =
                (self.first_gate(first_runs), order.thresholds_within(second_runs.0, second_runs.1))
            else {
                continue;
            };
            let mut gates = vec![GateRange::Open; exits.len() - 1];
            gates[0] = first;
            gates[1] = GateRange::Within { pixel, low, high };
            self.candidates.push(Candidate { height, exits: exits.to_vec(), gates });
        }
    }

    fn first_gate(&self, (first, last): (usize, usize)) -> Option<GateRange> {
        let order = self.shared.compact.gate(self.exit, self.pixel);
        let (low, high) = order.thresholds_within(first, last)?;
        Some(GateRange::Within { pixel: self.pixel, low, high })
    }

    /// What an image is worth at the first exit, at the second and behind it, by an envelope.
    fn worth(&self, exits: &[usize], envelope: &Envelope) -> Worth {
        let compact = self.shared.compact;
        let values_of = |exit: usize| self.shared.isa.run(ExitValues { envelope, compact, exit });
        // all values are taken relative to the last exit's, so that sums of float32 stay small
        let reference = values_of(exits[exits.len() - 1]);
        let constant = envelope.constant + reference.iter().map(|value| f64::from(*value)).sum::<f64>();
        let mut on_the_way = 0.0;
        let [mut first, mut second] = [Vec::new(), Vec::new()];
        let mut behind = vec![f32::NEG_INFINITY; self.num_rows * RUNS];
        let mut magnitude = 0.0;
        let mut raw = 0.0;
        for (position, &exit) in exits.iter().enumerate() {
            let is_last = position + 1 == exits.len();
            if position > 0 {
                on_the_way += self.costs.head[exit] + if is_last { 0.0 } else { self.costs.policy[exit] };
            }
            let cost = (self.field.multiplier * (self.costs.backbone[exit] + on_the_way)) as f32;
            let values = if is_last { Vec::new() } else { values_of(exit) };
            let values = if is_last { &reference } else { &values };
            let (images, shares, reference) = (&self.images, &self.shares, &reference);
            let (worth, sum) = self.shared.isa.run(Worths { values, reference, images, shares, cost });
            magnitude += sum;
            let (t, u) = self.shared.steps.alone(exit).split_at(2 * compact.padded());
            raw += t.iter().zip(&envelope.of_both).map(|(sum, factor)| sum * f64::from(factor.abs())).sum::<f64>();
            raw += u
                .iter()
                .zip(&compact.truth)
                .map(|(u, truth)| u - truth)
                .zip(&envelope.of_wrong)
                .map(|(sum, factor)| sum * f64::from(factor.abs()))
                .sum::<f64>();
            match position {
                0 => first = worth,
                1 => second = worth,
                _ => behind.iter_mut().zip(worth).for_each(|(best, worth)| *best = best.max(worth)),
            }
        }
        let mut stopped_before = [0.0; RUNS];
        for lane in 1..RUNS {
            let run = first.iter().skip(lane - 1).step_by(RUNS).map(|value| f64::from(*value));
            stopped_before[lane] = stopped_before[lane - 1] + run.sum::<f64>();
        }
        // twice what the module's contract says of sums (rows terms) and of values (2 P terms, each of two exits)
        let unit = f64::from(f32::EPSILON);
        let rounding =
            unit * ((self.num_rows + 4) as f64 * magnitude * 1.01 + (2 * compact.classes.len() + 4) as f64 * 2.0 * raw);
        Worth { first, second, behind, stopped_before, constant, rounding }
    }

    /// Whether the chain may reach a target with any second gate.
    fn is_alive(&self, worth: &Worth, (first_run, last_run): (usize, usize)) -> bool {
        let Worth { first, second, behind, .. } = worth;
        let [free, tail] =
            self.shared.isa.run(TailSums { best: second, last: behind, cost: 0.0, shares: &self.shares, first });
        let needed = self.needed_of(worth.constant, worth.rounding);
        let mut going_on: f64 = tail[last_run + 1..].iter().map(|sum| f64::from(*sum)).sum();
        (first_run..=last_run).rev().any(|run| {
            let bound = worth.stopped_before[run] + f64::from(free[run]) + going_on;
            going_on += f64::from(tail[run]);
            bound >= needed
        })
    }

    /// The bound of the best pair of runs of the first two gates, and the first and last runs of both that reach a target.
    #[allow(clippy::type_complexity)]
    fn pairs(
        &self,
        worth: &Worth,
        pixel: usize,
        (first_run, last_run): (usize, usize),
    ) -> Option<(f64, (usize, usize), (usize, usize))> {
        let Worth { first, second, behind, .. } = worth;
        let runs_of = &self.second_runs[pixel][..];
        let sums = self.shared.isa.run(PairSums { first, second, behind, runs_of, from: first_run });
        let needed = self.needed_of(worth.constant, worth.rounding);
        let mut alive: Option<(f64, (usize, usize), (usize, usize))> = None;
        let (mut certain, mut free) = ([0.0f64; RUNS], [0.0f64; RUNS]);
        let mut going_on = 0.0;
        for run in (first_run..RUNS).rev() {
            if run <= last_run {
                let base = worth.stopped_before[run] + f64::from(sums.either[run]) + going_on;
                let mut stopping = 0.0;
                for at in 0..RUNS {
                    let bound = base + (stopping + free[at]);
                    stopping += certain[at];
                    if bound >= needed {
                        alive = Some(match alive {
                            None => (bound, (run, run), (at, at)),
                            Some((height, (a, b), (c, d))) => {
                                (height.max(bound), (a.min(run), b.max(run)), (c.min(at), d.max(at)))
                            }
                        });
                    }
                }
            }
            going_on += f64::from(sums.behind[run]);
            for at in 0..RUNS {
                certain[at] += f64::from(sums.gain[run][at]);
                free[at] += f64::from(sums.positive[run][at]);
            }
        }
        alive
    }
}

/// (rows, RUNS) what each image is worth at the first exit, at the second, and at the best one behind.
struct Worth {
    first: Vec<f32>,
    second: Vec<f32>,
    behind: Vec<f32>,
    stopped_before: [f64; RUNS],
    constant: f64,
    rounding: f64,
}

/// Values of images in the order of a task, 0 where there is no image.
fn arranged<T: Copy + Default>(images: &[u32], values: &[T]) -> Vec<T> {
    images.iter().map(|image| values.get(*image as usize).copied().unwrap_or_default()).collect()
}

/// For each run, the sum over its images of the best of (first exit, tail), and of the tail alone.
struct TailSums<'k> {
    best: &'k [f32],
    last: &'k [f32],
    /// Cost of stopping at the last exit.
    cost: f32,
    shares: &'k [f32],
    first: &'k [f32],
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
                let behind = if best[lane] > here { best[lane] } else { here };
                tail[lane] += behind;
                free[lane] += if first[lane] > behind { first[lane] } else { behind };
            }
        }
        [free, tail]
    }
}

/// Sums over the images of each run of the first gate, and of each pair of runs of both gates.
struct PairSums<'k> {
    first: &'k [f32],
    second: &'k [f32],
    behind: &'k [f32],
    runs_of: &'k [u8],
    /// First run that matters.
    from: usize,
}

struct PairTable {
    /// Best of all exits.
    either: [f32; RUNS],
    /// Best exit behind the second.
    behind: [f32; RUNS],
    /// (RUNS, RUNS) what stopping at the second exit gains.
    gain: Box<[[f32; RUNS]; RUNS]>,
    /// The same where it is positive.
    positive: Box<[[f32; RUNS]; RUNS]>,
}

impl Kernel for PairSums<'_> {
    type Output = PairTable;

    #[inline(always)]
    fn run(self) -> Self::Output {
        let mut table = PairTable {
            either: [0.0; RUNS],
            behind: [0.0; RUNS],
            gain: Box::new([[0.0; RUNS]; RUNS]),
            positive: Box::new([[0.0; RUNS]; RUNS]),
        };
        let rows = self.second.as_chunks::<RUNS>().0.iter().zip(self.behind.as_chunks::<RUNS>().0);
        let others = self.runs_of.as_chunks::<RUNS>().0.iter().zip(self.first.as_chunks::<RUNS>().0);
        for ((here, behind), (runs, first)) in rows.zip(others) {
            for lane in 0..RUNS {
                let tail = if here[lane] > behind[lane] { here[lane] } else { behind[lane] };
                table.either[lane] += if first[lane] > tail { first[lane] } else { tail };
                table.behind[lane] += behind[lane];
            }
            for lane in self.from..RUNS {
                let gain = here[lane] - behind[lane];
                let second = usize::from(runs[lane]) % RUNS;
                table.gain[lane][second] += gain;
                table.positive[lane][second] += if gain > 0.0 { gain } else { 0.0 };
            }
        }
        table
    }
}
