//! Branch and bound over the gates of one chain of exits.
//!
//! A *region* is a chain of exits and, for each gate, either any pixel threshold and some runs of its order, or one pixel
//! threshold and an interval of image thresholds. Images above them (above the runs in every order) certainly stop there if
//! they get that far, images below them certainly go on, and only those between are uncertain; so a region says for each
//! image which exits it can reach. Most can reach one only, and are summed up once, when a bound needs the sums; the rest
//! are carried along in `free`.
//!
//! A region is bounded by `bound.rs` with a plane of its own and a few multipliers. Its parts are first bounded by its own
//! plane, which holds for them too: `stakes` bounds all parts of the intervals of two gates in one pass over the free
//! images, and `narrow` cuts off what is excluded at both ends. Most of what this bound leaves is then too dear or too cheap
//! for the targets that it might reach (`corners_of_part`), which is found out before anything is copied. What survives gets
//! a plane of its own and is split. What has few combinations left is evaluated exactly, one by one.

use std::ops::Range;

use super::bound::{MARGIN, Plane, Ranges, larger, smaller};
use super::compact::{Compact, Mixture, PAD, RUNS, take};
use super::engine::Shared;
use super::evaluate::stop_costs;
use super::incumbent::{Targets, slack};
use super::limits::{Statistic, mean};
use super::objective::Setting;
use super::stakes::{Cells, Cut, MAX_PIECES, Staked, Stakes};
use crate::isa::Kernel;

/// Pieces that a region is split into, and that another gate is cut into meanwhile.
const PIECES: usize = 8;
const OTHER_PIECES: usize = 16;
/// Combinations of image thresholds that are evaluated one by one instead of bounded.
const FEW: usize = 24;
/// Multipliers tried on one region.
const MULTIPLIERS: usize = 6;

/// What is decided about one gate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum GateRange {
    /// Any pixel threshold, any image threshold within runs `first..=last` of its order.
    Runs { first: u8, last: u8 },
    /// This pixel threshold, image thresholds number `low..=high` of its gate order.
    Within { pixel: usize, low: u32, high: u32 },
}

/// A chain of exits with its costs.
pub(crate) struct Chain<'a> {
    pub exits: &'a [usize],
    /// Mean cost of an image that stops at each exit.
    stop_costs: Vec<f64>,
    /// The same in the columns of the mean limits, with the limit.
    mean_limits: Vec<(Vec<f64>, f64)>,
    /// (exits whose images stay within the limit, least share of images there).
    quantiles: Vec<(usize, f64)>,
}

/// A set of configurations of one chain.
#[derive(Debug)]
struct Region {
    gates: Vec<GateRange>,
    /// The images that can reach one exit only.
    certain: Mixture,
    /// Images of `certain` whose counts are not in its sums yet, each with which of the chain's exits it takes.
    unsettled: Vec<(u32, u32)>,
    /// What they are worth together by the bound in use, which stands for their counts; 0 before there is a bound.
    unsettled_value: f64,
    /// The other images.
    free: Vec<Free>,
    /// (free, exits): value of each image at each exit, by the bound in use.
    values: Vec<f64>,
}

/// What images add that stop at the exit of a gate.
pub(crate) struct Stopped {
    /// (runs + 1,) sums over the images of the runs before each, the last over all images.
    sums: Vec<Mixture>,
}

impl Stopped {
    pub fn new(compact: &Compact, exit: usize, pixel: usize) -> Self {
        let order = compact.gate(exit, pixel);
        let mut mixture = Mixture::new(compact, 1);
        let mut sums = vec![mixture.clone()];
        for run in order.images.chunks(order.run_length()) {
            run.iter().for_each(|image| mixture.add(compact, exit, 0, *image as usize));
            sums.push(mixture.clone());
        }
        Self { sums }
    }
}

/// An image that can reach several exits.
#[derive(Debug, Clone, Copy)]
struct Free {
    image: u32,
    /// Bit j: can stop at the j-th exit.
    reach: u32,
}

/// A bound that holds in a region and in all of its parts.
struct Bounded {
    plane: Plane,
    lift: f64,
    multiplier: f64,
}

/// Targets of up to this cost, and those of at least this accuracy, are out of reach of a region and so of its parts.
///
/// A newer target of no more than this cost is too: it asks for no less than an older one that is, or for more than the
/// dearest of those. (*Proof.* Whatever meets it meets an older target (b, a). If b is not above the cost, that one is out
/// of reach; otherwise a is at least the accuracy of the one at that cost, which is met then as well. From the other end it
/// is the same. ∎)
#[derive(Clone, Copy)]
struct Excluded {
    cost: f64,
    accuracy: f64,
}

/// A part of a region, and by how much its bound exceeds what a target asks for.
struct Part {
    height: f64,
    narrowed: Vec<(usize, GateRange)>,
}

