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
//! Cost: two sliding-count passes, whatever the size.

use ndarray::{Array2, ArrayView1, ArrayView2, ArrayViewMut1};

use super::check_output_stride;
use super::edges::{EdgeKind, Label, label_edges};
use crate::error::{Error, Result};

/// Largest side of the square.
pub const MAX_SIZE: usize = 1 << 15;

/// Dilation of a mask (H, W) by a square of `size` pixels.
///
/// # Errors
/// [`Error::Value`] for a size outside 1..=[`MAX_SIZE`].
pub fn dilate(mask: ArrayView2<'_, bool>, size: usize) -> Result<Array2<bool>> {
    check_size(size)?;
    Ok(any_in_square(mask, size))
}

/// Erosion of a mask (H, W) by a square of `size` pixels.
///
/// # Errors
/// [`Error::Value`] for a size outside 1..=[`MAX_SIZE`].
pub fn erode(mask: ArrayView2<'_, bool>, size: usize) -> Result<Array2<bool>> {
    check_size(size)?;
    Ok(!any_in_square((!&mask).view(), size))
}

/// Pixels within an s x s square of a label boundary, s = output stride: where confidences are refined.
///
/// # Errors
/// [`Error::Value`] for an output stride outside 1..=256 or a label outside 0..65536.
pub fn boundary_mask<L: Label>(
    labels: ArrayView2<'_, L>,
    output_stride: usize,
    edges: EdgeKind,
) -> Result<Array2<bool>> {
    check_output_stride(output_stride)?;
    Ok(any_in_square(label_edges(labels, edges)?.view(), output_stride))
}

fn check_size(size: usize) -> Result<()> {
    if !(1..=MAX_SIZE).contains(&size) {
        return Err(Error::value("size", format!("1..={MAX_SIZE} pixels"), size));
    }
    Ok(())
}

fn any_in_square(mask: ArrayView2<'_, bool>, size: usize) -> Array2<bool> {
    let mut wide = Array2::from_elem(mask.dim(), false);
    for (input, output) in mask.rows().into_iter().zip(wide.rows_mut()) {
        any_in_line(input, output, size);
    }
    let mut square = Array2::from_elem(mask.dim(), false);
    for (input, output) in wide.columns().into_iter().zip(square.columns_mut()) {
        any_in_line(input, output, size);
    }
    square
}

/// output[i] = any input[i + k] for k in -(size / 2) ..= size - 1 - size / 2, inside the line.
fn any_in_line(input: ArrayView1<'_, bool>, mut output: ArrayViewMut1<'_, bool>, size: usize) {
    let n = input.len();
    let (before, after) = (size / 2, size - 1 - size / 2);
    let mut count: usize = (0..after.min(n)).filter(|&i| input[i]).count();
    for i in 0..n {
        if i + after < n {
            count += usize::from(input[i + after]);
        }
        if i > before {
            count -= usize::from(input[i - before - 1]);
        }
        output[i] = count > 0;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use ndarray::array;
    use proptest::prelude::*;

    #[test]
    fn a_point_grows_to_the_square_of_opencv() {
        let mut mask = Array2::from_elem((5, 5), false);
        mask[[2, 2]] = true;
        let grown: Vec<(usize, usize)> =
            dilate(mask.view(), 2).unwrap().indexed_iter().filter(|(_, v)| **v).map(|(at, _)| at).collect();
        assert_eq!(grown, [(2, 2), (2, 3), (3, 2), (3, 3)]); // covers -0 ..= +1 around the point
        assert!(erode(mask.view(), 2).unwrap().iter().all(|v| !v));
    }

    #[test]
    fn the_border_takes_no_part() {
        assert_eq!(erode(array![[true, true]].view(), 5).unwrap(), array![[true, true]]);
        assert_eq!(dilate(Array2::from_elem((0, 3), true).view(), 3).unwrap().dim(), (0, 3));
    }

    proptest! {
        #[test]
        fn erosion_is_dual_to_dilation(bits in prop::collection::vec(any::<bool>(), 35), size in 1usize..12) {
            let mask = Array2::from_shape_vec((5, 7), bits).unwrap();
            prop_assert_eq!(erode(mask.view(), size).unwrap(), !dilate((!&mask).view(), size).unwrap());
        }
    }
}
