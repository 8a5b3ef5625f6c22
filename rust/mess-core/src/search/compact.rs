//! The table as the engine reads it: counts of the classes that matter, images in order of confidence, integer levels
//! instead of thresholds.
//!
//! Made once from the table and shared by all threads. Sizes for E exits, n images, T pixel thresholds and P classes with
//! ground truth (rounded up to a multiple of `PAD`): 16 E n P bytes of counts, as much as the table takes, 10 E T n
//! bytes of orders, 2 E n of the runs that they span, and 12 bytes for each image threshold, of which there are at most
//! E T n. Of what else grows with n, each family of exit points has 4 n bytes for each of its exits (`field`), and each
//! thread about as much for its task, a row for each of its points and each band of costs of a front, `GROUPS` rows for
//! each exit of a chain, T n bytes, and, for each level of the regions of a chain of k exits, up to (16 + 8 k) n bytes.
//!
//! Arrays over classes are padded for vectors: padding classes have no counts, a ground truth of 1 and no weight.

use ndarray::{Axis, s};
use rayon::prelude::*;

use super::objective::Metric;
use super::table::Table;

/// Images of `columns` are padded to a multiple of this.
pub(crate) const LANES: usize = 64;

/// Classes are padded to a multiple of this, for vectors.
pub(crate) const PAD: usize = 8;

/// Level of an image that no threshold lets go.
pub(crate) const NEVER: u32 = u32::MAX;

/// Counts and confidences in the engine's form. Classes are those with ground truth.
#[derive(Debug)]
pub(crate) struct Compact {
    pub num_images: usize,
    pub num_exits: usize,
    pub num_pixels: usize,
    /// (padded P,) weighted ground truth of each present class.
    pub truth: Vec<f64>,
    /// Table class of each present class, (P,).
    pub classes: Vec<usize>,
    /// (n,) how often each image counts.
    pub weight: Vec<f64>,
    pub total_weight: f64,
    pub points: Vec<i64>,
    /// (E, n, 2, padded P): intersection, wrongly predicted.
    counts: Vec<u32>,
    /// (E, padded n / LANES, 2, P, LANES): the same, times the image's weight, with images innermost.
    columns: Vec<f32>,
    /// So many counts have a sum that 32 bits hold.
    pub summable: usize,
    gates: Vec<GateOrder>,
    /// (E, n) first and last run of each image over the orders of an exit's gates.
    spans: Vec<(u8, u8)>,
}

/// Exact sums over the images of a mixture of exits.
#[derive(Debug, Clone)]
pub(crate) struct Mixture {
    /// (padded P,) sums of T and F.
    pub t: Vec<f64>,
    pub f: Vec<f64>,
    /// Images and weight that stop at each exit.
    pub images: Vec<u32>,
    pub weight: Vec<f64>,
}

impl Mixture {
    /// No image yet.
    pub fn new(compact: &Compact, exits: usize) -> Self {
        let padded = compact.padded();
        Self { t: vec![0.0; padded], f: vec![0.0; padded], images: vec![0; exits], weight: vec![0.0; exits] }
    }

    /// `image` stops at `exit`, the mixture's number `at`.
    #[inline(always)]
    pub fn add(&mut self, compact: &Compact, exit: usize, at: usize, image: usize) {
        compact.add(exit, image, &mut self.t, &mut self.f);
        self.images[at] += 1;
        self.weight[at] += compact.weight[image];
    }

    /// Take over the sums of another one's only exit, for the first of those here, when there is nothing yet.
    pub fn begin_with(&mut self, other: &Self) {
        self.t.copy_from_slice(&other.t);
        self.f.copy_from_slice(&other.f);
        (self.images[0], self.weight[0]) = (other.images[0], other.weight[0]);
    }

    /// Become a copy of another one, without allocating.
    pub fn copy_from(&mut self, other: &Self) {
        self.t.copy_from_slice(&other.t);
        self.f.copy_from_slice(&other.f);
        self.images.copy_from_slice(&other.images);
        self.weight.copy_from_slice(&other.weight);
    }
}

/// One gate (exit, pixel threshold): the order in which a falling image threshold lets images go.
///
/// Its image thresholds are numbered from the largest; with threshold number q, an image leaves when its level is <= q.
#[derive(Debug, Default)]
pub(crate) struct GateOrder {
    /// (n,) images, most confident first, ties by image.
    pub images: Vec<u32>,
    /// (n,) level of each image.
    pub levels: Vec<u32>,
    /// Image thresholds that may be chosen, largest first.
    pub thresholds: Vec<f64>,
    /// Images that each of them lets go.
    pub leaving: Vec<u32>,
    /// (n,) which of `RUNS` runs of equal length each image is in.
    pub runs: Vec<u8>,
    /// (n,) which of `GROUPS` groups of neighbouring runs.
    pub groups: Vec<u8>,
}

