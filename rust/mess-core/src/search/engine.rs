//! Exhaustive search with incremental evaluation.
//!
//! Input-dependent setting: a depth-first walk over gates. At a node some images have left and the others remain. For
//! each next gate (exit, pixel threshold) the remaining images are put in order of confidence; a falling image threshold
//! lets them go one by one, and the class counts follow by one exchange an image, so a configuration costs O(classes)
//! instead of O(images x classes). Counts are integers: the value is exact and does not depend on the order of work.
//!
//! Pruning, only when the least cost is wanted: an image that remains pays at least the cheapest way on, so
//! (cost of the images that left + that) / n is a lower bound on the cost of every configuration below the node. Nodes
//! whose bound exceeds the best known cost hold nothing better. Equal bounds are kept, so ties are broken by the
//! objective's total order alone, and the answer is the same for any number of threads.
//!
//! Thresholds that let none or all of the remaining images go are left out: the first is the configuration without that
//! exit at a higher cost, the second the configuration that ends there.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use rayon::prelude::*;

use super::evaluate::{Counts, anytime, exit_accuracy, mean_cost};
use super::objective::{Objective, Setting};
use super::outcome::{Configuration, Found, Gate, Outcome, Status};
use super::space::{Order, Space, orders};
use super::table::Table;
use crate::error::{Error, Result};

/// Lets another thread watch and stop a search.
#[derive(Debug, Default)]
pub struct Control {
    /// Set to stop as soon as possible.
    pub cancel: AtomicBool,
    /// Work items finished.
    pub done: AtomicUsize,
    /// Work items in all.
    pub total: AtomicUsize,
    /// When to stop by itself.
    pub deadline: Option<Instant>,
}

impl Control {
    fn stopped(&self) -> bool {
        if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            self.cancel.store(true, Ordering::Relaxed);
        }
        self.cancel.load(Ordering::Relaxed)
    }
}

/// Examine every configuration of `space` on `table`.
///
/// # Errors
/// [`Error::Value`] when table, space, setting or objective is invalid.
pub fn search(
    table: &Table<'_>,
    setting: Setting,
    objective: Objective,
    space: &Space,
    control: &Control,
) -> Result<Outcome> {
    table.validate()?;
    space.validate()?;
    objective.validate()?;
    if let Setting::Anytime { horizon, .. } = setting
        && !(horizon > 0.0 && horizon.is_finite())
    {
        return Err(Error::value("horizon", "a finite cost above 0", horizon));
    }
    let shared = Shared {
        table,
        setting,
        objective,
        space,
        control,
        accuracies: (0..table.num_exits()).map(|exit| exit_accuracy(table, exit)).collect(),
        orders: if setting == Setting::InputDependent { orders(table, space) } else { Vec::new() },
        least_cost: AtomicU64::new(f64::INFINITY.to_bits()),
    };
    Ok(shared.run())
}

/// One search, shared by its threads.
struct Shared<'a, 't> {
    table: &'a Table<'t>,
    setting: Setting,
    objective: Objective,
    space: &'a Space,
    control: &'a Control,
    /// Mean IoU of each exit alone.
    accuracies: Vec<f64>,
    orders: Vec<Vec<Order>>,
    /// Bits of the least feasible cost so far (non-negative floats order like their bits).
    least_cost: AtomicU64,
}