impl Region {
    fn empty(compact: &Compact, exits: usize) -> Self {
        Self {
            gates: Vec::new(),
            certain: Mixture::new(compact, exits),
            unsettled: Vec::new(),
            unsettled_value: 0.0,
            free: Vec::new(),
            values: Vec::new(),
        }
    }

    /// Become a copy of another one, in the memory that is there.
    fn copy_from(&mut self, of: &Self) {
        self.gates.clone_from(&of.gates);
        self.certain.copy_from(&of.certain);
        self.unsettled.clone_from(&of.unsettled);
        self.unsettled_value = of.unsettled_value;
        self.free.clone_from(&of.free);
        self.values.clone_from(&of.values);
    }
}

impl GateRange {
    /// Any pixel threshold, any image threshold.
    pub const OPEN: Self = Self::Runs { first: 0, last: RUNS as u8 - 1 };

    /// Whether it has one pixel threshold and several image thresholds.
    fn is_wide(self) -> bool {
        matches!(self, Self::Within { low, high, .. } if low < high)
    }
}

impl<'a> Chain<'a> {
    /// `None` when no configuration of the chain is within the limits.
    pub fn new(shared: &Shared<'_, '_>, exits: &'a [usize]) -> Option<Self> {
        let (table, limits) = (shared.table, &shared.query.limits);
        let costs_in = |column: usize| stop_costs(table.costs(column), Setting::InputDependent, exits);
        let (mut mean_limits, mut quantiles) = (Vec::new(), Vec::new());
        for limit in &limits.costs {
            let costs = costs_in(limit.column);
            match limit.statistic {
                Statistic::Total if costs[exits.len() - 1] > limit.at_most => return None,
                Statistic::Total => {}
                Statistic::Mean => mean_limits.push((costs, limit.at_most)),
                Statistic::Quantile(share) => {
                    let within = costs.partition_point(|cost| *cost <= limit.at_most);
                    if within == 0 || share >= 1.0 && within < exits.len() {
                        return None; // every exit has an image
                    }
                    quantiles.push((within, share));
                }
            }
        }
        Some(Self { exits, stop_costs: costs_in(shared.query.scoring.column), mean_limits, quantiles })
    }
}

/// Depth-first search of the regions of one chain.
pub(crate) struct Regions<'s, 'a, 't> {
    shared: &'s Shared<'a, 't>,
    chain: &'s Chain<'s>,
    targets: std::sync::Arc<Targets>,
    version: u64,
    /// Regions that are done with, for their memory.
    spare: Vec<Region>,
    /// Costs for which this search is responsible: targets elsewhere are left to others.
    band: (f64, f64),
    pub explored: u64,
    pub evaluated: u64,
}

impl<'s, 'a, 't> Regions<'s, 'a, 't> {
    pub fn new(shared: &'s Shared<'a, 't>, chain: &'s Chain<'s>, band: (f64, f64)) -> Self {
        let (version, targets) = shared.targets(band, chain.stop_costs[0]);
        Self { shared, chain, targets, version, spare: Vec::new(), band, explored: 0, evaluated: 0 }
    }

    /// Find everything in these ranges that is better than what is known. `stopped` are sums of the first gate, if it has
    /// one pixel threshold.
    pub fn search(&mut self, gates: Vec<GateRange>, stopped: Option<&Stopped>, multiplier: f64) {
        let compact = self.shared.compact;
        let exits = self.chain.exits.len();
        let mut root = Region { gates, ..Region::empty(compact, exits) };
        let free = |image: usize| Free { image: image as u32, reach: (1 << exits) - 1 };
        match (stopped, root.gates[0]) {
            (Some(stopped), GateRange::Within { pixel, low, .. }) => {
                let order = compact.gate(self.chain.exits[0], pixel);
                let run = order.leaving[low as usize] as usize / order.run_length();
                root.certain.begin_with(&stopped.sums[run]);
                root.free
                    .extend((0..compact.num_images).filter(|image| usize::from(order.runs[*image]) >= run).map(free));
            }
            _ => root.free.extend((0..compact.num_images).map(free)),
        }
        self.restrict(&mut root, &[]); // sorts out the images
        let nothing = Excluded { cost: f64::NEG_INFINITY, accuracy: f64::INFINITY };
        self.visit(&mut root, None, multiplier, nothing);
    }

