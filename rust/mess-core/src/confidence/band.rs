//! The pixels between two rows of nodes: measured cell by cell, or decided from what the nodes say.
//!
//! Contract: as [`super::upsample`]. Which pixels are computed, and how, changes nothing.
//!
//! Plain algorithm: interpolate and measure every pixel. What is done instead:
//! - A row is computed phase by phase - the first pixel of every cell, then the second - so that consecutive cells are
//!   consecutive in memory and no load is scattered. Same arithmetic, another order of pixels.
//! - Of most cells a decision needs no pixel: see [`super::cells`]. Of the others it needs the label, from the few classes
//!   that can be one, and whether each pixel passes, block by block: see [`super::blocks`]. The few pixels that these leave
//!   open are computed by the very code of [`super::pixel`]; so are all, where most cells turn out to need it.

use std::ops::Range;

use super::blocks::{BLOCKS, Corners, LANES, OPEN, Place, Weights, blend, decide, label};
use super::cells::{CellBounds, Known, Limits};
use super::logits::{Planes, Source, TILE};
use super::pixel::{LabelOut, Measure, MeasureTile, Measured};
use super::scratch::{Scratch, room};
use super::tile::Tile;
use super::upsample::{Cell, Tap, Upsampled, Upsampling};
use crate::isa::{Isa, Kernel};

/// Cells of fewer pixels are not worth a bound.
const MIN_CELL_PIXELS: usize = 8;

/// Nor are cells of fewer pixels worth an exponential.
const MIN_SUMMED_PIXELS: usize = 32;

/// Nor are cells of which more classes than this share, a fraction, cannot be left out.
const MOST_KEPT: (usize, usize) = (4, 5);

/// Where this share of the cells between two rows of nodes are not worth it, all of them are measured: cells that are
/// side by side are measured quickly, others are not.
const MEASURE_ALL: (usize, usize) = (1, 2);

/// As many single pixels are worth computing side by side.
const SPOTS: usize = 256;

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
        let Scratch { tile, upsampling: buffers, .. } = scratch;
        let num_rows = values.len() / width;
        let mut done = 0;
        while done < num_rows {
            let first = plan.rows[first_row + done];
            let same = plan.rows[first_row + done..first_row + num_rows]
                .iter()
                .take_while(|row| (row.low, row.high) == (first.low, first.high))
                .count();
            let pixels = done * width..(done + same) * width;
            let rows = &plan.rows[first_row + done..first_row + done + same];
            let (values, labels) = (&mut values[pixels.clone()], &mut labels[pixels]);
            let mut band = Band { plan, rows, width, values, labels, tile, isa };
            match plan.limits {
                Some(limits) if V::DECIDES => band.decide(&limits, measure, buffers),
                _ => band.measure(measure, buffers),
            }
            done += same;
        }
    }
}

/// Room for the cells of a band.
#[derive(Default)]
pub(crate) struct BandBuffers {
    bounds: CellBounds,
    known: Vec<Known>,
    /// Classes that may be labels, of the cells that have several; (cells, C).
    lists: Vec<u32>,
    lower: Vec<Weights>,
    corners: Vec<Corners>,
    spots: Vec<Spot>,
    cells: Vec<u32>,
    tiles: TileBuffers,
}

/// Nodes around the cells that are measured, (C, cells) each, and blends for one row or several.
#[derive(Default)]
struct TileBuffers {
    corners: [Vec<f32>; 4],
    /// Nodes of a row of pixels.
    blended: Vec<f32>,
    left: Vec<f32>,
    step: Vec<f32>,
    weights: Vec<f32>,
    cell_of: Vec<u16>,
}

/// Rows between the same two rows of nodes, and their maps.
struct Band<'p, V, L> {
    plan: &'p Upsampled,
    rows: &'p [Tap],
    width: usize,
    values: &'p mut [V],
    labels: &'p mut [L],
    tile: &'p mut Tile,
    isa: Isa,
}

