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

/// Below this many numbers read, a second thread costs more than it saves: waking it takes longer than the work, and
/// beside a network it competes with the framework's own threads (measured with torch on 2 cores: 0.3 -> 0.6 ms).
const SERIAL_WORK: usize = 1 << 21;

/// Call `work` on `threads` threads with the GIL released. `None` is all cores (or `RAYON_NUM_THREADS`), but the calling
/// thread alone when `size`, the count of numbers that it reads, is small.
pub fn without_gil<T: Send>(
    py: Python<'_>,
    threads: Option<usize>,
    size: usize,
    work: impl FnOnce() -> mess_core::Result<T> + Send,
) -> PyResult<T> {
    if threads == Some(1) || (threads.is_none() && size < SERIAL_WORK) {
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
    let size = threads.unwrap_or(0); // 0 lets rayon decide
    if threads == Some(0) || size > MAX_THREADS {
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
