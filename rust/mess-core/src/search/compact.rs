//! The table as the engine reads it: counts of the classes that matter, images in order of confidence, integer levels
//! instead of thresholds. Images have an order of their own here (`alike`).
//!
//! Made once from the table and shared by all threads. Sizes for E exits, n images, T pixel thresholds and P classes with
//! ground truth (rounded up to a multiple of `PAD`): 8 E n P bytes of counts, half of what the table takes, and as much
//! again (a 32nd more), or less where images have few of the classes (`Columns`), 10 E T n bytes of orders, 2 E n of the
//! runs that they span, and 12 bytes for each image threshold, of which there are at most E T n. Of what else grows with
//! n, each family of exit points has 4 n bytes for each of its exits (`field`), and each thread about as much for its task,
//! a row for each of its points and each band of costs of a front, `GROUPS` rows for each exit of a chain, T n bytes, and,
//! for each level of the regions of a chain of k exits, up to (16 + 8 k) n bytes.
//!
//! Arrays over classes are padded for vectors: padding classes have no counts, a ground truth of 1 and no weight.

use ndarray::{Axis, s};
use rayon::prelude::*;

use super::objective::Metric;
use super::table::Table;

/// Images of a block of [`Columns`].
pub(crate) const LANES: usize = 16;

/// Classes are padded to a multiple of this, for vectors.
pub(crate) const PAD: usize = 8;

/// Level of an image that no threshold lets go.
pub(crate) const NEVER: u32 = u32::MAX;

/// Counts and confidences in the engine's form. Classes are those with ground truth.
#[derive(Debug)]
pub(crate) struct Compact {
    /// (n,) the table's image at each place of the order here.
    pub order: Vec<usize>,
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
    /// Of each exit the same, times the image's weight, with images innermost.
    columns: Vec<Columns>,
    /// So many counts have a sum that 32 bits hold.
    pub summable: usize,
    gates: Vec<GateOrder>,
    /// (E, n) first and last run of each image over the orders of an exit's gates.
    spans: Vec<(u8, u8)>,
}

/// Counts of one exit in blocks of `LANES` images, each with the classes that any of its images has there.
#[derive(Debug, Default)]
pub(crate) struct Columns {
    /// Where the classes of each block end.
    ends: Vec<usize>,
    classes: Vec<u32>,
    /// For each of those, of the block's images: intersections, wrongly predicted pixels.
    counts: Vec<[[f32; LANES]; 2]>,
}

impl Columns {
    /// `rows` are the (2, padded P) counts of each image.
    fn new(rows: &[u32], padded: usize, weight: &[f64]) -> Self {
        let mut columns = Self::default();
        for (rows, weight) in rows.chunks(LANES * 2 * padded).zip(weight.chunks(LANES)) {
            for class in 0..padded {
                let mut counts = [[0.0; LANES]; 2];
                for (lane, (row, weight)) in rows.chunks_exact(2 * padded).zip(weight).enumerate() {
                    counts[0][lane] = (weight * f64::from(row[class])) as f32;
                    counts[1][lane] = (weight * f64::from(row[padded + class])) as f32;
                }
                if counts.as_flattened().iter().any(|count| *count != 0.0) {
                    columns.classes.push(class as u32);
                    columns.counts.push(counts);
                }
            }
            columns.ends.push(columns.classes.len());
        }
        columns.classes.shrink_to_fit();
        columns.counts.shrink_to_fit();
        columns
    }