impl Shared<'_, '_> {
    fn run(&self) -> Outcome {
        let num_exits = self.table.num_exits();
        let num_pixels = if self.setting == Setting::InputDependent { self.table.num_pixel_thresholds() } else { 0 };
        // items 0..E close at once with one exit; the others begin with one gate, or with one exit when anytime
        let items: Vec<(usize, Option<usize>)> = (0..num_exits)
            .map(|exit| (exit, None))
            .chain((0..num_exits).flat_map(|exit| (0..num_pixels).map(move |pixel| (exit, Some(pixel)))))
            .collect();
        self.control.total.store(items.len(), Ordering::Relaxed);
        let merged = items
            .par_iter()
            .map(|&(exit, pixel)| {
                let mut best = Best::new(self.objective);
                if !self.control.stopped() {
                    match (self.setting, pixel) {
                        (Setting::Anytime { horizon, min_final_accuracy }, _) => {
                            self.refinements(&mut vec![exit], horizon, min_final_accuracy, &mut best);
                        }
                        (_, None) => self.static_exit(exit, &mut best),
                        (_, Some(pixel)) => Walk { shared: self, best: &mut best }.begin(exit, pixel),
                    }
                }
                self.control.done.fetch_add(1, Ordering::Relaxed);
                best
            })
            .reduce(|| Best::new(self.objective), Best::merge);
        let status = match (self.control.cancel.load(Ordering::Relaxed), merged.found.is_empty()) {
            (true, _) => Status::Stopped,
            (false, true) => Status::Infeasible,
            (false, false) => Status::Optimal,
        };
        Outcome { status, found: merged.found, evaluated: merged.evaluated }
    }

    fn static_exit(&self, exit: usize, best: &mut Best) {
        let mut stopped = vec![self.table.num_images() as u64];
        best.offer(
            mean_cost(self.table, &[exit], &stopped),
            self.accuracies[exit],
            || Configuration { exits: vec![exit], gates: vec![] },
            || std::mem::take(&mut stopped),
        );
        self.publish(best);
    }

    /// Every anytime configuration that begins with `exits`.
    fn refinements(&self, exits: &mut Vec<usize>, horizon: f64, min_final_accuracy: f64, best: &mut Best) {
        if self.control.stopped() {
            return;
        }
        let last = exits[exits.len() - 1];
        if self.accuracies[last] >= min_final_accuracy {
            let (cost, accuracy) = anytime(self.table, exits, horizon, |exit| self.accuracies[exit]);
            let configuration = || Configuration { exits: exits.clone(), gates: vec![] };
            let stopped = || {
                let mut stopped = vec![0; exits.len()];
                stopped[exits.len() - 1] = self.table.num_images() as u64;
                stopped
            };
            best.offer(cost, accuracy, configuration, stopped);
        }
        if exits.len() < self.space.max_exits {
            for next in 0..self.table.num_exits() {
                if self.table.points[next] > self.table.points[last] {
                    exits.push(next);
                    self.refinements(exits, horizon, min_final_accuracy, best);
                    exits.pop();
                }
            }
        }
    }

    /// Let the other threads know of this thread's best cost, and learn theirs.
    fn publish(&self, best: &mut Best) {
        if let Objective::MinimizeCost { .. } = self.objective {
            let own = best.found.first().map_or(f64::INFINITY, |f| f.cost);
            let before = self.least_cost.fetch_min(own.to_bits(), Ordering::Relaxed);
            best.cost_limit = own.min(f64::from_bits(before));
        }
    }
}

/// The best configuration or the front, of one thread.
struct Best {
    objective: Objective,
    found: Vec<Found>,
    evaluated: u64,
    /// A configuration that costs more than this is not wanted.
    cost_limit: f64,
}

impl Best {
    fn new(objective: Objective) -> Self {
        let cost_limit = match objective {
            Objective::MaximizeAccuracy { max_cost } => max_cost,
            _ => f64::INFINITY,
        };
        Self { objective, found: Vec::new(), evaluated: 0, cost_limit }
    }

    /// Take a configuration into account; it is built only when it is kept.
    fn offer(
        &mut self,
        cost: f64,
        accuracy: f64,
        configuration: impl FnOnce() -> Configuration,
        stopped: impl FnOnce() -> Vec<u64>,
    ) {
        self.evaluated += 1;
        if !self.objective.allows(cost, accuracy) || self.is_beaten(cost, accuracy) {
            return;
        }
        self.insert(Found { configuration: configuration(), cost, accuracy, stopped: stopped() });
    }

