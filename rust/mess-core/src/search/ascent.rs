//! Good configurations, quickly: coordinate ascent on the Lagrangian.
//!
//! For a multiplier m, accuracy - m cost with a tangent plane for the accuracy (`bound.rs`) is a sum over images.
//! With all gates but one fixed, the best exit, pixel threshold and image threshold of that one follow from one pass over
//! its gate orders, all image thresholds at once, as running sums. All exits and gates are improved in turn until nothing
//! changes; then the tangent moves to what was found. A multiplier leads to one point near the convex hull of the
//! trade-off, several to a chain of them. Each family of chains, with one exit at each of some points, has its own.
//!
//! Nothing is proven here; the search only becomes faster when its first incumbents are good.

use rayon::prelude::*;

use super::bound::{Plane, larger};
use super::compact::{Compact, GateOrder, Mixture, NEVER};
use super::engine::Shared;
use super::evaluate::stop_costs;
use super::gates::{ExitValues, Slopes};
use super::incumbent::Targets;
use super::objective::{Objective, Setting};
use super::table::Costs;

/// Multipliers tried first, a factor of 4 apart, and rounds of bisection towards the target.
const MULTIPLIERS: i32 = 5;
const ROUNDS: usize = 3;
/// Costs of a front around which there are fields of their own.
pub(crate) const BANDS: usize = 12;
/// Factors of 2 by which a multiplier may differ from the slope of the hull, and what accuracy each has to gain.
const OCTAVES: i32 = 6;
const CLEARLY: f64 = 0.0003;
/// Gate orders that are summed up side by side.
const TOGETHER: usize = 5;
/// Rounds of improvement before an ascent is left as it is.
const SWEEPS: usize = 8;

/// A configuration on the way, by numbers: `gates[j]` is (pixel threshold, number of the image threshold).
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Choice {
    pub exits: Vec<usize>,
    pub gates: Vec<(usize, u32)>,
}

/// A choice with its exact value and the sums it comes from.
#[derive(Debug, Clone)]
pub(crate) struct Valued {
    pub choice: Choice,
    pub cost: f64,
    pub accuracy: f64,
    pub t: Vec<f64>,
    pub f: Vec<f64>,
}

/// Chains with one exit at each of some points, and what the ascents found among them.
pub(crate) struct Family {
    /// Exits at each of the points.
    pub exits: Vec<Vec<usize>>,
    pub pool: Vec<Valued>,
}

/// Configurations of every family of chains near the convex hull of its trade-off, around the objective's target; all
/// of them are offered.
pub(crate) fn ascend(shared: &Shared<'_, '_>) -> Vec<Family> {
    let singles: Vec<Valued> = (0..shared.compact.num_exits)
        .filter(|exit| shared.allowed[*exit])
        .map(|exit| valued(shared, Choice { exits: vec![exit], gates: vec![] }))
        .collect();
    let range = |of: fn(&Valued) -> f64| {
        let (low, high) = singles.iter().map(of).fold((f64::INFINITY, 0.0f64), |(a, b), v| (a.min(v), b.max(v)));
        (high - low).max(1e-9 * high).max(f64::MIN_POSITIVE)
    };
    let middle = range(|v| v.accuracy) / range(|v| v.cost);
    let mut families: Vec<Family> =
        point_chains(shared).into_iter().map(|exits| Family { exits, pool: Vec::new() }).collect();
    let climb = |family: &mut Family, multiplier: f64, tangent: &mut Tangent| {
        if !shared.control.stopped() {
            Ascent { shared, multiplier, exits: &family.exits }.climb(&mut family.pool, tangent);
        }
    };
    families.par_iter_mut().with_max_len(1).for_each(|family| {
        let mut tangent = Tangent::default();
        for i in 0..MULTIPLIERS {
            climb(family, usable(middle * 4f64.powi(i - MULTIPLIERS / 2), shared.ceiling), &mut tangent);
        }
    });
    for _ in 0..ROUNDS {
        let costs = interesting_costs(shared, &families);
        // a family without a member: the search was stopped before it had its turn
        let begun = families.par_iter_mut().with_max_len(1).filter(|family| !family.pool.is_empty());
        begun.for_each(|family| {
            let (mut reached, mut tangent) = (None, Tangent::default());
            for &cost in &costs {
                let pool: Vec<&Valued> = family.pool.iter().collect();
                let multiplier = multiplier_at(&pool, &hull(&pool), cost, shared.ceiling).0;
                // the same way from the same pool ends where it did
                if reached != Some((multiplier, pool.len())) {
                    climb(family, multiplier, &mut tangent);
                    reached = Some((multiplier, family.pool.len()));
                }
            }
        });
    }
    families
}

