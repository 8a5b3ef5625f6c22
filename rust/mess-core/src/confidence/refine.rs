//! Refined confidence: near label boundaries, the median of the confidences around.
//!
//! Contract
//! 1. Input: confidence (H, W) float32, mask (H, W) with nonzero meaning true, an odd window.
//! 2. Where the mask is true the output is the median of the window x window values around the pixel; elsewhere the
//!    confidence itself, bit for bit. NaN is ordered below every number, so the median is NaN where most of a window is.
//! 3. Border: replicated, so every window is full and odd and the median is one of its elements
//!    (`scipy.ndimage.median_filter(mode="nearest")`).
//! 4. Empty pictures give empty maps.
//!
//! Plain algorithm: gather the window, select its middle. What is done instead, and why it is equal: values become
//! integers in the same order, so that minimum, maximum and comparison are exact and total. Windows of 3 and 5 go through
//! a median network, all pixels of a row in step ([`network`]). Larger ones are found for a
//! tile of pixels at a time, which share the work ([`tiles`]).
//!
//! The thresholded image confidence does not come this way: see [`super::image`], whose cost does not depend on the
//! window.

mod network;
mod tiles;

use ndarray::{Array2, ArrayView2, ArrayViewMut2};

use super::scratch::{room, with_scratch};
use crate::error::{Error, Result};
use crate::isa::{Isa, Kernel};

/// Largest window side.
pub const MAX_WINDOW: usize = 1025;

/// Confidence (H, W) with masked pixels replaced by the median of their window.
///
/// # Errors
/// [`Error::Value`] for an even or too large window, or a mask of another shape.
pub fn refine_confidence(
    confidence: ArrayView2<'_, f32>,
    mask: ArrayView2<'_, u8>,
    window: usize,
    isa: Isa,
) -> Result<Array2<f32>> {
    let mut refined = super::zeros(confidence.dim())?;
    refine_confidence_into(confidence, mask, window, refined.view_mut(), isa)?;
    Ok(refined)
}

/// [`refine_confidence`] into a buffer of the caller, (H, W) in C order.
///
/// # Errors
/// As [`refine_confidence`], and for a buffer of another shape or order.
pub fn refine_confidence_into(
    confidence: ArrayView2<'_, f32>,
    mask: ArrayView2<'_, u8>,
    window: usize,
    refined: ArrayViewMut2<'_, f32>,
    isa: Isa,
) -> Result<()> {
    if window.is_multiple_of(2) || window > MAX_WINDOW {
        return Err(Error::value("window", format!("an odd number of pixels, 1..={MAX_WINDOW}"), window));
    }
    let size = confidence.dim();
    if mask.dim() != size {
        return Err(Error::value("mask", format!("shape {size:?}"), format!("{:?}", mask.dim())));
    }
    let refined = super::in_c_order("out", refined, size)?;
    let confidence = super::in_standard_layout("confidence", confidence)?;
    let mask = super::in_standard_layout("mask", mask)?;
    let (confidence, mask) = (super::slice_of(&confidence), super::slice_of(&mask));
    refined.copy_from_slice(confidence);
    if window == 1 || size.1 == 0 || mask.iter().all(|bit| *bit == 0) {
        return Ok(());
    }
    // taken out of the buffers, which the pieces below use too
    let mut buffer = with_scratch(|scratch| std::mem::take(&mut scratch.median.keys));
    let padded = (size.0 + window - 1) * (size.1 + window - 1);
    let missing = padded.saturating_sub(buffer.len());
    // a failed allocation would end the process
    if buffer.try_reserve(missing).is_err() {
        return Err(Error::value("confidence", "a padded map that fits into memory", format!("{padded} pixels")));
    }
    let keys = isa.run(PaddedKeys { confidence, size, radius: window / 2, keys: &mut buffer });
    let picture = Masked { keys, mask, size, window };
    super::share_map_rows(0..size.0, size.1, refined, |rows, refined| {
        with_scratch(|scratch| match window {
            3 => isa.run(network::Rows::<3> { picture, rows, refined }),
            5 => isa.run(network::Rows::<5> { picture, rows, refined }),
            _ => isa.run(tiles::Rows { picture, rows, refined, buffers: &mut scratch.median.tiles }),
        });
    });
    if padded <= KEPT {
        with_scratch(|scratch| scratch.median.keys = buffer);
    }
    Ok(())
}

/// Padded pixels up to which a thread keeps the memory of their keys for the next picture.
const KEPT: usize = 1 << 22;

/// Keys of the picture at hand, and room for a tile of medians.
#[derive(Default)]
pub(crate) struct MedianBuffers {
    keys: Vec<i32>,
    tiles: tiles::Buffers,
}

/// Keys (H + window - 1, W + window - 1) of a picture with replicated border, and where medians are wanted.
#[derive(Clone, Copy)]
struct Masked<'p> {
    keys: &'p [i32],
    mask: &'p [u8],
    size: (usize, usize),
    window: usize,
}

