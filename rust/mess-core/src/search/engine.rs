//! The exact search: prove that nothing better exists.
//!
//! Input-dependent setting, in order:
//!
//! 1. `ascent` finds good configurations, and with them multipliers for the bounds and chains to fit their planes to;
//! 2. their chains of exits are searched exactly (`regions`), which makes the incumbents nearly always optimal;
//! 3. passes over the whole space: each looks for anything better than the incumbents by more than a gap, and the last
//!    one, with gap 0, for anything better at all. Each pass is cut into tasks, one for each first gate (`tails`), which
//!    share the incumbents only. A finished pass certifies its gap; a small space gets the last one only, unless that
//!    takes long (`prove`). A front is cut into bands of costs, each with a
//!    multiplier of its own; a task looks after all of them, as the values of its exits do not depend on the band.
//!
//! What is found does not depend on the order of work: a configuration is only ever given up for one that is strictly
//! better in the objective's total order, or with a set whose bound shows that it holds nothing that is equal or better.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use rayon::prelude::*;

use super::anytime;
use super::ascent::{Family, Valued, ascend, excluding_multiplier, hull, interesting_costs, multiplier_at};
use super::bound::MARGIN;
use super::compact::{Compact, Mixture};
use super::control::{Control, Progress};
use super::evaluate::{Evaluation, evaluate_on_valid, exit_accuracy, total_cost};
use super::field::{Band, Field};
use super::incumbent::{Incumbents, Targets};
use super::journal::Journal;
use super::limits::mean;
use super::objective::{Objective, Query, Setting};
use super::outcome::{Configuration, Found, Gate, Outcome, Status};
use super::regions::{Chain, GateRange, Regions};
use super::spread::Steps;
use super::table::Table;
use super::tails::Task;
use crate::error::Result;
use crate::isa::Isa;

/// Gaps of the passes over a space of more chains than `FEW_CHAINS`, and than `MANY_CHAINS`; the last pass has none.
const GAPS: [f64; 2] = [0.1, 0.01];
const MORE_GAPS: [f64; 14] = [0.6, 0.5, 0.45, 0.4, 0.37, 0.34, 0.3, 0.25, 0.2, 0.15, 0.1, 0.05, 0.02, 0.01];
/// The same for a front of more than `FEW_CHAINS`: accuracies.
const FRONT_GAPS: [f64; 1] = [0.003];
/// The same when one pass takes long.
const LATE_FRONT_GAPS: [f64; 3] = [0.05, 0.02, 0.005];
/// First gates and chains behind them up to which one pass is made.
const FEW_CHAINS: f64 = 2e7;
const MANY_CHAINS: f64 = 1e9;
/// Bands of costs of a front.
const FRONT_BANDS: usize = 24;
/// Chains of good configurations that are searched before the passes, of one objective and of each band of a front.
const POLISHED: usize = 24;
const POLISHED_EACH: usize = 3;

/// One search, shared by its threads.
pub(crate) struct Shared<'a, 't> {
    pub table: &'a Table<'t>,
    pub query: &'a Query,
    pub compact: &'a Compact,
    pub steps: &'a Steps,
    pub incumbents: &'a Incumbents,
    pub control: &'a Control,
    pub isa: Isa,
    /// A cost that no configuration exceeds.
    pub ceiling: f64,
    /// (present class, least IoU)
    pub class_floors: Vec<(usize, f64)>,
    /// Whether each exit may be chosen.
    pub allowed: Vec<bool>,
    pub points: Vec<i64>,
}

