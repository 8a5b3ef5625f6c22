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
//! Plain algorithm: compute each pixel from its four neighbours (nodes). What is done instead, and why it is equal:
//! - Pixels between the same two columns of nodes form a cell. A row is computed phase by phase - the first pixel of
//!   every cell, then the second - so that consecutive cells are consecutive in memory and no load is scattered. Same
//!   arithmetic, another order of pixels.
//! - A decision needs no pixel of a cell whose four nodes have the same class k, surely ahead of all others and surely
//!   confident: a bilinear value is a convex combination of the nodes, y_j - y_k is linear in it and
//!   S = sum_j exp(y_j - y_k) convex, so every pixel of the cell is at least as confident as the least of the nodes, and
//!   has their class. "Surely" leaves room for all float32 roundings of the pixels.

use ndarray::ArrayView3;

use super::decide::{Bounds, odds};
use super::logits::{Dense, F32, Format, Logits, Planes, Source, TILE, with_dense};
use super::pixel::{LabelOut, Measure, MeasureTile, Measured};
use super::scratch::{Scratch, room, with_scratch};
use super::tile::Tile;
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

/// Stands for -infinity.
const IMPOSSIBLE: f32 = -1e37;

/// No cell is longer; longer runs of pixels between the same nodes are several cells.
const MAX_PHASES: usize = 64;

/// Where an output row or column lies between two nodes.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Tap {
    low: u32,
    high: u32,
    weight: f32,
}

/// Output columns `start..end`, between nodes `low` and `high`.
#[derive(Debug, Clone, Copy, Default)]
struct Cell {
    low: u32,
    high: u32,
    start: u32,
    end: u32,
}

/// Logits to be upsampled, and what is known before any pixel is computed. Buffers are kept from call to call.
#[derive(Debug, Default)]
pub struct Upsampled {
    shape: (usize, usize, usize),
    geometry: Option<(usize, usize, Upsampling)>,
    /// (C, h, w) float32.
    nodes: Vec<f32>,
    rows: Vec<Tap>,
    cells: Vec<Cell>,
    num_phases: usize,
    /// (num_phases, cells): weight of the right node.
    weights: Vec<f32>,
    /// (h, w): the class that surely passes, or `UNSURE`. Empty when confidences are wanted, not decisions.
    sure: Vec<i32>,
}

const UNSURE: i32 = -1;

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
        with_dense!(logits, dense => isa.run(CopyNodes { dense: &dense, nodes: &mut self.nodes }));
        self.sure.clear();
        if let Measure::Top1AtLeast(threshold) = measure {
            self.sure.resize(h * w, UNSURE);
            let view = ArrayView3::from_shape(self.shape, &self.nodes)
                .map_err(|error| Error::value("logits", "a shape that fits", error))?;
            let (nodes, threshold, sure) = (Dense::<F32>::new(view), *threshold, &mut self.sure[..]);
            let scale = self.nodes.iter().filter(|y| **y > IMPOSSIBLE).fold(0f32, |most, y| most.max(y.abs()));
            with_scratch(|scratch| isa.run(SureNodes { nodes: &nodes, threshold, scale, sure, scratch }));
        }
        Ok(())
    }

    fn set_geometry(&mut self, h: usize, w: usize, upsampling: Upsampling) {
        let (height, width) = upsampling.size;
        self.geometry = Some((h, w, upsampling));
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
        self.num_phases = self.cells.iter().map(|cell| (cell.end - cell.start) as usize).max().unwrap_or(0);
        self.weights.clear();
        for phase in 0..self.num_phases {
            self.weights.extend(self.cells.iter().map(|cell| {
                let column = (cell.start as usize + phase).min(cell.end as usize - 1);
                tap(column, w, width, upsampling.align_corners).weight
            }));
        }
    }

    /// The class of a cell whose four nodes surely pass with it.
    fn sure_class(&self, row: Tap, cell: &Cell) -> Option<i32> {
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

fn tap(index: usize, input: usize, output: usize, align_corners: bool) -> Tap {
    let scale = match (align_corners, output) {
        (true, 1) => 0.0,
        (true, _) => (input - 1) as f32 / (output - 1) as f32,
        (false, _) => input as f32 / output as f32,
    };
    let position = if align_corners { scale * index as f32 } else { scale * (index as f32 + 0.5) - 0.5 };
    if position < 0.0 {
        return Tap::default(); // before the first node: a cell of its own, as beyond the last one
    }
    let low = (position as usize).min(input - 1);
    let high = (low + 1).min(input - 1);
    let weight = if high == low { 0.0 } else { (position - low as f32).clamp(0.0, 1.0) };
    Tap { low: low as u32, high: high as u32, weight }
}

/// a + w (b - a), the difference given.
#[inline(always)]
fn blend(a: f32, difference: f32, weight: f32) -> f32 {
    a + weight * difference
}

/// Bring the nodes into float32 (C, h, w).
struct CopyNodes<'p, 'a, F: Format> {
    dense: &'p Dense<'a, F>,
    nodes: &'p mut Vec<f32>,
}

impl<F: Format> Kernel for CopyNodes<'_, '_, F> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let (num_classes, h, w) = self.dense.dim();
        let len = num_classes * h * w;
        self.dense.copy_to(room(self.nodes, len));
        self.nodes.truncate(len);
        for y in self.nodes.iter_mut() {
            *y = if *y < IMPOSSIBLE { IMPOSSIBLE } else { *y };
        }
    }
}

