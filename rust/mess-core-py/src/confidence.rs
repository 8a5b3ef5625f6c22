//! Binding of `mess_core::confidence`. Results are written into arrays that come from the facade.

use std::sync::{Mutex, PoisonError};

use mess_core::confidence as core;
use numpy::IntoPyArray;
use numpy::ndarray::Array2;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use rayon::prelude::*;

use crate::arrays::{Images, Labels, LabelsOut, LogitsArray, Map, MapOut, with_labels};
use crate::isa::isa;
use crate::run::{on_this_thread, without_gil};

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Workspace>()?;
    module.add_function(wrap_pyfunction!(confidence_map, module)?)?;
    module.add_function(wrap_pyfunction!(label_map, module)?)?;
    module.add_function(wrap_pyfunction!(image_confidence, module)?)?;
    module.add_function(wrap_pyfunction!(should_exit, module)?)?;
    module.add_function(wrap_pyfunction!(image_confidence_from_map, module)?)?;
    module.add_function(wrap_pyfunction!(canny, module)?)?;
    module.add_function(wrap_pyfunction!(label_edges, module)?)?;
    module.add_function(wrap_pyfunction!(erode, module)?)?;
    module.add_function(wrap_pyfunction!(dilate, module)?)?;
    module.add_function(wrap_pyfunction!(boundary_mask, module)?)?;
    module.add_function(wrap_pyfunction!(refine_confidence, module)?)
}

/// Buffers that calls reuse, so that they allocate nothing once these have grown. Threads may share one: each image worked
/// on at a time has buffers of its own.
#[pyclass(frozen, module = "mess_core")]
#[derive(Default)]
pub struct Workspace(Mutex<Vec<core::Workspace>>);

#[pymethods]
impl Workspace {
    #[new]
    fn new() -> Self {
        Self::default()
    }
}

impl Workspace {
    /// Call `work` with buffers that no other thread uses.
    fn with<T>(workspace: Option<&Self>, work: impl FnOnce(&mut core::Workspace) -> T) -> T {
        let lock = |workspace: &Self, change: &mut dyn FnMut(&mut Vec<core::Workspace>)| {
            change(&mut workspace.0.lock().unwrap_or_else(PoisonError::into_inner));
        };
        let mut buffers = None;
        if let Some(workspace) = workspace {
            lock(workspace, &mut |free| buffers = free.pop());
        }
        let mut buffers = buffers.unwrap_or_default();
        let result = work(&mut buffers);
        if let Some(workspace) = workspace {
            let mut buffers = Some(buffers);
            lock(workspace, &mut |free| free.extend(buffers.take()));
        }
        result
    }
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

fn policy(output_stride: usize, refine: bool, edges: &str, confidence: &str) -> PyResult<core::Policy> {
    Ok(core::Policy { output_stride, refine, edges: edge_kind(edges)?, confidence: confidence_kind(confidence)? })
}

fn upsampling(size: Option<(usize, usize)>, align_corners: bool) -> Option<core::Upsampling> {
    size.map(|size| core::Upsampling { size, align_corners })
}

/// Confidence and labels of one image, written into arrays of the output's size.
#[pyfunction]
#[pyo3(signature = (logits, is_bfloat16, kind, size, align_corners, confidence, labels, workspace, threads))]
#[allow(clippy::too_many_arguments)]
fn confidence_map(
    py: Python<'_>,
    logits: LogitsArray<'_>,
    is_bfloat16: bool,
    kind: &str,
    size: Option<(usize, usize)>,
    align_corners: bool,
    mut confidence: MapOut<'_, f32>,
    labels: LabelsOut<'_>,
    workspace: Option<&Workspace>,
    threads: Option<usize>,
) -> PyResult<()> {
    let (kind, images) = (confidence_kind(kind)?, logits.images(is_bfloat16)?);
    let (upsampling, isa) = (upsampling(size, align_corners), isa()?);
    let confidence = confidence.as_array_mut();
    macro_rules! write {
        ($labels:expr) => {{
            let labels = $labels.as_array_mut();
            without_gil(py, threads, images.num_read(size), || {
                let image = images.image(0)?;
                Workspace::with(workspace, |workspace| {
                    let plan = workspace.plan();
                    core::confidence_map_into(&image, kind, upsampling, confidence, labels, plan, isa)
                })
            })
        }};
    }
    match labels {
        LabelsOut::U8(mut labels) => write!(labels),
        LabelsOut::I32(mut labels) => write!(labels),
    }
}

/// Labels of one image, written into an array of the output's size.
#[pyfunction]
#[pyo3(signature = (logits, is_bfloat16, size, align_corners, labels, workspace, threads))]
#[allow(clippy::too_many_arguments)]
fn label_map(
    py: Python<'_>,
    logits: LogitsArray<'_>,
    is_bfloat16: bool,
    size: Option<(usize, usize)>,
    align_corners: bool,
    labels: LabelsOut<'_>,
    workspace: Option<&Workspace>,
    threads: Option<usize>,
) -> PyResult<()> {
    let images = logits.images(is_bfloat16)?;
    let (upsampling, isa) = (upsampling(size, align_corners), isa()?);
    macro_rules! write {
        ($labels:expr) => {{
            let labels = $labels.as_array_mut();
            without_gil(py, threads, images.num_read(size), || {
                let image = images.image(0)?;
                Workspace::with(workspace, |workspace| {
                    core::label_map_into(&image, upsampling, labels, workspace.plan(), isa)
                })
            })
        }};
    }
    match labels {
        LabelsOut::U8(mut labels) => write!(labels),
        LabelsOut::I32(mut labels) => write!(labels),
    }
}

/// Image confidences: a float for one image and one threshold, otherwise an array without the axes that were not given.
#[pyfunction]
#[pyo3(signature = (
    logits, is_bfloat16, pixel_thresholds, is_single, output_stride, refine, edges, confidence, size, align_corners,
    workspace, threads
))]
#[allow(clippy::too_many_arguments, clippy::fn_params_excessive_bools)]
fn image_confidence<'py>(
    py: Python<'py>,
    logits: LogitsArray<'py>,
    is_bfloat16: bool,
    pixel_thresholds: Vec<f32>,
    is_single: bool,
    output_stride: usize,
    refine: bool,
    edges: &str,
    confidence: &str,
    size: Option<(usize, usize)>,
    align_corners: bool,
    workspace: Option<&Workspace>,
    threads: Option<usize>,
) -> PyResult<Bound<'py, PyAny>> {
    let policy = policy(output_stride, refine, edges, confidence)?;
    let (images, upsampling, isa) = (logits.images(is_bfloat16)?, upsampling(size, align_corners), isa()?);
    let values = without_gil(py, threads, images.num_read(size), || {
        each_image(&images, workspace, |image, workspace| {
            core::image_confidence(image, &pixel_thresholds, &policy, upsampling, workspace, isa)
        })
    })?;
    shaped(py, values, images.is_batch, is_single)
}