/// Find the best configuration, or the whole front, and prove it.
///
/// `known` are configurations of any origin, to begin with; a search that has a journal goes on where it ends.
///
/// # Errors
/// [`crate::Error::Value`] when table, query or a known configuration is invalid, or the journal cannot be written.
pub fn search(
    table: &Table<'_>,
    query: &Query,
    control: &Control,
    known: &[Configuration],
    journal: Option<&Path>,
) -> Result<Outcome> {
    table.validate()?;
    query.validate(table)?;
    let journal = journal.map(|path| Journal::open(path, table, query)).transpose()?;
    let prepared = Prepared::new(table, query);
    let mut outcome = prepared.search(table, query, control, known, journal.as_ref())?;
    // nothing satisfies the objective's bound: what comes nearest to it?
    let nearest = match query.objective {
        Objective::MinimizeCost { .. } => Objective::MaximizeAccuracy { max_cost: f64::INFINITY },
        Objective::MaximizeAccuracy { .. } => Objective::MinimizeCost { min_accuracy: f64::NEG_INFINITY },
        Objective::ParetoFront { .. } => return Ok(outcome),
    };
    if outcome.status == Status::Infeasible {
        control.look_for_nearest();
        let query = Query { objective: nearest, ..query.clone() };
        outcome.nearest = prepared.search(table, &query, control, &[], None)?.found.pop();
    }
    Ok(outcome)
}

/// One first gate of the chains of a field: (number of the field, exit, pixel threshold).
pub(crate) type TaskId = (usize, usize, usize);

/// What searches of one table share.
pub(crate) struct Prepared {
    compact: Compact,
    steps: Steps,
    allowed: Vec<bool>,
    pub ceiling: f64,
}

impl Prepared {
    pub fn new(table: &Table<'_>, query: &Query) -> Self {
        let is_gated = query.scoring.setting == Setting::InputDependent && query.space.max_exits > 1;
        let compact = Compact::new(table, query.space.image_thresholds, is_gated);
        let allowed: Vec<bool> = (0..table.num_exits()).map(|exit| query.space.allows(exit)).collect();
        let steps = if is_gated { Steps::new(&compact, &allowed) } else { Steps::default() };
        Self { compact, steps, allowed, ceiling: table.ceiling(query.scoring.column) }
    }

    fn search(
        &self,
        table: &Table<'_>,
        query: &Query,
        control: &Control,
        known: &[Configuration],
        journal: Option<&Journal>,
    ) -> Result<Outcome> {
        let incumbents = Incumbents::new(query.objective, self.ceiling);
        let shared = self.shared(table, query, control, &incumbents);
        for configuration in known.iter().chain(journal.iter().flat_map(|journal| &journal.known)) {
            shared.offer_known(configuration)?;
        }
        let outcome = shared.run(journal);
        journal.map_or(Ok(()), Journal::check)?;
        Ok(outcome)
    }

    pub fn shared<'a, 't>(
        &'a self,
        table: &'a Table<'t>,
        query: &'a Query,
        control: &'a Control,
        incumbents: &'a Incumbents,
    ) -> Shared<'a, 't> {
        let compact = &self.compact;
        let class_floors = (query.limits.class_iou.iter())
            .filter_map(|(class, floor)| compact.classes.iter().position(|c| c == class).map(|at| (at, *floor)))
            .collect();
        Shared {
            table,
            query,
            compact,
            steps: &self.steps,
            incumbents,
            control,
            isa: Isa::best(),
            ceiling: self.ceiling,
            class_floors,
            allowed: self.allowed.clone(),
            points: table.points.to_vec(),
        }
    }
}

impl Shared<'_, '_> {
    fn run(&self, journal: Option<&Journal>) -> Outcome {
        let (mut gap, fields) = self.begin();
        if !fields.is_empty() {
            self.prove(&fields, &mut gap, journal);
        }
        self.outcome(gap)
    }

    /// What comes before the passes: the gap that is certified by then (0 when nothing is left to prove, else infinite),
    /// and what they have to look at.
    pub(crate) fn begin(&self) -> (f64, Vec<Field>) {
        let gap_of_all = |is_complete: bool| if is_complete { 0.0 } else { f64::INFINITY };
        if let Setting::Anytime { horizon, min_final_accuracy } = self.query.scoring.setting {
            anytime::search(self, horizon, min_final_accuracy);
            return (gap_of_all(!self.control.stopped()), Vec::new());
        }
        (0..self.table.num_exits()).into_par_iter().for_each(|exit| self.static_exit(exit));
        self.control.tell(self.incumbents.last_value());
        let is_budgeted = self.query.scoring.setting == Setting::Budgeted;
        if is_budgeted || self.query.space.max_exits == 1 || self.compact.num_pixels == 0 {
            return (0.0, Vec::new());
        }
        let fields = self.fields(ascend(self));
        (gap_of_all(fields.is_empty() && !self.control.stopped()), fields)
    }