impl<V: Measured, L: LabelOut> Band<'_, V, L> {
    /// Measure and label every pixel.
    #[inline(always)]
    fn measure(&mut self, measure: &Measure, buffers: &mut BandBuffers) {
        let BandBuffers { cells, tiles, .. } = buffers;
        cells.clear();
        cells.extend(0..self.plan.cells.len() as u32);
        self.measure_cells(cells, measure, tiles);
    }

    /// Decide and label every pixel.
    #[inline(always)]
    fn decide(&mut self, limits: &Limits, measure: &Measure, buffers: &mut BandBuffers) {
        let open = self.survey(limits, buffers);
        let BandBuffers { known, cells, tiles, .. } = &mut *buffers;
        if MEASURE_ALL.1 * (open.unknown + open.dense) >= MEASURE_ALL.0 * known.len() {
            // what the survey has written is written again, and equal
            return self.measure(measure, buffers);
        }
        if open.unknown > 0 {
            cells.clear();
            let all = known.iter().enumerate().filter(|(_, known)| **known == Known::Nothing);
            cells.extend(all.map(|(index, _)| index as u32));
            self.measure_cells(cells, measure, tiles);
        }
        if open.some {
            self.decide_cells(limits, measure, buffers);
        }
    }

    /// Write what is known without computing a pixel; what is left.
    #[inline(always)]
    fn survey(&mut self, limits: &Limits, buffers: &mut BandBuffers) -> Open {
        let (plan, row) = (self.plan, self.rows[0]);
        let num_classes = plan.shape.0;
        let BandBuffers { known, lists, bounds, .. } = buffers;
        known.clear();
        let pixels = self.rows.len() * plan.num_phases;
        let worth_it = pixels >= MIN_CELL_PIXELS;
        let lists = room(lists, if worth_it { num_classes * plan.cells.len() } else { 0 });
        let (mut bounded, mut open) = (false, Open::default());
        let (mut decided, mut labelled) = (Run::default(), Run::default());
        for (index, cell) in plan.cells.iter().enumerate() {
            let columns = cell.start as usize..cell.end as usize;
            if let Some(class) = plan.sure_class(row, cell) {
                self.fill_values(decided.then(columns.clone(), V::PASS));
                self.fill_labels(labelled.then(columns, class));
                known.push(Known::Class { class, decided: true });
                continue;
            }
            let mut found = Known::Nothing;
            if worth_it {
                if !bounded {
                    bounded = true;
                    bounds.find(&plan.nodes, plan.shape, (row.low, row.high), limits.left_out);
                }
                let list = &mut lists[num_classes * index..num_classes * (index + 1)];
                let at = bounds.at(cell.low);
                found = bounds.known(at, limits, list);
                if !found.decided() && pixels < MIN_SUMMED_PIXELS {
                    found = Known::Nothing;
                }
                let is_dense = MOST_KEPT.1 * bounds.num_kept(at) > MOST_KEPT.0 * num_classes;
                open.dense += usize::from(found != Known::Nothing && !found.decided() && is_dense);
            }
            known.push(found);
            if found.decided() {
                self.fill_values(decided.then(columns.clone(), V::FAIL));
            }
            match found {
                Known::Class { class, decided } => {
                    self.fill_labels(labelled.then(columns, class));
                    open.some |= !decided;
                }
                Known::Among { .. } => open.some = true,
                Known::Nothing => open.unknown += 1,
            }
        }
        self.fill_values(decided.take());
        self.fill_labels(labelled.take());
        open
    }

    #[inline(always)]
    fn fill_values(&mut self, run: Option<(Range<usize>, V)>) {
        let Some((columns, value)) = run else { return };
        for row in self.values.chunks_exact_mut(self.width) {
            row[columns.clone()].fill(value);
        }
    }

    #[inline(always)]
    fn fill_labels(&mut self, run: Option<(Range<usize>, i32)>) {
        let Some((columns, class)) = run else { return };
        for row in self.labels.chunks_exact_mut(self.width) {
            row[columns.clone()].fill(L::from_class(class));
        }
    }

    /// Label and decide the cells of which something is known.
    #[inline(always)]
    fn decide_cells(&mut self, limits: &Limits, measure: &Measure, buffers: &mut BandBuffers) {
        let plan = self.plan;
        let num_classes = plan.shape.0;
        let BandBuffers { bounds, known, lists, lower, corners, spots, .. } = buffers;
        let columns = plan.num_phases.next_power_of_two().min(LANES);
        let rows = LANES / columns;
        lower.clear();
        for rows in self.rows.chunks(rows) {
            let mut weights = [0.0; LANES];
            for (lane, weight) in weights.iter_mut().enumerate() {
                *weight = rows[(lane / columns).min(rows.len() - 1)].weight;
            }
            lower.push(weights);
        }
        let layout = Layout { columns, rows, lower };
        for (index, known) in known.iter().enumerate() {
            let (count, decided) = match *known {
                Known::Class { decided, .. } => (1, decided),
                Known::Among { count, decided } => (count as usize, decided),
                Known::Nothing => continue,
            };
            let nodes = self.nodes_of(index);
            if count > 1 {
                let classes = &lists[num_classes * index..num_classes * index + count];
                corners.clear();
                corners.extend(classes.iter().map(|class| nodes.of(plan, *class as usize)));
                self.label_cell(index, classes, corners, &layout);
            }
            if !decided {
                let bound = bounds.at(plan.cells[index].low);
                let lead = nodes.of(plan, bounds.leader(bound));
                corners.clear();
                bounds.for_each_kept(bound, num_classes, limits.left_out, |class| {
                    let [a, b, c, d] = nodes.of(plan, class);
                    corners.push([a - lead[0], b - lead[1], c - lead[2], d - lead[3]]);
                });
                self.sum_cell(index, corners, count > 1, &layout, limits, spots);
            }
            if spots.len() >= SPOTS {
                self.decide_spots(measure, spots);
            }
        }
        self.decide_spots(measure, spots);
    }

    #[inline(always)]
    fn nodes_of(&self, index: usize) -> Nodes {
        Nodes::new(self.plan, self.rows[0], self.plan.cells[index])
    }

    /// Weights of the right nodes at a cell's pixels from column `first` of the picture on, and these columns.
    #[inline(always)]
    fn columns_of(&self, index: usize, first: usize, layout: &Layout<'_>) -> (Weights, Range<usize>) {
        let (plan, cell) = (self.plan, self.plan.cells[index]);
        let mut right = [0.0; LANES];
        for (lane, right) in right.iter_mut().enumerate().take(layout.columns) {
            let phase = (first - cell.start as usize + lane).min(plan.num_phases - 1);
            *right = plan.weights[phase * plan.cells.len() + index];
        }
        for lane in layout.columns..LANES {
            right[lane] = right[lane - layout.columns];
        }
        (right, first..(first + layout.columns).min(cell.end as usize))
    }

    /// Label the pixels of a cell from the logits of `classes` at its nodes.
    #[inline(always)]
    fn label_cell(&mut self, index: usize, classes: &[u32], corners: &[Corners], layout: &Layout<'_>) {
        let cell = self.plan.cells[index];
        for first in (cell.start as usize..cell.end as usize).step_by(layout.columns) {
            let (right, columns) = self.columns_of(index, first, layout);
            for (block, lower) in layout.lower.iter().enumerate() {
                let labels = label(classes, corners, lower, &right);
                for row in block * layout.rows..self.rows.len().min((block + 1) * layout.rows) {
                    let at = row * self.width;
                    let of_row = &labels[(row - block * layout.rows) * layout.columns..][..layout.columns];
                    write(&mut self.labels[at + columns.start..at + columns.end], of_row, L::from_class);
                }
            }
        }
    }

    /// Decide the pixels of a cell from how far classes lie above its leader at its nodes; those that stay open are added to
    /// the spots.
    #[inline(always)]
    fn sum_cell(
        &mut self,
        index: usize,
        gaps: &[Corners],
        several: bool,
        layout: &Layout<'_>,
        limits: &Limits,
        spots: &mut Vec<Spot>,
    ) {
        let (plan, num_rows) = (self.plan, layout.rows * BLOCKS);
        let cell = plan.cells[index];
        for first in (cell.start as usize..cell.end as usize).step_by(layout.columns) {
            let (right, columns) = self.columns_of(index, first, layout);
            for (part, lower) in layout.lower.iter().step_by(BLOCKS).enumerate() {
                let rows = part * num_rows..self.rows.len().min((part + 1) * num_rows);
                let place = Place { lower, right: &right, pace: plan.pace * layout.rows as f32 };
                let passes = decide(gaps, &place, several, rows.len().div_ceil(layout.rows), limits);
                let passes = passes.as_flattened();
                let of_row = |row: usize| &passes[(row - rows.start) * layout.columns..][..layout.columns];
                for row in rows.clone() {
                    let at = row * self.width;
                    // what is open counts as passed until it is decided
                    let value = |pass: u8| if pass == 0 { V::FAIL } else { V::PASS };
                    write(&mut self.values[at + columns.start..at + columns.end], of_row(row), value);
                }
                if passes.iter().fold(0, |any, pass| any | pass) < OPEN {
                    continue;
                }
                for row in rows.clone() {
                    for (column, _) in columns.clone().zip(of_row(row)).filter(|(_, pass)| **pass == OPEN) {
                        let right = right[column - first];
                        let nodes = self.nodes_of(index);
                        spots.push(Spot {
                            nodes,
                            lower: self.rows[row].weight,
                            right,
                            pixel: row * self.width + column,
                        });
                    }
                }
            }
        }
    }

    /// Decide single pixels by their confidences.
    #[inline(always)]
    fn decide_spots(&mut self, measure: &Measure, spots: &mut Vec<Spot>) {
        let Measure::Top1AtLeast(threshold) = *measure else { return };
        for spots in spots.chunks(TILE) {
            let source = Spots { plan: self.plan, spots };
            measure_spots(&source, self.tile, self.isa);
            for (spot, confidence) in spots.iter().zip(&self.tile.work.confidence) {
                self.values[spot.pixel] = if *confidence >= threshold { V::PASS } else { V::FAIL };
            }
        }
        spots.clear();
    }

    /// Measure and label all pixels of some cells.
    #[inline(always)]
    fn measure_cells(&mut self, all: &[u32], measure: &Measure, buffers: &mut TileBuffers) {
        let (plan, num_phases, num_classes) = (self.plan, self.plan.num_phases, self.plan.shape.0);
        let TileBuffers { corners, blended, left, step, weights, cell_of } = buffers;
        let cells_a_tile = TILE / num_phases;
        for cells in all.chunks(cells_a_tile) {
            let count = cells.len();
            let together = side_by_side(cells);
            if together.is_none() {
                let corners = corners.each_mut().map(|corner| room(corner, num_classes * count));
                gather_nodes(plan, self.rows[0], cells, corners);
            }
            // as many rows together as fit into a tile: where few cells are left, one row has too little to do in step
            let rows_a_tile = (cells_a_tile / count).min(self.rows.len());
            let mut prepared_for = 0;
            for (group, taps) in self.rows.chunks(rows_a_tile).enumerate() {
                let len = taps.len() * count;
                let (weights, cell_of) = (room(weights, num_phases * len), room(cell_of, num_phases * len));
                if prepared_for != len {
                    prepared_for = len;
                    place_pixels(plan, cells, len, weights, cell_of);
                }
                let (left, step) = (room(left, num_classes * len), room(step, num_classes * len));
                match &together {
                    Some(cells) => blend_rows(plan, taps, cells.clone(), blended, left, step),
                    None => {
                        let corners = corners.each_ref().map(|corner| &corner[..num_classes * count]);
                        blend_corners(taps, count, corners, left, step);
                    }
                }
                let source = CellTile { left, step, weights, cell_of, len, num_classes };
                measure_tile(&source, len * num_phases, measure, self.tile, self.isa);
                self.write_tile(cells, group * rows_a_tile, len);
            }
        }
    }

    /// Write a tile's pixels into the maps: `len` cells, those of one row after those of another, phase by phase.
    #[inline(always)]
    fn write_tile(&mut self, cells: &[u32], first_row: usize, len: usize) {
        let (plan, count, num_phases) = (self.plan, cells.len(), self.plan.num_phases);
        let (measured, label) = (V::of_tile(self.tile, len * num_phases), &self.tile.label);
        let full = side_by_side(cells).map_or(0..0, |cells| within(&plan.full, &cells));
        for row in 0..len / count {
            let at = (first_row + row) * self.width;
            let (values, labels) = (&mut self.values[at..at + self.width], &mut self.labels[at..at + self.width]);
            if !full.is_empty() {
                let cell = |i: usize| plan.cells[cells[i] as usize];
                let columns = cell(full.start).start as usize..cell(full.end - 1).end as usize;
                let of_phase =
                    |phase: usize| phase * len + row * count + full.start..phase * len + row * count + full.end;
                interleave(&mut values[columns.clone()], num_phases, |phase| &measured[of_phase(phase)], |value| value);
                interleave(&mut labels[columns], num_phases, |phase| &label[of_phase(phase)], L::from_class);
            }
            for i in (0..full.start).chain(full.end..count) {
                let cell = plan.cells[cells[i] as usize];
                for (phase, column) in (cell.start as usize..cell.end as usize).enumerate() {
                    let entry = phase * len + row * count + i;
                    values[column] = measured[entry];
                    labels[column] = L::from_class(label[entry]);
                }
            }
        }
    }
}