    /// (classes, counts) of each block of images, in their order.
    #[inline(always)]
    pub fn blocks(&self) -> impl Iterator<Item = (&[u32], &[[[f32; LANES]; 2]])> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, &end)| (&self.classes[start..end], &self.counts[start..end]))
    }
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
    /// (n,) images, most confident first, ties by their places here.
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
        let order = if has_gates { alike(table, &classes) } else { (0..num_images).collect() };
        let mut places = vec![0; num_images]; // the table is read as it lies in its file
        order.iter().enumerate().for_each(|(place, image)| places[*image] = place);
        let mut counts = vec![0u32; num_exits * num_images * 2 * padded];
        counts.par_chunks_mut(num_images * 2 * padded).enumerate().for_each(|(exit, counts)| {
            let [intersection, predicted] =
                [table.intersection, table.predicted].map(|of| of.index_axis_move(Axis(0), exit));
            for ((both, predicted), place) in intersection.rows().into_iter().zip(predicted.rows()).zip(&places) {
                let row = &mut counts[place * 2 * padded..][..2 * padded];
                for (at, &class) in classes.iter().enumerate() {
                    row[at] = both[class] as u32;
                    row[padded + at] = (predicted[class] - both[class]) as u32;
                }
            }
        });
        let most = counts.par_iter().copied().max().unwrap_or(0);
        let weight: Vec<f64> = order.iter().map(|image| table.weight(*image) as f64).collect();
        let num_gated = if has_gates { num_exits } else { 0 };
        let columns = counts.par_chunks(num_images * 2 * padded).take(num_gated);
        let columns = columns.map(|rows| Columns::new(rows, padded, &weight)).collect();
        let truth = |class: &usize| -> f64 {
            let of_images = table.ground_truth.column(*class);
            order.iter().zip(&weight).map(|(image, weight)| of_images[*image] as f64 * weight).sum()
        };
        let gates: Vec<GateOrder> = (0..num_exits * num_pixels)
            .into_par_iter()
            .map(|gate| GateOrder::new(table, &order, gate / num_pixels, gate % num_pixels, image_thresholds))
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
            order,
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

    /// Images after padding to whole blocks of columns.
    pub fn padded_images(&self) -> usize {
        (self.num_images + 1).next_multiple_of(LANES)
    }

    /// Intersections and wrongly predicted pixels of one exit, with images innermost.
    pub fn columns(&self, exit: usize) -> &Columns {
        &self.columns[exit]
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

    /// Images of one weight, at most `most` at a time, and no more than have sums of counts that 32 bits hold: these are
    /// quicker to add up ([`take`]).
    pub fn summable<'i, T>(
        &self,
        images: &'i [T],
        most: usize,
        weight: impl Fn(&T) -> f64,
    ) -> impl Iterator<Item = &'i [T]> {
        let most = most.min(self.summable);
        images.chunk_by(move |a, b| weight(a) == weight(b)).flat_map(move |same| same.chunks(most))
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

    fn new(table: &Table<'_>, images: &[usize], exit: usize, pixel: usize, image_thresholds: Option<usize>) -> Self {
        let num_images = images.len();
        let confidences = table.image_confidence.slice(s![exit, pixel, ..]);
        let confidences: Vec<f64> = images.iter().map(|image| confidences[*image] + 0.0).collect(); // -0 is 0
        let confidence = |image: u32| confidences[image as usize];
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

/// Add sums of counts of images of one weight to others, and begin anew.
#[inline(always)]
pub(crate) fn take(sums: &mut [u32], weight: f64, to: &mut [f64]) {
    to.iter_mut().zip(sums).for_each(|(to, sum)| *to += weight * f64::from(std::mem::take(sum)));
}

/// The images in an order in which neighbours have the same weight ([`take`]) and the same classes, so that few are in a
/// block of [`Columns`]: by their sets of classes, rare ones first, of what at least half of some exits predict in them.
fn alike(table: &Table<'_>, classes: &[usize]) -> Vec<usize> {
    const MOST_EXITS: usize = 15;
    let exits: Vec<usize> = (0..table.num_exits()).step_by(table.num_exits().div_ceil(MOST_EXITS)).collect();
    let is_in = |image: usize, class: usize| {
        let predict = exits.iter().filter(|exit| table.predicted[[**exit, image, class]] > 0).count();
        2 * predict >= exits.len()
    };
    let mut sets: Vec<Vec<bool>> = (0..table.num_images())
        .into_par_iter()
        .map(|image| classes.iter().map(|class| is_in(image, *class)).collect())
        .collect();
    let images_with = |at: &usize| sets.iter().filter(|set| set[*at]).count();
    let mut rare_first: Vec<usize> = (0..classes.len()).collect();
    rare_first.sort_by_cached_key(images_with);
    for set in &mut sets {
        *set = rare_first.iter().map(|at| set[*at]).collect();
    }
    let mut order: Vec<usize> = (0..sets.len()).collect();
    order.sort_by(|a, b| table.weight(*a).cmp(&table.weight(*b)).then_with(|| sets[*b].cmp(&sets[*a])));
    order
}
