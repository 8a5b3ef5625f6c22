//! Edges: Canny on a grey picture or a label map, and exact label boundaries.
//!
//! Contract of [`canny`] (bit-exact with OpenCV's `cv::Canny`, 4.x and 5.0, with a grey 8-bit input)
//! 1. Gradients: Sobel, aperture 3, 5 or 7, replicated border, int16; at aperture 7 gradient and thresholds are divided
//!    by 16 and the gradient is rounded half to even.
//! 2. Magnitude |dx| + |dy|, or dx^2 + dy^2 against squared thresholds (`l2`; thresholds above 32767 are cut to it).
//! 3. Thresholds are swapped if reversed, then floored. Candidate: magnitude > low (strict); strong: > high (strict).
//! 4. Non-maximum suppression along the gradient with tan 22.5 degrees = 13573 / 2^15: near-horizontal gradients need
//!    `> left, >= right`, near-vertical `> above, >= below`, diagonals strictly more than both. Magnitude outside the
//!    picture is 0, so a border pixel can be an edge.
//! 5. Hysteresis: candidates 8-connected to a strong pixel, serial flood.
//! 6. Empty pictures give empty maps.
//!
//! On label maps low = high = 0 is the default: every change of label that Sobel sees is an edge. Thresholds above 0
//! would depend on the *difference of class ids*, which means nothing.
//!
//! Reference: J. Canny, "A Computational Approach to Edge Detection", IEEE TPAMI 8(6), 1986.
//!
//! Plain algorithm: gradients of the picture, magnitudes, suppression, flood. What is done instead: row by row, three
//! rows of gradients at a time, without a branch per pixel; with low = high = 0 every candidate is strong, so there is
//! nothing to flood, an edge depends on a 5 x 5 neighbourhood, and any rows can be computed alone.

use std::ops::Range;

use ndarray::{Array2, ArrayView2, ArrayViewMut2};

use super::scratch::{room, with_scratch};
use crate::error::{Error, Result};
use crate::isa::{Isa, Kernel};

/// A class index of a label map.
pub trait Label: Copy + PartialEq + std::fmt::Debug + Send + Sync {
    /// Whether every value of the type is an accepted label.
    const ALWAYS_FITS: bool;
    /// The index, or -1 if it is none of 0..2^31.
    fn index(self) -> i32;
}

macro_rules! label {
    ($($integer:ty: $always_fits:literal),*) => {
        $(impl Label for $integer {
            const ALWAYS_FITS: bool = $always_fits;
            #[inline(always)]
            fn index(self) -> i32 {
                i32::try_from(self).unwrap_or(-1)
            }
        })*
    };
}
label!(u8: true, i8: false, u16: true, i16: false, u32: false, i32: false, u64: false, i64: false);

/// Labels of a map must be below this, so that gradients of label maps fit 32 bits.
pub const MAX_LABELS: i32 = 1 << 16;

/// What counts as an edge of a label map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EdgeKind {
    /// Canny with low = high = 0, aperture 3, L1.
    #[default]
    Canny,
    /// Pixels with a 4-neighbour of another label; invariant under relabelling.
    Labels,
}

/// Options of [`canny`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CannySettings {
    /// Lower hysteresis threshold, in units of the gradient magnitude.
    pub low: f64,
    /// Upper hysteresis threshold.
    pub high: f64,
    /// Side of the Sobel kernel: 3, 5 or 7.
    pub aperture: usize,
    /// Euclidean magnitude instead of |dx| + |dy|.
    pub l2: bool,
}

/// Edge map (H, W) of an 8-bit grey picture (H, W): 1 where there is an edge, else 0.
///
/// # Errors
/// [`Error::Value`] for an aperture other than 3, 5, 7 or thresholds that are not finite.
pub fn canny(image: ArrayView2<'_, u8>, settings: &CannySettings, isa: Isa) -> Result<Array2<u8>> {
    let mut edges = super::zeros(image.dim())?;
    canny_into(image, settings, edges.view_mut(), isa)?;
    Ok(edges)
}