/// The range of these cells, in ascending order, if none is left out.
#[inline(always)]
fn side_by_side(cells: &[u32]) -> Option<Range<usize>> {
    let (first, last) = (*cells.first()? as usize, *cells.last()? as usize);
    (last - first + 1 == cells.len()).then_some(first..last + 1)
}

/// The cells of `all` that are among `some`, counted from the first of `all`.
#[inline(always)]
fn within(some: &Range<usize>, all: &Range<usize>) -> Range<usize> {
    let common = some.start.max(all.start)..some.end.min(all.end);
    if common.is_empty() { 0..0 } else { common.start - all.start..common.end - all.start }
}

/// Write what belongs to the first pixel of each cell, to the second and so on, to where the pixels are.
#[inline(always)]
fn interleave<'t, T: Copy + 't, U>(
    to: &mut [U],
    num_phases: usize,
    of_phase: impl Fn(usize) -> &'t [T],
    value: impl Fn(T) -> U,
) {
    match num_phases {
        2 => interleave_of::<2, T, U>(to, of_phase, value),
        4 => interleave_of::<4, T, U>(to, of_phase, value),
        8 => interleave_of::<8, T, U>(to, of_phase, value),
        16 => interleave_of::<16, T, U>(to, of_phase, value),
        _ => {
            for phase in 0..num_phases {
                let pixels = to.iter_mut().skip(phase).step_by(num_phases);
                pixels.zip(of_phase(phase)).for_each(|(to, from)| *to = value(*from));
            }
        }
    }
}

