//! The pixels between two rows of nodes: measured cell by cell, or decided from what the nodes say.
//!
//! Contract: as [`super::upsample`]. Which pixels are computed, and how, changes nothing.
//!
//! Plain algorithm: interpolate and measure every pixel. What is done instead:
//! - A row is computed phase by phase - the first pixel of every cell, then the second - so that consecutive cells are
//!   consecutive in memory and no load is scattered. Same arithmetic, another order of pixels.
//! - Of most cells a decision needs no pixel: see [`super::cells`]. Of the others it needs the label, from the few classes
//!   that can be one, and whether each pixel passes, from [`super::sums`]; the few pixels that these leave open are
//!   computed by the very code of [`super::pixel`].

use std::ops::Range;

use super::cells::{CellBounds, IMPOSSIBLE, Known, Limits, NO_CLASS};
use super::logits::{Planes, Source, TILE};
use super::pixel::{LabelOut, Measure, MeasureTile, Measured};
use super::scratch::{Scratch, room};
use super::sums::{BLOCKS, LANES, OPEN, Weights, decide};
use super::tile::Tile;
use super::upsample::{Cell, Tap, Upsampled, Upsampling};
use crate::isa::{Isa, Kernel};

/// Cells of fewer pixels are not worth a bound.
const MIN_CELL_PIXELS: usize = 8;

/// Nor are cells of fewer pixels worth an exponential.
const MIN_SUMMED_PIXELS: usize = 32;

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
    /// Cells that are computed together, and from which classes.
    cells: Vec<u32>,
    classes: Vec<u32>,
    gaps: Vec<[f32; 4]>,
    lower: Vec<[f32; LANES]>,
    spots: Vec<Spot>,
    tiles: TileBuffers,
}

/// Upper nodes around the cells that are computed, how the lower ones differ, and blends for one row or several; (C, cells)
/// each.
#[derive(Default)]
struct TileBuffers {
    corners: [Vec<f32>; 4],
    left: Vec<f32>,
    step: Vec<f32>,
    weights: Vec<f32>,
    cell_of: Vec<u16>,
}

/// Cells that are computed together, and from which classes: lists of equal length, one a cell, or all.
#[derive(Clone, Copy)]
struct Together<'p> {
    cells: &'p [u32],
    classes: Option<&'p [u32]>,
}

impl<'p> Together<'p> {
    /// Classes of each cell.
    #[inline(always)]
    fn places(&self, num_classes: usize) -> usize {
        self.classes.map_or(num_classes, |classes| classes.len() / self.cells.len())
    }

    /// Cells `start..start + count`, or as many as there are.
    #[inline(always)]
    fn part(&self, start: usize, count: usize) -> Self {
        let end = (start + count).min(self.cells.len());
        let places = self.places(0);
        Self {
            cells: &self.cells[start..end],
            classes: self.classes.map(|classes| &classes[start * places..end * places]),
        }
    }
}

