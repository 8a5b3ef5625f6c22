//! Binding of `mess_core::search`.

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use mess_core::search as core;
use numpy::{PyReadonlyArray1, PyReadonlyArray2, PyReadonlyArray3};
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use rayon::ThreadPool;

use crate::errors::to_python;
use crate::run::{on_this_thread, panicked, pool};

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(search, module)?)?;
    module.add_function(wrap_pyfunction!(evaluate, module)?)
}

/// How often a running search looks for Ctrl-C and reports progress.
const POLL: Duration = Duration::from_millis(50);

/// The arrays of a calibration table, in the order of the Python dataclass; costs are (K, E).
pub type TableArrays<'py> = (
    PyReadonlyArray3<'py, i64>,
    PyReadonlyArray3<'py, i64>,
    PyReadonlyArray2<'py, i64>,
    PyReadonlyArray3<'py, f64>,
    PyReadonlyArray1<'py, i64>,
    PyReadonlyArray2<'py, f64>,
    PyReadonlyArray2<'py, f64>,
    PyReadonlyArray2<'py, f64>,
    Option<PyReadonlyArray1<'py, i64>>,
);

pub fn table<'a>(arrays: &'a TableArrays<'_>) -> core::Table<'a> {
    core::Table {
        intersection: arrays.0.as_array(),
        predicted: arrays.1.as_array(),
        ground_truth: arrays.2.as_array(),
        image_confidence: arrays.3.as_array(),
        points: arrays.4.as_array(),
        backbone_cost: arrays.5.as_array(),
        head_cost: arrays.6.as_array(),
        policy_cost: arrays.7.as_array(),
        image_weight: arrays.8.as_ref().map(|weights| weights.as_array()),
    }
}

/// (setting, horizon, least accuracy of the last prediction, metric, cost column)
pub type ScoringArguments<'a> = (&'a str, f64, f64, &'a str, usize);

fn scoring((setting, horizon, min_final_accuracy, metric, column): ScoringArguments<'_>) -> PyResult<core::Scoring> {
    let setting = match setting {
        "budgeted" => core::Setting::Budgeted,
        "anytime" => core::Setting::Anytime { horizon, min_final_accuracy },
        "input-dependent" => core::Setting::InputDependent,
        _ => return Err(unknown("setting", "'budgeted', 'anytime' or 'input-dependent'", setting)),
    };
    let metric = match metric {
        "mean-iou" => core::Metric::MeanIou,
        "pixel-accuracy" => core::Metric::PixelAccuracy,
        "mean-class-accuracy" => core::Metric::MeanClassAccuracy,
        "frequency-weighted-iou" => core::Metric::FrequencyWeightedIou,
        _ => {
            let known = "'mean-iou', 'pixel-accuracy', 'mean-class-accuracy' or 'frequency-weighted-iou'";
            return Err(unknown("metric", known, metric));
        }
    };
    Ok(core::Scoring { setting, metric, column })
}

fn unknown(argument: &str, expected: &str, got: &str) -> PyErr {
    PyValueError::new_err(format!("{argument}: expected {expected}, got '{got}'"))
}

/// ("minimize-cost" | "maximize-accuracy" | "front", least accuracy | greatest cost | resolution)
pub type ObjectiveArguments<'a> = (&'a str, f64);

fn objective((name, value): ObjectiveArguments<'_>) -> core::Objective {
    match name {
        "minimize-cost" => core::Objective::MinimizeCost { min_accuracy: value },
        "maximize-accuracy" => core::Objective::MaximizeAccuracy { max_cost: value },
        _ => core::Objective::ParetoFront { resolution: value },
    }
}

/// (most exits, image thresholds, required exits, forbidden exits, least share)
pub type SpaceArguments = (usize, Option<usize>, Vec<usize>, Vec<usize>, f64);
/// ([(class, least IoU)], [(column, "mean" | "total" | "quantile", quantile, limit)])
pub type LimitArguments = (Vec<(usize, f64)>, Vec<(usize, String, f64, f64)>);