    fn visit(&mut self, of: &mut Region, bound: Option<&Bounded>, multiplier: f64, mut excluded: Excluded) {
        if self.shared.control.stopped() || !self.is_admissible(of) {
            return;
        }
        self.explored += 1;
        if self.shared.incumbents.version() != self.version {
            (self.version, self.targets) = self.shared.targets(self.band, self.chain.stop_costs[0]);
        }
        let corners = self.corners(of, excluded);
        if corners.is_empty() || bound.is_some_and(|bound| !self.narrow(of, bound, &corners)) {
            return;
        }
        self.settle(of);
        if self.num_combinations(of) <= FEW {
            self.enumerate(of);
            return;
        }
        let Some((bound, left)) = self.bounded(of, &corners, multiplier) else { return };
        if let Some((cost, _)) = corners[..left.start].last() {
            excluded.cost = larger(excluded.cost, *cost);
        }
        if let Some((_, accuracy)) = corners[left.end..].first() {
            excluded.accuracy = smaller(excluded.accuracy, *accuracy);
        }
        let corners = &corners[left];
        if !self.narrow(of, &bound, corners) {
            return;
        }
        self.settle(of);
        if self.num_combinations(of) <= FEW {
            self.enumerate(of); // one that is left alone has no parts
            return;
        }
        let mut parts = self.parts(of, &bound, corners);
        parts.sort_by(|a, b| b.height.total_cmp(&a.height)); // stable: the order of work is the same in every run
        let over = slack(corners, bound.multiplier);
        for Part { narrowed, height } in parts {
            if height - over + slack(&self.corners_of_part(of, &narrowed, excluded), bound.multiplier) < 0.0 {
                continue; // its costs are in a smaller range, and so are the targets that it may reach
            }
            let spare = self.spare.pop();
            let mut part = spare.unwrap_or_else(|| Region::empty(self.shared.compact, self.chain.exits.len()));
            part.copy_from(of);
            self.restrict(&mut part, &narrowed);
            self.visit(&mut part, Some(&bound), bound.multiplier, excluded);
            self.spare.push(part);
        }
    }

