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
//! The values come from the family's plane (`field`), lifted over the box of the chain as a whole (`spread`), and then, if
//! that does not exclude it, over that of each group of runs. A front asks for this for each band of costs, with its own
//! multiplier and targets; but the greatest accuracy less m times the cost is a convex function of m, so bounds at two
//! multipliers bound it at all between, and most bands are given up without a look (`bands_alive`). What survives is
//! bounded by a plane that suits it better, gate by gate (`gates`), what survives that is left to `regions`.
//!
//! # Rounding
//!
//! Sums here are float32. A sum of k terms in any order is off by at most k u times the sum of their magnitudes, with u =
//! 2^-24 (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 4.2), and the terms themselves, of
//! three operations, by 3 u each. `Task::rounding` and `ChainValues::rounding` add that up; they are part of the margin by
//! which a bound must miss.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::sync::Arc;

use super::bound::{MARGIN, Ranges, larger};
use super::compact::{GROUPS, RUNS};
use super::engine::Shared;
use super::evaluate::stop_costs;
use super::field::{Band, Field};
use super::gates::{ChainValues, Fitted, Left, Runs, Worth};
use super::incumbent::Targets;
use super::objective::Setting;
use super::regions::{Chain, GateRange, Regions, Stopped};
use super::rows::{LessCost, Raise, TailSums, arranged, greatest_of_runs, sums_before};
use super::spread::{Spread, Spreads, Start, Widths, widen};
use super::table::Costs;

/// All configurations whose first gate is (exit, pixel threshold).
pub(crate) struct Task<'s, 'a, 't> {
    shared: &'s Shared<'a, 't>,
    field: &'s Field,
    exit: usize,
    pixel: usize,
    costs: Costs<'t>,
    num_rows: usize,
    /// Rows are those of `rows.rs`.
    shares: Vec<f32>,
    /// Image of each entry, the number of images where there is none.
    images: Vec<u32>,
    bands: Vec<TaskBand<'s>>,
    /// Numbers of the bands, by rising multiplier.
    rising: Vec<usize>,
    /// (n,) group of each image, for `spread`.
    group_of: &'s [u8],
    /// Exits at each point behind the first, with their values in the order of this gate.
    deeper: Vec<Vec<(usize, Vec<f32>)>>,
    /// The cheapest head and policy at each of those points.
    least_on_the_way: Vec<f64>,
    version: u64,
    /// First and last run of each image over all orders of the current second exit.
    second_runs: [Vec<u8>; 2],
    /// Its run in each of them; empty until they are wanted.
    second_orders: Vec<Vec<u8>>,
    /// Chains that are alike but for the last exit.
    pending: Vec<Pending>,
    candidates: Vec<Candidate>,
    explored: u64,
}

/// What a task needs for one band of costs.
struct TaskBand<'s> {
    band: &'s Band,
    targets: Arc<Targets>,
    /// For each point behind the first, a row: the best that any of its exits is worth, heads on the way aside. Worked out
    /// when a bound wants it, as most bands are given up without one.
    any: Vec<OnceCell<Vec<f32>>>,
    /// What a bound by the family's plane has to reach.
    needed: f64,
    /// Greatest m b - a of the targets, for the multiplier m of each of all bands.
    slacks: Vec<f64>,
    /// The least accuracy of any target.
    least: f64,
    /// Value less cost of stopping at the first exit.
    first: Vec<f32>,
    stopped_before: [f64; RUNS],
}

/// A chain with one or two gates narrowed.
struct Candidate {
    /// By how much its bound exceeds what is needed.
    excess: f64,
    exits: Vec<usize>,
    gates: Vec<GateRange>,
    /// Number of the band that it is for.
    band: usize,
}

/// A chain with the first image threshold in one group, to be bounded by a plane that is fitted to its like.
struct Pending {
    exits: Vec<usize>,
    group: usize,
    /// Its box.
    ranges: Ranges,
    /// Bands that may hold something, and in which runs.
    alive: Vec<(usize, Runs)>,
}

