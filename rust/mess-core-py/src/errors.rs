//! Core errors as Python exceptions.

use mess_core::Error;
use pyo3::PyErr;
use pyo3::exceptions::PyValueError;

pub fn to_python(error: Error) -> PyErr {
    match error {
        Error::Value { .. } => PyValueError::new_err(error.to_string()),
    }
}
