//! Binding of `mess_core::confidence`.

use mess_core::confidence as core;
use ndarray::{Array1, Array2, Axis};
use numpy::{PyArray1, PyArray2, ToPyArray, ndarray};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use rayon::prelude::*;

use crate::arrays::{Labels, Logits, LogitsBatch, Map, with_labels};
use crate::run::{on_this_thread, without_gil};

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(confidence_map, module)?)?;
    module.add_function(wrap_pyfunction!(image_confidence, module)?)?;
    module.add_function(wrap_pyfunction!(image_confidence_from_map, module)?)?;
    module.add_function(wrap_pyfunction!(canny, module)?)?;
    module.add_function(wrap_pyfunction!(label_edges, module)?)?;
    module.add_function(wrap_pyfunction!(erode, module)?)?;
    module.add_function(wrap_pyfunction!(dilate, module)?)?;
    module.add_function(wrap_pyfunction!(boundary_mask, module)?)?;
    module.add_function(wrap_pyfunction!(refine_confidence, module)?)
}

fn confidence_kind(name: &str) -> PyResult<core::ConfidenceKind> {
    match name {
        "top1" => Ok(core::ConfidenceKind::Top1),
        "margin" => Ok(core::ConfidenceKind::Margin),
        "entropy" => Ok(core::ConfidenceKind::Entropy),
        _ => Err(PyValueError::new_err(format!("confidence: expected 'top1', 'margin' or 'entropy', got '{name}'"))),
    }
}

fn edge_kind(name: &str) -> PyResult<core::EdgeKind> {
    match name {
        "canny" => Ok(core::EdgeKind::Canny),
        "labels" => Ok(core::EdgeKind::Labels),
        _ => Err(PyValueError::new_err(format!("edges: expected 'canny' or 'labels', got '{name}'"))),
    }
}

fn upsampling(size: Option<(usize, usize)>, align_corners: bool) -> Option<core::Upsampling> {
    size.map(|size| core::Upsampling { size, align_corners })
}

/// Numbers that the policy reads: the last two axes are replaced by `size` when upsampling.
fn output_size<D: ndarray::Dimension>(shape: &D, size: Option<(usize, usize)>) -> usize {
    let shape = shape.slice();
    let (leading, pixels) = shape.split_at(shape.len() - 2);
    let pixels = size.map_or(pixels.iter().product(), |(height, width)| height.saturating_mul(width));
    leading.iter().product::<usize>().saturating_mul(pixels)
}

#[pyfunction]
#[pyo3(signature = (logits, kind, size, align_corners, threads))]
#[allow(clippy::type_complexity)]
fn confidence_map<'py>(
    py: Python<'py>,
    logits: Logits<'py>,
    kind: &str,
    size: Option<(usize, usize)>,
    align_corners: bool,
    threads: Option<usize>,
) -> PyResult<(Bound<'py, PyArray2<f32>>, Bound<'py, PyArray2<i32>>)> {
    let kind = confidence_kind(kind)?;
    let logits = logits.as_array();
    let map =
        without_gil(py, threads, output_size(&logits.raw_dim(), size), || match upsampling(size, align_corners) {
            None => core::confidence_map(logits, kind),
            Some(upsampling) => core::confidence_map(core::upsample_bilinear(logits, upsampling)?.view(), kind),
        })?;
    Ok((map.confidence.to_pyarray(py), map.labels.to_pyarray(py)))
}

/// (B, T) image confidences of logits (B, C, H, W) at T pixel thresholds.
#[pyfunction]
#[pyo3(signature = (logits, pixel_thresholds, output_stride, refine, edges, confidence, size, align_corners, threads))]
#[allow(clippy::too_many_arguments)]
fn image_confidence<'py>(
    py: Python<'py>,
    logits: LogitsBatch<'py>,
    pixel_thresholds: Vec<f32>,
    output_stride: usize,
    refine: bool,
    edges: &str,
    confidence: &str,
    size: Option<(usize, usize)>,
    align_corners: bool,
    threads: Option<usize>,
) -> PyResult<Bound<'py, PyArray2<f64>>> {
    let policy =
        core::Policy { output_stride, refine, edges: edge_kind(edges)?, confidence: confidence_kind(confidence)? };
    let logits = logits.as_array();
    let one_image = |image: usize| {
        let logits = logits.index_axis(Axis(0), image);
        core::image_confidence(logits, &pixel_thresholds, &policy, upsampling(size, align_corners))
    };
    let images = 0..logits.len_of(Axis(0));
    let rows: Vec<Array1<f64>> = without_gil(py, threads, output_size(&logits.raw_dim(), size), || {
        // only inside a pool: outside, rayon would start its own
        if rayon::current_thread_index().is_some() {
            images.into_par_iter().map(one_image).collect()
        } else {
            images.map(one_image).collect()
        }
    })?;
    let mut result = Array2::zeros((rows.len(), pixel_thresholds.len()));
    for (mut row, values) in result.rows_mut().into_iter().zip(rows) {
        row.assign(&values);
    }
    Ok(result.to_pyarray(py))
}