    /// The parts that a region is split into, without those that its bound excludes: for an open gate one for each pixel
    /// threshold, else one for each piece of the gate at which most images are undecided. Another gate is narrowed with it.
    fn parts(&self, of: &Region, bound: &Bounded, corners: &[(f64, f64)]) -> Vec<Part> {
        let open = of.gates.iter().position(|gate| matches!(gate, GateRange::Runs { .. }));
        let Some(gate) = open.or_else(|| self.most_undecided(of, None)) else { return Vec::new() };
        let other = self.most_undecided(of, Some(gate));
        let (first, second) = other.map_or((gate, None), |other| (gate.min(other), Some(gate.max(other))));
        let stakes = self.stakes(of, bound, first, second, corners);
        let others = other.and_then(|other| self.cut(of, other, OTHER_PIECES));
        let parts_of = |here: Cut<'_>| -> Vec<Part> {
            let mut cuts: Vec<&Cut<'_>> = others.iter().chain([&here]).collect();
            cuts.sort_by_key(|cut| cut.gate);
            let grid = stakes.grid(cuts[0], cuts.get(1).copied());
            let part = |Cells { height, pieces }: Cells| Part {
                height,
                narrowed: cuts.iter().zip(pieces).map(|(cut, pieces)| cut.narrowed(pieces)).collect(),
            };
            match open {
                Some(_) => grid.hull().map(part).into_iter().collect(),
                None => grid.of_gate(usize::from(gate != first)).map(part).collect(),
            }
        };
        match of.gates[gate] {
            GateRange::Runs { first, last } => {
                let order = |pixel: usize| self.shared.compact.gate(self.chain.exits[gate], pixel);
                let cut = |pixel: usize| {
                    let (low, high) = order(pixel).thresholds_within(first.into(), last.into())?;
                    Some(Cut::new(gate, order(pixel), (pixel, low, high), MAX_PIECES))
                };
                (0..self.shared.compact.num_pixels).filter_map(cut).flat_map(parts_of).collect()
            }
            GateRange::Within { .. } => self.cut(of, gate, PIECES).into_iter().flat_map(parts_of).collect(),
        }
    }

    /// Cut from the range of each gate what the bound excludes at both ends, two gates at a time; whether anything is left.
    fn narrow(&self, of: &mut Region, bound: &Bounded, corners: &[(f64, f64)]) -> bool {
        let wide: Vec<usize> = (0..of.gates.len()).filter(|at| of.gates[*at].is_wide()).collect();
        for gates in wide.chunks(2) {
            let stakes = self.stakes(of, bound, gates[0], gates.get(1).copied(), corners);
            let cuts: Vec<Cut<'_>> = gates.iter().filter_map(|gate| self.cut(of, *gate, MAX_PIECES)).collect();
            let Some(left) = stakes.grid(&cuts[0], cuts.get(1)).hull() else { return false };
            let narrowed = cuts.iter().zip(left.pieces).map(|(cut, pieces)| cut.narrowed(pieces));
            let narrowed: Vec<_> = narrowed.filter(|(gate, range)| *range != of.gates[*gate]).collect();
            if !narrowed.is_empty() {
                self.restrict(of, &narrowed);
            }
        }
        true
    }

    /// The range of a gate whose pixel threshold is decided, in at most `count` pieces.
    fn cut(&self, of: &Region, gate: usize, count: usize) -> Option<Cut<'s>> {
        let GateRange::Within { pixel, low, high } = of.gates[gate] else { return None };
        Some(Cut::new(gate, self.shared.compact.gate(self.chain.exits[gate], pixel), (pixel, low, high), count))
    }

    /// The targets that a configuration in the region could reach.
    fn corners(&self, of: &Region, excluded: Excluded) -> Vec<(f64, f64)> {
        let costs = &self.chain.stop_costs;
        self.corners_within(of, costs_within(self.shared.compact, costs, of.free.iter().copied()), excluded)
    }

    /// The same of the part of a region where some gates are narrowed.
    fn corners_of_part(&self, of: &Region, narrowed: &[(usize, GateRange)], excluded: Excluded) -> Vec<(f64, f64)> {
        let narrow = |(at, range): (usize, &GateRange)| {
            narrowed.iter().find(|(gate, _)| *gate == at).map_or(*range, |(_, narrowed)| *narrowed)
        };
        let gates = of.gates.iter().enumerate().map(narrow);
        let orders = Orders::new(self.shared.compact, self.chain.exits, gates);
        let costs = &self.chain.stop_costs;
        let costs = self.shared.isa.run(PartCosts { compact: self.shared.compact, costs, orders, of });
        self.corners_within(of, costs, excluded)
    }

    /// The targets within reach where the free images cost this much together, at least and at most. Of the corners that are
    /// not below a cost the first one asks for the least accuracy, and for no cost beyond the range.
    fn corners_within(&self, of: &Region, (low, high): (f64, f64), excluded: Excluded) -> Vec<(f64, f64)> {
        let compact = self.shared.compact;
        let certain = mean(&self.chain.stop_costs, &of.certain.weight, compact.total_weight);
        let low = (certain + low / compact.total_weight) * (1.0 - MARGIN);
        let high = (certain + high / compact.total_weight) * (1.0 + MARGIN);
        let all = &self.targets.corners;
        let first_at = |cost: f64| all.partition_point(|(budget, _)| *budget < cost);
        let last = (first_at(high) + 1).min(all.len());
        let mut corners = all[first_at(low).min(last)..last].to_vec();
        if let Some((budget, _)) = corners.last_mut() {
            *budget = budget.min(high);
        }
        corners.retain(|(cost, accuracy)| *cost > excluded.cost && *accuracy < excluded.accuracy);
        corners
    }

    /// Height of each image on either side of a gate, or of two.
    fn stakes(
        &self,
        of: &Region,
        bound: &Bounded,
        first: usize,
        second: Option<usize>,
        corners: &[(f64, f64)],
    ) -> Stakes {
        let compact = self.shared.compact;
        let exits = self.chain.exits.len();
        let per_weight = bound.multiplier / compact.total_weight;
        let costs: Vec<f64> = self.chain.stop_costs.iter().map(|cost| cost * per_weight).collect();
        let certain: f64 = costs.iter().zip(&of.certain.weight).map(|(cost, weight)| cost * weight).sum();
        let margin = MARGIN * (1.0 + bound.multiplier * self.shared.ceiling);
        let certain_value = bound.plane.value_of_sums(&of.certain.t, &of.certain.f) + of.unsettled_value;
        let constant = bound.lift + certain_value - certain;
        let constant = constant + slack(corners, bound.multiplier) + margin;
        let staked = |(free, values): (&Free, &[f64])| {
            let weight = compact.weight[free.image as usize];
            let best = |range: Range<usize>| {
                let heights =
                    values[range.clone()].iter().zip(&costs[range]).map(|(value, cost)| value - cost * weight);
                heights.fold(f64::NEG_INFINITY, larger)
            };
            let may = |gate: usize| (free.reach >> gate & 1 == 1, free.reach >> (gate + 1) != 0);
            let (may_stop, may_pass) = may(first);
            let (may_stop_behind, may_pass_behind) = second.map_or((false, true), may);
            let before = best(0..first);
            let second = second.unwrap_or(exits);
            let otherwise = larger(before, best(first + 1..second));
            Staked {
                image: free.image,
                may_stop: [may_stop, may_stop_behind],
                may_pass: [may_pass, may_pass_behind],
                first: larger(before, best(first..first + 1)),
                second: larger(otherwise, best(second..exits.min(second + 1))),
                behind: larger(otherwise, best(exits.min(second + 1)..exits)),
            }
        };
        let images = of.free.iter().zip(of.values.chunks_exact(exits)).map(staked).collect();
        Stakes { constant, images }
    }

    /// Make a region its part where some gates are narrowed.
    fn restrict(&self, region: &mut Region, narrowed: &[(usize, GateRange)]) {
        narrowed.iter().for_each(|(gate, range)| region.gates[*gate] = *range);
        self.shared.isa.run(SortedOut { compact: self.shared.compact, exits: self.chain.exits, region });
    }

    /// Add up the counts of the images that wait for it.
    fn settle(&self, region: &mut Region) {
        self.shared.isa.run(Settled { compact: self.shared.compact, exits: self.chain.exits, region });
    }

    /// Necessary conditions of space and limits that the bounds do not know.
    fn is_admissible(&self, of: &Region) -> bool {
        let compact = self.shared.compact;
        let share = self.shared.query.space.min_share;
        for at in 0..self.chain.exits.len() {
            let can = of.free.iter().filter(|free| free.reach >> at & 1 == 1);
            let (images, weight) = can
                .fold((of.certain.images[at], of.certain.weight[at]), |(images, weight), free| {
                    (images + 1, weight + compact.weight[free.image as usize])
                });
            if images == 0 || weight / compact.total_weight < share {
                return false;
            }
        }
        let cheapest = |costs: &[f64]| -> f64 {
            let free = of
                .free
                .iter()
                .map(|free| costs[free.reach.trailing_zeros() as usize] * compact.weight[free.image as usize]);
            (mean(costs, &of.certain.weight, 1.0) + free.sum::<f64>()) / compact.total_weight
        };
        let within = |(costs, limit): &(Vec<f64>, f64)| cheapest(costs) * (1.0 - MARGIN) <= *limit;
        let reaches = |(exits, share): &(usize, f64)| {
            let certain: f64 = of.certain.weight[..*exits].iter().sum();
            let free = of.free.iter().filter(|free| (free.reach.trailing_zeros() as usize) < *exits);
            let weight: f64 = certain + free.map(|free| compact.weight[free.image as usize]).sum::<f64>();
            weight / compact.total_weight >= *share
        };
        self.chain.mean_limits.iter().all(within) && self.chain.quantiles.iter().all(reaches)
    }

    /// The bound of a settled region, and which targets are within its reach; nothing when none is.
    fn bounded(&self, of: &mut Region, corners: &[(f64, f64)], multiplier: f64) -> Option<(Bounded, Range<usize>)> {
        debug_assert!(of.unsettled.is_empty());
        let compact = self.shared.compact;
        let ranges = self.shared.isa.run(FreeRanges { compact, exits: self.chain.exits, of });
        for &(class, floor) in &self.shared.class_floors {
            // IoU is largest where T is and U is not
            if ranges.t_high[class] < floor * ranges.u_low[class] * (1.0 - MARGIN) {
                return None;
            }
        }
        let plane = Plane::secant(self.shared.query.scoring.metric, compact, &ranges);
        self.shared.isa.run(FreeValues { compact, exits: self.chain.exits, of, plane: &plane });
        let mut bounded = Bounded { lift: plane.lift(&ranges), plane, multiplier };
        let left = self.within_reach(of, &mut bounded, corners);
        (!left.is_empty()).then_some((bounded, left))
    }

    /// From the first to the last of the targets that may be reached in the region, as far as a few multipliers can tell;
    /// leaves the best one.
    fn within_reach(&self, of: &Region, bounded: &mut Bounded, corners: &[(f64, f64)]) -> Range<usize> {
        let mut left = 0..corners.len();
        // (multiplier, accuracy, cost) of the best points on both sides of the budget
        let [mut low, mut high]: [Option<(f64, f64, f64)>; 2] = [None; 2];
        let mut multiplier = bounded.multiplier;
        let mut closest = f64::INFINITY;
        for _ in 0..MULTIPLIERS {
            let (accuracy, cost) = self.relaxed(of, bounded, multiplier);
            let height = accuracy - multiplier * cost;
            let margin = MARGIN * (1.0 + multiplier * cost.abs());
            // targets at both ends that this multiplier excludes need no other one
            let is_out = |&(b, a): &(f64, f64)| height + multiplier * b - a < -margin;
            while !left.is_empty() && is_out(&corners[left.start]) {
                left.start += 1;
            }
            while !left.is_empty() && is_out(&corners[left.end - 1]) {
                left.end -= 1;
            }
            let over = |&(b, a): &(f64, f64)| height + multiplier * b - a;
            let Some(&(budget, aim)) = corners[left.clone()].iter().max_by(|x, y| over(x).total_cmp(&over(y))) else {
                return left;
            };
            let excess = over(&(budget, aim));
            if excess < closest {
                (closest, bounded.multiplier) = (excess, multiplier);
            }
            if cost <= budget && accuracy >= aim {
                return left; // the relaxation reaches it, so no multiplier excludes it
            }
            let point = (multiplier, accuracy, cost);
            if cost > budget {
                low = Some(point)
            } else {
                high = Some(point)
            }
            multiplier = match (low, high) {
                // where the lines through both maximisers cross
                (Some((_, a, c)), Some((_, b, d))) if c > d => (a - b) / (c - d),
                (Some((m, ..)), None) => (2.0 * m).max(1e-12 / self.shared.ceiling),
                (None, Some((m, ..))) if m > 0.0 => {
                    if m > 1e-9 / self.shared.ceiling {
                        m / 2.0
                    } else {
                        0.0
                    }
                }
                _ => return left,
            };
            let is_between = low.is_none_or(|(m, ..)| multiplier > m) && high.is_none_or(|(m, ..)| multiplier < m);
            if !is_between {
                return left;
            }
        }
        left
    }

    /// (accuracy bound, mean cost) when every free image takes its best exit at this multiplier.
    fn relaxed(&self, of: &Region, bounded: &Bounded, multiplier: f64) -> (f64, f64) {
        let compact = self.shared.compact;
        let exits = self.chain.exits.len();
        let (mut accuracy, mut cost) = (0.0, 0.0);
        for (free, values) in of.free.iter().zip(of.values.chunks_exact(exits)) {
            let share = compact.weight[free.image as usize] / compact.total_weight;
            let (mut best, mut best_at) = (f64::NEG_INFINITY, 0);
            for (at, value) in values.iter().enumerate() {
                let value = value - multiplier * share * self.chain.stop_costs[at];
                if value > best {
                    (best, best_at) = (value, at);
                }
            }
            accuracy += values[best_at];
            cost += share * self.chain.stop_costs[best_at];
        }
        let certain = bounded.plane.value_of_sums(&of.certain.t, &of.certain.f);
        let certain_cost = mean(&self.chain.stop_costs, &of.certain.weight, compact.total_weight);
        (bounded.lift + certain + accuracy, certain_cost + cost)
    }

    /// The gate at which most images are undecided, of those but one whose range can be cut.
    fn most_undecided(&self, of: &Region, but: Option<usize>) -> Option<usize> {
        let undecided =
            |at: usize| of.free.iter().filter(|free| free.reach >> at & 1 == 1 && free.reach >> (at + 1) != 0).count();
        let wide = (0..of.gates.len()).filter(|at| Some(*at) != but && of.gates[*at].is_wide());
        wide.max_by_key(|at| (undecided(*at), std::cmp::Reverse(*at)))
    }

    /// Thresholds of a gate that tell the free images apart, the largest of each kind: `low`, and each level within.
    fn distinct(&self, of: &Region, gate: usize) -> Option<Vec<u32>> {
        let GateRange::Within { pixel, low, high } = of.gates[gate] else { return None };
        let levels = &self.shared.compact.gate(self.chain.exits[gate], pixel).levels;
        let undecided = of.free.iter().filter(|free| free.reach >> gate & 1 == 1);
        let within = undecided.map(|free| levels[free.image as usize]).filter(|level| low < *level && *level <= high);
        let mut distinct: Vec<u32> = std::iter::once(low).chain(within).collect();
        distinct.sort_unstable();
        distinct.dedup();
        Some(distinct)
    }

    fn num_combinations(&self, of: &Region) -> usize {
        let mut product = 1usize;
        for gate in 0..of.gates.len() {
            let Some(distinct) = self.distinct(of, gate) else { return usize::MAX };
            product = product.saturating_mul(distinct.len());
            if product > FEW {
                return usize::MAX;
            }
        }
        product
    }

    /// Every combination of a small box, which is settled, exactly.
    fn enumerate(&mut self, of: &Region) {
        debug_assert!(of.unsettled.is_empty());
        let compact = self.shared.compact;
        let choices: Vec<Vec<u32>> = (0..of.gates.len()).filter_map(|gate| self.distinct(of, gate)).collect();
        let total: usize = choices.iter().map(Vec::len).product();
        let levels: Vec<&[u32]> = (of.gates.iter().zip(self.chain.exits))
            .filter_map(|(gate, exit)| match gate {
                GateRange::Runs { .. } => None,
                GateRange::Within { pixel, .. } => Some(&compact.gate(*exit, *pixel).levels[..]),
            })
            .collect();
        let mut mixture = of.certain.clone();
        let mut thresholds = vec![0; choices.len()];
        for number in 0..total {
            let mut rest = number;
            for (threshold, choices) in thresholds.iter_mut().zip(&choices) {
                *threshold = choices[rest % choices.len()];
                rest /= choices.len();
            }
            mixture.copy_from(&of.certain);
            for free in &of.free {
                let image = free.image as usize;
                let stops = |at: &usize| levels[*at][image] <= thresholds[*at];
                let at = (0..levels.len()).find(stops).unwrap_or(levels.len());
                mixture.add(compact, self.chain.exits[at], at, image);
            }
            self.evaluated += 1;
            let gates = of.gates.iter().zip(&thresholds).filter_map(|(gate, number)| match *gate {
                GateRange::Runs { .. } => None,
                GateRange::Within { pixel, .. } => Some((pixel, *number)),
            });
            self.shared.offer_mixture(self.chain.exits, gates, &self.chain.stop_costs, &mixture);
        }
    }
}