impl Masked<'_> {
    /// Width of the padded keys.
    #[inline(always)]
    fn stride(&self) -> usize {
        self.size.1 + self.window - 1
    }

    /// Row `row` of the padded keys: the first of the window around row `row` of the picture.
    #[inline(always)]
    fn line(&self, row: usize) -> &[i32] {
        &self.keys[row * self.stride()..(row + 1) * self.stride()]
    }

    #[inline(always)]
    fn mask_row(&self, row: usize) -> &[u8] {
        &self.mask[row * self.size.1..(row + 1) * self.size.1]
    }
}

/// An integer that compares as the float does, NaN lowest.
#[inline(always)]
fn key(value: f32) -> i32 {
    let bits = value.to_bits() as i32;
    let ordered = bits ^ (((bits >> 31) as u32) >> 1) as i32;
    if value.is_nan() { i32::MIN } else { ordered }
}

/// The float of a key.
#[inline(always)]
fn value(key: i32) -> f32 {
    let bits = key ^ (((key >> 31) as u32) >> 1) as i32;
    if key == i32::MIN { f32::NAN } else { f32::from_bits(bits as u32) }
}

struct PaddedKeys<'p> {
    confidence: &'p [f32],
    size: (usize, usize),
    radius: usize,
    keys: &'p mut Vec<i32>,
}

impl<'p> Kernel for PaddedKeys<'p> {
    type Output = &'p [i32];
    #[inline(always)]
    fn run(self) -> &'p [i32] {
        let Self { confidence, size: (height, width), radius, keys } = self;
        let stride = width + 2 * radius;
        let keys = room(keys, stride * (height + 2 * radius));
        for (row, line) in keys.chunks_exact_mut(stride).enumerate() {
            let source = row.saturating_sub(radius).min(height - 1);
            let values = &confidence[source * width..(source + 1) * width];
            line[radius..radius + width].iter_mut().zip(values).for_each(|(to, from)| *to = key(*from));
            line[..radius].fill(key(values[0]));
            line[radius + width..].fill(key(values[width - 1]));
        }
        keys
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use ndarray::array;
    use proptest::prelude::*;

    #[test]
    fn the_median_removes_a_dip_where_the_mask_is() {
        let confidence = array![[0.9f32, 0.8, 0.1, 0.8, 0.9]];
        let mask = array![[0u8, 0, 1, 0, 0]];
        let refined = refine_confidence(confidence.view(), mask.view(), 3, Isa::best()).unwrap();
        assert_eq!(refined, array![[0.9f32, 0.8, 0.8, 0.8, 0.9]]);
    }

    #[test]
    fn keys_keep_the_order_and_the_bits() {
        let values = [f32::NEG_INFINITY, -2.5, -1e-40, -0.0, 0.0, 1e-40, 0.5, 1.0, f32::INFINITY];
        assert!(values.windows(2).all(|pair| key(pair[0]) < key(pair[1])));
        assert!(values.iter().all(|v| value(key(*v)).to_bits() == v.to_bits()));
        assert!(key(f32::NAN) < key(f32::NEG_INFINITY) && value(key(-f32::NAN)).is_nan());
    }

    #[test]
    fn bad_arguments_are_named() {
        let (confidence, mask) = (array![[0.5f32, 1.0]], array![[1u8, 1]]);
        let message = |window, mask: ArrayView2<'_, u8>| {
            refine_confidence(confidence.view(), mask, window, Isa::best()).unwrap_err().to_string()
        };
        assert!(message(4, mask.view()).starts_with("window: expected an odd number"));
        assert!(message(3, array![[1u8]].view()).starts_with("mask: expected shape (1, 2)"));
    }

    proptest! {
        /// Every window's path equals gathering and sorting, on values with many ties and NaN.
        #[test]
        fn equals_the_definition(
            height in 1usize..12,
            width in 1usize..12,
            radius in 0usize..8,
            tenths in prop::collection::vec(0u8..=11, 144),
            masked in prop::collection::vec(0u8..2, 144),
        ) {
            let number = |t: u8| if t == 11 { f32::NAN } else { f32::from(t) / 10.0 };
            let confidence = Array2::from_shape_fn((height, width), |(r, c)| number(tenths[12 * r + c]));
            let mask = Array2::from_shape_fn((height, width), |(r, c)| masked[12 * r + c]);
            for isa in Isa::available() {
                let refined = refine_confidence(confidence.view(), mask.view(), 2 * radius + 1, isa).unwrap();
                for ((r, c), found) in refined.indexed_iter() {
                    let clamp = |at: usize, by: usize, len: usize| (at + by).saturating_sub(radius).min(len - 1);
                    let mut window: Vec<f32> = (0..=2 * radius)
                        .flat_map(|y| (0..=2 * radius).map(move |x| (y, x)))
                        .map(|(y, x)| confidence[[clamp(r, y, height), clamp(c, x, width)]])
                        .collect();
                    window.sort_by_key(|v| key(*v));
                    let expected = if mask[[r, c]] == 1 { window[window.len() / 2] } else { confidence[[r, c]] };
                    prop_assert!(*found == expected || (found.is_nan() && expected.is_nan()));
                }
            }
        }
    }
}