/// What is wanted of a tile of cells.
#[derive(Clone, Copy)]
enum Task<'p> {
    Measure(&'p Measure),
    Label,
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
        self.compute(Together { cells, classes: None }, Task::Measure(measure), tiles);
    }

    /// Decide and label every pixel.
    #[inline(always)]
    fn decide(&mut self, limits: &Limits, measure: &Measure, buffers: &mut BandBuffers) {
        let num_classes = self.plan.shape.0;
        let open = self.survey(limits, buffers);
        let BandBuffers { known, lists, cells, classes, tiles, .. } = &mut *buffers;
        for length in (0..u32::BITS).filter(|length| open.lengths >> length & 1 == 1) {
            let places = num_classes.min(1 << length);
            cells.clear();
            classes.clear();
            for (index, known) in known.iter().enumerate() {
                if matches!(known, Known::Among { bits, .. } if *bits == length) {
                    cells.push(index as u32);
                    classes.extend_from_slice(&lists[num_classes * index..num_classes * index + places]);
                }
            }
            self.compute(Together { cells, classes: Some(classes) }, Task::Label, tiles);
        }
        if open.all {
            cells.clear();
            let all = known.iter().enumerate().filter(|(_, known)| **known == Known::Nothing);
            cells.extend(all.map(|(index, _)| index as u32));
            self.compute(Together { cells, classes: None }, Task::Measure(measure), tiles);
        }
        if open.sums {
            self.decide_by_sums(limits, buffers);
        }
        if let Measure::Top1AtLeast(threshold) = measure {
            self.decide_spots(*threshold, &mut buffers.spots);
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
                found = bounds.known(bounds.at(cell.low), limits, list);
                if !found.decided() && pixels < MIN_SUMMED_PIXELS {
                    found = Known::Nothing;
                }
            }
            known.push(found);
            if found.decided() {
                self.fill_values(decided.then(columns.clone(), V::FAIL));
            }
            match found {
                Known::Class { class, decided } => {
                    self.fill_labels(labelled.then(columns, class));
                    open.sums |= !decided;
                }
                Known::Among { bits, decided } => {
                    open.lengths |= 1 << bits;
                    open.sums |= !decided;
                }
                Known::Nothing => open.all = true,
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

    /// Decide the cells that are open; what sums leave open is added to the spots.
    #[inline(always)]
    fn decide_by_sums(&mut self, limits: &Limits, buffers: &mut BandBuffers) {
        let (plan, row) = (self.plan, self.rows[0]);
        let BandBuffers { bounds, known, gaps, lower, spots, .. } = buffers;
        let columns = plan.num_phases.next_power_of_two().min(LANES);
        let rows = LANES / columns;
        lower.clear();
        for rows in self.rows.chunks(BLOCKS * rows) {
            let mut weights = [0.0; LANES];
            for (lane, weight) in weights.iter_mut().enumerate() {
                *weight = rows[(lane / columns).min(rows.len() - 1)].weight;
            }
            lower.push(weights);
        }
        let blocks = Blocks { columns, rows, lower };
        for (index, (known, cell)) in known.iter().zip(&plan.cells).enumerate() {
            let several = match known {
                Known::Class { decided: false, .. } => false,
                Known::Among { decided: false, .. } => true,
                _ => continue,
            };
            bounds.gaps(bounds.at(cell.low), &plan.nodes, plan.shape, (row.low, row.high), limits.left_out, gaps);
            self.decide_cell(index, gaps, several, &blocks, limits, spots);
        }
    }

    /// Decide the pixels of a cell from how far classes lie above its leader at its nodes.
    #[inline(always)]
    fn decide_cell(
        &mut self,
        index: usize,
        gaps: &[[f32; 4]],
        several: bool,
        blocks: &Blocks<'_>,
        limits: &Limits,
        spots: &mut Vec<Spot>,
    ) {
        let (plan, num_rows) = (self.plan, blocks.rows * BLOCKS);
        let cell = plan.cells[index];
        let weight = |phase: usize| plan.weights[phase.min(plan.num_phases - 1) * plan.cells.len() + index];
        // a cell beyond the last node lies on the edge of its neighbour, whose nodes these are
        let edge = f32::from(cell.low > 0 && cell.low as usize == plan.shape.2 - 1);
        let mut weights = Weights { pace: plan.pace.0 * blocks.rows as f32, ..Weights::default() };
        for first in (cell.start as usize..cell.end as usize).step_by(blocks.columns) {
            for lane in 0..LANES {
                let phase = first - cell.start as usize + lane % blocks.columns;
                weights.right[lane] =
                    if lane < blocks.columns { edge + weight(phase) } else { weights.right[lane - blocks.columns] };
            }
            let columns = first..(first + blocks.columns).min(cell.end as usize);
            for (part, lower) in blocks.lower.iter().enumerate() {
                let rows = part * num_rows..self.rows.len().min((part + 1) * num_rows);
                weights.lower = *lower;
                let passes = decide(gaps, &weights, several, rows.len().div_ceil(blocks.rows), limits);
                let passes = passes.as_flattened();
                let of_row = |row: usize| &passes[(row - rows.start) * blocks.columns..][..blocks.columns];
                for row in rows.clone() {
                    let at = row * self.width;
                    write_passes(&mut self.values[at + columns.start..at + columns.end], of_row(row));
                }
                if passes.iter().fold(0, |any, pass| any | pass) < OPEN {
                    continue;
                }
                for row in rows.clone() {
                    for (column, _) in columns.clone().zip(of_row(row)).filter(|(_, pass)| **pass == OPEN) {
                        let weight = weight(column - cell.start as usize);
                        spots.push(Spot::new(plan, self.rows[row], cell, weight, row * self.width + column));
                    }
                }
            }
        }
    }

    /// Decide single pixels by their confidences.
    #[inline(always)]
    fn decide_spots(&mut self, threshold: f32, spots: &mut Vec<Spot>) {
        for spots in spots.chunks(TILE) {
            let source = Spots { plan: self.plan, spots };
            measure_spots(&source, self.tile, self.isa);
            for (spot, confidence) in spots.iter().zip(&self.tile.work.confidence) {
                self.values[spot.pixel] = if *confidence >= threshold { V::PASS } else { V::FAIL };
            }
        }
        spots.clear();
    }

    /// Compute all pixels of some cells: their values and labels, or labels alone.
    #[inline(always)]
    fn compute(&mut self, all: Together<'_>, task: Task<'_>, buffers: &mut TileBuffers) {
        let (plan, num_phases) = (self.plan, self.plan.num_phases);
        let num_classes = all.places(plan.shape.0);
        let TileBuffers { corners, left, step, weights, cell_of } = buffers;
        let cells_a_tile = TILE / num_phases;
        for start in (0..all.cells.len()).step_by(cells_a_tile) {
            let together = all.part(start, cells_a_tile);
            let cells = together.cells;
            let count = cells.len();
            let [top_left, top_right, fall_left, fall_right] =
                corners.each_mut().map(|corner| room(corner, num_classes * count));
            gather_nodes(plan, self.rows[0], together, [top_left, top_right, fall_left, fall_right]);
            fall_left.iter_mut().zip(&*top_left).for_each(|(fall, top)| *fall -= top);
            fall_right.iter_mut().zip(&*top_right).for_each(|(fall, top)| *fall -= top);
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
                for class in 0..num_classes {
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
                let source = CellTile { left, step, weights, cell_of, len, num_classes };
                measure_cells(&source, len * num_phases, task, self.tile, self.isa);
                self.write(together, group * rows_a_tile, len, task);
            }
        }
    }

    /// Write a tile's pixels into the maps: `len` cells, those of one row after those of another, phase by phase.
    #[inline(always)]
    fn write(&mut self, together: Together<'_>, first_row: usize, len: usize, task: Task<'_>) {
        let (plan, count) = (self.plan, together.cells.len());
        let measured = V::of_tile(self.tile, len * plan.num_phases);
        for entry in 0..len {
            let cell = plan.cells[together.cells[entry % count] as usize];
            let row = (first_row + entry / count) * self.width;
            let columns = row + cell.start as usize..row + cell.end as usize;
            if let Task::Measure(_) = task {
                for (phase, value) in self.values[columns.clone()].iter_mut().enumerate() {
                    *value = measured[phase * len + entry];
                }
            }
            let places = together.places(0);
            let list = together.classes.map(|classes| &classes[places * (entry % count)..][..places]);
            for (phase, to) in self.labels[columns].iter_mut().enumerate() {
                let label = self.tile.label[phase * len + entry];
                *to = L::from_class(list.map_or(label, |list| list[label as usize] as i32));
            }
        }
    }
}

/// How a cell's pixels are laid out in blocks: some columns of some rows, and [`BLOCKS`] blocks below each other.
struct Blocks<'p> {
    columns: usize,
    rows: usize,
    /// Weights of the lower nodes at the first block's pixels, for each [`BLOCKS`].
    lower: &'p [[f32; LANES]],
}