/// What a gate does with each image: its runs or its level, and the first and the last that are undecided.
enum Order<'k> {
    Runs(&'k [(u8, u8)], u8, u8),
    Within(&'k [u32], u32, u32),
}

/// Those of the gates of a region.
struct Orders<'k>(Vec<Order<'k>>);

impl<'k> Orders<'k> {
    fn new(compact: &'k Compact, exits: &[usize], gates: impl Iterator<Item = GateRange>) -> Self {
        let order = |(gate, exit): (GateRange, &usize)| match gate {
            GateRange::Runs { first, last } => Order::Runs(compact.spans(*exit), first, last),
            GateRange::Within { pixel, low, high } => Order::Within(&compact.gate(*exit, pixel).levels, low, high),
        };
        Self(gates.zip(exits).map(order).collect())
    }

    /// The exits that an image can reach, see `Free`; without branches that depend on the image.
    #[inline(always)]
    fn reach(&self, image: usize) -> u32 {
        let (mut reach, mut goes_on) = (0, 1);
        for (at, order) in self.0.iter().enumerate() {
            let (may_stop, must_stop) = match *order {
                Order::Runs(spans, first, last) => (spans[image].0 <= last, spans[image].1 < first),
                Order::Within(levels, low, high) => (levels[image] <= high, levels[image] <= low),
            };
            reach |= (goes_on & u32::from(may_stop)) << at;
            goes_on &= u32::from(!must_stop);
        }
        reach | goes_on << self.0.len()
    }
}

