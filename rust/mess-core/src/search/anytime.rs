//! The anytime setting: every chosen exit runs in turn, so a chain of exits is all there is to choose.
//!
//! Depth-first over chains. A chain that ends with exit e, all heads so far costing H, can only be continued to one whose
//! newest prediction at a cut-off x has at most the accuracy `best(x)`: the largest among e and those deeper exits d with
//! backbone(d) + H + head(d) <= x. (*Proof.* A later prediction by d is ready at backbone(d) + H + heads from there up to
//! d's, which is no less.) So the accuracy so far plus the integral of `best` from e's ready time to the horizon is an
//! upper bound on every continuation, and no continuation costs less than the chain itself, whose end it runs beyond.

use std::sync::Arc;

use rayon::prelude::*;

use super::bound::MARGIN;
use super::engine::Shared;
use super::evaluate::{anytime, exit_accuracy};
use super::incumbent::Targets;
use super::outcome::{Configuration, Found};

/// Examine every chain.
pub(crate) fn search(shared: &Shared<'_, '_>, horizon: f64, min_final_accuracy: f64) {
    let num_exits = shared.table.num_exits();
    let metric = shared.query.scoring.metric;
    let accuracies: Vec<f64> =
        (0..num_exits).into_par_iter().map(|exit| exit_accuracy(shared.table, metric, exit)).collect();
    let starts: Vec<usize> = (0..num_exits).filter(|exit| shared.allowed[*exit]).collect();
    shared.control.begin(starts.len(), 0.0, 0.0);
    starts.par_iter().for_each(|&start| {
        if shared.query.space.skips_required(&shared.points, None, start) {
            return;
        }
        let (version, targets) = shared.targets((f64::NEG_INFINITY, f64::INFINITY), 0.0);
        let accuracies = &accuracies;
        let mut chains =
            Chains { shared, horizon, min_final_accuracy, accuracies, targets, version, explored: 0, evaluated: 0 };
        chains.follow(&mut vec![start], 0.0);
        shared.control.count(chains.explored, chains.evaluated);
        shared.control.finish_task(0.0, shared.incumbents.last_value());
    });
}

struct Chains<'s, 'a, 't> {
    shared: &'s Shared<'a, 't>,
    horizon: f64,
    min_final_accuracy: f64,
    accuracies: &'s [f64],
    targets: Arc<Targets>,
    version: u64,
    explored: u64,
    evaluated: u64,
}

impl Chains<'_, '_, '_> {
    /// Offer `exits`, whose heads but the last cost `heads`, and go on from there.
    fn follow(&mut self, exits: &mut Vec<usize>, heads: f64) {
        if self.shared.control.stopped() {
            return;
        }
        let query = &self.shared.query;
        let costs = self.shared.table.costs(query.scoring.column);
        let last = exits[exits.len() - 1];
        self.evaluated += 1;
        self.offer(exits);
        if exits.len() >= query.space.max_exits {
            return;
        }
        let heads = heads + costs.head[last];
        if self.shared.incumbents.version() != self.version {
            (self.version, self.targets) = self.shared.targets((f64::NEG_INFINITY, f64::INFINITY), 0.0);
        }
        self.explored += 1;
        let (cost, most) = (costs.backbone[last] + heads, self.bound(exits, heads));
        let is_within = |&(b, a): &(f64, f64)| cost <= b * (1.0 + MARGIN) && most >= a - MARGIN;
        if !self.targets.corners.iter().any(is_within) {
            return;
        }
        for next in 0..self.accuracies.len() {
            let is_behind = self.shared.allowed[next] && self.shared.points[next] > self.shared.points[last];
            if is_behind && !query.space.skips_required(&self.shared.points, Some(last), next) {
                exits.push(next);
                self.follow(exits, heads);
                exits.pop();
            }
        }
    }

    /// Upper bound on the expected accuracy of every continuation.
    fn bound(&self, exits: &[usize], heads: f64) -> f64 {
        let costs = self.shared.table.costs(self.shared.query.scoring.column);
        let of: Vec<f64> = exits.iter().map(|exit| self.accuracies[*exit]).collect();
        let (_, so_far) = anytime(costs, exits, self.horizon, &of);
        let last = exits[exits.len() - 1];
        let mut ready: Vec<(f64, f64)> = (0..self.accuracies.len())
            .filter(|exit| self.shared.allowed[*exit] && self.shared.points[*exit] > self.shared.points[last])
            .map(|exit| (costs.backbone[exit] + heads + costs.head[exit], self.accuracies[exit]))
            .collect();
        ready.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (mut best, mut gained) = (self.accuracies[last], 0.0);
        for (at, accuracy) in ready {
            if accuracy > best && at < self.horizon {
                gained += (accuracy - best) * (self.horizon - at) / self.horizon;
                best = accuracy;
            }
        }
        so_far + gained
    }

    fn offer(&self, exits: &[usize]) {
        let (shared, query) = (self.shared, &self.shared.query);
        let last = exits[exits.len() - 1];
        if self.accuracies[last] < self.min_final_accuracy || !query.space.is_complete(exits) {
            return;
        }
        let of: Vec<f64> = exits.iter().map(|exit| self.accuracies[*exit]).collect();
        let (cost, accuracy) = anytime(shared.table.costs(query.scoring.column), exits, self.horizon, &of);
        let mut stopped = vec![0; exits.len()];
        stopped[exits.len() - 1] = shared.table.num_images() as u64;
        if !shared.is_static_within_limits(exits) {
            return;
        }
        let configuration = || Configuration { exits: exits.to_vec(), gates: vec![] };
        shared.incumbents.offer(cost, accuracy, || Found { configuration: configuration(), cost, accuracy, stopped });
    }
}