    /// The tasks of every pass.
    pub(crate) fn tasks(&self, fields: &[Field]) -> Vec<TaskId> {
        (fields.iter().enumerate())
            .flat_map(|(number, field)| field.exits[0].iter().map(move |exit| (number, *exit)))
            .flat_map(|(number, exit)| (0..self.compact.num_pixels).map(move |pixel| (number, exit, pixel)))
            .collect()
    }

    /// Gaps of the passes, down to 0.
    pub(crate) fn gaps(&self, fields: &[Field]) -> Vec<f64> {
        let chains = |field: &Field| field.exits.iter().map(|exits| exits.len() as f64).product::<f64>();
        let num_chains = fields.iter().map(chains).sum::<f64>() * self.compact.num_pixels as f64;
        let gaps = match self.query.objective {
            _ if num_chains <= FEW_CHAINS => &[],
            Objective::ParetoFront { .. } => &FRONT_GAPS[..],
            _ if num_chains > MANY_CHAINS => &MORE_GAPS[..],
            _ => &GAPS[..],
        };
        gaps.iter().copied().chain([0.0]).collect()
    }

    /// Make the passes; `gap` becomes that of the last one that was finished.
    ///
    /// Where one pass is made and takes long, what it has not come to by then is gone through with gaps first: if the
    /// search is stopped, it certifies one. (*Sound*: a task that was finished with gap 0 holds nothing better at all, so
    /// when the others are finished with a gap, nothing is better by more than that.)
    fn prove(&self, fields: &[Field], gap: &mut f64, journal: Option<&Journal>) {
        let all = self.tasks(fields).into_iter();
        let mut tasks: Vec<TaskId> = all.skip(self.control.part.0).step_by(self.control.part.1.max(1)).collect();
        let mut covered = self.allowed.iter().filter(|allowed| **allowed).count() as f64; // single exits
        let mut gaps = self.gaps(fields);
        if gaps.len() == 1 {
            let until = self.control.half_time(Instant::now());
            let done = self.pass(fields, &tasks, (0.0, covered), Some(until), journal);
            if done.len() == tasks.len() && !self.control.stopped() {
                self.certify(0.0, gap);
                return;
            }
            covered += done.iter().map(|task| self.task_size(&fields[task.0], task.1, task.2)).sum::<f64>();
            let done: HashSet<TaskId> = done.into_iter().collect();
            tasks.retain(|task| !done.contains(task));
            gaps.splice(0..0, self.late_gaps());
        }
        for wanted in gaps {
            if self.control.stopped() {
                return;
            }
            self.pass(fields, &tasks, (wanted, covered), None, journal);
            if self.control.stopped() {
                return;
            }
            self.certify(wanted, gap);
        }
    }

    fn certify(&self, proven: f64, gap: &mut f64) {
        *gap = proven;
        self.control.certify(self.certificate(&self.incumbents.found(), proven).1);
    }

    /// Work off tasks with a gap, until a time at most; those that came to their end.
    fn pass(
        &self,
        fields: &[Field],
        tasks: &[TaskId],
        (gap, covered): (f64, f64),
        until: Option<Instant>,
        journal: Option<&Journal>,
    ) -> Vec<TaskId> {
        self.incumbents.set_gap(gap);
        self.control.begin(tasks.len(), gap, covered);
        let run = |task: &TaskId| {
            let name = self.task_name(fields, *task);
            if journal.is_some_and(|journal| journal.is_done(gap, &name)) {
                self.finish_task(fields, *task);
                return true;
            }
            if until.is_some_and(|until| self.control.is_late(until)) || !self.run_task(fields, *task) {
                return false;
            }
            if let Some(journal) = journal {
                journal.finish(gap, &[name], &self.incumbents.configurations());
                if journal.check().is_err() {
                    self.control.cancel(); // what it finds from now on would be lost with the error
                }
            }
            true
        };
        tasks.par_iter().with_max_len(1).copied().filter(run).collect()
    }