#[inline(always)]
fn interleave_of<'t, const N: usize, T: Copy + 't, U>(
    to: &mut [U],
    of_phase: impl Fn(usize) -> &'t [T],
    value: impl Fn(T) -> U,
) {
    let cells = to.as_chunks_mut::<N>().0;
    let phases: [&[T]; N] = std::array::from_fn(|phase| &of_phase(phase)[..cells.len()]);
    for (i, cell) in cells.iter_mut().enumerate() {
        for (to, phase) in cell.iter_mut().zip(&phases) {
            *to = value(phase[i]);
        }
    }
}

/// Left ends of cells that are side by side in some rows of pixels, and how far it is to the right ends: (C, rows, cells).
/// A node of a row is blended once for both cells that it belongs to.
#[inline(always)]
fn blend_rows(
    plan: &Upsampled,
    taps: &[Tap],
    cells: Range<usize>,
    blended: &mut Vec<f32>,
    left: &mut [f32],
    step: &mut [f32],
) {
    let ((num_classes, h, w), count) = (plan.shape, cells.len());
    let nodes = plan.cells[cells.start].low as usize..plan.cells[cells.end - 1].high as usize + 1;
    let blended = room(blended, nodes.len());
    let even = within(&plan.even, &cells);
    // their left nodes, and the right one of the last
    let even_nodes = match even.is_empty() {
        true => 0..0,
        false => {
            let first = plan.cells[cells.start + even.start].low as usize - nodes.start;
            first..first + even.len() + 1
        }
    };
    for class in 0..num_classes {
        let row_of = |row: u32| &plan.nodes[(class * h + row as usize) * w..][nodes.clone()];
        let (top, bottom) = (row_of(taps[0].low), row_of(taps[0].high));
        for (row, tap) in taps.iter().enumerate() {
            for ((node, top), bottom) in blended.iter_mut().zip(top).zip(bottom) {
                *node = blend(*top, bottom - top, tap.weight);
            }
            let at = (class * taps.len() + row) * count..(class * taps.len() + row + 1) * count;
            let (left, step) = (&mut left[at.clone()], &mut step[at]);
            let of_even = &blended[even_nodes.clone()];
            let sides = left[even.clone()].iter_mut().zip(&mut step[even.clone()]);
            for ((left, step), (from, to)) in sides.zip(of_even.iter().zip(of_even.iter().skip(1))) {
                (*left, *step) = (*from, to - from);
            }
            for i in (0..even.start).chain(even.end..count) {
                let Cell { low, high, .. } = plan.cells[cells.start + i];
                let [from, to] = [low, high].map(|node| blended[node as usize - nodes.start]);
                (left[i], step[i]) = (from, to - from);
            }
        }
    }
}