fn limits((class_iou, costs): LimitArguments) -> core::Limits {
    let limit = |(column, statistic, quantile, at_most): (usize, String, f64, f64)| core::CostLimit {
        column,
        statistic: match &statistic[..] {
            "mean" => core::Statistic::Mean,
            "total" => core::Statistic::Total,
            _ => core::Statistic::Quantile(quantile),
        },
        at_most,
    };
    core::Limits { class_iou, costs: costs.into_iter().map(limit).collect() }
}

pub fn query(
    scoring_arguments: ScoringArguments<'_>,
    objective_arguments: ObjectiveArguments<'_>,
    (max_exits, image_thresholds, required, forbidden, min_share): SpaceArguments,
    limit_arguments: LimitArguments,
) -> PyResult<core::Query> {
    Ok(core::Query {
        scoring: scoring(scoring_arguments)?,
        objective: objective(objective_arguments),
        space: core::Space { max_exits, image_thresholds, required, forbidden, min_share },
        limits: limits(limit_arguments),
    })
}

/// (exits, [(pixel threshold index, image threshold)])
pub type ConfigurationParts = (Vec<usize>, Vec<(usize, f64)>);

pub fn configuration((exits, gates): ConfigurationParts) -> core::Configuration {
    let gate = |(pixel_threshold, image_threshold)| core::Gate { pixel_threshold, image_threshold };
    core::Configuration { exits, gates: gates.into_iter().map(gate).collect() }
}

/// (exits, gates, cost, accuracy, stopped)
pub type Found = (Vec<usize>, Vec<(usize, f64)>, f64, f64, Vec<u64>);

pub fn parts(configuration: core::Configuration) -> ConfigurationParts {
    let gates = configuration.gates.iter().map(|g| (g.pixel_threshold, g.image_threshold)).collect();
    (configuration.exits, gates)
}

pub fn found(found: core::Found) -> Found {
    let (exits, gates) = parts(found.configuration);
    (exits, gates, found.cost, found.accuracy, found.stopped)
}

/// (status, found, nearest, bound, gap, explored, evaluated, covered, space)
pub type Outcome = (&'static str, Vec<Found>, Option<Found>, f64, f64, u64, u64, f64, f64);

pub fn outcome(outcome: core::Outcome) -> Outcome {
    let status = match outcome.status {
        core::Status::Optimal => "optimal",
        core::Status::Infeasible => "infeasible",
        core::Status::Stopped => "stopped",
    };
    let all = outcome.found.into_iter().map(found).collect();
    let core::Outcome { bound, gap, explored, evaluated, covered, space, .. } = outcome;
    (status, all, outcome.nearest.map(found), bound, gap, explored, evaluated, covered, space)
}

#[pyfunction]
#[pyo3(signature = (
    arrays, scoring, objective, space, limits, known, part, journal, time_limit, threads, progress
))]
#[allow(clippy::too_many_arguments)]
fn search<'py>(
    py: Python<'py>,
    arrays: TableArrays<'py>,
    scoring: ScoringArguments<'_>,
    objective: ObjectiveArguments<'_>,
    space: SpaceArguments,
    limits: LimitArguments,
    known: Vec<ConfigurationParts>,
    part: (usize, usize),
    journal: Option<PathBuf>,
    time_limit: Option<f64>,
    threads: Option<usize>,
    progress: Option<Bound<'py, PyAny>>,
) -> PyResult<(Outcome, Option<PyErr>)> {
    let query = query(scoring, objective, space, limits)?;
    let known: Vec<core::Configuration> = known.into_iter().map(configuration).collect();
    let mut control = control(time_limit)?;
    control.part = part;
    let table = table(&arrays);
    let pool = pool(threads)?;
    let work = || core::search(&table, &query, &control, &known, journal.as_deref());
    let (found, mut interruption) = watched(py, &control, &pool, progress.as_ref(), work)?;
    if interruption.is_none() {
        interruption = report(progress.as_ref(), &control).err();
    }
    Ok((outcome(found), interruption))
}