/// [`canny`] into a buffer of the caller, (H, W) in C order.
///
/// # Errors
/// As [`canny`], and for a buffer of another shape or order.
pub fn canny_into(
    image: ArrayView2<'_, u8>,
    settings: &CannySettings,
    edges: ArrayViewMut2<'_, u8>,
    isa: Isa,
) -> Result<()> {
    if ![3, 5, 7].contains(&settings.aperture) {
        return Err(Error::value("aperture", "3, 5 or 7", settings.aperture));
    }
    for (argument, threshold) in [("low", settings.low), ("high", settings.high)] {
        if !threshold.is_finite() {
            return Err(Error::value(argument, "a finite threshold", threshold));
        }
    }
    let size = image.dim();
    let marks = super::in_c_order("out", edges, size)?;
    let image = super::in_standard_layout("image", image)?;
    let image = super::slice_of(&image);
    let (low, high) = integer_thresholds(settings);
    let rows = 0..size.0;
    with_scratch(|scratch| {
        let buffers = &mut scratch.edges;
        let picture = Picture { pixels: image, size, rows, low, high };
        match (settings.aperture, settings.l2) {
            (3, false) => isa.run(Suppress::<_, 3, false, false> { picture, marks, buffers }),
            (3, true) => isa.run(Suppress::<_, 3, true, false> { picture, marks, buffers }),
            (5, false) => isa.run(Suppress::<_, 5, false, false> { picture, marks, buffers }),
            (5, true) => isa.run(Suppress::<_, 5, true, false> { picture, marks, buffers }),
            (_, false) => isa.run(Suppress::<_, 7, false, false> { picture, marks, buffers }),
            (_, true) => isa.run(Suppress::<_, 7, true, false> { picture, marks, buffers }),
        }
    });
    hysteresis(marks, size.1);
    Ok(())
}

/// Edge map (H, W) of a label map (H, W): 1 where there is an edge, else 0.
///
/// # Errors
/// [`Error::Value`] for a label outside 0..65536.
pub fn label_edges<L: Label>(labels: ArrayView2<'_, L>, kind: EdgeKind, isa: Isa) -> Result<Array2<u8>> {
    let mut edges = super::zeros(labels.dim())?;
    label_edges_into(labels, kind, edges.view_mut(), isa)?;
    Ok(edges)
}

/// [`label_edges`] into a buffer of the caller, (H, W) in C order.
///
/// # Errors
/// As [`label_edges`], and for a buffer of another shape or order.
pub fn label_edges_into<L: Label>(
    labels: ArrayView2<'_, L>,
    kind: EdgeKind,
    edges: ArrayViewMut2<'_, u8>,
    isa: Isa,
) -> Result<()> {
    let size = labels.dim();
    let edges = super::in_c_order("out", edges, size)?;
    check_labels(labels)?;
    let labels = super::in_standard_layout("labels", labels)?;
    label_edge_rows(super::slice_of(&labels), size, kind, 0..size.0, edges, isa);
    Ok(())
}

/// Refuse labels outside 0..65536; the message says where.
pub(crate) fn check_labels<L: Label>(labels: ArrayView2<'_, L>) -> Result<()> {
    if L::ALWAYS_FITS {
        return Ok(());
    }
    match labels.indexed_iter().find(|(_, l)| !(0..MAX_LABELS).contains(&l.index())) {
        None => Ok(()),
        Some(((row, column), label)) => {
            let expected = format!("class indices 0..{}", MAX_LABELS - 1);
            Err(Error::value("labels", expected, format!("{label:?} at row {row}, column {column}")))
        }
    }
}

/// Edges of `rows` of a label map, into a buffer that holds just those rows. Labels of two rows above and below are read.
pub(crate) fn label_edge_rows<L: Label>(
    labels: &[L],
    size: (usize, usize),
    kind: EdgeKind,
    rows: Range<usize>,
    edges: &mut [u8],
    isa: Isa,
) {
    if edges.is_empty() {
        return;
    }
    let one = |rows: Range<usize>, marks: &mut [u8]| match kind {
        EdgeKind::Canny => with_scratch(|scratch| {
            let (picture, buffers) = (Picture { pixels: labels, size, rows, low: 0, high: 0 }, &mut scratch.edges);
            if size_of::<L>() == 1 {
                isa.run(Suppress::<_, 3, false, false> { picture, marks, buffers });
            } else {
                isa.run(Suppress::<_, 3, false, true> { picture, marks, buffers });
            }
        }),
        EdgeKind::Labels => isa.run(Boundaries { labels, size, rows, edges: marks }),
    };
    super::share_map_rows(rows, size.1, edges, one);
}

