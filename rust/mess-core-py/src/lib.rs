//! Python binding of `mess-core`: no arithmetic here. `arrays` (and `dlpack`) is the only NumPy boundary, `run` the only place that
//! releases the GIL and starts threads, `errors` the only conversion of errors; then one file per module of the core.
//! The public, typed face is the Python package `mess_core`, which checks arguments and makes result arrays.

mod arrays;
mod confidence;
mod dlpack;
mod errors;
mod isa;
mod picture;
mod pieces;
mod run;
mod search;

use pyo3::prelude::*;

#[pymodule]
fn _mess_core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add("commit", option_env!("MESS_COMMIT"))?; // set where releases are built
    module.add("target", format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS))?;
    module.add("is_debug", cfg!(debug_assertions))?;
    module.add_function(wrap_pyfunction!(run::default_threads, module)?)?;
    run::check_environment()?;
    isa::register(module)?;
    module.add_function(wrap_pyfunction!(dlpack::bfloat16_bits, module)?)?;
    confidence::register(module)?;
    picture::register(module)?;
    search::register(module)?;
    pieces::register(module)
}