/// As [`watched`], where nothing half done is of use.
pub fn finished<T: Send>(
    py: Python<'_>,
    control: &core::Control,
    pool: &ThreadPool,
    work: impl FnOnce() -> mess_core::Result<T> + Send,
) -> PyResult<T> {
    let (done, interruption) = watched(py, control, pool, None, work)?;
    interruption.map_or(Ok(done), Err)
}

/// Call `work` in the pool, from a thread of its own; this one comes back to Python to look for Ctrl-C and to report
/// progress. With the error of either, `work` is asked to stop, and what it returns comes beside the error.
fn watched<T: Send>(
    py: Python<'_>,
    control: &core::Control,
    pool: &ThreadPool,
    progress: Option<&Bound<'_, PyAny>>,
    work: impl FnOnce() -> mess_core::Result<T> + Send,
) -> PyResult<(T, Option<PyErr>)> {
    std::thread::scope(|scope| {
        let (working, ended) = mpsc::channel::<()>();
        let ended = Mutex::new(ended); // for another thread's eyes, as `detach` demands
        let run = move || {
            let _until_here = working; // dropped, the channel is closed, by a panic too
            pool.install(work)
        };
        let refused = |error| PyRuntimeError::new_err(format!("threads: cannot start another: {error}"));
        let worker = std::thread::Builder::new().spawn_scoped(scope, run).map_err(refused)?;
        let mut interruption = None;
        let goes_on = || ended.lock().is_ok_and(|ended| ended.recv_timeout(POLL) == Err(RecvTimeoutError::Timeout));
        while py.detach(goes_on) {
            let telling = progress.filter(|_| interruption.is_none()); // who raised an error is not asked again
            let watched = py.check_signals().and_then(|()| report(telling, control));
            if let (None, Err(error)) = (&interruption, watched) {
                control.cancel.store(true, Ordering::Relaxed);
                interruption = Some(error);
            }
        }
        match worker.join().map_err(|_| panicked())?.map_err(to_python) {
            Ok(done) => Ok((done, interruption)),
            Err(error) => Err(interruption.unwrap_or(error)),
        }
    })
}

/// What watches and stops a search that may take so many seconds.
pub fn control(time_limit: Option<f64>) -> PyResult<core::Control> {
    let mut control = core::Control::default();
    if let Some(seconds) = time_limit.filter(|seconds| seconds.is_nan() || *seconds < 0.0) {
        return Err(PyValueError::new_err(format!("time_limit: expected seconds >= 0, got {seconds}")));
    }
    let limit = time_limit.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()); // none that long ends
    control.deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
    Ok(control)
}

fn report(progress: Option<&Bound<'_, PyAny>>, control: &core::Control) -> PyResult<()> {
    if let Some(progress) = progress {
        let core::Progress { tasks, gaps, covered, best, explored, evaluated } = control.progress();
        progress.call1((tasks, gaps, covered, best, explored, evaluated))?;
    }
    Ok(())
}

/// (cost, accuracy, stopped, position of each image)
#[pyfunction]
fn evaluate<'py>(
    py: Python<'py>,
    arrays: TableArrays<'py>,
    scoring_arguments: ScoringArguments<'_>,
    parts: ConfigurationParts,
) -> PyResult<(f64, f64, Vec<u64>, Vec<usize>)> {
    let scoring = scoring(scoring_arguments)?;
    let table = table(&arrays);
    let configuration = configuration(parts);
    let evaluation = on_this_thread(py, || core::evaluate(&table, scoring, &configuration))?;
    Ok((evaluation.found.cost, evaluation.found.accuracy, evaluation.found.stopped, evaluation.position))
}