/// Which nodes pass so surely that roundings of the pixels between them cannot matter.
struct SureNodes<'p, 'a> {
    nodes: &'p Dense<'a, F32>,
    threshold: f32,
    /// Largest magnitude of a possible logit.
    scale: f32,
    sure: &'p mut [i32],
    scratch: &'p mut Scratch,
}

impl Kernel for SureNodes<'_, '_> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        // Three blends round six times each operand at most: a pixel's logit is off by this or less.
        let error = 18.0 * (f32::EPSILON / 2.0) * self.scale;
        if error.is_nan() || error > 0.05 {
            return;
        }
        // two logits a gap, both off: exp(2 error) < 1 + 4 error
        let bounds = Bounds::new(self.nodes.dim().0, 1.0 - 4.0 * error, 1.0);
        let odds = odds(self.threshold);
        let tile = &mut *self.scratch.tile;
        for (index, sure) in self.sure.chunks_mut(TILE).enumerate() {
            let len = sure.len();
            tile.work.softmax::<_, true, false>(&self.nodes.tile(index * TILE, len), &mut tile.label[..len]);
            let super::tile::Work { sum, largest, second, .. } = &tile.work;
            for i in 0..len {
                let limit = odds * bounds.lower - sum[i] * bounds.rounding;
                let passes = (sum[i] - 1.0 <= limit) & (largest[i] - second[i] > 4.0 * error);
                let possible = largest[i] > IMPOSSIBLE;
                sure[i] = if passes & possible { tile.label[i] } else { UNSURE };
            }
        }
    }
}

/// Upper nodes around the cells that are computed, how the lower ones differ, and blends for one row; (C, cells) each.
#[derive(Default)]
pub(crate) struct Corners {
    todo: Vec<u32>,
    weights: Vec<f32>,
    cell_of: Vec<u16>,
    corners: [Vec<f32>; 4],
    left: Vec<f32>,
    step: Vec<f32>,
}

/// Consecutive rows of upsampled logits.
pub(crate) struct UpsampledPixels<'p, V, L> {
    pub plan: &'p Upsampled,
    pub measure: &'p Measure,
    pub first_row: usize,
    pub values: &'p mut [V],
    pub labels: &'p mut [L],
    pub scratch: &'p mut Scratch,
    pub isa: Isa,
}