/// The same of any cells, from the nodes around them, (C, cells) each: upper left, upper right, and how the lower ones differ.
#[inline(always)]
fn blend_corners(taps: &[Tap], count: usize, corners: [&[f32]; 4], left: &mut [f32], step: &mut [f32]) {
    let of_classes = left.chunks_exact_mut(taps.len() * count).zip(step.chunks_exact_mut(taps.len() * count));
    for (class, (left, step)) in of_classes.enumerate() {
        let [top_left, top_right, fall_left, fall_right] =
            corners.map(|corner| &corner[class * count..(class + 1) * count]);
        let of_rows = left.chunks_exact_mut(count).zip(step.chunks_exact_mut(count));
        for ((left, step), tap) in of_rows.zip(taps) {
            let sides = left.iter_mut().zip(step);
            let tops = top_left.iter().zip(top_right);
            let falls = fall_left.iter().zip(fall_right);
            for (((left, step), (top_left, top_right)), (fall_left, fall_right)) in sides.zip(tops).zip(falls) {
                *left = blend(*top_left, *fall_left, tap.weight);
                *step = blend(*top_right, *fall_right, tap.weight) - *left;
            }
        }
    }
}

/// How a cell's pixels are laid out: blocks of some columns of some rows.
struct Layout<'p> {
    columns: usize,
    rows: usize,
    /// Weights of the lower nodes at each block's pixels.
    lower: &'p [Weights],
}