/// At the steepest multiplier this part of the greatest cost is worth as much as all accuracy there is.
const LEAST_SHARE: f64 = 1e-6;

/// `multiplier`, or the steepest one where no cost exceeds `ceiling`. Any multiplier is admissible that is a number and
/// gives numbers: infinity times a cost of 0 is none, and a bound that is none excludes what it should not.
fn usable(multiplier: f64, ceiling: f64) -> f64 {
    if ceiling > 0.0 { multiplier.min(1.0 / (LEAST_SHARE * ceiling)).min(1e30) } else { 0.0 }
}

/// The slope of a hull at a cost, and the member nearest to it; beyond its ends, a multiplier that favours the end. No
/// cost exceeds `ceiling`.
pub(crate) fn multiplier_at<'v>(pool: &[&'v Valued], hull: &[usize], cost: f64, ceiling: f64) -> (f64, &'v Valued) {
    let slopes: Vec<f64> = hull.windows(2).map(|pair| slope(pool, pair)).collect();
    let distance = |at: &usize| (pool[*at].cost - cost).abs();
    let nearest = hull.iter().min_by(|a, b| distance(a).total_cmp(&distance(b)));
    let nearest = pool[nearest.copied().unwrap_or(0)];
    let at = hull.iter().position(|at| pool[*at].cost >= cost).unwrap_or(hull.len());
    let multiplier = match (at, slopes.len()) {
        (_, 0) => nearest.accuracy / nearest.cost.max(f64::MIN_POSITIVE),
        (0, _) => 2.0 * slopes[0],
        (at, edges) if at > edges => slopes[edges - 1] / 4.0,
        (at, _) => slopes[at - 1],
    };
    (usable(multiplier, ceiling), nearest)
}

/// A multiplier for bounds on configurations with costs around this one. For one target
/// within the hull it is the hull's slope there. For several, or beyond its ends, it is the one by which a bound that is
/// tight for these configurations stays farthest below the targets; the slope where that makes little difference.
pub(crate) fn excluding_multiplier(
    pool: &[&Valued],
    hull: &[usize],
    cost: f64,
    targets: &Targets,
    ceiling: f64,
) -> f64 {
    let slope = multiplier_at(pool, hull, cost, ceiling).0;
    let ends = hull.first().zip(hull.last()).map(|(first, last)| (pool[*first].cost, pool[*last].cost));
    if targets.corners.len() <= 1 && ends.is_some_and(|(first, last)| first <= cost && cost <= last) {
        return slope;
    }
    let excess = |multiplier: f64| {
        let height = pool.iter().map(|v| v.accuracy - multiplier * v.cost).fold(f64::NEG_INFINITY, f64::max);
        height + targets.slack(multiplier)
    };
    let octaves = (-8 * OCTAVES..=8 * OCTAVES).map(|eighths| f64::from(eighths) / 8.0);
    let all = octaves.map(|octave| (slope * octave.exp2(), octave.abs()));
    let rated = all.map(|(multiplier, away)| (excess(multiplier) + CLEARLY * away, multiplier));
    let best = rated.min_by(|a, b| a.0.total_cmp(&b.0));
    best.map_or(slope, |(_, multiplier)| multiplier)
}

/// Costs around which the search will have to prove something.
pub(crate) fn interesting_costs(shared: &Shared<'_, '_>, families: &[Family]) -> Vec<f64> {
    let everything: Vec<&Valued> = families.iter().flat_map(|family| &family.pool).collect();
    let outline = hull(&everything);
    let (Some(first), Some(last)) = (outline.first(), outline.last()) else { return Vec::new() };
    match shared.query.objective {
        Objective::MaximizeAccuracy { max_cost } => vec![max_cost.min(shared.ceiling)],
        Objective::MinimizeCost { .. } => {
            vec![shared.incumbents.found().first().map_or(everything[*last].cost, |best| best.cost)]
        }
        Objective::ParetoFront { .. } => {
            let (low, high) = (everything[*first].cost, everything[*last].cost);
            (0..BANDS).map(|i| low + (high - low) * (i as f64 + 0.5) / BANDS as f64).collect()
        }
    }
}