    /// Whether a known configuration is strictly better, so that no tie-break could matter.
    fn is_beaten(&self, cost: f64, accuracy: f64) -> bool {
        match (self.objective, self.found.first()) {
            (_, None) => false,
            (Objective::MinimizeCost { .. }, Some(best)) => {
                cost > best.cost || (cost == best.cost && accuracy < best.accuracy)
            }
            (Objective::MaximizeAccuracy { .. }, Some(best)) => {
                accuracy < best.accuracy || (accuracy == best.accuracy && cost > best.cost)
            }
            (Objective::ParetoFront, Some(_)) => {
                // the front rises in cost and accuracy, so the last one that costs no more is the most accurate of them
                let affordable = self.found.partition_point(|f| f.cost <= cost);
                affordable > 0 && {
                    let rival = &self.found[affordable - 1];
                    rival.accuracy > accuracy || (rival.accuracy == accuracy && rival.cost < cost)
                }
            }
        }
    }

    fn insert(&mut self, new: Found) {
        if self.objective != Objective::ParetoFront {
            match self.found.first_mut() {
                None => self.found.push(new),
                Some(best) if self.objective.compare(&new, best).is_lt() => *best = new,
                Some(_) => {}
            }
            return;
        }
        if self.is_beaten(new.cost, new.accuracy) {
            return;
        }
        let equal = self.found.iter().position(|f| f.cost == new.cost && f.accuracy == new.accuracy);
        if let Some(at) = equal {
            if self.objective.compare(&new, &self.found[at]).is_lt() {
                self.found[at] = new;
            }
            return;
        }
        self.found.retain(|f| f.cost < new.cost || f.accuracy > new.accuracy);
        let at = self.found.partition_point(|f| f.cost < new.cost);
        self.found.insert(at, new);
    }

    fn merge(mut self, other: Self) -> Self {
        self.evaluated += other.evaluated;
        other.found.into_iter().for_each(|found| self.insert(found));
        self
    }
}

/// The depth-first walk of one thread.
struct Walk<'w, 'a, 't> {
    shared: &'w Shared<'a, 't>,
    best: &'w mut Best,
}

/// Where the walk stands: gates passed, images that remain.
#[derive(Clone)]
struct Node {
    exits: Vec<usize>,
    gates: Vec<Gate>,
    stopped: Vec<u64>,
    /// Heads and policies of the exits so far: every remaining image has paid them.
    on_the_way: f64,
    /// Cost of the images that left.
    left_cost: f64,
    /// Class counts of the images that left.
    counts: Counts,
    remains: Vec<bool>,
    num_remaining: usize,
}

