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

/// Call `work` on `threads` threads (`None`: all cores, or `RAYON_NUM_THREADS`) with the GIL released.
pub fn without_gil<T: Send>(
    py: Python<'_>,
    threads: Option<usize>,
    work: impl FnOnce() -> mess_core::Result<T> + Send,
) -> PyResult<T> {
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
    let size = threads.unwrap_or(0); // 0 lets rayon decide
    if threads == Some(0) || size > MAX_THREADS {
        return Err(PyValueError::new_err(format!("threads: expected None or 1..={MAX_THREADS}, got {size}")));
    }
    let mut pools = POOLS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(pool) = pools.get(&(std::process::id(), size)) {
        return Ok(Arc::clone(pool));
    }
    let pool = ThreadPoolBuilder::new()
        .num_threads(size)
        .build()
        .map_err(|error| PyRuntimeError::new_err(format!("threads: cannot start {size}: {error}")))?;
    let pool = Arc::new(pool);
    pools.insert((std::process::id(), size), Arc::clone(&pool));
    Ok(pool)
}