impl<V: Measured, L: LabelOut> Kernel for UpsampledPixels<'_, V, L> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let Self { plan, measure, first_row, values, labels, scratch, isa } = self;
        let Some((_, _, Upsampling { size: (_, width), .. })) = plan.geometry else { return };
        let num_rows = values.len() / width;
        let mut done = 0;
        while done < num_rows {
            let first = plan.rows[first_row + done];
            let same = plan.rows[first_row + done..first_row + num_rows]
                .iter()
                .take_while(|row| (row.low, row.high) == (first.low, first.high))
                .count();
            let band = done * width..(done + same) * width;
            let rows = &plan.rows[first_row + done..first_row + done + same];
            measure_band(plan, measure, rows, &mut values[band.clone()], &mut labels[band], scratch, isa);
            done += same;
        }
    }
}

/// Measure and label the `len` pixels of some cells. Compiled once, see [`super::pixel`].
#[inline(never)]
fn measure_cells(source: &CellTile<'_>, len: usize, measure: &Measure, tile: &mut Tile, isa: Isa) {
    isa.run(MeasureTile { source, len, measure, tile });
}

/// Rows between the same two rows of nodes.
#[inline(always)]
fn measure_band<V: Measured, L: LabelOut>(
    plan: &Upsampled,
    measure: &Measure,
    rows: &[Tap],
    values: &mut [V],
    labels: &mut [L],
    scratch: &mut Scratch,
    isa: Isa,
) {
    let Scratch { tile, upsampling, .. } = scratch;
    let Corners { todo, weights, cell_of, corners, left, step } = upsampling;
    let width = values.len() / rows.len();
    todo.clear();
    for (index, cell) in plan.cells.iter().enumerate() {
        match plan.sure_class(rows[0], cell) {
            None => todo.push(index as u32),
            Some(class) => {
                let columns = cell.start as usize..cell.end as usize;
                for row in 0..rows.len() {
                    let at = row * width + columns.start..row * width + columns.end;
                    values[at.clone()].fill(V::PASS);
                    labels[at].fill(L::from_class(class));
                }
            }
        }
    }
    if todo.is_empty() {
        return;
    }
    let num_phases = plan.num_phases;
    let cells_a_tile = TILE / num_phases;
    for cells in todo.chunks(cells_a_tile) {
        let count = cells.len();
        let [top_left, top_right, fall_left, fall_right] = corners.each_mut();
        let nodes = [&mut *top_left, &mut *top_right, &mut *fall_left, &mut *fall_right];
        gather_nodes(plan, rows[0], cells, nodes.map(|buffer| room(buffer, plan.shape.0 * count)));
        // as many rows together as fit into a tile: where few cells are left, one row has too little to do in step
        let rows_a_tile = (cells_a_tile / count).min(rows.len());
        let mut prepared_for = 0;
        for (group, taps) in rows.chunks(rows_a_tile).enumerate() {
            let len = taps.len() * count;
            let (weights, cell_of) = (room(weights, num_phases * len), room(cell_of, num_phases * len));
            if prepared_for != len {
                prepared_for = len;
                place_pixels(plan, cells, len, weights, cell_of);
            }
            let (left, step) = (room(left, plan.shape.0 * len), room(step, plan.shape.0 * len));
            for class in 0..plan.shape.0 {
                let at = class * count..(class + 1) * count;
                let upper = top_left[at.clone()].iter().zip(&top_right[at.clone()]);
                let falls = fall_left[at.clone()].iter().zip(&fall_right[at]);
                for (row, tap) in taps.iter().enumerate() {
                    let at = class * len + row * count..class * len + (row + 1) * count;
                    let sides = left[at.clone()].iter_mut().zip(&mut step[at]);
                    for (((left, step), (top_left, top_right)), (fall_left, fall_right)) in
                        sides.zip(upper.clone()).zip(falls.clone())
                    {
                        *left = blend(*top_left, *fall_left, tap.weight);
                        *step = blend(*top_right, *fall_right, tap.weight) - *left;
                    }
                }
            }
            let source = CellTile { left, step, weights, cell_of, len, num_classes: plan.shape.0 };
            measure_cells(&source, len * num_phases, measure, tile, isa);
            let measured = V::of_tile(tile, len * num_phases);
            for entry in 0..len {
                let cell = plan.cells[cells[entry % count] as usize];
                let row = (group * rows_a_tile + entry / count) * width;
                let (values, labels) = (&mut values[row..row + width], &mut labels[row..row + width]);
                for (phase, column) in (cell.start as usize..cell.end as usize).enumerate() {
                    values[column] = measured[phase * len + entry];
                    labels[column] = L::from_class(tile.label[phase * len + entry]);
                }
            }
        }
    }
}

