//! Erosion and dilation of masks by a square, and the mask of pixels near label boundaries.
//!
//! Contract
//! 1. A square of side `size` >= 1 covers the offsets -(size / 2) ..= size - 1 - size / 2 around a pixel (integer
//!    division): OpenCV's anchor. For even sizes SciPy and scikit-image mirror it.
//! 2. `dilate`: true where any covered pixel is true. `erode`: true where all covered pixels are true. Pixels outside
//!    the picture take no part (OpenCV's default border), so `erode(m) = not dilate(not m)` holds everywhere.
//! 3. A dilated edge pixel e covers e - (size - 1 - size / 2) ..= e + size / 2.
//!
//! The paper writes M = erode(cannyEdge(labels), s). Literally that erases one-pixel-wide edges; meant is the erosion of
//! the *non-edge* area, which equals the dilation of the edges, and that is what [`boundary_mask`] computes.
//!
//! Plain algorithm: look at every pixel of the square. What is done instead: for each column, how many rows ago it was last
//! true; then maxima along the row in log2(size) passes (see [`super::rows`]). The height of the square does not matter.

use std::ops::Range;

use ndarray::{Array2, ArrayView2, ArrayViewMut2};

use super::check_output_stride;
use super::edges::{EdgeKind, Label, label_edges};
use super::rows::{PIECE, ROWS, sliding, sliding_room};
use super::scratch::{room, with_scratch};
use crate::error::{Error, Result};
use crate::isa::{Isa, Kernel};

/// Largest side of the square.
pub const MAX_SIZE: usize = 1 << 15;

/// Dilation of a mask (H, W), nonzero meaning true, by a square of `size` pixels: 1 or 0.
///
/// # Errors
/// [`Error::Value`] for a size outside 1..=[`MAX_SIZE`].
pub fn dilate(mask: ArrayView2<'_, u8>, size: usize, isa: Isa) -> Result<Array2<u8>> {
    let mut dilated = super::zeros(mask.dim())?;
    morphology_into(mask, size, Morphology::Dilate, dilated.view_mut(), isa)?;
    Ok(dilated)
}

/// Erosion of a mask (H, W), nonzero meaning true, by a square of `size` pixels: 1 or 0.
///
/// # Errors
/// [`Error::Value`] for a size outside 1..=[`MAX_SIZE`].
pub fn erode(mask: ArrayView2<'_, u8>, size: usize, isa: Isa) -> Result<Array2<u8>> {
    let mut eroded = super::zeros(mask.dim())?;
    morphology_into(mask, size, Morphology::Erode, eroded.view_mut(), isa)?;
    Ok(eroded)
}

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Morphology {
    /// Any pixel of the square.
    Dilate,
    /// All pixels of the square.
    Erode,
}

/// [`dilate`] or [`erode`] into a buffer of the caller, (H, W) in C order.
///
/// # Errors
/// As those, and for a buffer of another shape or order.
pub fn morphology_into(
    mask: ArrayView2<'_, u8>,
    size: usize,
    kind: Morphology,
    out: ArrayViewMut2<'_, u8>,
    isa: Isa,
) -> Result<()> {
    if !(1..=MAX_SIZE).contains(&size) {
        return Err(Error::value("size", format!("1..={MAX_SIZE} pixels"), size));
    }
    let out = super::in_c_order("out", out, mask.dim())?;
    let standard = super::in_standard_layout("mask", mask)?;
    morphology_rows(super::slice_of(&standard), mask.dim(), size, kind, 0..mask.dim().0, out, isa);
    Ok(())
}

/// Pixels within an s x s square of a label boundary, s = output stride: where confidences are refined. 1 or 0.
///
/// # Errors
/// [`Error::Value`] for an output stride outside 1..=256 or a label outside 0..65536.
pub fn boundary_mask<L: Label>(
    labels: ArrayView2<'_, L>,
    output_stride: usize,
    edges: EdgeKind,
    isa: Isa,
) -> Result<Array2<u8>> {
    let mut mask = super::zeros(labels.dim())?;
    boundary_mask_into(labels, output_stride, edges, mask.view_mut(), isa)?;
    Ok(mask)
}

/// [`boundary_mask`] into a buffer of the caller, (H, W) in C order.
///
/// # Errors
/// As [`boundary_mask`], and for a buffer of another shape or order.
pub fn boundary_mask_into<L: Label>(
    labels: ArrayView2<'_, L>,
    output_stride: usize,
    edges: EdgeKind,
    mask: ArrayViewMut2<'_, u8>,
    isa: Isa,
) -> Result<()> {
    check_output_stride(output_stride)?;
    let found = label_edges(labels, edges, isa)?;
    morphology_into(found.view(), output_stride, Morphology::Dilate, mask, isa)
}

/// Rows of an eroded or dilated mask, into a buffer that holds just those rows.
pub(crate) fn morphology_rows(
    mask: &[u8],
    dim: (usize, usize),
    size: usize,
    kind: Morphology,
    rows: Range<usize>,
    out: &mut [u8],
    isa: Isa,
) {
    if out.is_empty() {
        return;
    }
    super::share_map_rows(rows, dim.1, out, |rows, out| {
        with_scratch(|scratch| {
            if size < usize::from(u8::MAX) {
                isa.run(AnyInSquare { mask, dim, size, kind, rows, out, buffers: &mut scratch.narrow_mask });
            } else {
                isa.run(AnyInSquare { mask, dim, size, kind, rows, out, buffers: &mut scratch.wide_mask });
            }
        });
    });
}