/// Whether each image leaves: a bool for one image, else (B,) bool.
#[pyfunction]
#[pyo3(signature = (
    logits, is_bfloat16, pixel_threshold, image_threshold, output_stride, refine, edges, confidence, size, align_corners,
    workspace, threads
))]
#[allow(clippy::too_many_arguments, clippy::fn_params_excessive_bools)]
fn should_exit<'py>(
    py: Python<'py>,
    logits: LogitsArray<'py>,
    is_bfloat16: bool,
    pixel_threshold: f32,
    image_threshold: f64,
    output_stride: usize,
    refine: bool,
    edges: &str,
    confidence: &str,
    size: Option<(usize, usize)>,
    align_corners: bool,
    workspace: Option<&Workspace>,
    threads: Option<usize>,
) -> PyResult<Bound<'py, PyAny>> {
    let policy = policy(output_stride, refine, edges, confidence)?;
    let (images, upsampling, isa) = (logits.images(is_bfloat16)?, upsampling(size, align_corners), isa()?);
    let leaves = without_gil(py, threads, images.num_read(size), || {
        each_image(&images, workspace, |image, workspace| {
            core::should_exit(image, pixel_threshold, image_threshold, &policy, upsampling, workspace, isa)
        })
    })?;
    if images.is_batch {
        return Ok(leaves.into_pyarray(py).into_any());
    }
    Ok(leaves[0].into_pyobject(py)?.to_owned().into_any())
}