    /// Gaps of a space where one pass is made, when that takes long. Of nothing there is none.
    fn late_gaps(&self) -> Vec<f64> {
        match self.query.objective {
            Objective::ParetoFront { .. } => LATE_FRONT_GAPS.to_vec(),
            _ if self.incumbents.found().is_empty() => Vec::new(),
            _ => GAPS.to_vec(),
        }
    }

    /// Whether a task came to its end.
    pub(crate) fn run_task(&self, fields: &[Field], task: TaskId) -> bool {
        if self.control.stopped() {
            return false;
        }
        Task::new(self, &fields[task.0], task.1, task.2).run();
        if self.control.stopped() {
            return false;
        }
        self.finish_task(fields, task);
        true
    }

    fn finish_task(&self, fields: &[Field], (number, exit, pixel): TaskId) {
        self.control.finish_task(self.task_size(&fields[number], exit, pixel), self.incumbents.last_value());
    }

    /// What a task is about, for the journal and for other processes.
    pub(crate) fn task_name(&self, fields: &[Field], (number, exit, pixel): TaskId) -> String {
        let points: Vec<String> = fields[number].exits.iter().map(|exits| self.points[exits[0]].to_string()).collect();
        format!("points {} exit {exit} pixel {pixel}", points.join("-"))
    }

    /// Configurations of a task.
    fn task_size(&self, field: &Field, exit: usize, pixel: usize) -> f64 {
        let gates = |exit: &usize| -> f64 {
            (0..self.compact.num_pixels).map(|pixel| self.compact.gate(*exit, pixel).thresholds.len() as f64).sum()
        };
        let (last, inner) = field.exits[1..].split_last().map_or((0, &[][..]), |(last, inner)| (last.len(), inner));
        let behind: f64 = inner.iter().map(|exits| exits.iter().map(gates).sum::<f64>()).product();
        self.compact.gate(exit, pixel).thresholds.len() as f64 * behind * last as f64
    }

    /// Take a configuration into account that somebody else found, if space and limits allow it.
    pub(crate) fn offer_known(&self, configuration: &Configuration) -> Result<()> {
        let Evaluation { found, position } = evaluate_on_valid(self.table, self.query.scoring, configuration)?;
        let exits = &configuration.exits;
        let space = &self.query.space;
        if exits.len() > space.max_exits || !self.is_wanted(exits) {
            return Ok(());
        }
        let is_within = match self.query.scoring.setting {
            Setting::InputDependent => {
                let mut mixture = Mixture::new(self.compact, exits.len());
                for (image, &of_table) in self.compact.order.iter().enumerate() {
                    let at = position[of_table];
                    mixture.add(self.compact, exits[at], at, image);
                }
                let is_offered = (exits.iter().zip(&configuration.gates)).all(|(exit, gate)| {
                    let thresholds = &self.compact.gate(*exit, gate.pixel_threshold).thresholds;
                    thresholds.contains(&gate.image_threshold)
                });
                is_offered && self.is_within_limits(exits, &mixture)
            }
            Setting::Budgeted => self.is_static_within_limits(exits),
            Setting::Anytime { min_final_accuracy, .. } => {
                let last = exits[exits.len() - 1];
                exit_accuracy(self.table, self.query.scoring.metric, last) >= min_final_accuracy
                    && self.is_static_within_limits(exits)
            }
        };
        if is_within {
            self.incumbents.offer(found.cost, found.accuracy, || found.clone());
        }
        Ok(())
    }

