//! bfloat16 through DLPack. NumPy has no such type and refuses it; every other type comes through `numpy.from_dlpack`.
//!
//! The layout of the structures is DLPack's ABI before version 1.0, which producers give when no newer one is asked for:
//! <https://dmlc.github.io/dlpack/latest/c_api.html>. With `arrays`, the only `unsafe` of the binding.

use std::ffi::{CStr, c_void};

use ndarray::{ArrayView, IxDyn, ShapeBuilder};
use numpy::{PyArray, PyArrayDyn, ndarray};
use pyo3::exceptions::{PyBufferError, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::PyCapsule;

const NAME: &CStr = c"dltensor";
/// And memory that is pinned for CUDA or ROCm.
const CPU: [i32; 3] = [1, 3, 11];
const BFLOAT: u8 = 4;

#[repr(C)]
struct Tensor {
    data: *mut c_void,
    device_type: i32,
    device_id: i32,
    num_axes: i32,
    type_code: u8,
    bits: u8,
    lanes: u16,
    shape: *const i64,
    strides: *const i64,
    byte_offset: u64,
}

/// The bits of a CPU bfloat16 tensor as uint16 of the same shape and strides, without a copy. The capsule, never marked as
/// consumed, is the array's base: it frees the tensor when the array is gone.
#[pyfunction]
#[allow(unsafe_code)]
pub fn bfloat16_bits<'py>(capsule: Bound<'py, PyCapsule>) -> PyResult<Bound<'py, PyArrayDyn<u16>>> {
    let pointer = capsule.pointer_checked(Some(NAME))?.as_ptr().cast::<Tensor>();
    // SAFETY: a capsule of this name holds a DLManagedTensor, whose first member is the tensor; it is alive with the capsule.
    let tensor = unsafe { &*pointer };
    let is_bfloat = (tensor.type_code, tensor.bits, tensor.lanes) == (BFLOAT, 16, 1);
    if !CPU.contains(&tensor.device_type) || !is_bfloat {
        return Err(PyTypeError::new_err(format!(
            "expected a bfloat16 tensor on the CPU, got DLPack device {}, type code {}, {} bits, {} lanes",
            tensor.device_type, tensor.type_code, tensor.bits, tensor.lanes
        )));
    }
    let num_axes = usize::try_from(tensor.num_axes).map_err(|_| malformed())?;
    let axes = |pointer: *const i64| {
        // SAFETY: shape and strides hold one number an axis.
        (0..num_axes).map(move |axis| unsafe { *pointer.add(axis) })
    };
    let shape: Vec<usize> =
        axes(tensor.shape).map(|n| usize::try_from(n).map_err(|_| malformed())).collect::<PyResult<_>>()?;
    let mut strides: Vec<usize> = vec![1; num_axes];
    if tensor.strides.is_null() {
        for axis in (1..num_axes).rev() {
            strides[axis - 1] = strides[axis] * shape[axis];
        }
    } else {
        strides = axes(tensor.strides).map(|n| usize::try_from(n).map_err(|_| malformed())).collect::<PyResult<_>>()?;
    }
    let offset = usize::try_from(tensor.byte_offset).map_err(|_| malformed())?;
    let data = tensor.data.cast::<u8>().wrapping_add(offset).cast::<u16>().cast_const();
    if shape.contains(&0) {
        return Ok(PyArray::zeros(capsule.py(), IxDyn(&shape), false));
    }
    if data.is_null() || !data.is_aligned() {
        return Err(PyBufferError::new_err("expected a tensor whose data is aligned"));
    }
    // SAFETY: the producer vouches for shape and strides of its own memory, which lives as long as the capsule; it is read
    // only while no other thread writes it, as the package's documentation asks.
    let view = unsafe { ArrayView::from_shape_ptr(IxDyn(&shape).strides(IxDyn(&strides)), data) };
    // SAFETY: the capsule keeps the memory alive.
    Ok(unsafe { PyArray::borrow_from_array(&view, capsule.into_any()) })
}

fn malformed() -> PyErr {
    PyBufferError::new_err("the DLPack tensor has a negative shape, stride or offset")
}
