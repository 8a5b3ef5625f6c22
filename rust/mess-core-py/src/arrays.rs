//! The NumPy boundary: borrowed views in, results written into arrays that the facade made or the caller gave.

use mess_core::confidence::Logits;
use ndarray::{ArrayView3, ArrayViewD, Axis};
use numpy::{PyReadonlyArray2, PyReadonlyArrayDyn, PyReadwriteArray2, ndarray};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

pub type Map<'py, T> = PyReadonlyArray2<'py, T>;
pub type MapOut<'py, T> = PyReadwriteArray2<'py, T>;

/// Logits (C, H, W) or (B, C, H, W); the 16-bit formats as their bits.
#[derive(FromPyObject)]
pub enum LogitsArray<'py> {
    F32(PyReadonlyArrayDyn<'py, f32>),
    F64(PyReadonlyArrayDyn<'py, f64>),
    Bits16(PyReadonlyArrayDyn<'py, u16>),
}

/// Views of one image each, and whether they came as a batch.
pub struct Images<'a> {
    view: View<'a>,
    pub is_batch: bool,
}

enum View<'a> {
    F32(ArrayViewD<'a, f32>),
    F64(ArrayViewD<'a, f64>),
    F16(ArrayViewD<'a, u16>),
    Bf16(ArrayViewD<'a, u16>),
}

impl LogitsArray<'_> {
    /// The images; `is_bfloat16` says which 16-bit format the bits are.
    pub fn images(&self, is_bfloat16: bool) -> PyResult<Images<'_>> {
        let view = match self {
            Self::F32(array) => View::F32(array.as_array()),
            Self::F64(array) => View::F64(array.as_array()),
            Self::Bits16(array) if is_bfloat16 => View::Bf16(array.as_array()),
            Self::Bits16(array) => View::F16(array.as_array()),
        };
        let images = Images { view, is_batch: false };
        match images.shape().len() {
            3 => Ok(images),
            4 => Ok(Images { is_batch: true, ..images }),
            _ => Err(PyValueError::new_err(format!(
                "logits: expected shape (C, H, W) or (B, C, H, W), got {:?}",
                images.shape()
            ))),
        }
    }
}

impl Images<'_> {
    fn shape(&self) -> &[usize] {
        match &self.view {
            View::F32(view) => view.shape(),
            View::F64(view) => view.shape(),
            View::F16(view) | View::Bf16(view) => view.shape(),
        }
    }

    /// How many images.
    pub fn len(&self) -> usize {
        if self.is_batch { self.shape()[0] } else { 1 }
    }

    /// Numbers that the policy reads of all images, the last two axes replaced by `size` when upsampling.
    pub fn num_read(&self, size: Option<(usize, usize)>) -> usize {
        let (leading, pixels) = self.shape().split_at(self.shape().len() - 2);
        let pixels = size.map_or(pixels.iter().product(), |(height, width)| height.saturating_mul(width));
        leading.iter().product::<usize>().saturating_mul(pixels)
    }

    /// Image `index`, which must be below `len`.
    pub fn image(&self, index: usize) -> mess_core::Result<Logits<'_>> {
        Ok(match &self.view {
            View::F32(view) => Logits::F32(one(view, self.is_batch, index)?),
            View::F64(view) => Logits::F64(one(view, self.is_batch, index)?),
            View::F16(view) => Logits::F16(one(view, self.is_batch, index)?),
            View::Bf16(view) => Logits::Bf16(one(view, self.is_batch, index)?),
        })
    }
}

fn one<'a, T>(view: &'a ArrayViewD<'_, T>, is_batch: bool, index: usize) -> mess_core::Result<ArrayView3<'a, T>> {
    let image = if is_batch { view.index_axis(Axis(0), index) } else { view.view() };
    let got = format!("{:?}", image.shape());
    image.into_dimensionality().map_err(|_| mess_core::Error::Value {
        argument: "logits",
        expected: "three axes an image".into(),
        got,
    })
}

/// A label map (H, W) of any integer type.
#[derive(FromPyObject)]
pub enum Labels<'py> {
    U8(PyReadonlyArray2<'py, u8>),
    I64(PyReadonlyArray2<'py, i64>),
    I32(PyReadonlyArray2<'py, i32>),
    U16(PyReadonlyArray2<'py, u16>),
    I16(PyReadonlyArray2<'py, i16>),
    I8(PyReadonlyArray2<'py, i8>),
    U32(PyReadonlyArray2<'py, u32>),
    U64(PyReadonlyArray2<'py, u64>),
}

/// Run the same expression on the view of whichever label map.
macro_rules! with_labels {
    ($labels:expr, $view:ident => $body:expr) => {
        with_labels!(@ $labels, $view => $body; U8 I64 I32 U16 I16 I8 U32 U64)
    };
    (@ $labels:expr, $view:ident => $body:expr; $($kind:ident)*) => {
        match $labels {
            $(crate::arrays::Labels::$kind(array) => {
                let $view = array.as_array();
                $body
            })*
        }
    };
}
pub(crate) use with_labels;

/// A label map to be written: uint8 for at most 256 classes, else int32.
#[derive(FromPyObject)]
pub enum LabelsOut<'py> {
    U8(PyReadwriteArray2<'py, u8>),
    I32(PyReadwriteArray2<'py, i32>),
}