    /// A plane, bands of costs and their multipliers for each family of chains, from what the ascents found; the chains of
    /// the best configurations are searched on the way.
    fn fields(&self, families: Vec<Family>) -> Vec<Field> {
        let everything: Vec<&Valued> = families.iter().flat_map(|family| &family.pool).collect();
        if everything.is_empty() {
            return Vec::new(); // stopped, or no chain
        }
        let bands = self.bands(&interesting_costs(self, &families));
        let outline = hull(&everything);
        let at_most = if bands.len() > 1 { POLISHED_EACH } else { POLISHED };
        let best_chains = |&(costs, middle): &((f64, f64), f64)| {
            let multiplier = multiplier_at(&everything, &outline, middle, self.ceiling).0;
            let height = |v: &Valued| v.accuracy - multiplier * v.cost;
            let mut best = everything.clone();
            best.sort_by(|a, b| height(b).total_cmp(&height(a)).then(a.choice.cmp(&b.choice)));
            let mut chains: Vec<&[usize]> = Vec::new();
            for exits in best.iter().map(|v| &v.choice.exits[..]) {
                if !chains.contains(&exits) && chains.len() < at_most {
                    chains.push(exits);
                }
            }
            chains.into_iter().map(move |exits| (exits, costs, multiplier)).collect::<Vec<_>>()
        };
        let chains: Vec<(&[usize], (f64, f64), f64)> = bands.iter().flat_map(best_chains).collect();
        chains.par_iter().with_max_len(1).for_each(|(exits, costs, multiplier)| {
            if let Some(chain) = self.is_wanted(exits).then(|| Chain::new(self, exits)).flatten() {
                let mut regions = Regions::new(self, &chain, *costs);
                regions.search(vec![GateRange::OPEN; exits.len() - 1], None, *multiplier);
                self.control.count(regions.explored, regions.evaluated);
                self.control.tell(self.incumbents.last_value());
            }
        });
        let field = |family: Family| {
            let pool: Vec<&Valued> = family.pool.iter().collect();
            let hull = hull(&pool);
            let table_costs = self.table.costs(self.query.scoring.column);
            let at_first = family.exits[0].iter().map(|exit| table_costs.of_first(*exit));
            let floor = at_first.fold(f64::INFINITY, f64::min);
            let of_band = |&(costs, at): &((f64, f64), f64)| {
                let multiplier = excluding_multiplier(&pool, &hull, at, &self.targets(costs, floor).1, self.ceiling);
                Band { costs, multiplier }
            };
            let (_, typical) = multiplier_at(&pool, &hull, bands[bands.len() / 2].1, self.ceiling);
            Field::new(self, family.exits, &typical.choice.exits, bands.iter().map(of_band).collect())
        };
        let is_wanted = |family: &Family| !family.pool.is_empty() && !self.control.stopped();
        families.into_par_iter().filter(is_wanted).map(field).collect()
    }

    /// Ranges of costs, each with a cost in its middle, that together hold every cost: one for a single objective, for a
    /// front `FRONT_BANDS` of equal width, whose middles begin and end near the given costs.
    fn bands(&self, costs: &[f64]) -> Vec<((f64, f64), f64)> {
        let (Some(first), Some(last)) = (costs.first(), costs.last()) else { return Vec::new() };
        let num = if costs.len() > 1 { FRONT_BANDS } else { 1 };
        let half = (last - first) / (2 * (costs.len() - 1).max(1)) as f64;
        let edge = |number: usize| first - half + (last - first + 2.0 * half) * number as f64 / num as f64;
        let of = |number: usize| {
            let from = if number == 0 { f64::NEG_INFINITY } else { edge(number) };
            let until = if number + 1 == num { f64::INFINITY } else { edge(number + 1) };
            ((from, until), (edge(number) + edge(number + 1)) / 2.0)
        };
        (0..num).map(of).collect()
    }

    fn static_exit(&self, exit: usize) {
        if !self.is_wanted(&[exit]) || !self.is_static_within_limits(&[exit]) {
            return;
        }
        self.control.count(0, 1);
        let costs = self.table.costs(self.query.scoring.column);
        let cost = total_cost(costs, self.query.scoring.setting, &[exit]);
        // the same arithmetic as of a mixture, so that the bits are those of `evaluate`
        let total = self.compact.total_weight;
        let cost = mean(&[cost], &[total], total);
        let accuracy = exit_accuracy(self.table, self.query.scoring.metric, exit);
        let stopped = vec![self.table.num_images() as u64];
        let configuration = Configuration::single(exit);
        self.incumbents.offer(cost, accuracy, || Found { configuration, cost, accuracy, stopped });
    }

