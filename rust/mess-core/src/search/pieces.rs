//! A search in pieces, for those who spread it over processes and machines.
//!
//! Everybody makes the same preparations (`engine`, steps 1 and 2) and then works off some tasks of a pass. What goes from
//! one to the others is small: names of tasks, and configurations found. Why that is exact: a finished task of a pass with
//! gap g says that it holds nothing better, by more than g, than the best that *this* process knew at its end. Whoever
//! collects the tasks also collects what was found before them, so its best is at least as good, and when all tasks of the
//! pass are in, nothing in the space is better than its best by more than g. With g = 0 that is the optimum, and the total
//! order of `objective` makes it the same one as in a single process.

use std::collections::HashMap;

use rayon::prelude::*;

use super::control::Control;
use super::engine::{Prepared, Shared, TaskId};
use super::field::Field;
use super::incumbent::Incumbents;
use super::objective::Query;
use super::outcome::{Configuration, Found, Outcome};
use super::table::Table;
use crate::error::{Error, Result};

/// A search that is prepared. Every call wants the same table.
pub struct Pieces {
    query: Query,
    prepared: Prepared,
    incumbents: Incumbents,
    /// What the preparations certify: 0 when nothing is left to prove, else infinite.
    gap: f64,
    fields: Vec<Field>,
    tasks: HashMap<String, TaskId>,
    shape: (usize, usize, usize),
}

/// What a call of [`Pieces::run`] did.
#[derive(Debug)]
pub struct Done {
    /// The best configuration known, or the front.
    pub found: Vec<Found>,
    /// Tasks that were finished.
    pub finished: Vec<String>,
}

impl Pieces {
    /// # Errors
    /// As [`super::search`].
    pub fn new(table: &Table<'_>, query: &Query, control: &Control, known: &[Configuration]) -> Result<Self> {
        table.validate()?;
        query.validate(table)?;
        let prepared = Prepared::new(table, query);
        let incumbents = Incumbents::new(query.objective, prepared.ceiling);
        let shared = prepared.shared(table, query, control, &incumbents);
        known.iter().try_for_each(|configuration| shared.offer_known(configuration))?;
        let (gap, mut fields) = shared.begin();
        if gap > 0.0 && control.stopped() {
            fields.clear(); // families that were not reached are missing
        }
        let tasks = shared.tasks(&fields).into_iter().map(|task| (shared.task_name(&fields, task), task)).collect();
        Ok(Self { query: query.clone(), prepared, incumbents, gap, fields, tasks, shape: shape(table) })
    }

    /// Gaps of the passes, one after the other, down to 0; none when there are no tasks, as when the preparations were cut
    /// short.
    ///
    /// # Errors
    /// [`Error::Value`] for another table.
    pub fn gaps(&self, table: &Table<'_>) -> Result<Vec<f64>> {
        let gaps =
            |shared: &Shared<'_, '_>| if self.fields.is_empty() { Vec::new() } else { shared.gaps(&self.fields) };
        self.with(table, &Control::default(), gaps)
    }

    /// Names of the tasks of each pass, sorted; the same in every process.
    pub fn tasks(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.tasks.keys().map(|name| &name[..]).collect();
        names.sort_unstable();
        names
    }

    /// Work off tasks of the pass with this gap, until all are done or `control` stops it. Where the preparations were cut
    /// short, none is done. Calls with different gaps must not overlap: what they look for is set for all of them.
    ///
    /// # Errors
    /// [`Error::Value`] for a task that does not exist, another table, a negative gap, or a known configuration that is
    /// invalid.
    pub fn run(
        &self,
        table: &Table<'_>,
        control: &Control,
        gap: f64,
        names: &[String],
        known: &[Configuration],
    ) -> Result<Done> {
        check_gap(gap)?;
        let mut tasks: Vec<(&String, TaskId)> = Vec::new();
        let is_cut_short = self.fields.is_empty() && self.gap > 0.0;
        for name in names.iter().filter(|_| !is_cut_short) {
            let task = self.tasks.get(name);
            let unknown = || Error::value("tasks", "names of tasks of this search", format!("'{name}'"));
            tasks.push((name, *task.ok_or_else(unknown)?));
        }
        self.with(table, control, |shared| {
            known.iter().try_for_each(|configuration| shared.offer_known(configuration))?;
            self.incumbents.set_gap(gap);
            control.begin(tasks.len(), gap, 0.0);
            let run = |(name, task): &(&String, TaskId)| shared.run_task(&self.fields, *task).then(|| (*name).clone());
            let finished = tasks.par_iter().with_max_len(1).filter_map(run).collect();
            Ok(Done { found: self.incumbents.found(), finished })
        })?
    }

    /// The outcome when the pass with this gap is finished, whoever worked on it, and these configurations are known;
    /// infinity before the first.
    ///
    /// # Errors
    /// [`Error::Value`] for another table, a negative gap, or a known configuration that is invalid.
    pub fn outcome(&self, table: &Table<'_>, gap: f64, known: &[Configuration]) -> Result<Outcome> {
        check_gap(gap)?;
        self.with(table, &Control::default(), |shared| {
            known.iter().try_for_each(|configuration| shared.offer_known(configuration))?;
            Ok(shared.outcome(gap.min(self.gap)))
        })?
    }

    fn with<T>(&self, table: &Table<'_>, control: &Control, work: impl FnOnce(&Shared<'_, '_>) -> T) -> Result<T> {
        if shape(table) != self.shape {
            return Err(Error::value(
                "table",
                format!("that of this search {:?}", self.shape),
                format!("{:?}", shape(table)),
            ));
        }
        Ok(work(&self.prepared.shared(table, &self.query, control, &self.incumbents)))
    }
}

fn check_gap(gap: f64) -> Result<()> {
    if gap >= 0.0 { Ok(()) } else { Err(Error::value("gap", "0 or more", gap)) }
}

fn shape(table: &Table<'_>) -> (usize, usize, usize) {
    (table.num_exits(), table.num_images(), table.ground_truth.ncols())
}