fn integer_thresholds(settings: &CannySettings) -> (i32, i32) {
    let scale = if settings.aperture == 7 { 16.0 } else { 1.0 };
    let (mut low, mut high) = (settings.low / scale, settings.high / scale);
    if low > high {
        std::mem::swap(&mut low, &mut high);
    }
    let squared = |t: f64| {
        let t = t.min(32767.0);
        if t > 0.0 { t * t } else { t }
    };
    if settings.l2 {
        (low, high) = (squared(low), squared(high));
    }
    let floored = |t: f64| t.floor().clamp(f64::from(i32::MIN), f64::from(i32::MAX)) as i32;
    (floored(low), floored(high))
}

/// What a pixel is before hysteresis.
const CANDIDATE: u8 = 2;
/// An edge, before and after hysteresis.
const STRONG: u8 = 1;

/// Rows of a picture and integer thresholds.
struct Picture<'p, L> {
    pixels: &'p [L],
    size: (usize, usize),
    rows: Range<usize>,
    low: i32,
    high: i32,
}

impl<L> Picture<'_, L> {
    /// Row `row`, clamped to the picture.
    #[inline(always)]
    fn row(&self, row: isize) -> &[L] {
        let (height, width) = self.size;
        let row = row.clamp(0, height as isize - 1) as usize;
        &self.pixels[row * width..(row + 1) * width]
    }
}

/// Gradients and magnitudes of three rows, magnitudes with a zero on either side; columns smoothed and derived, with
/// replicated borders.
#[derive(Default)]
pub(crate) struct RowBuffers {
    dx: [Vec<i32>; 3],
    dy: [Vec<i32>; 3],
    magnitude: [Vec<i32>; 3],
    smoothed: Vec<i32>,
    derived: Vec<i32>,
}

/// Thresholds and non-maximum suppression of rows. WIDE: gradients may exceed 2^14 (labels beyond uint8).
struct Suppress<'p, L, const APERTURE: usize, const L2: bool, const WIDE: bool> {
    picture: Picture<'p, L>,
    marks: &'p mut [u8],
    buffers: &'p mut RowBuffers,
}

impl<L: Label, const APERTURE: usize, const L2: bool, const WIDE: bool> Kernel for Suppress<'_, L, APERTURE, L2, WIDE> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let Self { picture, marks, buffers } = self;
        let (height, width) = picture.size;
        if width == 0 {
            return;
        }
        let RowBuffers { dx, dy, magnitude, smoothed, derived } = buffers;
        let [dx, dy] = [dx, dy].map(|rows| rows.each_mut().map(|row| room(row, width)));
        let magnitude = magnitude.each_mut().map(|row| room(row, width + 2));
        let (smoothed, derived) = (room(smoothed, width + APERTURE - 1), room(derived, width + APERTURE - 1));
        let first = picture.rows.start as isize;
        // row r lives at r mod 3; the two rows before the first result are computed first
        let mut next = first - 1;
        let slot = |row: isize| row.rem_euclid(3) as usize;
        for (index, marks) in marks.chunks_exact_mut(width).enumerate() {
            let row = first + index as isize;
            while next <= row + 1 {
                let at = slot(next);
                if (0..height as isize).contains(&next) {
                    sobel::<L, APERTURE>(&picture, next, smoothed, derived, dx[at], dy[at]);
                    magnitudes::<L2>(dx[at], dy[at], magnitude[at]);
                } else {
                    magnitude[at].fill(0); // outside the picture
                }
                next += 1;
            }
            let [above, here, below] = [slot(row - 1), slot(row), slot(row + 1)];
            let around = [&*magnitude[above], &*magnitude[here], &*magnitude[below]];
            suppress_row::<WIDE>(dx[here], dy[here], around, picture.low, picture.high, marks);
        }
    }
}