/// For every increasing sequence of 2 to `max_exits` points, the exits that may be chosen at each.
fn point_chains(shared: &Shared<'_, '_>) -> Vec<Vec<Vec<usize>>> {
    let points: std::collections::BTreeSet<i64> = shared.points.iter().copied().collect();
    let required = &shared.query.space.required;
    let exits_at = |point: i64| -> Vec<usize> {
        let here = (0..shared.points.len()).filter(|exit| shared.points[*exit] == point && shared.allowed[*exit]);
        let demanded = required.iter().find(|exit| shared.points[**exit] == point);
        here.filter(|exit| demanded.is_none_or(|demanded| demanded == exit)).collect()
    };
    let demanded: std::collections::BTreeSet<i64> = required.iter().map(|exit| shared.points[*exit]).collect();
    let mut chains: Vec<Vec<i64>> = vec![vec![]];
    for point in points.into_iter().filter(|point| !exits_at(*point).is_empty()) {
        if shared.control.stopped() {
            return Vec::new();
        }
        let is_demanded = demanded.contains(&point);
        let to_come = demanded.iter().filter(|other| **other > point).count();
        let longer: Vec<Vec<i64>> = chains
            .iter()
            .filter(|chain| chain.len() + to_come < shared.query.space.max_exits)
            .map(|chain| chain.iter().copied().chain([point]).collect())
            .collect();
        if is_demanded {
            chains = longer;
        } else {
            chains.extend(longer);
        }
    }
    chains.retain(|chain| chain.len() > 1);
    chains.into_iter().map(|chain| chain.into_iter().map(exits_at).collect()).collect()
}

/// Indices of the upper left convex hull, by rising cost, from the cheapest to the most accurate.
pub(crate) fn hull(pool: &[&Valued]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..pool.len()).collect();
    order.sort_by(|a, b| {
        let (a, b) = (pool[*a], pool[*b]);
        a.cost.total_cmp(&b.cost).then(b.accuracy.total_cmp(&a.accuracy)).then(a.choice.cmp(&b.choice))
    });
    let mut hull: Vec<usize> = Vec::new();
    for at in order {
        if hull.last().is_some_and(|last| pool[*last].accuracy >= pool[at].accuracy) {
            continue;
        }
        while hull.len() >= 2 && slope(pool, &hull[hull.len() - 2..]) <= slope(pool, &[hull[hull.len() - 1], at]) {
            hull.pop();
        }
        hull.push(at);
    }
    hull
}

/// Accuracy per cost from the first to the second.
fn slope(pool: &[&Valued], pair: &[usize]) -> f64 {
    let (a, b) = (pool[pair[0]], pool[pair[1]]);
    (b.accuracy - a.accuracy) / (b.cost - a.cost).max(f64::MIN_POSITIVE)
}

/// Exact value of a choice, which is offered when space and limits allow it.
fn valued(shared: &Shared<'_, '_>, choice: Choice) -> Valued {
    let compact = shared.compact;
    let levels: Vec<(&[u32], u32)> = (choice.exits.iter().zip(&choice.gates))
        .map(|(exit, (pixel, number))| (&compact.gate(*exit, *pixel).levels[..], *number))
        .collect();
    let mut mixture = Mixture::new(compact, choice.exits.len());
    for image in 0..compact.num_images {
        let at = levels.iter().position(|(levels, number)| levels[image] <= *number).unwrap_or(levels.len());
        mixture.add(compact, choice.exits[at], at, image);
    }
    let costs = shared.table.costs(shared.query.scoring.column);
    let stop_costs = stop_costs(costs, Setting::InputDependent, &choice.exits);
    let (cost, accuracy) = shared.offer_mixture(&choice.exits, choice.gates.iter().copied(), &stop_costs, &mixture);
    Valued { choice, cost, accuracy, t: mixture.t, f: mixture.f }
}

/// Ascents in one family at one multiplier.
struct Ascent<'s, 'a, 't> {
    shared: &'s Shared<'a, 't>,
    multiplier: f64,
    exits: &'s [Vec<usize>],
}

/// Values by a tangent, and costs.
struct Worth<'s, 't> {
    compact: &'s Compact,
    costs: Costs<'t>,
    /// Multiplier times each image's part of the whole.
    shares: Vec<f32>,
    row_of: Vec<usize>,
    /// (n,) each, or a little longer.
    values: &'s [Vec<f32>],
}

/// Values of a family's exits by the tangent at a choice, none at first. One ascent ends where the next mostly begins.
#[derive(Default)]
struct Tangent {
    at: Choice,
    values: Vec<Vec<f32>>,
}

