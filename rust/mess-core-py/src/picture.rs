//! Binding of `mess_core::picture`. Results are written into arrays that come from the facade.

use mess_core::picture as core;
use numpy::{PyReadonlyArray3, PyReadwriteArray3};
use pyo3::prelude::*;

use crate::isa::isa;
use crate::run::on_this_thread;

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(network_input, module)?)
}

/// The network's input of one picture, written into an array of its size.
#[pyfunction]
#[pyo3(signature = (image, mean, std, out))]
fn network_input(
    py: Python<'_>,
    image: PyReadonlyArray3<'_, u8>,
    mean: [f64; 3],
    std: [f64; 3],
    mut out: PyReadwriteArray3<'_, f32>,
) -> PyResult<()> {
    let isa = isa()?;
    let (image, out) = (image.as_array(), out.as_array_mut());
    on_this_thread(py, || core::network_input_into(image, mean, std, out, isa))
}