/// The least and the greatest cost of some free images, summed up with their weights.
#[inline(always)]
fn costs_within(compact: &Compact, costs: &[f64], free: impl Iterator<Item = Free>) -> (f64, f64) {
    let (mut low, mut high) = (0.0, 0.0);
    for Free { image, reach } in free {
        let weight = compact.weight[image as usize];
        low += weight * costs[reach.trailing_zeros() as usize];
        high += weight * costs[reach.ilog2() as usize];
    }
    (low, high)
}

/// The same of the free images of a region where the gates are in these orders.
struct PartCosts<'k> {
    compact: &'k Compact,
    costs: &'k [f64],
    orders: Orders<'k>,
    of: &'k Region,
}

impl Kernel for PartCosts<'_> {
    type Output = (f64, f64);

    #[inline(always)]
    fn run(self) -> Self::Output {
        let narrowed = |free: &Free| Free { reach: self.orders.reach(free.image as usize), ..*free };
        costs_within(self.compact, self.costs, self.of.free.iter().map(narrowed))
    }
}

/// A region whose gates became narrower: its free images are sorted out, see `Regions::restrict`.
struct SortedOut<'k> {
    compact: &'k Compact,
    exits: &'k [usize],
    region: &'k mut Region,
}

impl Kernel for SortedOut<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { compact, exits, region } = self;
        let Region { gates, certain, unsettled, unsettled_value, free, values } = region;
        let orders = Orders::new(compact, exits, gates.iter().copied());
        let num = exits.len();
        let has_values = !values.is_empty();
        let (mut kept, mut waiting) = (0, unsettled.len());
        unsettled.resize(waiting + free.len(), (0, 0));
        for number in 0..free.len() {
            let image = free[number].image as usize;
            let reach = orders.reach(image);
            let at = reach.trailing_zeros() as usize;
            let is_certain = reach & (reach - 1) == 0;
            unsettled[waiting] = (image as u32, at as u32);
            waiting += usize::from(is_certain);
            certain.images[at] += u32::from(is_certain);
            certain.weight[at] += if is_certain { compact.weight[image] } else { 0.0 };
            free[kept] = Free { image: image as u32, reach };
            if has_values {
                *unsettled_value += if is_certain { values[number * num + at] } else { 0.0 };
                for at in 0..num {
                    let value = values[number * num + at];
                    values[kept * num + at] = if reach >> at & 1 == 1 { value } else { f64::NEG_INFINITY };
                }
            }
            kept += usize::from(!is_certain);
        }
        unsettled.truncate(waiting);
        free.truncate(kept);
        values.truncate(kept * num);
    }
}