    /// Whether the space has a chain.
    fn is_wanted(&self, exits: &[usize]) -> bool {
        exits.iter().all(|exit| self.allowed[*exit]) && self.query.space.is_complete(exits)
    }

    /// Limits of a configuration whose images all end at the last exit.
    pub(crate) fn is_static_within_limits(&self, exits: &[usize]) -> bool {
        let classes = self.compact.padded();
        let (mut t, mut f) = (vec![0.0; classes], vec![0.0; classes]);
        let last = exits[exits.len() - 1];
        if !self.class_floors.is_empty() {
            (0..self.compact.num_images).for_each(|image| self.compact.add(last, image, &mut t, &mut f));
        }
        let mut weights = vec![0.0; exits.len()];
        weights[exits.len() - 1] = self.compact.total_weight;
        self.has_class_floors(&t, &f) && self.is_within_cost_limits(exits, &weights)
    }

    /// Exact (cost, accuracy) of a mixture, which is offered when space and limits allow it: `gates` are (pixel threshold,
    /// number of the image threshold), `stop_costs` those of the exits.
    pub(crate) fn offer_mixture(
        &self,
        exits: &[usize],
        gates: impl Iterator<Item = (usize, u32)>,
        stop_costs: &[f64],
        mixture: &Mixture,
    ) -> (f64, f64) {
        let compact = self.compact;
        let cost = mean(stop_costs, &mixture.weight, compact.total_weight);
        let accuracy = compact.metric(self.query.scoring.metric, &mixture.t, &mixture.f);
        if self.is_within_limits(exits, mixture) {
            self.incumbents.offer(cost, accuracy, || Found {
                configuration: Configuration {
                    exits: exits.to_vec(),
                    gates: (exits.iter().zip(gates))
                        .map(|(exit, (pixel, number))| Gate {
                            pixel_threshold: pixel,
                            image_threshold: compact.gate(*exit, pixel).thresholds[number as usize],
                        })
                        .collect(),
                },
                cost,
                accuracy,
                stopped: mixture.images.iter().map(|images| u64::from(*images)).collect(),
            });
        }
        (cost, accuracy)
    }

    /// Everything that space and limits ask of a mixture.
    fn is_within_limits(&self, exits: &[usize], mixture: &Mixture) -> bool {
        let (share, total) = (self.query.space.min_share, self.compact.total_weight);
        self.is_wanted(exits)
            && mixture.images.iter().all(|images| *images > 0)
            && mixture.weight.iter().all(|weight| weight / total >= share)
            && self.has_class_floors(&mixture.t, &mixture.f)
            && self.is_within_cost_limits(exits, &mixture.weight)
    }

    fn has_class_floors(&self, t: &[f64], f: &[f64]) -> bool {
        let has_floor = |&(class, floor): &(usize, f64)| t[class] / (self.compact.truth[class] + f[class]) >= floor;
        self.class_floors.iter().all(has_floor)
    }

    fn is_within_cost_limits(&self, exits: &[usize], weights: &[f64]) -> bool {
        let (limits, setting) = (&self.query.limits, self.query.scoring.setting);
        limits.costs.is_empty() || limits.allow_costs(self.table, setting, exits, weights, self.compact.total_weight)
    }

    /// The targets of a band of costs for configurations that cost at least `floor`, and their version. A target stands
    /// for costs from the one before it to its own; those that reach into the band are cut to it, so that the bands
    /// together look for everything.
    pub(crate) fn targets(&self, (from, until): (f64, f64), floor: f64) -> (u64, Arc<Targets>) {
        let version = self.incumbents.version();
        let all = self.incumbents.targets();
        let floor = floor * (1.0 - MARGIN);
        let mut before = f64::NEG_INFINITY;
        let mut corners = Vec::new();
        for &(cost, accuracy) in &all.corners {
            if cost > from && cost >= floor && before < until {
                corners.push((cost.min(until), accuracy));
            }
            before = cost;
        }
        (version, Arc::new(Targets { corners }))
    }

