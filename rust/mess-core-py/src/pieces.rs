//! Binding of `mess_core::search::Pieces` and of its journal.

use std::path::PathBuf;

use mess_core::search as core;
use pyo3::prelude::*;

use crate::errors::to_python;
use crate::run::{on_this_thread, pool};
use crate::search::{
    ConfigurationParts, Found, LimitArguments, ObjectiveArguments, Outcome, ScoringArguments, SpaceArguments,
    TableArrays, configuration, control, finished, found, outcome, parts, query, table,
};

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<SearchPieces>()?;
    module.add_class::<SearchJournal>()
}

/// A prepared search; every call wants the same table.
#[pyclass(module = "mess_core._mess_core", frozen)]
struct SearchPieces {
    pieces: core::Pieces,
}

/// (found, names of finished tasks, explored, evaluated)
type Done = (Vec<Found>, Vec<String>, u64, u64);

#[pymethods]
impl SearchPieces {
    #[new]
    #[pyo3(signature = (arrays, scoring, objective, space, limits, known, time_limit, threads))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        py: Python<'_>,
        arrays: TableArrays<'_>,
        scoring: ScoringArguments<'_>,
        objective: ObjectiveArguments<'_>,
        space: SpaceArguments,
        limits: LimitArguments,
        known: Vec<ConfigurationParts>,
        time_limit: Option<f64>,
        threads: Option<usize>,
    ) -> PyResult<Self> {
        let query = query(scoring, objective, space, limits)?;
        let known: Vec<core::Configuration> = known.into_iter().map(configuration).collect();
        let control = control(time_limit)?;
        let table = table(&arrays);
        let pieces = finished(py, &control, &*pool(threads)?, || core::Pieces::new(&table, &query, &control, &known))?;
        Ok(Self { pieces })
    }

    fn gaps(&self, py: Python<'_>, arrays: TableArrays<'_>) -> PyResult<Vec<f64>> {
        let table = table(&arrays);
        on_this_thread(py, || self.pieces.gaps(&table))
    }

    fn tasks(&self) -> Vec<&str> {
        self.pieces.tasks()
    }

    #[pyo3(signature = (arrays, gap, tasks, known, time_limit, threads))]
    #[allow(clippy::too_many_arguments)]
    fn run(
        &self,
        py: Python<'_>,
        arrays: TableArrays<'_>,
        gap: f64,
        tasks: Vec<String>,
        known: Vec<ConfigurationParts>,
        time_limit: Option<f64>,
        threads: Option<usize>,
    ) -> PyResult<Done> {
        let known: Vec<core::Configuration> = known.into_iter().map(configuration).collect();
        let control = control(time_limit)?;
        let table = table(&arrays);
        let done = finished(py, &control, &*pool(threads)?, || self.pieces.run(&table, &control, gap, &tasks, &known))?;
        let core::Progress { explored, evaluated, .. } = control.progress();
        Ok((done.found.into_iter().map(found).collect(), done.finished, explored, evaluated))
    }

    fn outcome(
        &self,
        py: Python<'_>,
        arrays: TableArrays<'_>,
        gap: f64,
        known: Vec<ConfigurationParts>,
    ) -> PyResult<Outcome> {
        let known: Vec<core::Configuration> = known.into_iter().map(configuration).collect();
        let table = table(&arrays);
        Ok(outcome(on_this_thread(py, || self.pieces.outcome(&table, gap, &known))?))
    }
}

/// The file that lets a search go on where another one was killed.
#[pyclass(module = "mess_core._mess_core", frozen)]
struct SearchJournal {
    journal: core::Journal,
}

#[pymethods]
impl SearchJournal {
    #[new]
    fn new(
        py: Python<'_>,
        path: PathBuf,
        arrays: TableArrays<'_>,
        scoring: ScoringArguments<'_>,
        objective: ObjectiveArguments<'_>,
        space: SpaceArguments,
        limits: LimitArguments,
    ) -> PyResult<Self> {
        let query = query(scoring, objective, space, limits)?;
        let table = table(&arrays);
        let open = || {
            table.validate()?;
            query.validate(&table)?;
            core::Journal::open(&path, &table, &query)
        };
        Ok(Self { journal: on_this_thread(py, open)? })
    }

    fn known(&self) -> Vec<ConfigurationParts> {
        self.journal.known.iter().cloned().map(parts).collect()
    }

    fn is_done(&self, gap: f64, task: &str) -> bool {
        self.journal.is_done(gap, task)
    }

    fn finish(&self, gap: f64, tasks: Vec<String>, found: Vec<ConfigurationParts>) -> PyResult<()> {
        let found: Vec<core::Configuration> = found.into_iter().map(configuration).collect();
        self.journal.finish(gap, &tasks, &found);
        self.journal.check().map_err(to_python)
    }
}
