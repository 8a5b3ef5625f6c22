//! The instruction set that calls use: the best of the machine, `MESS_CORE_ISA`, or what a test set.

use std::sync::atomic::{AtomicU8, Ordering};

use mess_core::Isa;
use pyo3::prelude::*;

use crate::errors::to_python;

/// 0: not chosen yet; else one more than the place in `Isa::ALL`.
static CHOSEN: AtomicU8 = AtomicU8::new(0);

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    isa()?; // a wrong MESS_CORE_ISA is said at import
    module.add_function(wrap_pyfunction!(instruction_set, module)?)?;
    module.add_function(wrap_pyfunction!(instruction_sets, module)?)?;
    module.add_function(wrap_pyfunction!(set_instruction_set, module)?)
}

/// The level that a call uses.
pub fn isa() -> PyResult<Isa> {
    if let Some(isa) = usize::from(CHOSEN.load(Ordering::Relaxed)).checked_sub(1).and_then(|i| Isa::ALL.get(i)) {
        return Ok(*isa);
    }
    let isa = match std::env::var("MESS_CORE_ISA") {
        Ok(name) if !name.is_empty() => Isa::from_name(&name).map_err(to_python).map_err(|error| {
            pyo3::exceptions::PyValueError::new_err(format!("environment variable MESS_CORE_ISA: {error}"))
        })?,
        _ => Isa::best(),
    };
    choose(isa);
    Ok(isa)
}

fn choose(isa: Isa) {
    let place = Isa::ALL.iter().position(|known| *known == isa).unwrap_or(0);
    CHOSEN.store(place as u8 + 1, Ordering::Relaxed);
}

/// Name of the level in use.
#[pyfunction]
fn instruction_set() -> PyResult<&'static str> {
    Ok(isa()?.name())
}

/// Names of the levels of this machine, slowest first.
#[pyfunction]
fn instruction_sets() -> Vec<&'static str> {
    Isa::available().map(Isa::name).collect()
}

/// Use another level in this process from now on. Results do not depend on it.
#[pyfunction]
#[pyo3(signature = (name))]
fn set_instruction_set(name: &str) -> PyResult<()> {
    choose(Isa::from_name(name).map_err(to_python)?);
    Ok(())
}