/// Horizontal and vertical Sobel gradient of one row, replicated border.
#[inline(always)]
fn sobel<L: Label, const APERTURE: usize>(
    picture: &Picture<'_, L>,
    row: isize,
    smoothed: &mut [i32],
    derived: &mut [i32],
    dx: &mut [i32],
    dy: &mut [i32],
) {
    let (smooth, derive): (&[i32], &[i32]) = match APERTURE {
        3 => (&[1, 2, 1], &[-1, 0, 1]),
        5 => (&[1, 4, 6, 4, 1], &[-1, -2, 0, 2, 1]),
        _ => (&[1, 6, 15, 20, 15, 6, 1], &[-1, -4, -5, 0, 5, 4, 1]),
    };
    let radius = APERTURE / 2;
    let width = dx.len();
    let rows: [&[L]; APERTURE] = std::array::from_fn(|tap| &picture.row(row + tap as isize - radius as isize)[..width]);
    {
        let (smoothed, derived) = (&mut smoothed[radius..radius + width], &mut derived[radius..radius + width]);
        for i in 0..width {
            let (mut s, mut d) = (0, 0);
            for tap in 0..APERTURE {
                let value = rows[tap][i].index();
                s += smooth[tap] * value;
                d += derive[tap] * value;
            }
            smoothed[i] = s;
            derived[i] = d;
        }
    }
    for line in [&mut *smoothed, &mut *derived] {
        let (first, last) = (line[radius], line[radius + width - 1]);
        line[..radius].fill(first);
        line[radius + width..].fill(last);
    }
    let dy = &mut dy[..width];
    let smoothed: [&[i32]; APERTURE] = std::array::from_fn(|tap| &smoothed[tap..tap + width]);
    let derived: [&[i32]; APERTURE] = std::array::from_fn(|tap| &derived[tap..tap + width]);
    for i in 0..width {
        let (mut x, mut y) = (0, 0);
        for tap in 0..APERTURE {
            x += derive[tap] * smoothed[tap][i];
            y += smooth[tap] * derived[tap][i];
        }
        if APERTURE == 7 {
            (x, y) = (divide_by_16_half_to_even(x), divide_by_16_half_to_even(y));
        }
        dx[i] = x;
        dy[i] = y;
    }
}

#[inline(always)]
fn divide_by_16_half_to_even(value: i32) -> i32 {
    (value + 7 + ((value >> 4) & 1)) >> 4
}

/// |dx| + |dy|, or dx^2 + dy^2, into a row with a zero on either side.
#[inline(always)]
fn magnitudes<const L2: bool>(dx: &[i32], dy: &[i32], magnitude: &mut [i32]) {
    let width = dx.len();
    magnitude[0] = 0;
    magnitude[width + 1] = 0;
    let (dy, magnitude) = (&dy[..width], &mut magnitude[1..width + 1]);
    for i in 0..width {
        magnitude[i] = if L2 { dx[i] * dx[i] + dy[i] * dy[i] } else { dx[i].abs() + dy[i].abs() };
    }
}

/// Marks of one row, from its gradients and the magnitudes of the rows above, here and below.
#[inline(always)]
fn suppress_row<const WIDE: bool>(
    dx: &[i32],
    dy: &[i32],
    [above, here, below]: [&[i32]; 3],
    low: i32,
    high: i32,
    marks: &mut [u8],
) {
    const TAN_22_5: i32 = 13573; // in 1 / 2^15
    let width = marks.len();
    let (dx, dy) = (&dx[..width], &dy[..width]);
    let (above, here, below) = (&above[..width + 2], &here[..width + 2], &below[..width + 2]);
    // Most of a label map has no edge near: a block of zeros needs no suppression.
    for start in (0..width).step_by(BLOCK) {
        let end = (start + BLOCK).min(width);
        let any = here[start + 1..end + 1].iter().fold(i32::MIN, |any, m| if *m > any { *m } else { any });
        if any <= low {
            marks[start..end].fill(0);
            continue;
        }
        for i in start..end {
            let m = here[i + 1];
            let (x, y) = (dx[i].abs(), dy[i].abs());
            let (level, steep) = if WIDE {
                let (flat, tall) = (i64::from(x) * i64::from(TAN_22_5), i64::from(y) << 15);
                (tall < flat, tall > flat + (i64::from(x) << 16))
            } else {
                let (flat, tall) = (x * TAN_22_5, y << 15);
                (tall < flat, tall > flat + (x << 16))
            };
            let along_row = (m > here[i]) & (m >= here[i + 2]);
            let along_column = (m > above[i + 1]) & (m >= below[i + 1]);
            let falling = (m > above[i]) & (m > below[i + 2]);
            let rising = (m > above[i + 2]) & (m > below[i]);
            let same_sign = (dx[i] ^ dy[i]) >= 0;
            let diagonal = (same_sign & falling) | (!same_sign & rising);
            let peak = (level & along_row) | (steep & along_column) | (!level & !steep & diagonal);
            let mark = if m > high { STRONG } else { CANDIDATE };
            marks[i] = if peak & (m > low) { mark } else { 0 };
        }
    }
}