impl Walk<'_, '_, '_> {
    fn begin(&mut self, exit: usize, pixel: usize) {
        let table = self.shared.table;
        let root = Node {
            exits: vec![],
            gates: vec![],
            stopped: vec![],
            on_the_way: 0.0,
            left_cost: 0.0,
            counts: Counts::new(table),
            remains: vec![true; table.num_images()],
            num_remaining: table.num_images(),
        };
        self.gate(&root, exit, pixel);
    }

    /// All configurations whose next gate after `node` is (exit, pixel threshold).
    fn gate(&mut self, node: &Node, exit: usize, pixel: usize) {
        let table = self.shared.table;
        let depth = node.exits.len();
        if self.shared.control.stopped() || depth + 2 > self.shared.space.max_exits {
            return;
        }
        let on_the_way = node.on_the_way + (table.head_cost[exit] + table.policy_cost[exit]);
        let stop_cost = table.backbone_cost[exit] + on_the_way;
        if self.bound(node.left_cost, node.num_remaining, stop_cost) > self.best.cost_limit {
            return;
        }
        let order = &self.shared.orders[exit][pixel];
        let remaining: Vec<(u32, f64)> =
            order.images.iter().filter(|(image, _)| node.remains[*image as usize]).copied().collect();
        let stops = stops(&remaining, &order.thresholds);
        let deeper = || (0..table.num_exits()).filter(|next| table.points[*next] > table.points[exit]);
        for last in deeper() {
            self.close(node, exit, pixel, last, &remaining, &stops, on_the_way);
        }
        self.shared.publish(self.best);
        if depth + 3 > self.shared.space.max_exits {
            return;
        }
        let mut child = node.clone();
        child.exits.push(exit);
        child.gates.push(Gate { pixel_threshold: pixel, image_threshold: 0.0 });
        child.stopped.push(0);
        child.on_the_way = on_the_way;
        let mut left = 0;
        for &(count, threshold) in &stops {
            for &(image, _) in &remaining[left..count] {
                child.counts.add(table, exit, image as usize);
                child.remains[image as usize] = false;
            }
            left = count;
            child.num_remaining = node.num_remaining - count;
            child.left_cost = node.left_cost + stop_cost * count as f64;
            child.gates[depth].image_threshold = threshold;
            child.stopped[depth] = count as u64;
            for next in deeper() {
                for next_pixel in 0..table.num_pixel_thresholds() {
                    self.gate(&child, next, next_pixel);
                }
            }
        }
    }

    /// All configurations that go on from (exit, pixel threshold) to the unconditional `last` exit.
    #[allow(clippy::too_many_arguments)]
    fn close(
        &mut self,
        node: &Node,
        exit: usize,
        pixel: usize,
        last: usize,
        remaining: &[(u32, f64)],
        stops: &[(usize, f64)],
        on_the_way: f64,
    ) {
        let table = self.shared.table;
        let stop_cost = table.backbone_cost[exit] + on_the_way;
        let last_cost = table.backbone_cost[last] + (on_the_way + table.head_cost[last]);
        let num_images = table.num_images() as f64;
        let mut counts = node.counts.clone();
        for &(image, _) in remaining {
            counts.add(table, last, image as usize);
        }
        let mut left = 0;
        for &(count, threshold) in stops {
            for &(image, _) in &remaining[left..count] {
                counts.exchange(table, image as usize, last, exit);
            }
            left = count;
            let rest = (node.num_remaining - count) as f64;
            let cost = ((node.left_cost + stop_cost * count as f64) + last_cost * rest) / num_images;
            if cost > self.best.cost_limit {
                continue;
            }
            let configuration = || Configuration {
                exits: node.exits.iter().copied().chain([exit, last]).collect(),
                gates: (node.gates.iter().copied())
                    .chain([Gate { pixel_threshold: pixel, image_threshold: threshold }])
                    .collect(),
            };
            let stopped = || {
                let here = [count as u64, (node.num_remaining - count) as u64];
                node.stopped.iter().copied().chain(here).collect()
            };
            self.best.offer(cost, counts.mean_iou(), configuration, stopped);
        }
    }

    /// Lower bound on the mean cost when each of the remaining images pays at least `cheapest`. The factor takes up the
    /// rounding of the sums, so that a bound never exceeds a cost that it should equal.
    fn bound(&self, left_cost: f64, num_remaining: usize, cheapest: f64) -> f64 {
        (left_cost + cheapest * num_remaining as f64) / self.shared.table.num_images() as f64 * (1.0 - 1e-12)
    }
}

/// (images that leave, threshold) for each threshold that lets some but not all of `remaining` go; of several that let
/// the same images go, the largest.
fn stops(remaining: &[(u32, f64)], thresholds: &[f64]) -> Vec<(usize, f64)> {
    let mut stops: Vec<(usize, f64)> = Vec::with_capacity(thresholds.len());
    for &threshold in thresholds {
        let count = remaining.partition_point(|(_, confidence)| *confidence >= threshold);
        let is_new = stops.last().is_none_or(|(before, _)| *before < count);
        if count > 0 && count < remaining.len() && is_new {
            stops.push((count, threshold));
        }
    }
    stops
}