/// A region with its sums of counts up to date, see `Regions::settle`.
struct Settled<'k> {
    compact: &'k Compact,
    exits: &'k [usize],
    region: &'k mut Region,
}

impl Kernel for Settled<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Region { certain, unsettled, unsettled_value, .. } = self.region;
        let n = self.compact.padded();
        let mut sums = vec![0u32; 2 * n];
        let weight = |(image, _): &(u32, u32)| self.compact.weight[*image as usize];
        for same in self.compact.summable(unsettled, usize::MAX, weight) {
            for (image, at) in same {
                let counts = self.compact.both_counts(self.exits[*at as usize], *image as usize);
                let chunks = sums.as_chunks_mut::<PAD>().0.iter_mut().zip(counts.as_chunks::<PAD>().0);
                for (sums, counts) in chunks {
                    let mut now = *sums; // a copy becomes one vector
                    (0..PAD).for_each(|lane| now[lane] += counts[lane]);
                    *sums = now;
                }
            }
            let (both, wrong) = sums.split_at_mut(n);
            take(both, weight(&same[0]), &mut certain.t);
            take(wrong, weight(&same[0]), &mut certain.f);
        }
        unsettled.clear();
        *unsettled_value = 0.0;
    }
}

/// Ranges of the sums T and U of a region.
struct FreeRanges<'k> {
    compact: &'k Compact,
    exits: &'k [usize],
    of: &'k Region,
}