/// Write what is decided; what is open counts as passed until it is.
#[inline(always)]
fn write_passes<V: Measured>(values: &mut [V], passes: &[u8]) {
    let value = |pass: u8| if pass == 0 { V::FAIL } else { V::PASS };
    // most cells are as long as one of these
    if let (Ok(values), Some(passes)) = (<&mut [V; 8]>::try_from(&mut *values), passes.first_chunk::<8>()) {
        *values = passes.map(value);
    } else if let (Ok(values), Some(passes)) = (<&mut [V; 16]>::try_from(&mut *values), passes.first_chunk::<16>()) {
        *values = passes.map(value);
    } else {
        values.iter_mut().zip(passes).for_each(|(to, pass)| *to = value(*pass));
    }
}

/// What is left to compute.
#[derive(Default)]
struct Open {
    /// Labels, from lists of 2^i classes at most: bit i.
    lengths: u32,
    /// Decisions.
    sums: bool,
    /// Everything of some cells.
    all: bool,
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

/// a + w (b - a), the difference given.
#[inline(always)]
fn blend(a: f32, difference: f32, weight: f32) -> f32 {
    a + weight * difference
}

/// Measure and label the `len` pixels of some cells. Compiled once, see [`super::pixel`].
#[inline(never)]
fn measure_cells(source: &CellTile<'_>, len: usize, task: Task<'_>, tile: &mut Tile, isa: Isa) {
    match task {
        Task::Measure(measure) => isa.run(MeasureTile { source, len, measure, tile }),
        Task::Label => isa.run(LabelTile { source, len, tile }),
    }
}

/// Confidences of single pixels. Compiled once.
#[inline(never)]
fn measure_spots(source: &Spots<'_>, tile: &mut Tile, isa: Isa) {
    let measure = &Measure::Confidence(super::ConfidenceKind::Top1);
    isa.run(MeasureTile { source, len: source.spots.len(), measure, tile });
}

struct LabelTile<'p, S> {
    source: &'p S,
    len: usize,
    tile: &'p mut Tile,
}