/// Runs that the order of a gate is cut into.
pub(crate) const RUNS: usize = 32;
/// Groups of runs that have ranges of their own.
pub(crate) const GROUPS: usize = 8;

impl Compact {
    /// `image_thresholds` as in [`super::Space`]; without gates there are no pixel thresholds.
    pub fn new(table: &Table<'_>, image_thresholds: Option<usize>, has_gates: bool) -> Self {
        let classes = table.present_classes();
        let (num_exits, num_images) = (table.num_exits(), table.num_images());
        let num_pixels = if has_gates { table.num_pixel_thresholds() } else { 0 };
        let padded = classes.len().next_multiple_of(PAD);
        let mut counts = vec![0u32; num_exits * num_images * 2 * padded];
        counts.par_chunks_mut(num_images * 2 * padded).enumerate().for_each(|(exit, counts)| {
            let [intersection, predicted] =
                [table.intersection, table.predicted].map(|of| of.index_axis_move(Axis(0), exit));
            let of_images = intersection.rows().into_iter().zip(predicted.rows());
            for (row, (both, predicted)) in counts.chunks_exact_mut(2 * padded).zip(of_images) {
                for (at, &class) in classes.iter().enumerate() {
                    row[at] = both[class] as u32;
                    row[padded + at] = (predicted[class] - both[class]) as u32;
                }
            }
        });
        let most = counts.par_iter().copied().max().unwrap_or(0);
        let weight: Vec<f64> = (0..num_images).map(|image| table.weight(image) as f64).collect();
        let length = (num_images + 1).next_multiple_of(LANES);
        let num_gated = if has_gates { num_exits } else { 0 };
        let mut columns = vec![0.0f32; num_gated * 2 * classes.len() * length];
        columns.par_chunks_mut(2 * classes.len() * length).enumerate().for_each(|(exit, columns)| {
            for (image, weight) in weight.iter().enumerate() {
                let row = &counts[(exit * num_images + image) * 2 * padded..][..2 * padded];
                let block = &mut columns[image / LANES * 2 * classes.len() * LANES..];
                for at in 0..classes.len() {
                    let of = |row: &[u32]| (weight * f64::from(row[at])) as f32;
                    block[at * LANES + image % LANES] = of(row);
                    block[(classes.len() + at) * LANES + image % LANES] = of(&row[padded..]);
                }
            }
        });
        let truth = |class: &usize| -> f64 {
            table.ground_truth.column(*class).iter().zip(&weight).map(|(pixels, weight)| *pixels as f64 * weight).sum()
        };
        let gates: Vec<GateOrder> = (0..num_exits * num_pixels)
            .into_par_iter()
            .map(|gate| GateOrder::new(table, gate / num_pixels, gate % num_pixels, image_thresholds))
            .collect();
        let mut spans = vec![(u8::MAX, 0); num_exits * num_images];
        spans.par_chunks_mut(num_images).zip(gates.par_chunks(num_pixels.max(1))).for_each(|(spans, of_exit)| {
            for gate in of_exit {
                spans.iter_mut().zip(&gate.runs).for_each(|((first, last), run)| {
                    (*first, *last) = ((*first).min(*run), (*last).max(*run));
                });
            }
        });
        Self {
            num_images,
            num_exits,
            num_pixels,
            truth: classes.iter().map(truth).chain(std::iter::repeat(1.0)).take(padded).collect(),
            classes,
            total_weight: weight.iter().sum(),
            weight,
            points: table.points.to_vec(),
            counts,
            columns,
            summable: (u32::MAX / most.max(1)) as usize,
            gates,
            spans,
        }
    }

    /// One gate.
    pub fn gate(&self, exit: usize, pixel: usize) -> &GateOrder {
        &self.gates[exit * self.num_pixels + pixel]
    }

    /// First and last run of each image over the orders of all pixel thresholds of an exit, (n,).
    pub fn spans(&self, exit: usize) -> &[(u8, u8)] {
        &self.spans[exit * self.num_images..][..self.num_images]
    }

    /// Classes after padding.
    pub fn padded(&self) -> usize {
        self.truth.len()
    }

    /// Images after padding; there is at least one of padding.
    pub fn padded_images(&self) -> usize {
        (self.num_images + 1).next_multiple_of(LANES)
    }