/// The way from a first gate to the next exit.
struct Path<'p> {
    /// Heads and policies of the exits behind the first one.
    on_the_way: f64,
    /// For each band, (rows, RUNS) the best that those exits are worth, once a bound wants it (`Task::best`).
    best: Vec<OnceCell<Vec<f32>>>,
    /// None before the first of them.
    last: Option<Step<'p>>,
    /// Steps from the second exit on, and from the first.
    widths: &'p Widths,
    all_widths: &'p Widths,
}

/// The last step of a path: to exit number `index` of a point.
struct Step<'p> {
    before: &'p Path<'p>,
    point: usize,
    index: usize,
    /// Cost of stopping there, head and policy of the first exit aside.
    stop_cost: f64,
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
        let values = arranged(&images, field.row(exit));
        let deeper: Vec<Vec<(usize, Vec<f32>)>> = field.exits[1..]
            .iter()
            .map(|exits| exits.iter().map(|next| (*next, arranged(&images, field.row(*next)))).collect())
            .collect();
        let of_band = |band: &'s Band| {
            let cost = (band.multiplier * costs.backbone[exit]) as f32;
            let first = shared.isa.run(LessCost { values: &values, cost, shares: &shares });
            let any = vec![OnceCell::new(); deeper.len()];
            let stopped_before = sums_before(&first);
            let targets = Arc::new(Targets { corners: Vec::new() });
            TaskBand { band, targets, any, needed: 0.0, slacks: Vec::new(), least: 0.0, first, stopped_before }
        };
        let least_at = |exits: &Vec<usize>| {
            exits.iter().map(|exit| costs.head[*exit] + costs.policy[*exit]).fold(f64::INFINITY, f64::min)
        };
        let mut rising: Vec<usize> = (0..field.bands.len()).collect();
        rising.sort_by(|a, b| field.bands[*a].multiplier.total_cmp(&field.bands[*b].multiplier));
        let least_on_the_way = field.exits[1..].iter().map(least_at).collect();
        let mut task = Self {
            shared,
            field,
            exit,
            pixel,
            costs,
            num_rows,
            bands: field.bands.iter().map(of_band).collect(),
            rising,
            group_of: &order.groups,
            deeper,
            least_on_the_way,
            version: 0,
            second_runs: [Vec::new(), Vec::new()],
            second_orders: Vec::new(),
            pending: Vec::new(),
            candidates: Vec::new(),
            explored: 0,
            shares,
            images,
        };
        task.aim();
        task
    }

    /// Take the targets of now.
    fn aim(&mut self) {
        let constant = self.field.reference;
        self.version = self.shared.incumbents.version(); // of targets that are this old or newer
        for at in 0..self.bands.len() {
            let band = self.bands[at].band;
            self.bands[at].targets = self.shared.targets(band.costs, self.costs.of_first(self.exit)).1;
            self.bands[at].needed = self.needed(at, constant, self.rounding(band.multiplier));
            let multipliers = self.field.bands.iter().map(|band| band.multiplier);
            self.bands[at].slacks = multipliers.map(|multiplier| self.bands[at].targets.slack(multiplier)).collect();
            let first = self.bands[at].targets.corners.first();
            self.bands[at].least = first.map_or(f64::INFINITY, |(_, accuracy)| accuracy - MARGIN);
        }
    }

    /// Find everything better than what is known.
    pub fn run(mut self) {
        let widths = self.shared.steps.none();
        let best = vec![OnceCell::new(); self.bands.len()];
        let path = Path { on_the_way: 0.0, best, last: None, widths: &widths, all_widths: &widths };
        if self.deeper.len() > 1 && !self.may_hold(self.exit, 0, &path) {
            return;
        }
        for index in 0..self.deeper[0].len() {
            let second = self.deeper[0][index].0;
            let mut start = None;
            if self.deeper.len() > 1 {
                let spans = arranged(&self.images, self.shared.compact.spans(second));
                self.second_runs = <[Vec<u8>; 2]>::from(spans.into_iter().unzip());
                self.second_orders.clear();
            }
            self.follow(&mut vec![self.exit], index, &path, &mut start);
        }
        self.shared.control.count(self.explored, 0);
        let mut candidates = std::mem::take(&mut self.candidates);
        if self.bands.len() == 1 {
            candidates.sort_by(|a, b| b.excess.total_cmp(&a.excess)); // the best incumbents come first
        } // else they stay in the order of their chains, which finds more of the counts in the caches
        if candidates.is_empty() {
            return;
        }
        let stopped = Stopped::new(self.shared.compact, self.exit, self.pixel);
        for Candidate { exits, gates, band, .. } in candidates {
            if self.shared.control.stopped() {
                return;
            }
            if let Some(chain) = Chain::new(self.shared, &exits) {
                let Band { costs, multiplier } = *self.bands[band].band;
                let mut regions = Regions::new(self.shared, &chain, costs);
                regions.search(gates, Some(&stopped), multiplier);
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
            self.aim();
        }
        let (last, point) = (exits[exits.len() - 1], exits.len() - 1);
        let next = self.deeper[point][index].0;
        let (mut widths, mut all_widths) = (path.widths.clone(), Vec::new());
        self.shared.steps.extend(path.all_widths, last, next, &mut all_widths);
        if point > 0 {
            self.shared.steps.extend(path.widths, last, next, &mut widths);
        }
        exits.push(next);
        if point + 1 == self.deeper.len() {
            self.explored += 1;
            self.bound(exits, index, path, [&widths, &all_widths], start);
        } else {
            let on_the_way = path.on_the_way + self.costs.head[next] + self.costs.policy[next];
            let step = Step { before: path, point, index, stop_cost: self.costs.backbone[next] + on_the_way };
            let best = vec![OnceCell::new(); self.bands.len()];
            let path = Path { on_the_way, best, last: Some(step), widths: &widths, all_widths: &all_widths };
            if self.may_hold(next, point + 1, &path) {
                for index in 0..self.deeper[point + 1].len() {
                    self.follow(exits, index, &path, start);
                }
                self.narrow_pending();
            }
        }
        exits.pop();
    }

    /// (rows, RUNS) the best that the exits of a path behind the first are worth in a band; without any, -inf.
    fn best<'p>(&self, path: &'p Path<'_>, at: usize) -> &'p [f32] {
        let (isa, shares) = (self.shared.isa, &self.shares[..]);
        path.best[at].get_or_init(|| {
            let Some(Step { before, point, index, stop_cost }) = &path.last else {
                return vec![f32::NEG_INFINITY; shares.len()];
            };
            let values = &self.deeper[*point][*index].1;
            let cost = (self.bands[at].band.multiplier * stop_cost) as f32;
            if before.last.is_none() {
                return isa.run(LessCost { values, cost, shares });
            }
            let mut best = self.best(before, at).to_vec();
            isa.run(Raise { best: &mut best, values, cost, shares });
            best
        })
    }

    /// (rows, RUNS) the best that any exit of point number `point` behind the first is worth in a band.
    fn any(&self, at: usize, point: usize) -> &[f32] {
        let (isa, shares) = (self.shared.isa, &self.shares[..]);
        let TaskBand { band, any, .. } = &self.bands[at];
        any[point].get_or_init(|| {
            let mut any = vec![f32::NEG_INFINITY; shares.len()];
            for (next, values) in &self.deeper[point] {
                let policy = if point + 1 < self.deeper.len() { self.costs.policy[*next] } else { 0.0 };
                let stop_cost = self.costs.backbone[*next] + self.costs.head[*next] + policy;
                isa.run(Raise { best: &mut any, values, cost: (band.multiplier * stop_cost) as f32, shares });
            }
            any
        })
    }

    /// Whether any chain that goes on from `last` to the points from number `from` on may reach a target.
    ///
    /// *Admissible*: at each of these points an image is given the best of all heads at the least cost that comes before
    /// it, so no chain is worth more, and the box is widened by the widest steps, so it holds the boxes of all chains. ∎
    fn may_hold(&self, last: usize, from: usize, path: &Path<'_>) -> bool {
        let (compact, isa) = (self.shared.compact, self.shared.isa);
        let mut widths = path.all_widths.clone();
        let steps = [self.field.next_step(last)].into_iter().chain(&self.field.any_steps[from + 1..]);
        for step in steps {
            widths.iter_mut().zip(step).for_each(|(width, step)| *width += step);
        }
        let starts = [self.shared.steps.alone(self.exit)];
        let [whole] = isa.run(Spreads { plane: &self.field.plane, truth: &compact.truth, starts, widths: &widths });
        let bound = |at: usize| {
            let (band, shares) = (&self.bands[at], &self.shares[..]);
            let mut best = Cow::Borrowed(self.best(path, at));
            let mut on_the_way = path.on_the_way;
            let end = self.deeper.len() - 1;
            for point in from..end {
                let cost = (band.band.multiplier * on_the_way) as f32;
                isa.run(Raise { best: best.to_mut(), values: self.any(at, point), cost, shares });
                on_the_way += self.least_on_the_way[point];
            }
            let cost = (band.band.multiplier * on_the_way) as f32;
            let sums = TailSums { best: &best, last: self.any(at, end), cost, shares, first: &band.first };
            (band.greatest_excess(&isa.run(sums), whole.lift), ())
        };
        let may_be = |at: usize| whole.greatest >= self.bands[at].least;
        !self.bands_alive(may_be, bound, true).is_empty()
    }

    /// Bands in which a set of configurations may reach a target, in their order, with what was found on the way; only some
    /// of them when any will do. Only candidates are looked at; `bound(band)` gives by how much the bound exceeds what is
    /// needed.
    ///
    /// *Admissible*: let phi(m) be the greatest of A - m K over the set, a maximum of affine functions of m and so convex.
    /// Band k, with multiplier m_k and slack s_k (the greatest of m b - a over its targets), is excluded if phi(m_k) + s_k
    /// < 0. A bound that exceeds what is needed by e_k says phi(m_k) <= e_k - s_k, and for i, j on both sides of k
    /// convexity gives phi(m_k) <= the value at m_k of the chord through (m_i, e_i - s_i) and (m_j, e_j - s_j). The targets
    /// of k are excluded by m_i as well, with the slack that they have there. ∎
    fn bands_alive<T>(
        &self,
        is_candidate: impl Fn(usize) -> bool,
        bound: impl Fn(usize) -> (f64, T),
        any: bool,
    ) -> Vec<(usize, T)> {
        let mut alive = Vec::new();
        // a band whose last target another thread has met by now needs no look, and its slack is no number to reckon with
        let has_targets = |at: usize| !self.bands[at].targets.corners.is_empty();
        let candidates: Vec<usize> =
            self.rising.iter().copied().filter(|at| is_candidate(*at) && has_targets(*at)).collect();
        let own_slack = |at: usize| self.bands[at].slacks[at];
        let mut heights: Vec<(usize, f64)> = Vec::new();
        let mut look = |number: usize, alive: &mut Vec<(usize, T)>| {
            let at = candidates[number];
            let (excess, found) = bound(at);
            if excess >= 0.0 {
                alive.push((at, found));
            }
            heights.push((at, excess - own_slack(at)));
            excess - own_slack(at)
        };
        let Some(last) = candidates.len().checked_sub(1) else { return alive };
        let first = (0, look(0, &mut alive));
        if last == 0 || any && !alive.is_empty() {
            return alive;
        }
        let mut open = vec![(first, (last, look(last, &mut alive)))];
        while let Some((left, right)) = open.pop() {
            if any && !alive.is_empty() {
                return alive;
            }
            let multiplier = |number: usize| self.bands[candidates[number]].band.multiplier;
            let (from, width) = (multiplier(left.0), multiplier(right.0) - multiplier(left.0));
            let is_open = |number: usize| {
                let along = if width > 0.0 { (multiplier(number) - from) / width } else { 0.0 };
                left.1 + along * (right.1 - left.1) + own_slack(candidates[number]) >= 0.0
            };
            if (left.0 + 1..right.0).any(is_open) {
                let middle = (left.0 + right.0) / 2;
                let found = (middle, look(middle, &mut alive));
                open.extend([(left, found), (found, right)]);
            }
        }
        alive.retain(|(at, _)| heights.iter().all(|(other, height)| height + self.bands[*at].slacks[*other] >= 0.0));
        alive.sort_by_key(|(at, _)| *at);
        alive
    }

    /// Bound a chain by the family's plane, in each band.
    fn bound(
        &mut self,
        exits: &[usize],
        index: usize,
        path: &Path<'_>,
        [widths, all_widths]: [&Widths; 2],
        start: &mut Option<Start>,
    ) {
        let (compact, isa) = (self.shared.compact, self.shared.isa);
        let (plane, truth) = (&self.field.plane, &compact.truth[..]);
        // the ranges of any assignment of the chain's exits are quick to have and often enough
        let starts = [self.shared.steps.alone(self.exit)];
        let [whole] = isa.run(Spreads { plane, truth, starts, widths: all_widths });
        let mut of_groups: Option<[Spread; GROUPS]> = None;
        let mut alive: Vec<(usize, Runs)> = Vec::new();
        let mut found: Vec<Candidate> = Vec::new();
        let (next, last) = &self.deeper[exits.len() - 2][index];
        let stop_cost = self.costs.backbone[*next] + path.on_the_way + self.costs.head[*next];
        let bound = |at: usize| {
            let (band, best) = (&self.bands[at], self.best(path, at));
            let cost = (band.band.multiplier * stop_cost) as f32;
            let sums = isa.run(TailSums { best, last, cost, shares: &self.shares, first: &band.first });
            (band.greatest_excess(&sums, whole.lift), sums)
        };
        let may_be = |at: usize| whole.greatest >= self.bands[at].least;
        let bands = self.bands_alive(may_be, bound, false);
        for (at, sums) in bands {
            let band = &self.bands[at];
            let spreads = of_groups.get_or_insert_with(|| {
                let start = start.get_or_insert_with(|| Start::new(compact, exits[0], exits[1], self.group_of));
                let starts = std::array::from_fn(|group| start.of(group));
                isa.run(Spreads { plane, truth, starts, widths })
            });
            match band.alive(&sums, spreads) {
                Some((excess, runs)) if exits.len() == 2 => {
                    if let Some(gate) = self.first_gate(runs) {
                        found.push(Candidate { excess, exits: exits.to_vec(), gates: vec![gate], band: at });
                    }
                }
                Some((_, runs)) => alive.push((at, runs)),
                None => {}
            }
        }
        self.candidates.append(&mut found);
        let (Some(start), Some(spreads)) = (start.as_ref(), of_groups) else { return };
        for (group, spread) in spreads.iter().enumerate() {
            let (from, until) = (group * (RUNS / GROUPS), (group + 1) * (RUNS / GROUPS) - 1);
            let within = |&(at, (first, last)): &(usize, Runs)| {
                let is_within = first <= until && last >= from && spread.greatest >= self.bands[at].least;
                is_within.then_some((at, (first.max(from), last.min(until))))
            };
            let alive: Vec<(usize, Runs)> = alive.iter().filter_map(within).collect();
            if !alive.is_empty() {
                let mut ranges = Ranges::new(compact.padded());
                widen(start.of(group), widths, truth, &mut ranges);
                self.pending.push(Pending { exits: exits.to_vec(), group, ranges, alive });
            }
        }
    }

    /// What a bound has to reach in a band, less what all configurations have in common.
    fn needed(&self, at: usize, constant: f64, rounding: f64) -> f64 {
        let TaskBand { band, targets, .. } = &self.bands[at];
        let multiplier = band.multiplier;
        let margin = MARGIN * (1.0 + multiplier * self.shared.ceiling);
        -targets.slack(multiplier) - (constant - multiplier * self.at_first()) - rounding - margin
    }

    /// Head and policy of the first exit, which every image pays and no row contains.
    fn at_first(&self) -> f64 {
        self.costs.head[self.exit] + self.costs.policy[self.exit]
    }

    /// Each bound is made of at most rows + 3 RUNS additions, of terms of up to twice the magnitude of a value.
    fn rounding(&self, multiplier: f64) -> f64 {
        let magnitude = self.field.magnitude + multiplier * self.shared.ceiling;
        2.0 * (self.num_rows + 3 * RUNS + 3) as f64 * f64::from(f32::EPSILON) * magnitude
    }

    /// Bound the pending chains, which differ in the last exit, by a plane for each group of runs: the secant of the mean of
    /// their boxes there. One of its own for each chain excludes hardly more.
    fn narrow_pending(&mut self) {
        let pending = std::mem::take(&mut self.pending);
        let Some((_, before)) = pending.first().and_then(|chain| chain.exits.split_last()) else { return };
        let compact = self.shared.compact;
        if self.second_orders.is_empty() {
            let runs = |pixel: usize| arranged(&self.images, &compact.gate(before[1], pixel).runs);
            self.second_orders = (0..compact.num_pixels).map(runs).collect();
        }
        let (planes, of_group) = self.planes(before, &pending);
        let mut found = Vec::new();
        for same in pending.chunk_by(|a, b| a.exits == b.exits) {
            let exits = &same[0].exits;
            let chains: Vec<(&Fitted, &Ranges)> =
                same.iter().map(|c| (&planes[of_group[c.group]], &c.ranges)).collect();
            let values = Fitted::chains(self.shared, exits[exits.len() - 1], &chains, &self.images);
            for (chain, values) in same.iter().zip(values) {
                found.extend(self.narrow(exits, &values, &chain.alive));
            }
        }
        self.candidates.extend(found);
    }

    /// Planes for the groups of these chains, which begin with `before`, and which of them each group has.
    fn planes(&self, before: &[usize], pending: &[Pending]) -> (Vec<Fitted>, [usize; GROUPS]) {
        let mut of_group = [0; GROUPS];
        let mut means: Vec<Ranges> = Vec::new();
        for (group, plane) in of_group.iter_mut().enumerate() {
            let here: Vec<&Ranges> = pending.iter().filter(|c| c.group == group).map(|chain| &chain.ranges).collect();
            *plane = means.len();
            means.extend(Ranges::mean(&here));
        }
        (Fitted::all(self.shared, before, &means, &self.images), of_group)
    }

    /// The bands of a chain with the first image threshold in one group that may hold something by `values`, of those and in
    /// the runs that are given, with what they are worth, what is needed there, and what is left. Bounds over all these runs
    /// exclude bands between others; the orders of all pixel thresholds of the second gate are bounded at once, as they
    /// differ little.
    fn alive<'v>(
        &'v self,
        exits: &[usize],
        values: &'v ChainValues<'v>,
        alive: &[(usize, Runs)],
    ) -> Vec<(usize, (Worth<'v>, f64, Left))> {
        let (compact, isa) = (self.shared.compact, self.shared.isa);
        let at_first = self.at_first();
        let stop_costs = stop_costs(self.costs, Setting::InputDependent, exits);
        let all_runs = alive.iter().fold((RUNS, 0), |(a, b), (_, (c, d))| (a.min(*c), b.max(*d)));
        let [from, until] = &self.second_runs;
        let bound = |at: usize| {
            let multiplier = self.bands[at].band.multiplier;
            let costs = stop_costs.iter().map(|cost| (multiplier * (cost - at_first)) as f32).collect();
            let worth = Worth::new(isa, values, costs, &self.shares);
            let rounding = values.rounding(self.num_rows, compact.classes.len(), multiplier * self.shared.ceiling);
            let needed = self.needed(at, values.constant, rounding);
            let greatest = worth.greatest(all_runs);
            if greatest < needed {
                return (greatest - needed, None);
            }
            let (greatest, left) = worth.pairs(isa, [from, until], all_runs, needed);
            (greatest - needed, left.map(|left| (worth, needed, left)))
        };
        let runs_of = |at: usize| alive.iter().find(|(band, _)| *band == at).map(|(_, runs)| *runs);
        let within = |(at, found_by): (usize, Option<(Worth<'v>, f64, Left)>)| {
            let ((worth, needed, left), (first, last)) = found_by.zip(runs_of(at))?;
            let first = (left.first.0.max(first), left.first.1.min(last));
            (first.0 <= first.1).then_some((at, (worth, needed, Left { first, ..left })))
        };
        let bands = self.bands_alive(|at| runs_of(at).is_some(), bound, false);
        bands.into_iter().filter_map(within).collect()
    }

    /// What is left of such a chain when the orders of the second gate, and of the third, are gone through one by one.
    fn narrow(&self, exits: &[usize], values: &ChainValues<'_>, alive: &[(usize, Runs)]) -> Vec<Candidate> {
        let (compact, isa) = (self.shared.compact, self.shared.isa);
        let [from, until] = &self.second_runs;
        let mut found = Vec::new();
        for (at, (worth, needed, left)) in self.alive(exits, values, alive) {
            let Some(left) = worth.in_orders(isa, &self.second_orders, left, needed) else { continue };
            if exits.len() > 3 {
                let mut third_orders = (0..compact.num_pixels).map(|pixel| compact.gate(exits[2], pixel));
                if !worth.has_third(&self.images, [from, until], (left.first, left.second), &mut third_orders, needed) {
                    continue;
                }
            }
            let Some(first) = self.first_gate(left.first) else { continue };
            let mut gates = vec![GateRange::OPEN; exits.len() - 1];
            gates[0] = first;
            gates[1] = GateRange::Runs { first: left.second.0 as u8, last: left.second.1 as u8 };
            found.push(Candidate { excess: left.height - needed, exits: exits.to_vec(), gates, band: at });
        }
        found
    }

    fn first_gate(&self, (first, last): Runs) -> Option<GateRange> {
        let order = self.shared.compact.gate(self.exit, self.pixel);
        let (low, high) = order.thresholds_within(first, last)?;
        Some(GateRange::Within { pixel: self.pixel, low, high })
    }
}

impl TaskBand<'_> {
    /// By how much a bound exceeds what is needed in the run where it does most, with one lift for all of them.
    fn greatest_excess(&self, sums: &[[f32; RUNS]; 2], lift: f64) -> f64 {
        greatest_of_runs(&self.stopped_before, sums) + lift - self.needed
    }

    /// The runs in which a chain may hold something, the first and the last of them, with the greatest excess there.
    fn alive(&self, [free, tail]: &[[f32; RUNS]; 2], spreads: &[Spread; GROUPS]) -> Option<(f64, Runs)> {
        let mut alive: Option<(f64, Runs)> = None;
        let mut going_on = 0.0;
        for run in (0..RUNS).rev() {
            let Spread { lift, greatest } = spreads[run / (RUNS / GROUPS)];
            let excess = self.stopped_before[run] + f64::from(free[run]) + going_on + lift - self.needed;
            going_on += f64::from(tail[run]);
            if excess >= 0.0 && greatest >= self.least {
                alive = Some(match alive {
                    None => (excess, (run, run)),
                    Some((height, (_, last))) => (larger(height, excess), (run, last)),
                });
            }
        }
        alive
    }
}