/// Ages of the columns, and lines with zeros on either side.
#[derive(Default)]
pub(crate) struct MaskBuffers<T> {
    ages: Vec<T>,
    lines: Vec<u8>,
    spare: Vec<u8>,
    row: Vec<u8>,
    result: Vec<u8>,
}

/// `out[r][c]` = any of `mask[r - size / 2 ..= r + size - 1 - size / 2][the same of c]`, inside the picture; eroding is the
/// same with true and false exchanged.
struct AnyInSquare<'p, T> {
    mask: &'p [u8],
    dim: (usize, usize),
    size: usize,
    kind: Morphology,
    rows: Range<usize>,
    out: &'p mut [u8],
    buffers: &'p mut MaskBuffers<T>,
}

/// A number of rows, up to the type's largest.
trait Age: Copy + Default + Ord {
    const LONG_AGO: Self;
    fn one_older(self) -> Self;
    fn from_size(size: usize) -> Self;
}

macro_rules! age {
    ($($integer:ty),*) => {
        $(impl Age for $integer {
            const LONG_AGO: Self = Self::MAX;
            #[inline(always)]
            fn one_older(self) -> Self {
                self.saturating_add(1)
            }
            fn from_size(size: usize) -> Self {
                Self::try_from(size).unwrap_or(Self::MAX)
            }
        })*
    };
}
age!(u8, u16);

impl<T: Age> Kernel for AnyInSquare<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let Self { mask, dim: (height, width), size, kind, rows, out, buffers } = self;
        let flip = kind == Morphology::Erode;
        let (before, after) = (size / 2, size - 1 - size / 2);
        let len = width.next_multiple_of(PIECE);
        let stride = (len + size - 1).next_multiple_of(PIECE);
        let ages = room(&mut buffers.ages, len);
        let lines = room(&mut buffers.lines, sliding_room(ROWS * stride, size));
        let spare = room(&mut buffers.spare, sliding_room(ROWS * stride, size));
        let (row, result) = (room(&mut buffers.row, len), room(&mut buffers.result, ROWS * stride));
        ages.fill(T::LONG_AGO);
        let mut pass = |ages: &mut [T], r: usize| {
            if r < height {
                row[..width].copy_from_slice(&mask[r * width..(r + 1) * width]);
                pass_row(ages, row, flip);
            } else {
                pass_nothing(ages);
            }
        };
        for r in rows.start.saturating_sub(before)..rows.start + after {
            pass(ages, r);
        }
        let size_of_age = T::from_size(size);
        let mut r = rows.start;
        for out in out.chunks_mut(ROWS * width) {
            let num_rows = out.len() / width;
            for line in lines.chunks_exact_mut(stride).take(num_rows) {
                pass(ages, r + after);
                r += 1;
                let bits = line[before..before + len].iter_mut();
                bits.zip(&*ages).for_each(|(bit, age)| *bit = u8::from(*age < size_of_age));
                line[..before].fill(0);
                line[before + width..].fill(0);
            }
            let result = &mut result[..num_rows * stride];
            sliding(lines, spare, result, size, |a, b| a | b);
            if flip {
                result.iter_mut().for_each(|bit| *bit ^= 1);
            }
            for (out, result) in out.chunks_exact_mut(width).zip(result.chunks_exact(stride)) {
                out.copy_from_slice(&result[..width]);
            }
        }
    }
}

/// One row further: true pixels are 0 rows old, the others one row older.
#[inline(always)]
fn pass_row<T: Age>(ages: &mut [T], row: &[u8], flip: bool) {
    ages.iter_mut().zip(row).for_each(|(age, byte)| {
        *age = if (*byte != 0) ^ flip { T::default() } else { age.one_older() };
    });
}

/// Below the picture nothing is true.
#[inline(always)]
fn pass_nothing<T: Age>(ages: &mut [T]) {
    ages.iter_mut().for_each(|age| *age = age.one_older());
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use ndarray::array;
    use proptest::prelude::*;

    #[test]
    fn a_point_grows_to_the_square_of_opencv() {
        let mut mask = Array2::from_elem((5, 5), 0);
        mask[[2, 2]] = 7;
        let grown: Vec<(usize, usize)> = dilate(mask.view(), 2, Isa::best())
            .unwrap()
            .indexed_iter()
            .filter(|(_, v)| **v == 1)
            .map(|(at, _)| at)
            .collect();
        assert_eq!(grown, [(2, 2), (2, 3), (3, 2), (3, 3)]); // covers -0 ..= +1 around the point
        assert!(erode(mask.view(), 2, Isa::best()).unwrap().iter().all(|v| *v == 0));
    }

    #[test]
    fn the_border_takes_no_part() {
        assert_eq!(erode(array![[1, 1]].view(), 5, Isa::best()).unwrap(), array![[1, 1]]);
        assert_eq!(dilate(Array2::from_elem((0, 3), 1).view(), 3, Isa::best()).unwrap().dim(), (0, 3));
    }

    proptest! {
        #[test]
        fn erosion_is_dual_to_dilation(bits in prop::collection::vec(0u8..2, 35), size in 1usize..12) {
            let mask = Array2::from_shape_vec((5, 7), bits).unwrap();
            let dual = dilate(mask.mapv(|bit| 1 - bit).view(), size, Isa::best()).unwrap().mapv(|bit| 1 - bit);
            prop_assert_eq!(erode(mask.view(), size, Isa::best()).unwrap(), dual);
        }
    }
}