    /// (padded n / LANES, 2, P, LANES): intersections and wrongly predicted pixels of one exit.
    pub fn columns(&self, exit: usize) -> &[f32] {
        let size = 2 * self.classes.len() * self.padded_images();
        &self.columns[exit * size..][..size]
    }

    /// The same two, one after the other, (2 padded P,).
    #[inline(always)]
    pub fn both_counts(&self, exit: usize, image: usize) -> &[u32] {
        let padded = self.truth.len();
        &self.counts[(exit * self.num_images + image) * 2 * padded..][..2 * padded]
    }

    /// The same of `num` images from `first` on, (num, 2, padded P).
    #[inline(always)]
    pub fn of_images(&self, exit: usize, first: usize, num: usize) -> &[u32] {
        let size = 2 * self.truth.len();
        &self.counts[(exit * self.num_images + first) * size..][..num * size]
    }

    /// (intersection, wrongly predicted) of each class of one image, by one exit.
    #[inline(always)]
    pub fn counts(&self, exit: usize, image: usize) -> (&[u32], &[u32]) {
        self.both_counts(exit, image).split_at(self.truth.len())
    }

    /// Add the counts of `image` at `exit` to the sums T and F.
    #[inline(always)]
    pub fn add(&self, exit: usize, image: usize, t: &mut [f64], f: &mut [f64]) {
        let weight = self.weight[image];
        let (both, wrong) = self.counts(exit, image);
        for (sums, counts) in [(t, both), (f, wrong)] {
            for (sums, counts) in sums.as_chunks_mut::<PAD>().0.iter_mut().zip(counts.as_chunks::<PAD>().0) {
                let mut now = *sums; // a copy becomes one vector
                for lane in 0..PAD {
                    now[lane] += weight * f64::from(counts[lane]);
                }
                *sums = now;
            }
        }
    }

    /// The metric of sums T and F.
    pub fn metric(&self, metric: Metric, t: &[f64], f: &[f64]) -> f64 {
        let classes = self.classes.len();
        metric.value(&t[..classes], &f[..classes], &self.truth[..classes])
    }
}

impl GateOrder {
    /// Numbers of the image thresholds that let go more images than the runs before `first`, and at most those up to
    /// `last`: `low..=high`, or nothing.
    pub fn thresholds_within(&self, first: usize, last: usize) -> Option<(u32, u32)> {
        let length = self.run_length();
        let up_to = |count: usize| self.leaving.partition_point(|leaving| *leaving as usize <= count) as u32;
        let (low, end) = (up_to(first * length), up_to((last + 1) * length));
        (low < end).then(|| (low, end - 1))
    }

    /// Images of a run; the last one that has any may have fewer.
    pub fn run_length(&self) -> usize {
        self.images.len().div_ceil(RUNS)
    }

    fn new(table: &Table<'_>, exit: usize, pixel: usize, image_thresholds: Option<usize>) -> Self {
        let num_images = table.num_images();
        let confidences = table.image_confidence.slice(s![exit, pixel, ..]);
        let confidence = |image: u32| confidences[image as usize] + 0.0; // -0 is 0
        // numbers of 0 and more are in the order of their bits
        let mut sorted: Vec<(u64, u32)> =
            (0..num_images as u32).map(|image| (!confidence(image).to_bits(), image)).collect();
        sorted.sort_unstable();
        let images: Vec<u32> = sorted.into_iter().map(|(_, image)| image).collect();
        let mut thresholds: Vec<f64> = images.iter().map(|image| confidence(*image)).collect();
        thresholds.dedup();
        if let Some(count) = image_thresholds.filter(|count| *count < thresholds.len()) {
            thresholds = (1..=count).map(|i| confidence(images[i * num_images / (count + 1)])).collect();
            thresholds.dedup();
        }
        let mut passed = 0;
        let up_to = |threshold: &f64| {
            passed += images[passed..].iter().take_while(|image| confidence(**image) >= *threshold).count();
            passed as u32
        };
        let leaving: Vec<u32> = thresholds.iter().map(up_to).collect();
        let mut levels = vec![NEVER; num_images];
        let mut from = 0;
        for (level, &until) in leaving.iter().enumerate() {
            images[from..until as usize].iter().for_each(|image| levels[*image as usize] = level as u32);
            from = until as usize;
        }
        let mut runs = vec![0; num_images];
        for (run, members) in images.chunks(num_images.div_ceil(RUNS)).enumerate() {
            members.iter().for_each(|image| runs[*image as usize] = run as u8);
        }
        let groups = runs.iter().map(|run| run / (RUNS / GROUPS) as u8).collect();
        Self { images, levels, thresholds, leaving, runs, groups }
    }
}