/// Write the first of some results; most cells are as long as two of the lengths.
#[inline(always)]
fn write<T: Copy, U>(to: &mut [U], results: &[T], value: impl Fn(T) -> U) {
    if let (Ok(to), Some(results)) = (<&mut [U; 8]>::try_from(&mut *to), results.first_chunk::<8>()) {
        *to = results.map(value);
    } else if let (Ok(to), Some(results)) = (<&mut [U; 16]>::try_from(&mut *to), results.first_chunk::<16>()) {
        *to = results.map(value);
    } else {
        to.iter_mut().zip(results).for_each(|(to, result)| *to = value(*result));
    }
}

/// What is left to compute.
#[derive(Default)]
struct Open {
    /// Labels or decisions of cells of which something is known.
    some: bool,
    /// Number of cells of which nothing is.
    unknown: usize,
    /// Number of others with too many classes to be worth a sum.
    dense: usize,
}

/// Consecutive columns that get the same.
struct Run<T>(Option<(Range<usize>, T)>);

impl<T> Default for Run<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T: PartialEq> Run<T> {
    /// Add columns; what they do not continue is given back.
    #[inline(always)]
    fn then(&mut self, columns: Range<usize>, value: T) -> Option<(Range<usize>, T)> {
        if let Some((run, same)) = &mut self.0
            && run.end == columns.start
            && *same == value
        {
            run.end = columns.end;
            return None;
        }
        self.0.replace((columns, value))
    }

    #[inline(always)]
    fn take(&mut self) -> Option<(Range<usize>, T)> {
        self.0.take()
    }
}

