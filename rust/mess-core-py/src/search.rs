//! Binding of `mess_core::search`.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mess_core::search as core;
use numpy::{PyReadonlyArray1, PyReadonlyArray2, PyReadonlyArray3};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::errors::to_python;
use crate::run::{on_this_thread, panicked, pool};

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(search, module)?)?;
    module.add_function(wrap_pyfunction!(evaluate, module)?)
}

/// How often a running search looks for Ctrl-C and reports progress.
const POLL: Duration = Duration::from_millis(50);

/// The arrays of a calibration table, in the order of the Python dataclass.
type TableArrays<'py> = (
    PyReadonlyArray3<'py, i64>,
    PyReadonlyArray3<'py, i64>,
    PyReadonlyArray2<'py, i64>,
    PyReadonlyArray3<'py, f64>,
    PyReadonlyArray1<'py, i64>,
    PyReadonlyArray1<'py, f64>,
    PyReadonlyArray1<'py, f64>,
    PyReadonlyArray1<'py, f64>,
);

fn table<'a>(arrays: &'a TableArrays<'_>) -> core::Table<'a> {
    core::Table {
        intersection: arrays.0.as_array(),
        predicted: arrays.1.as_array(),
        ground_truth: arrays.2.as_array(),
        image_confidence: arrays.3.as_array(),
        points: arrays.4.as_array(),
        backbone_cost: arrays.5.as_array(),
        head_cost: arrays.6.as_array(),
        policy_cost: arrays.7.as_array(),
    }
}

fn setting(name: &str, horizon: f64, min_final_accuracy: f64) -> PyResult<core::Setting> {
    match name {
        "budgeted" => Ok(core::Setting::Budgeted),
        "anytime" => Ok(core::Setting::Anytime { horizon, min_final_accuracy }),
        "input-dependent" => Ok(core::Setting::InputDependent),
        _ => Err(PyValueError::new_err(format!(
            "setting: expected 'budgeted', 'anytime' or 'input-dependent', got '{name}'"
        ))),
    }
}

/// (exits, [(pixel threshold index, image threshold)], cost, accuracy, stopped)
type Found = (Vec<usize>, Vec<(usize, f64)>, f64, f64, Vec<u64>);

fn found(found: core::Found) -> Found {
    let gates = found.configuration.gates.iter().map(|g| (g.pixel_threshold, g.image_threshold)).collect();
    (found.configuration.exits, gates, found.cost, found.accuracy, found.stopped)
}

/// (status, found, evaluated)
#[pyfunction]
#[pyo3(signature = (
    arrays, setting_name, horizon, min_final_accuracy, min_accuracy, max_cost, max_exits, image_thresholds,
    time_limit, threads, progress
))]
#[allow(clippy::too_many_arguments)]
fn search<'py>(
    py: Python<'py>,
    arrays: TableArrays<'py>,
    setting_name: &str,
    horizon: f64,
    min_final_accuracy: f64,
    min_accuracy: Option<f64>,
    max_cost: Option<f64>,
    max_exits: usize,
    image_thresholds: Option<usize>,
    time_limit: Option<f64>,
    threads: Option<usize>,
    progress: Option<Bound<'py, PyAny>>,
) -> PyResult<(&'static str, Vec<Found>, u64)> {
    let setting = setting(setting_name, horizon, min_final_accuracy)?;
    let objective = match (min_accuracy, max_cost) {
        (Some(min_accuracy), None) => core::Objective::MinimizeCost { min_accuracy },
        (None, Some(max_cost)) => core::Objective::MaximizeAccuracy { max_cost },
        (None, None) => core::Objective::ParetoFront,
        _ => return Err(PyValueError::new_err("min_accuracy: expected None beside max_cost, got both")),
    };
    let deadline = match time_limit.map(Duration::try_from_secs_f64) {
        None => None,
        Some(Ok(limit)) => Instant::now().checked_add(limit),
        Some(Err(_)) => return Err(PyValueError::new_err("time_limit: expected seconds >= 0")),
    };
    let space = core::Space { max_exits, image_thresholds };
    let control = core::Control { deadline, ..core::Control::default() };
    let table = table(&arrays);
    let pool = pool(threads)?;

    // The search runs on its own thread; this one comes back to Python to look for Ctrl-C and to report progress.
    let outcome = std::thread::scope(|scope| {
        let worker = scope.spawn(|| pool.install(|| core::search(&table, setting, objective, &space, &control)));
        let mut interruption = Ok(());
        while !worker.is_finished() {
            py.detach(|| wait(&worker));
            let watched = py.check_signals().and_then(|()| report(progress.as_ref(), &control));
            if interruption.is_ok() && watched.is_err() {
                control.cancel.store(true, Ordering::Relaxed);
                interruption = watched;
            }
        }
        let outcome = worker.join().map_err(|_| panicked());
        interruption.and(outcome)
    })?
    .map_err(to_python)?;
    report(progress.as_ref(), &control)?;
    let status = match outcome.status {
        core::Status::Optimal => "optimal",
        core::Status::Infeasible => "infeasible",
        core::Status::Stopped => "stopped",
    };
    Ok((status, outcome.found.into_iter().map(found).collect(), outcome.evaluated))
}

/// Sleep until the next look, or less when the search ends.
fn wait<T>(worker: &std::thread::ScopedJoinHandle<'_, T>) {
    let start = Instant::now();
    while !worker.is_finished() && start.elapsed() < POLL {
        std::thread::sleep(Duration::from_micros(200));
    }
}

fn report(progress: Option<&Bound<'_, PyAny>>, control: &core::Control) -> PyResult<()> {
    if let Some(progress) = progress {
        progress.call1((control.done.load(Ordering::Relaxed), control.total.load(Ordering::Relaxed)))?;
    }
    Ok(())
}

/// (cost, accuracy, stopped, position of each image)
#[pyfunction]
#[pyo3(signature = (arrays, setting_name, horizon, exits, gates))]
fn evaluate<'py>(
    py: Python<'py>,
    arrays: TableArrays<'py>,
    setting_name: &str,
    horizon: f64,
    exits: Vec<usize>,
    gates: Vec<(usize, f64)>,
) -> PyResult<(f64, f64, Vec<u64>, Vec<usize>)> {
    let setting = setting(setting_name, horizon, 0.0)?;
    let table = table(&arrays);
    let gates =
        gates.into_iter().map(|(pixel_threshold, image_threshold)| core::Gate { pixel_threshold, image_threshold });
    let configuration = core::Configuration { exits, gates: gates.collect() };
    let evaluation = on_this_thread(py, || core::evaluate(&table, setting, &configuration))?;
    Ok((evaluation.found.cost, evaluation.found.accuracy, evaluation.found.stopped, evaluation.position))
}