impl<S: Source> Kernel for LabelTile<'_, S> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        self.tile.label(self.source, self.len);
    }
}

/// Nodes around cells between two rows of nodes, (C, cells) each: upper left, upper right, lower left, lower right.
#[inline(always)]
fn gather_nodes(plan: &Upsampled, row: Tap, together: Together<'_>, corners: [&mut [f32]; 4]) {
    let (num_classes, h, w) = plan.shape;
    let (count, places) = (together.cells.len(), together.places(num_classes));
    let [top_left, top_right, bottom_left, bottom_right] = corners;
    let row_of = |class: u32, row: u32| &plan.nodes[(class as usize * h + row as usize) * w..][..w];
    let Some(lists) = together.classes else {
        // most cells of a whole row lie between neighbours: they are copied at once
        let whole = together.cells.last().map_or(0, |last| (last - together.cells[0]) as usize + 1) == count;
        let first = together.cells[0] as usize;
        let even = if whole { plan.even.start.max(first)..plan.even.end.min(first + count) } else { 0..0 };
        let even = if even.is_empty() { 0..0 } else { even.start - first..even.end - first };
        for class in 0..num_classes {
            let (top, bottom) = (row_of(class as u32, row.low), row_of(class as u32, row.high));
            let at = class * count..(class + 1) * count;
            let (top_left, top_right) = (&mut top_left[at.clone()], &mut top_right[at.clone()]);
            let (bottom_left, bottom_right) = (&mut bottom_left[at.clone()], &mut bottom_right[at]);
            if !even.is_empty() {
                let low = plan.cells[first + even.start].low as usize;
                let (left, right) = (low..low + even.len(), low + 1..low + 1 + even.len());
                top_left[even.clone()].copy_from_slice(&top[left.clone()]);
                bottom_left[even.clone()].copy_from_slice(&bottom[left]);
                top_right[even.clone()].copy_from_slice(&top[right.clone()]);
                bottom_right[even.clone()].copy_from_slice(&bottom[right]);
            }
            for i in (0..even.start).chain(even.end..count) {
                let Cell { low, high, .. } = plan.cells[together.cells[i] as usize];
                (top_left[i], bottom_left[i]) = (top[low as usize], bottom[low as usize]);
                (top_right[i], bottom_right[i]) = (top[high as usize], bottom[high as usize]);
            }
        }
        return;
    };
    for (i, (cell, list)) in together.cells.iter().zip(lists.chunks_exact(places)).enumerate() {
        let Cell { low, high, .. } = plan.cells[*cell as usize];
        for (place, class) in list.iter().enumerate() {
            let at = place * count + i;
            if *class == NO_CLASS {
                (top_left[at], top_right[at]) = (IMPOSSIBLE, IMPOSSIBLE);
                (bottom_left[at], bottom_right[at]) = (IMPOSSIBLE, IMPOSSIBLE);
                continue;
            }
            let (top, bottom) = (row_of(*class, row.low), row_of(*class, row.high));
            (top_left[at], top_right[at]) = (top[low as usize], top[high as usize]);
            (bottom_left[at], bottom_right[at]) = (bottom[low as usize], bottom[high as usize]);
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

/// A pixel on its own: its nodes in a plane, its weights, and its place in the band.
struct Spot {
    nodes: [usize; 4],
    lower: f32,
    right: f32,
    pixel: usize,
}

impl Spot {
    #[inline(always)]
    fn new(plan: &Upsampled, row: Tap, cell: Cell, weight: f32, pixel: usize) -> Self {
        let node = |row: u32, column: u32| row as usize * plan.shape.2 + column as usize;
        Self {
            nodes: [
                node(row.low, cell.low),
                node(row.low, cell.high),
                node(row.high, cell.low),
                node(row.high, cell.high),
            ],
            lower: row.weight,
            right: weight,
            pixel,
        }
    }
}

/// Single pixels side by side, by the same arithmetic.
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
        let (_, h, w) = self.plan.shape;
        for (k, values) in room.iter_mut().enumerate().take(N) {
            let plane = &self.plan.nodes[(first + k) * h * w..(first + k + 1) * h * w];
            for (value, spot) in values.iter_mut().zip(self.spots) {
                let [top_left, top_right, bottom_left, bottom_right] = spot.nodes.map(|node| plane[node]);
                let left = blend(top_left, bottom_left - top_left, spot.lower);
                let step = blend(top_right, bottom_right - top_right, spot.lower) - left;
                *value = blend(left, step, spot.right);
            }
        }
        let room = &*room;
        std::array::from_fn(|k| &room[k][..self.spots.len()])
    }

    #[inline(always)]
    fn pick(&self, _: usize, _: &[u16], _: &mut [f32]) {}
}