/// (T,) image confidences of one confidence map and label map.
#[pyfunction]
#[pyo3(signature = (confidence, labels, pixel_thresholds, output_stride, refine, edges, threads))]
#[allow(clippy::too_many_arguments)]
fn image_confidence_from_map<'py>(
    py: Python<'py>,
    confidence: Map<'py, f32>,
    labels: Labels<'py>,
    pixel_thresholds: Vec<f32>,
    output_stride: usize,
    refine: bool,
    edges: &str,
    threads: Option<usize>,
) -> PyResult<Bound<'py, PyArray1<f64>>> {
    let policy = core::Policy { output_stride, refine, edges: edge_kind(edges)?, ..core::Policy::default() };
    let confidence = confidence.as_array();
    let values = with_labels!(&labels, labels => without_gil(py, threads, confidence.len(), || {
        core::image_confidence_of_map(confidence, labels, &pixel_thresholds, &policy)
    }))?;
    Ok(values.to_pyarray(py))
}

#[pyfunction]
#[pyo3(signature = (image, low, high, aperture, l2))]
fn canny<'py>(
    py: Python<'py>,
    image: Map<'py, u8>,
    low: f64,
    high: f64,
    aperture: usize,
    l2: bool,
) -> PyResult<Bound<'py, PyArray2<bool>>> {
    let image = image.as_array();
    let settings = core::CannySettings { low, high, aperture, l2 };
    Ok(on_this_thread(py, || core::canny(image, &settings))?.to_pyarray(py))
}

#[pyfunction]
#[pyo3(signature = (labels, edges))]
fn label_edges<'py>(py: Python<'py>, labels: Labels<'py>, edges: &str) -> PyResult<Bound<'py, PyArray2<bool>>> {
    let kind = edge_kind(edges)?;
    let map = with_labels!(&labels, labels => on_this_thread(py, || core::label_edges(labels, kind)))?;
    Ok(map.to_pyarray(py))
}

#[pyfunction]
#[pyo3(signature = (mask, size))]
fn erode<'py>(py: Python<'py>, mask: Map<'py, bool>, size: usize) -> PyResult<Bound<'py, PyArray2<bool>>> {
    let mask = mask.as_array();
    Ok(on_this_thread(py, || core::erode(mask, size))?.to_pyarray(py))
}

#[pyfunction]
#[pyo3(signature = (mask, size))]
fn dilate<'py>(py: Python<'py>, mask: Map<'py, bool>, size: usize) -> PyResult<Bound<'py, PyArray2<bool>>> {
    let mask = mask.as_array();
    Ok(on_this_thread(py, || core::dilate(mask, size))?.to_pyarray(py))
}

#[pyfunction]
#[pyo3(signature = (labels, output_stride, edges))]
fn boundary_mask<'py>(
    py: Python<'py>,
    labels: Labels<'py>,
    output_stride: usize,
    edges: &str,
) -> PyResult<Bound<'py, PyArray2<bool>>> {
    let kind = edge_kind(edges)?;
    let map = with_labels!(&labels, labels => on_this_thread(py, || core::boundary_mask(labels, output_stride, kind)))?;
    Ok(map.to_pyarray(py))
}

#[pyfunction]
#[pyo3(signature = (confidence, mask, window, threads))]
fn refine_confidence<'py>(
    py: Python<'py>,
    confidence: Map<'py, f32>,
    mask: Map<'py, bool>,
    window: usize,
    threads: Option<usize>,
) -> PyResult<Bound<'py, PyArray2<f32>>> {
    let (confidence, mask) = (confidence.as_array(), mask.as_array());
    let work = confidence.len().saturating_mul(window.saturating_mul(window));
    let refined = without_gil(py, threads, work, || core::refine_confidence(confidence, mask, window))?;
    Ok(refined.to_pyarray(py))
}
