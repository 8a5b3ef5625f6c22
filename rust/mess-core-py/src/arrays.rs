//! The NumPy boundary: borrowed read-only views in, fresh arrays out.

use numpy::{PyReadonlyArray2, PyReadonlyArray3, PyReadonlyArray4};
use pyo3::prelude::*;

pub type Logits<'py> = PyReadonlyArray3<'py, f32>;
pub type LogitsBatch<'py> = PyReadonlyArray4<'py, f32>;
pub type Map<'py, T> = PyReadonlyArray2<'py, T>;

/// A label map (H, W) as uint8 or int32; the facade converts everything else to one of them.
#[derive(FromPyObject)]
pub enum Labels<'py> {
    Narrow(PyReadonlyArray2<'py, u8>),
    Wide(PyReadonlyArray2<'py, i32>),
}

/// Run the same expression on the view of either kind of label map.
macro_rules! with_labels {
    ($labels:expr, $view:ident => $body:expr) => {
        match $labels {
            crate::arrays::Labels::Narrow(array) => {
                let $view = array.as_array();
                $body
            }
            crate::arrays::Labels::Wide(array) => {
                let $view = array.as_array();
                $body
            }
        }
    };
}
pub(crate) use with_labels;
