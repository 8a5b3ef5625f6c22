//! Bilinear upsampling of logits to the input's size, fused into whatever reads the pixels: no full-size logits exist.
//!
//! Contract
//! 1. Input (C, h, w), output (C, H, W); h, w, H, W >= 1. Downsampling works too (no antialiasing).
//! 2. As in PyTorch: align_corners false puts output pixel i at (i + 0.5) h / H - 0.5, true at i (h - 1) / (H - 1)
//!    (0 when H = 1); a pixel beyond the first or last row or column has the values of that one.
//! 3. Each value is float32: the two rows are blended, a + wy (b - a), then the two columns in the same way. Equal to
//!    `torch.nn.functional.interpolate` within 1e-6 of the largest magnitude among the four neighbours.
//! 4. -infinity counts as -1e37, so that it stays impossible instead of becoming NaN where its weight is 0. A NaN or
//!    +infinity makes every pixel whose four neighbours include it undefined.
//!
//! How the pixels are computed is in [`super::band`]: pixels between the same two columns of nodes form a cell.

use std::ops::Range;

use ndarray::ArrayView3;

use super::MAX_PIXELS;
use super::cells::{IMPOSSIBLE, Limits, NO_ODDS, PADDING, SureNodes, UNSURE};
use super::decide::odds;
use super::logits::{Dense, F32, Format, Logits, with_dense};
use super::pixel::Measure;
use super::scratch::{room, with_scratch};
use crate::error::{Error, Result};
use crate::isa::{Isa, Kernel};

/// Target of an upsampling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Upsampling {
    /// Height and width of the output in pixels.
    pub size: (usize, usize),
    /// PyTorch's `align_corners`: whether corner pixels map to corner pixels.
    pub align_corners: bool,
}

impl Upsampling {
    /// The target size, if it can be reached from these logits.
    pub(crate) fn checked(self, logits: &Logits<'_>) -> Result<(usize, usize)> {
        let (_, h, w) = logits.dim();
        let (height, width) = self.size;
        if height == 0 || width == 0 {
            return Err(Error::value("size", "at least one pixel", format!("({height}, {width})")));
        }
        if h == 0 || w == 0 {
            return Err(Error::value("logits", "at least one pixel", format!("shape {:?}", logits.dim())));
        }
        Ok((height, width))
    }
}

/// No cell is longer; longer runs of pixels between the same nodes are several cells.
const MAX_PHASES: usize = 64;

/// Where an output row or column lies between two nodes.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Tap {
    pub low: u32,
    pub high: u32,
    pub weight: f32,
}

/// Output columns `start..end`, between nodes `low` and `high`.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cell {
    pub low: u32,
    pub high: u32,
    pub start: u32,
    pub end: u32,
}

/// Logits to be upsampled, and what is known before any pixel is computed. Buffers are kept from call to call.
#[derive(Debug, Default)]
pub struct Upsampled {
    pub(crate) shape: (usize, usize, usize),
    pub(crate) geometry: Option<(usize, usize, Upsampling)>,
    /// (C, h, w) float32, then [`PADDING`] zeros.
    pub(crate) nodes: Vec<f32>,
    pub(crate) rows: Vec<Tap>,
    pub(crate) cells: Vec<Cell>,
    /// Cells between one pair of neighbours after the other.
    pub(crate) even: Range<usize>,
    /// The first of those, as far as all are as long as the longest cell.
    pub(crate) full: Range<usize>,
    /// Pixels of the longest cell.
    pub(crate) num_phases: usize,
    /// (num_phases, cells): weight of the right node.
    pub(crate) weights: Vec<f32>,
    /// Nodes a pixel, downwards.
    pub(crate) pace: f32,
    /// None when confidences are wanted, not decisions or labels, and where roundings are too large for any.
    pub(crate) limits: Option<Limits>,
    /// (h, w): the class that surely passes, or `UNSURE`. Empty when no decision is wanted or possible.
    sure: Vec<i32>,
}

