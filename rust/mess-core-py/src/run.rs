//! Run core code without the GIL, on a thread pool of the wanted size, and let no panic through.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::errors::to_python;

const MAX_THREADS: usize = 1024;

/// Pools by (process, size): a forked child must not use its parent's pool, whose threads it does not have.
type Pools = HashMap<(u32, usize), Arc<ThreadPool>>;
static POOLS: LazyLock<Mutex<Pools>> = LazyLock::new(Mutex::default);

/// Below this many numbers read (about a millisecond), a second thread costs more than it saves: waking it takes longer
/// than the work, and beside a network it competes with the framework's own threads.
const SERIAL_WORK: usize = 1 << 22;

/// Threads of calls that do not say: `MESS_CORE_THREADS`, else all cores, whatever rayon's own variable says.
static DEFAULT_THREADS: LazyLock<usize> = LazyLock::new(|| {
    let cores = || std::thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
    threads_of_environment().ok().flatten().unwrap_or_else(cores)
});

/// What `MESS_CORE_THREADS` says.
fn threads_of_environment() -> Result<Option<usize>, String> {
    match std::env::var("MESS_CORE_THREADS") {
        Ok(text) if !text.is_empty() => {
            text.parse().ok().filter(|n| (1..=MAX_THREADS).contains(n)).ok_or(text).map(Some)
        }
        _ => Ok(None),
    }
}

/// A wrong `MESS_CORE_THREADS` is said at import.
pub fn check_environment() -> PyResult<()> {
    threads_of_environment().map(|_| ()).map_err(|text| {
        PyValueError::new_err(format!("environment variable MESS_CORE_THREADS: expected 1..={MAX_THREADS}, got {text}"))
    })
}

/// Threads of a large call that does not say.
#[pyfunction]
pub fn default_threads() -> usize {
    *DEFAULT_THREADS
}

/// Call `work` on `threads` threads with the GIL released. `None` is all cores (or `MESS_CORE_THREADS`), but the calling
/// thread alone when `size`, the count of numbers that it reads, is small.
pub fn without_gil<T: Send>(
    py: Python<'_>,
    threads: Option<usize>,
    size: usize,
    work: impl FnOnce() -> mess_core::Result<T> + Send,
) -> PyResult<T> {
    if threads == Some(1) || (threads.is_none() && (size < SERIAL_WORK || *DEFAULT_THREADS == 1)) {
        return on_this_thread(py, work);
    }
    let pool = pool(threads)?;
    on_this_thread(py, || pool.install(work))
}

/// Call `work` with the GIL released, on the calling thread.
pub fn on_this_thread<T: Send>(py: Python<'_>, work: impl FnOnce() -> mess_core::Result<T> + Send) -> PyResult<T> {
    match py.detach(|| catch_unwind(AssertUnwindSafe(work))) {
        Ok(result) => result.map_err(to_python),
        Err(_) => Err(panicked()),
    }
}

/// What Python sees of a panic, which is always a bug of ours.
pub fn panicked() -> PyErr {
    PyRuntimeError::new_err("internal error in mess_core (a panic); please report it")
}

pub fn pool(threads: Option<usize>) -> PyResult<Arc<ThreadPool>> {
    let size = threads.unwrap_or(*DEFAULT_THREADS);
    if size == 0 || size > MAX_THREADS {
        return Err(PyValueError::new_err(format!("threads: expected None or 1..={MAX_THREADS}, got {size}")));
    }
    let key = (std::process::id(), size);
    let known = || POOLS.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
    if let Some(pool) = known() {
        return Ok(pool);
    }
    // made outside the lock, which is held for moments only: a fork meanwhile would leave it locked in the child
    let pool = ThreadPoolBuilder::new()
        .num_threads(size)
        .build()
        .map_err(|error| PyRuntimeError::new_err(format!("threads: cannot start {size}: {error}")))?;
    let mut pools = POOLS.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(Arc::clone(pools.entry(key).or_insert_with(|| Arc::new(pool))))
}