impl FreeRanges<'_> {
    /// Add the least and the most of what an image counts at any of the exits that it can reach, at least two.
    #[inline(always)]
    fn add(&self, free: Free, least: &mut [u32], most: &mut [u32]) {
        let counts =
            |at: u32| self.compact.both_counts(self.exits[at as usize], free.image as usize).as_chunks::<PAD>().0;
        let (first, rest) = (counts(free.reach.trailing_zeros()), free.reach & (free.reach - 1));
        let (second, rest) = (counts(rest.trailing_zeros()), rest & (rest - 1));
        let sums = least.as_chunks_mut::<PAD>().0.iter_mut().zip(most.as_chunks_mut::<PAD>().0);
        for (chunk, ((least, most), (a, b))) in sums.zip(first.iter().zip(second)).enumerate() {
            let (mut low, mut high) = ([0; PAD], [0; PAD]);
            for lane in 0..PAD {
                (low[lane], high[lane]) = (a[lane].min(b[lane]), a[lane].max(b[lane]));
            }
            let mut rest = rest;
            while rest != 0 {
                let other = &counts(rest.trailing_zeros())[chunk];
                for lane in 0..PAD {
                    (low[lane], high[lane]) = (low[lane].min(other[lane]), high[lane].max(other[lane]));
                }
                rest &= rest - 1;
            }
            let (mut now_least, mut now_most) = (*least, *most); // copies become one vector each
            for lane in 0..PAD {
                now_least[lane] += low[lane];
                now_most[lane] += high[lane];
            }
            (*least, *most) = (now_least, now_most);
        }
    }
}

impl Kernel for FreeRanges<'_> {
    type Output = Ranges;

    #[inline(always)]
    fn run(self) -> Self::Output {
        let n = self.compact.padded();
        let of = self.of;
        let mut low: Vec<f64> = of.certain.t.iter().chain(&of.certain.f).copied().collect();
        low[n..].iter_mut().zip(&self.compact.truth).for_each(|(union, truth)| *union += truth);
        let mut high = low.clone();
        let (mut least, mut most) = (vec![0u32; 2 * n], vec![0u32; 2 * n]);
        let weight = |free: &Free| self.compact.weight[free.image as usize];
        for same in self.compact.summable(&of.free, usize::MAX, weight) {
            for free in same {
                self.add(*free, &mut least, &mut most);
            }
            take(&mut least, weight(&same[0]), &mut low);
            take(&mut most, weight(&same[0]), &mut high);
        }
        let (u_low, u_high) = (low.split_off(n), high.split_off(n));
        Ranges { t_low: low, t_high: high, u_low, u_high }
    }
}

/// Fill `values` of a region by a plane: of each free image at each exit that it can reach, minus infinity elsewhere.
struct FreeValues<'k> {
    compact: &'k Compact,
    exits: &'k [usize],
    of: &'k mut Region,
    plane: &'k Plane,
}

impl Kernel for FreeValues<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let num = self.exits.len();
        let Region { free, values, .. } = self.of;
        values.clear();
        values.resize(free.len() * num, f64::NEG_INFINITY);
        for (free, values) in free.iter().zip(values.chunks_exact_mut(num)) {
            let image = free.image as usize;
            for (at, value) in values.iter_mut().enumerate().filter(|(at, _)| free.reach >> at & 1 == 1) {
                *value = self.compact.weight[image] * self.plane.value(self.compact.counts(self.exits[at], image));
            }
        }
    }
}