impl Upsampled {
    pub(crate) fn prepare(
        &mut self,
        logits: &Logits<'_>,
        upsampling: Upsampling,
        measure: &Measure,
        isa: Isa,
    ) -> Result<()> {
        upsampling.checked(logits)?;
        self.shape = logits.dim();
        let (_, h, w) = self.shape;
        if self.geometry != Some((h, w, upsampling)) {
            self.set_geometry(h, w, upsampling);
        }
        let nodes = &mut self.nodes;
        let (classes, rows, columns) = self.shape;
        let refused = || Error::value("logits", "classes and pixels that fit into memory", format!("{:?}", self.shape));
        let len = classes.checked_mul(rows).and_then(|n| n.checked_mul(columns));
        let len = len.filter(|len| *len <= MAX_PIXELS).ok_or_else(refused)?;
        nodes.try_reserve((len + PADDING).saturating_sub(nodes.len())).map_err(|_| refused())?;
        let scale = with_dense!(logits, dense => isa.run(CopyNodes { dense: &dense, nodes }));
        self.sure.clear();
        self.limits = None;
        let odds = match measure {
            Measure::Top1AtLeast(threshold) => Some(odds(*threshold)),
            Measure::Label => Some(NO_ODDS),
            Measure::Confidence(_) => None,
        };
        if let Some(odds) = odds {
            // three blends round six times each operand at most: a pixel's logit is off by this or less
            self.limits = Limits::new(odds, self.shape, 18.0 * (f32::EPSILON / 2.0) * scale);
        }
        if let (Some(limits), Measure::Top1AtLeast(_)) = (self.limits, measure) {
            self.sure.resize(h * w, UNSURE);
            let view = ArrayView3::from_shape(self.shape, &self.nodes[..self.nodes.len() - PADDING])
                .map_err(|error| Error::value("logits", "a shape that fits", error))?;
            let (nodes, sure) = (Dense::<F32>::new(view), &mut self.sure[..]);
            with_scratch(|scratch| isa.run(SureNodes { nodes: &nodes, limits, sure, scratch }));
        }
        Ok(())
    }

    fn set_geometry(&mut self, h: usize, w: usize, upsampling: Upsampling) {
        let (height, width) = upsampling.size;
        self.geometry = Some((h, w, upsampling));
        self.pace = pace(h, height, upsampling.align_corners);
        self.rows.clear();
        self.rows.extend((0..height).map(|i| tap(i, h, height, upsampling.align_corners)));
        self.cells.clear();
        for column in 0..width {
            let Tap { low, high, .. } = tap(column, w, width, upsampling.align_corners);
            let end = column as u32 + 1;
            match self.cells.last_mut() {
                Some(cell) if (cell.low, cell.high) == (low, high) && (end - cell.start) as usize <= MAX_PHASES => {
                    cell.end = end;
                }
                _ => self.cells.push(Cell { low, high, start: column as u32, end }),
            }
        }
        let start = self.cells.iter().position(|cell| cell.high > cell.low).unwrap_or(0);
        let even = self.cells[start..].iter().enumerate();
        let from = self.cells[start].low;
        let count = even.take_while(|(i, cell)| cell.low == from + *i as u32 && cell.high > cell.low).count();
        self.even = start..start + count;
        self.num_phases = self.cells.iter().map(|cell| (cell.end - cell.start) as usize).max().unwrap_or(0);
        let is_full = |cell: &&Cell| (cell.end - cell.start) as usize == self.num_phases;
        self.full = start..start + self.cells[self.even.clone()].iter().take_while(is_full).count();
        self.weights.clear();
        for phase in 0..self.num_phases {
            self.weights.extend(self.cells.iter().map(|cell| {
                let column = (cell.start as usize + phase).min(cell.end as usize - 1);
                tap(column, w, width, upsampling.align_corners).weight
            }));
        }
    }

    /// The class of a cell whose four nodes surely pass with it.
    #[inline(always)]
    pub(crate) fn sure_class(&self, row: Tap, cell: &Cell) -> Option<i32> {
        let w = self.shape.2;
        let at = |row: u32, column: u32| self.sure[row as usize * w + column as usize];
        if self.sure.is_empty() {
            return None;
        }
        let class = at(row.low, cell.low);
        let agree =
            at(row.low, cell.high) == class && at(row.high, cell.low) == class && at(row.high, cell.high) == class;
        (class != UNSURE && agree).then_some(class)
    }
}