#[cfg(test)]
#[allow(clippy::expect_used)]
mod tests {
    use ndarray::{Array1, Array2, Array3};

    use super::*;
    use crate::search::engine::Prepared;
    use crate::search::incumbent::Incumbents;
    use crate::search::limits::Limits;
    use crate::search::objective::{Metric, Objective, Query, Scoring};
    use crate::search::space::Space;
    use crate::search::table::Table;
    use crate::search::{Configuration, Control, Found};

    /// Another thread may meet the last target of a band while chains wait for their bound: the others keep theirs.
    #[test]
    fn a_band_without_targets_excludes_no_other() {
        let count = |of: [i64; 3]| Array3::from_shape_fn((3, 4, 1), |(exit, _, _)| of[exit]);
        let (right, predicted, truth) = (count([1, 2, 3]), count([4, 4, 4]), Array2::from_elem((4, 1), 4));
        let confidence = Array3::from_shape_fn((3, 1, 4), |(_, _, image)| image as f64 / 4.0);
        let (points, weight) = (Array1::from_vec(vec![0, 1, 2]), None);
        let cost = |of: [f64; 3]| Array2::from_shape_vec((1, 3), of.to_vec()).expect("3");
        let (backbone, nothing) = (cost([0.4, 0.8, 1.2]), cost([0.0, 0.0, 0.0]));
        let table = Table {
            intersection: right.view(),
            predicted: predicted.view(),
            ground_truth: truth.view(),
            image_confidence: confidence.view(),
            points: points.view(),
            backbone_cost: backbone.view(),
            head_cost: nothing.view(),
            policy_cost: nothing.view(),
            image_weight: weight,
        };
        let query = Query {
            scoring: Scoring { setting: Setting::InputDependent, metric: Metric::PixelAccuracy, column: 0 },
            objective: Objective::ParetoFront { resolution: 0.0 },
            space: Space { max_exits: 3, ..Space::default() },
            limits: Limits::default(),
        };
        let prepared = Prepared::new(&table, &query);
        let (control, incumbents) = (Control::default(), Incumbents::new(query.objective, prepared.ceiling));
        let shared = prepared.shared(&table, &query, &control, &incumbents);
        let edges = [f64::NEG_INFINITY, 0.35, 0.8, f64::INFINITY]; // the first band is below what an image costs at least
        let band = |at: usize| Band { costs: (edges[at], edges[at + 1]), multiplier: 3.0 - at as f64 };
        let field = Field::new(&shared, vec![vec![0], vec![1], vec![2]], &[0, 1, 2], (0..3).map(band).collect());
        let mut task = Task::new(&shared, &field, 0, 0);
        let alive = |task: &Task<'_, '_, '_>| -> Vec<usize> {
            let bound = |at: usize| (0.75 - task.bands[at].needed.max(0.0), ()); // what is worth 0.75 in every band
            task.bands_alive(|_| true, bound, false).into_iter().map(|(at, ())| at).collect()
        };
        let offer = |cost: f64, accuracy: f64| {
            let configuration = Configuration::single(0);
            incumbents.offer(cost, accuracy, || Found { configuration, cost, accuracy, stopped: Vec::new() });
        };
        offer(0.5, 0.25);
        task.aim();
        assert_eq!(task.bands.iter().map(|band| band.targets.corners.len()).collect::<Vec<_>>(), [1, 2, 1]);
        assert_eq!(alive(&task), [0, 1, 2]);
        offer(0.36, 0.125); // no chain of this task costs as little, and nothing is left to be found in the first band
        task.aim();
        assert_eq!(task.bands.iter().map(|band| band.targets.corners.len()).collect::<Vec<_>>(), [0, 2, 1]);
        assert_eq!(alive(&task), [1, 2]);
    }
}