/// Pixels tested together for having no gradient.
const BLOCK: usize = 64;

/// Strong pixels and every candidate 8-connected to one become 1, the rest 0.
fn hysteresis(marks: &mut [u8], width: usize) {
    if width == 0 || !marks.contains(&CANDIDATE) {
        return;
    }
    let height = marks.len() / width;
    let mut stack: Vec<usize> = Vec::new();
    for start in 0..marks.len() {
        if marks[start] != STRONG {
            continue;
        }
        stack.push(start);
        while let Some(at) = stack.pop() {
            let (row, column) = (at / width, at % width);
            for r in row.saturating_sub(1)..(row + 2).min(height) {
                for c in column.saturating_sub(1)..(column + 2).min(width) {
                    let near = r * width + c;
                    if marks[near] == CANDIDATE {
                        marks[near] = STRONG;
                        stack.push(near);
                    }
                }
            }
        }
    }
    for mark in marks {
        *mark = u8::from(*mark == STRONG);
    }
}

/// Pixels with a 4-neighbour of another label.
struct Boundaries<'p, L> {
    labels: &'p [L],
    size: (usize, usize),
    rows: Range<usize>,
    edges: &'p mut [u8],
}

impl<L: Label> Kernel for Boundaries<'_, L> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let Self { labels, size: (height, width), rows, edges } = self;
        let row = |row: usize| &labels[row * width..(row + 1) * width];
        for (r, edges) in rows.zip(edges.chunks_exact_mut(width)) {
            let (above, here, below) = (row(r.saturating_sub(1)), row(r), row((r + 1).min(height - 1)));
            for i in 0..width {
                edges[i] = u8::from((above[i] != here[i]) | (below[i] != here[i]));
            }
            for i in 1..width {
                let differ = u8::from(here[i - 1] != here[i]);
                edges[i] |= differ;
            }
            for i in 1..width {
                let differ = u8::from(here[i - 1] != here[i]);
                edges[i - 1] |= differ;
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use ndarray::array;

    fn drawn(edges: &Array2<u8>) -> Vec<String> {
        edges.rows().into_iter().map(|row| row.iter().map(|e| if *e == 1 { '#' } else { '.' }).collect()).collect()
    }

    #[test]
    fn a_vertical_step_is_one_column_of_canny_edges() {
        let labels = array![[0u8, 0, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1]];
        // equal magnitudes left and right of the step: `> left, >= right` keeps the left one
        assert_eq!(drawn(&label_edges(labels.view(), EdgeKind::Canny, Isa::best()).unwrap()), [".#..", ".#..", ".#.."]);
        assert_eq!(
            drawn(&label_edges(labels.view(), EdgeKind::Labels, Isa::best()).unwrap()),
            [".##.", ".##.", ".##."]
        );
    }

    #[test]
    fn wide_labels_behave_like_narrow_ones() {
        let narrow = array![[0u8, 3, 3], [0, 3, 7]];
        let wide = narrow.mapv(|v| i32::from(v) * 9000);
        assert_eq!(
            label_edges(narrow.view(), EdgeKind::Canny, Isa::best()).unwrap(),
            label_edges(wide.view(), EdgeKind::Canny, Isa::best()).unwrap()
        );
        assert!(label_edges(array![[-1]].view(), EdgeKind::Labels, Isa::best()).is_err());
        assert!(label_edges(array![[MAX_LABELS]].view(), EdgeKind::Canny, Isa::best()).is_err());
    }

    #[test]
    fn halves_round_to_even() {
        let rounded: Vec<i32> = [-24, -8, 8, 24, 7, 9].into_iter().map(divide_by_16_half_to_even).collect();
        assert_eq!(rounded, [-2, 0, 0, 2, 0, 1]);
    }
}