/// Nodes a pixel.
fn pace(input: usize, output: usize, align_corners: bool) -> f32 {
    match (align_corners, output) {
        (true, 1) => 0.0,
        (true, _) => (input - 1) as f32 / (output - 1) as f32,
        (false, _) => input as f32 / output as f32,
    }
}

fn tap(index: usize, input: usize, output: usize, align_corners: bool) -> Tap {
    let scale = pace(input, output, align_corners);
    let position = if align_corners { scale * index as f32 } else { scale * (index as f32 + 0.5) - 0.5 };
    if position < 0.0 {
        return Tap::default(); // before the first node: a cell of its own, as beyond the last one
    }
    let low = (position as usize).min(input - 1);
    let high = (low + 1).min(input - 1);
    let weight = if high == low { 0.0 } else { (position - low as f32).clamp(0.0, 1.0) };
    Tap { low: low as u32, high: high as u32, weight }
}

/// Bring the nodes into float32 (C, h, w); the largest magnitude of a possible one (of NaN: any).
struct CopyNodes<'p, 'a, F: Format> {
    dense: &'p Dense<'a, F>,
    nodes: &'p mut Vec<f32>,
}

impl<F: Format> Kernel for CopyNodes<'_, '_, F> {
    type Output = f32;
    #[inline(always)]
    fn run(self) -> f32 {
        let (num_classes, h, w) = self.dense.dim();
        let len = num_classes * h * w;
        let nodes = room(self.nodes, len + PADDING);
        self.dense.copy_to(&mut nodes[..len]);
        nodes[len..].fill(0.0);
        let mut most = [0f32; PADDING];
        // the last lanes are partly padding
        for lanes in nodes.as_chunks_mut::<PADDING>().0 {
            for (y, most) in lanes.iter_mut().zip(&mut most) {
                *y = if *y < IMPOSSIBLE { IMPOSSIBLE } else { *y };
                let size = if *y > IMPOSSIBLE { y.abs() } else { 0.0 };
                *most = if size > *most { size } else { *most };
            }
        }
        self.nodes.truncate(len + PADDING);
        most.into_iter().fold(0.0, f32::max)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::{ConfidenceKind, confidence_map};
    use super::*;
    use ndarray::{Array3, array};

    /// Upsampled values of a one-class picture, read off the margin to a class at 0: sigmoid(y) of labels 0.
    fn upsampled(row: [f32; 2], width: usize, align_corners: bool) -> Vec<f32> {
        let y = Array3::from_shape_fn((2, 1, 2), |(class, _, column)| if class == 0 { row[column] } else { 0.0 });
        let upsampling = Upsampling { size: (1, width), align_corners };
        let map = confidence_map(&y.view().into(), ConfidenceKind::Top1, Some(upsampling), Isa::best()).unwrap();
        map.confidence.iter().map(|p| (p / (1.0 - p)).ln()).collect()
    }

    #[test]
    fn a_row_of_two_becomes_four() {
        for (found, expected) in [
            (upsampled([0.0, 4.0], 4, false), vec![0.0, 1.0, 3.0, 4.0]),
            (upsampled([0.0, 4.0], 5, true), vec![0.0, 1.0, 2.0, 3.0, 4.0]),
        ] {
            assert_eq!(found.len(), expected.len());
            assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-4), "{found:?}");
        }
    }

    #[test]
    fn impossible_classes_stay_impossible() {
        let y = array![[[f32::NEG_INFINITY, f32::NEG_INFINITY]], [[1.0, 2.0]]];
        let upsampling = Upsampling { size: (2, 4), align_corners: false };
        let map = confidence_map(&y.view().into(), ConfidenceKind::Top1, Some(upsampling), Isa::best()).unwrap();
        assert!(map.confidence.iter().all(|p| *p == 1.0) && map.labels.iter().all(|class| *class == 1));
    }
}