impl Worth<'_, '_> {
    fn row(&self, exit: usize) -> &[f32] {
        &self.values[self.row_of[exit]][..self.compact.num_images]
    }
}

impl<'t> Ascent<'_, '_, 't> {
    /// From the best known member of the family, or the middle of all its ranges.
    fn climb(&self, pool: &mut Vec<Valued>, tangent: &mut Tangent) {
        let height = |v: &Valued| v.accuracy - self.multiplier * v.cost;
        let best = pool.iter().max_by(|a, b| height(a).total_cmp(&height(b)).then(b.choice.cmp(&a.choice)));
        let start = best.cloned().unwrap_or_else(|| {
            let compact = self.shared.compact;
            let exits: Vec<usize> = self.exits.iter().map(|exits| exits[exits.len() / 2]).collect();
            let half = |exit: &usize| (0, (compact.gate(*exit, 0).thresholds.len() / 2) as u32);
            let gates = exits[..exits.len() - 1].iter().map(half).collect();
            valued(self.shared, Choice { exits, gates })
        });
        let reached = self.improve(start, tangent);
        if pool.iter().all(|known| known.choice != reached.choice) {
            pool.push(reached);
        }
    }

    /// Change one exit and its gate at a time until nothing is gained.
    fn improve(&self, start: Valued, tangent: &mut Tangent) -> Valued {
        let height = |v: &Valued| v.accuracy - self.multiplier * v.cost;
        let mut best = start;
        for _ in 0..SWEEPS {
            self.touch(tangent, &best);
            let worth = self.worth(&tangent.values);
            let mut choice = best.choice.clone();
            for at in 0..choice.exits.len() {
                self.replace(&worth, &mut choice, at);
            }
            if choice == best.choice || self.shared.control.stopped() {
                break;
            }
            let next = valued(self.shared, choice);
            if height(&next) <= height(&best) {
                break;
            }
            best = next;
        }
        best
    }

    /// Make it the tangent at a choice, unless it is.
    fn touch(&self, tangent: &mut Tangent, at: &Valued) {
        if tangent.at == at.choice {
            return;
        }
        let (compact, isa) = (self.shared.compact, self.shared.isa);
        let slopes = Slopes::of(&Plane::tangent(self.shared.query.scoring.metric, compact, &at.t, &at.f));
        let of_exit = |exit: &usize| isa.run(ExitValues { slopes: &[&slopes], compact, exit: *exit });
        tangent.at = at.choice.clone();
        tangent.values.clear();
        tangent.values.extend(self.exits.iter().flatten().flat_map(of_exit));
    }