/// Measure and label the `len` pixels of some cells. Compiled once, see [`super::pixel`].
#[inline(never)]
fn measure_tile(source: &CellTile<'_>, len: usize, measure: &Measure, tile: &mut Tile, isa: Isa) {
    isa.run(MeasureTile { source, len, measure, tile });
}

/// Confidences of single pixels. Compiled once.
#[inline(never)]
fn measure_spots(source: &Spots<'_>, tile: &mut Tile, isa: Isa) {
    let measure = &Measure::Confidence(super::ConfidenceKind::Top1);
    isa.run(MeasureTile { source, len: source.spots.len(), measure, tile });
}

/// Nodes around cells between two rows of nodes, (C, cells) each: upper left, upper right, and how the lower ones differ.
#[inline(always)]
fn gather_nodes(plan: &Upsampled, row: Tap, cells: &[u32], corners: [&mut [f32]; 4]) {
    let ((num_classes, h, w), count) = (plan.shape, cells.len());
    let [top_left, top_right, fall_left, fall_right] = corners;
    let row_of = |class: usize, row: u32| &plan.nodes[(class * h + row as usize) * w..][..w];
    for class in 0..num_classes {
        let (top, bottom) = (row_of(class, row.low), row_of(class, row.high));
        for (i, cell) in cells.iter().enumerate() {
            let (at, Cell { low, high, .. }) = (class * count + i, plan.cells[*cell as usize]);
            (top_left[at], top_right[at]) = (top[low as usize], top[high as usize]);
            fall_left[at] = bottom[low as usize] - top_left[at];
            fall_right[at] = bottom[high as usize] - top_right[at];
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

/// The four nodes around a cell, as places in a class's plane.
#[derive(Clone, Copy)]
struct Nodes([usize; 4]);

impl Nodes {
    #[inline(always)]
    fn new(plan: &Upsampled, row: Tap, cell: Cell) -> Self {
        let (top, bottom) = (row.low as usize * plan.shape.2, row.high as usize * plan.shape.2);
        let (left, right) = (cell.low as usize, cell.high as usize);
        Self([top + left, top + right, bottom + left, bottom + right])
    }

    /// Logits of a class.
    #[inline(always)]
    fn of(self, plan: &Upsampled, class: usize) -> Corners {
        let (_, h, w) = plan.shape;
        let plane = &plan.nodes[class * h * w..(class + 1) * h * w];
        let Self([a, b, c, d]) = self;
        [plane[a], plane[b], plane[c], plane[d]]
    }
}

/// A pixel on its own: the nodes around it, its weights, and its place in the band.
struct Spot {
    nodes: Nodes,
    lower: f32,
    right: f32,
    pixel: usize,
}

impl Spot {
    /// Its logit of a class, by the same arithmetic as all pixels'.
    #[inline(always)]
    fn value(&self, plan: &Upsampled, class: usize) -> f32 {
        let [top_left, top_right, bottom_left, bottom_right] = self.nodes.of(plan, class);
        let left = blend(top_left, bottom_left - top_left, self.lower);
        let step = blend(top_right, bottom_right - top_right, self.lower) - left;
        blend(left, step, self.right)
    }
}

/// Single pixels side by side.
struct Spots<'p> {
    plan: &'p Upsampled,
    spots: &'p [Spot],
}

impl Source for Spots<'_> {
    #[inline(always)]
    fn num_classes(&self) -> usize {
        self.plan.shape.0
    }

    #[inline(always)]
    fn group<'s, const N: usize>(&'s self, first: usize, room: &'s mut Planes) -> [&'s [f32]; N] {
        for (k, values) in room.iter_mut().enumerate().take(N) {
            values.iter_mut().zip(self.spots).for_each(|(value, spot)| *value = spot.value(self.plan, first + k));
        }
        let room = &*room;
        std::array::from_fn(|k| &room[k][..self.spots.len()])
    }

    #[inline(always)]
    fn pick(&self, class: usize, picks: &[u16], values: &mut [f32]) {
        for (value, pick) in values.iter_mut().zip(picks) {
            *value = self.spots[usize::from(*pick)].value(self.plan, class);
        }
    }
}