    pub(crate) fn outcome(&self, gap: f64) -> Outcome {
        let found = self.incumbents.found();
        let status = match (gap == 0.0, found.is_empty()) {
            (false, _) => Status::Stopped,
            (true, true) => Status::Infeasible,
            (true, false) => Status::Optimal,
        };
        let Progress { explored, evaluated, covered, .. } = self.control.progress();
        let space = space_size(self);
        let covered = if gap == 0.0 && self.control.part.1 <= 1 { space } else { covered.min(space) };
        let (bound, gap) = self.certificate(&found, gap);
        Outcome { status, found, nearest: None, bound, gap, explored, evaluated, covered, space }
    }

    /// (bound, gap) after a pass with this gap.
    fn certificate(&self, found: &[Found], gap: f64) -> (f64, f64) {
        let costs = self.table.costs(self.query.scoring.column);
        let singles = (0..self.table.num_exits()).filter(|exit| self.allowed[*exit]);
        let cheapest = singles.map(|e| costs.backbone[e] + costs.head[e]).fold(f64::INFINITY, f64::min);
        match (self.query.objective, found.first()) {
            (Objective::MinimizeCost { .. }, Some(best)) => {
                let bound = (best.cost * (1.0 - gap)).max(cheapest.min(best.cost));
                (bound, if best.cost > 0.0 { (best.cost - bound) / best.cost } else { 0.0 })
            }
            (Objective::MaximizeAccuracy { .. }, Some(best)) => {
                let bound = if gap.is_finite() { (best.accuracy * (1.0 + gap)).min(1.0) } else { 1.0 };
                let above = bound - best.accuracy;
                (bound, if above > 0.0 { above / best.accuracy } else { 0.0 }) // of accuracy 0, an infinite part
            }
            (Objective::ParetoFront { .. }, None) if gap > 0.0 => (1.0, f64::INFINITY),
            (Objective::ParetoFront { .. }, _) => (gap.min(1.0), gap.min(1.0)),
            // of nothing there is no gap until there is nothing to be found
            (Objective::MinimizeCost { .. }, None) if gap == 0.0 => (f64::INFINITY, gap),
            (Objective::MinimizeCost { .. }, None) => (cheapest.max(self.ceiling * (1.0 - gap)), f64::INFINITY),
            (Objective::MaximizeAccuracy { .. }, None) if gap == 0.0 => (0.0, gap),
            (Objective::MaximizeAccuracy { .. }, None) => (1.0, f64::INFINITY),
        }
    }
}

/// Configurations of the space, required exits and limits aside.
fn space_size(shared: &Shared<'_, '_>) -> f64 {
    let (compact, max_exits) = (shared.compact, shared.query.space.max_exits);
    let exits: Vec<usize> = (0..shared.points.len()).filter(|exit| shared.allowed[*exit]).collect();
    let is_budgeted = shared.query.scoring.setting == Setting::Budgeted;
    let length = if is_budgeted { 0 } else { max_exits.min(shared.points.len()) - 1 };
    let is_gated = shared.query.scoring.setting == Setting::InputDependent;
    let options = |exit: usize| -> f64 {
        let thresholds = |pixel: usize| compact.gate(exit, pixel).thresholds.len() as f64;
        if is_gated { (0..compact.num_pixels).map(thresholds).sum() } else { 1.0 }
    };
    // of each exit: the configurations of up to so many exits behind it
    let mut behind = vec![0.0f64; shared.points.len()];
    for _ in 0..length {
        let before = behind.clone();
        for &exit in &exits {
            let deeper = exits.iter().filter(|next| shared.points[**next] > shared.points[exit]);
            behind[exit] = deeper.map(|next| 1.0 + options(*next) * before[*next]).sum();
        }
    }
    exits.iter().map(|exit| 1.0 + options(*exit) * behind[*exit]).sum()
}

#[cfg(test)]
#[allow(clippy::expect_used)]
mod tests;