    fn worth<'w>(&'w self, values: &'w [Vec<f32>]) -> Worth<'w, 't> {
        let compact = self.shared.compact;
        let mut row_of = vec![usize::MAX; compact.num_exits];
        self.exits.iter().flatten().enumerate().for_each(|(row, exit)| row_of[*exit] = row);
        let share = |weight: &f64| (self.multiplier * weight / compact.total_weight) as f32;
        let costs = self.shared.table.costs(self.shared.query.scoring.column);
        Worth { compact, costs, shares: compact.weight.iter().map(share).collect(), row_of, values }
    }

    /// Put the best exit and gate in the place of the one at `at`.
    fn replace(&self, worth: &Worth<'_, '_>, choice: &mut Choice, at: usize) {
        if at + 1 < choice.exits.len() {
            if let Some((exit, gate)) = self.best_gate(worth, choice, at) {
                choice.exits[at] = exit;
                choice.gates[at] = gate;
            }
            return;
        }
        let compact = worth.compact;
        let reaching = reaching(compact, choice, at);
        let images: Vec<usize> = (0..compact.num_images).filter(|image| reaching[*image]).collect();
        let total = |exit: usize| {
            let row = worth.row(exit);
            let cost = (worth.costs.backbone[exit] + worth.costs.head[exit]) as f32;
            images.iter().fold(0.0, |sum, image| sum + (row[*image] - cost * worth.shares[*image]))
        };
        let candidates = self.exits[at].iter();
        let best = candidates.map(|exit| (total(*exit), *exit)).max_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1)));
        if let Some((_, exit)) = best {
            choice.exits[at] = exit;
        }
    }

    /// The exit between its neighbours and the gate that suit best at position `at`, with all else as in `choice`.
    fn best_gate(&self, worth: &Worth<'_, '_>, choice: &Choice, at: usize) -> Option<(usize, (usize, u32))> {
        let compact = worth.compact;
        let num_images = compact.num_images;
        let reaching = reaching(compact, choice, at);
        let mask: Vec<f32> = reaching.iter().map(|reaches| f32::from(u8::from(*reaches))).collect();
        // what an image is worth that goes on
        let mut going_on = vec![0.0f32; num_images];
        for (image, worth_of) in going_on.iter_mut().enumerate().filter(|(image, _)| reaching[*image]) {
            let mut on_the_way = 0.0;
            for (position, &exit) in choice.exits.iter().enumerate().skip(at + 1) {
                let gate = choice.gates.get(position);
                on_the_way += worth.costs.head[exit] + gate.map_or(0.0, |_| worth.costs.policy[exit]);
                let stops = gate.is_none_or(|&(pixel, number)| compact.gate(exit, pixel).levels[image] <= number);
                if stops {
                    let cost = (worth.costs.backbone[exit] + on_the_way) as f32;
                    *worth_of = worth.row(exit)[image] - cost * worth.shares[image];
                    break;
                }
            }
        }
        let passing: f32 = going_on.iter().sum();
        let everyone: f32 = worth.shares.iter().zip(&mask).map(|(share, mask)| share * mask).sum();
        let mut best: Option<(f32, usize, (usize, u32))> = None;
        let mut gains = vec![0.0f32; num_images];
        for &exit in &self.exits[at] {
            let values = worth.row(exit);
            let backbone = worth.costs.backbone[exit] as f32;
            let numbers = values.iter().zip(&worth.shares).zip(going_on.iter().zip(&mask));
            for (gain, ((value, share), (going_on, mask))) in gains.iter_mut().zip(numbers) {
                *gain = mask * (value - backbone * share - going_on);
            }
            let fixed = passing - (worth.costs.head[exit] + worth.costs.policy[exit]) as f32 * everyone;
            let orders: Vec<&GateOrder> = (0..compact.num_pixels).map(|pixel| compact.gate(exit, pixel)).collect();
            for (number, orders) in orders.chunks(TOGETHER).enumerate() {
                for (at, (order, most)) in orders.iter().zip(greatest_sums(orders, &gains)).enumerate() {
                    if best.is_some_and(|(known, ..)| fixed + most <= known) {
                        continue; // no number of images is better, and not every number has a threshold
                    }
                    let (mut top, mut top_at) = (f32::NEG_INFINITY, NEVER);
                    let (mut sum, mut from) = (0.0, 0);
                    for (threshold, until) in order.leaving.iter().map(|leaving| *leaving as usize).enumerate() {
                        sum = order.images[from..until].iter().fold(sum, |sum, image| sum + gains[*image as usize]);
                        from = until;
                        if sum > top && until < num_images {
                            (top, top_at) = (sum, threshold as u32);
                        }
                    }
                    if top_at != NEVER && best.is_none_or(|(known, ..)| fixed + top > known) {
                        best = Some((fixed + top, exit, (number * TOGETHER + at, top_at)));
                    }
                }
            }
        }
        best.map(|(_, exit, gate)| (exit, gate))
    }
}

/// For each of some orders, the greatest sum over its first 1..=n images. Side by side, as each addition waits for the one
/// before.
fn greatest_sums(orders: &[&GateOrder], gains: &[f32]) -> [f32; TOGETHER] {
    let images: [&[u32]; TOGETHER] =
        std::array::from_fn(|lane| &orders[lane.min(orders.len() - 1)].images[..gains.len()]);
    let (mut running, mut greatest) = ([0.0f32; TOGETHER], [f32::NEG_INFINITY; TOGETHER]);
    for rank in 0..gains.len() {
        for lane in 0..TOGETHER {
            running[lane] += gains[images[lane][rank] as usize];
            greatest[lane] = larger(running[lane], greatest[lane]);
        }
    }
    greatest
}

/// Whether each image gets to position `at`.
fn reaching(compact: &Compact, choice: &Choice, at: usize) -> Vec<bool> {
    let gates: Vec<(&[u32], u32)> = (choice.exits.iter().zip(&choice.gates).take(at))
        .map(|(exit, (pixel, number))| (&compact.gate(*exit, *pixel).levels[..], *number))
        .collect();
    (0..compact.num_images).map(|image| gates.iter().all(|(levels, number)| levels[image] > *number)).collect()
}