/// Nodes around `cells` between two rows of nodes, (C, cells) each: upper left, upper right, and how far it is from these
/// to the lower ones.
#[inline(always)]
fn gather_nodes(
    plan: &Upsampled,
    row: Tap,
    cells: &[u32],
    [top_left, top_right, fall_left, fall_right]: [&mut [f32]; 4],
) {
    let (num_classes, h, w) = plan.shape;
    for class in 0..num_classes {
        let plane = &plan.nodes[class * h * w..(class + 1) * h * w];
        let top = &plane[row.low as usize * w..][..w];
        let bottom = &plane[row.high as usize * w..][..w];
        for (i, cell) in cells.iter().enumerate() {
            let Cell { low, high, .. } = plan.cells[*cell as usize];
            let at = class * cells.len() + i;
            top_left[at] = top[low as usize];
            top_right[at] = top[high as usize];
            fall_left[at] = bottom[low as usize] - top[low as usize];
            fall_right[at] = bottom[high as usize] - top[high as usize];
        }
    }
}

/// For each pixel of a tile, phase by phase: the weight of its right side, and which of the tile's `len` cells it lies in.
#[inline(always)]
fn place_pixels(plan: &Upsampled, cells: &[u32], len: usize, weights: &mut [f32], cell_of: &mut [u16]) {
    let pieces = weights.chunks_exact_mut(len).zip(cell_of.chunks_exact_mut(len));
    for (phase, (weights, cell_of)) in pieces.enumerate() {
        let from = &plan.weights[phase * plan.cells.len()..(phase + 1) * plan.cells.len()];
        let (first_row, others) = weights.split_at_mut(cells.len());
        first_row.iter_mut().zip(cells).for_each(|(to, cell)| *to = from[*cell as usize]);
        others.chunks_exact_mut(cells.len()).for_each(|row| row.copy_from_slice(first_row));
        cell_of.iter_mut().enumerate().for_each(|(i, to)| *to = i as u16);
    }
}

/// Cells of one row or several, phase by phase: pixel `phase * len + i` is the `phase`-th of cell `i`.
struct CellTile<'p> {
    /// (C, len): left ends of the cells, and how far it is to the right ends.
    left: &'p [f32],
    step: &'p [f32],
    /// Of each pixel of the tile: the weight of the right side, and its cell.
    weights: &'p [f32],
    cell_of: &'p [u16],
    len: usize,
    num_classes: usize,
}

impl Source for CellTile<'_> {
    #[inline(always)]
    fn num_classes(&self) -> usize {
        self.num_classes
    }

    #[inline(always)]
    fn group<'s, const N: usize>(&'s self, first: usize, room: &'s mut Planes) -> [&'s [f32]; N] {
        for (k, values) in room.iter_mut().enumerate().take(N) {
            let at = (first + k) * self.len;
            let (left, step) = (&self.left[at..at + self.len], &self.step[at..at + self.len]);
            for (values, weights) in values.chunks_exact_mut(self.len).zip(self.weights.chunks_exact(self.len)) {
                for (((value, left), step), weight) in values.iter_mut().zip(left).zip(step).zip(weights) {
                    *value = blend(*left, *step, *weight);
                }
            }
        }
        let room = &*room;
        std::array::from_fn(|k| &room[k][..self.weights.len()])
    }

    #[inline(always)]
    fn pick(&self, class: usize, picks: &[u16], values: &mut [f32]) {
        let at = class * self.len;
        let (left, step) = (&self.left[at..at + self.len], &self.step[at..at + self.len]);
        for (value, pick) in values.iter_mut().zip(picks) {
            let cell = usize::from(self.cell_of[usize::from(*pick)]);
            *value = blend(left[cell], step[cell], self.weights[usize::from(*pick)]);
        }
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