/// The results of `one` for each image, on the pool's threads when in one: outside, rayon would start its own.
fn each_image<T: Send>(
    images: &Images<'_>,
    workspace: Option<&Workspace>,
    one: impl Fn(&core::Logits<'_>, &mut core::Workspace) -> mess_core::Result<T> + Send + Sync,
) -> mess_core::Result<Vec<T>> {
    let one = |index| {
        let image = images.image(index)?;
        Workspace::with(workspace, |workspace| one(&image, workspace))
    };
    if rayon::current_thread_index().is_some() && images.len() > 1 {
        (0..images.len()).into_par_iter().map(one).collect()
    } else {
        (0..images.len()).map(one).collect()
    }
}

/// (B, T) values without the axes that the caller did not give.
fn shaped(py: Python<'_>, values: Vec<Vec<f64>>, is_batch: bool, is_single: bool) -> PyResult<Bound<'_, PyAny>> {
    let (images, thresholds) = (values.len(), values.first().map_or(0, Vec::len));
    let flat: Vec<f64> = values.into_iter().flatten().collect();
    if is_single && !is_batch {
        return Ok(flat[0].into_pyobject(py)?.into_any());
    }
    if is_single || !is_batch {
        return Ok(flat.into_pyarray(py).into_any());
    }
    let table = Array2::from_shape_vec((images, thresholds), flat);
    Ok(table.map_err(|error| PyValueError::new_err(error.to_string()))?.into_pyarray(py).into_any())
}

/// (T,) image confidences of one confidence map and label map.
#[pyfunction]
#[pyo3(signature = (confidence, labels, pixel_thresholds, output_stride, refine, edges, workspace, threads))]
#[allow(clippy::too_many_arguments)]
fn image_confidence_from_map(
    py: Python<'_>,
    confidence: Map<'_, f32>,
    labels: Labels<'_>,
    pixel_thresholds: Vec<f32>,
    output_stride: usize,
    refine: bool,
    edges: &str,
    workspace: Option<&Workspace>,
    threads: Option<usize>,
) -> PyResult<Vec<f64>> {
    let policy = core::Policy { output_stride, refine, edges: edge_kind(edges)?, ..core::Policy::default() };
    let (confidence, isa) = (confidence.as_array(), isa()?);
    with_labels!(&labels, labels => without_gil(py, threads, confidence.len(), || {
        Workspace::with(workspace, |workspace| {
            core::image_confidence_of_map(confidence, labels, &pixel_thresholds, &policy, workspace, isa)
        })
    }))
}

#[pyfunction]
#[pyo3(signature = (image, low, high, aperture, l2, out))]
fn canny(
    py: Python<'_>,
    image: Map<'_, u8>,
    low: f64,
    high: f64,
    aperture: usize,
    l2: bool,
    mut out: MapOut<'_, u8>,
) -> PyResult<()> {
    let (image, out, isa) = (image.as_array(), out.as_array_mut(), isa()?);
    let settings = core::CannySettings { low, high, aperture, l2 };
    on_this_thread(py, || core::canny_into(image, &settings, out, isa))
}

#[pyfunction]
#[pyo3(signature = (labels, edges, out))]
fn label_edges(py: Python<'_>, labels: Labels<'_>, edges: &str, mut out: MapOut<'_, u8>) -> PyResult<()> {
    let (kind, out, isa) = (edge_kind(edges)?, out.as_array_mut(), isa()?);
    with_labels!(&labels, labels => on_this_thread(py, || core::label_edges_into(labels, kind, out, isa)))
}

#[pyfunction]
#[pyo3(signature = (mask, size, out))]
fn erode(py: Python<'_>, mask: Map<'_, u8>, size: usize, out: MapOut<'_, u8>) -> PyResult<()> {
    morphology(py, &mask, size, core::Morphology::Erode, out)
}

#[pyfunction]
#[pyo3(signature = (mask, size, out))]
fn dilate(py: Python<'_>, mask: Map<'_, u8>, size: usize, out: MapOut<'_, u8>) -> PyResult<()> {
    morphology(py, &mask, size, core::Morphology::Dilate, out)
}

fn morphology(
    py: Python<'_>,
    mask: &Map<'_, u8>,
    size: usize,
    kind: core::Morphology,
    mut out: MapOut<'_, u8>,
) -> PyResult<()> {
    let (mask, out, isa) = (mask.as_array(), out.as_array_mut(), isa()?);
    on_this_thread(py, || core::morphology_into(mask, size, kind, out, isa))
}

#[pyfunction]
#[pyo3(signature = (labels, output_stride, edges, out))]
fn boundary_mask(
    py: Python<'_>,
    labels: Labels<'_>,
    output_stride: usize,
    edges: &str,
    mut out: MapOut<'_, u8>,
) -> PyResult<()> {
    let (kind, out, isa) = (edge_kind(edges)?, out.as_array_mut(), isa()?);
    with_labels!(&labels, labels => on_this_thread(py, || {
        core::boundary_mask_into(labels, output_stride, kind, out, isa)
    }))
}

#[pyfunction]
#[pyo3(signature = (confidence, mask, window, out, threads))]
fn refine_confidence(
    py: Python<'_>,
    confidence: Map<'_, f32>,
    mask: Map<'_, u8>,
    window: usize,
    mut out: MapOut<'_, f32>,
    threads: Option<usize>,
) -> PyResult<()> {
    let (confidence, mask, isa) = (confidence.as_array(), mask.as_array(), isa()?);
    let out = out.as_array_mut();
    let work = confidence.len().saturating_mul(window);
    without_gil(py, threads, work, || core::refine_confidence_into(confidence, mask, window, out, isa))
}
