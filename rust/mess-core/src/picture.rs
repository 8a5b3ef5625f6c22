//! From a picture to a network's input: resize, scale to 0..1, normalise.
//!
//! Contract
//! 1. Input (H, W, 3) uint8, H, W >= 1; output (3, h, w) float32: (v / 255 - mean) / std of the resized picture's values
//!    v, computed as v / (255 std) - mean / std in float32.
//! 2. Resizing is bilinear with antialiasing, first along rows, then along columns; after each pass values are uint8 again.
//!    When shrinking, the triangle is as wide as two output pixels. A side that keeps its length is not touched.
//! 3. Weights are integers, round(w 2^p) with the largest p <= 22 that keeps them below 2^15, and a value is
//!    (sum of weights times pixels + 2^(p-1)) >> p, clamped to 0..255: bit for bit what PyTorch does with uint8 tensors
//!    (`interpolate(..., mode="bilinear", antialias=True)`, so torchvision's `resize`), and Pillow up to its larger p.
//!
//! Plain algorithm: for every output pixel, sum over the triangle. What is done instead: 16 rows are transposed, so that
//! the sum along a row is computed for all of them in step; columns are computed in step as they lie.

use ndarray::{ArrayView3, ArrayViewMut3, s};

use crate::error::{Error, Result};
use crate::isa::{Isa, Kernel};

/// Rows summed in step.
const LANES: usize = 16;

/// Columns summed in step.
const PIECE: usize = 64;

const CHANNELS: usize = 3;

/// The network's input of an image (H, W, 3), into `out` (3, h, w) in C order.
///
/// `mean` and `std` are of the channels' values in 0..1.
///
/// # Errors
/// [`Error::Value`] for an image without pixels or of other channels, a `std` outside 1e-6..1e6, a `mean` outside
/// -1e6..1e6, an `out` of other channels, without pixels or not in C order, or sizes that do not fit into memory.
pub fn network_input_into(
    image: ArrayView3<'_, u8>,
    mean: [f64; CHANNELS],
    std: [f64; CHANNELS],
    out: ArrayViewMut3<'_, f32>,
    isa: Isa,
) -> Result<()> {
    let (height, width, channels) = image.dim();
    if height == 0 || width == 0 || channels != CHANNELS {
        return Err(Error::value("image", "(H, W, 3) with at least one pixel", format!("{:?}", image.dim())));
    }
    if mean.iter().any(|value| !(-1e6..=1e6).contains(value)) {
        return Err(Error::value("mean", "three numbers in -1e6..1e6", format!("{mean:?}")));
    }
    if std.iter().any(|value| !(1e-6..=1e6).contains(value)) {
        return Err(Error::value("std", "three numbers in 1e-6..1e6", format!("{std:?}")));
    }
    let (planes, h, w) = out.dim();
    if planes != CHANNELS || h == 0 || w == 0 {
        return Err(Error::value("out", "(3, h, w) with at least one pixel", format!("{:?}", out.dim())));
    }
    let Some(out) = out.into_slice() else {
        return Err(Error::value("out", "a C-contiguous array", "another order"));
    };
    // of a picture that is a view on few pixels sizes may be any
    let refused = || {
        let got = format!("{height} x {width} pixels, wanted {h} x {w}");
        Error::value("size", "pictures that fit into memory", got)
    };
    let triangles = |old: usize, new: usize| (old != new).then(|| Triangles::new(old, new).ok_or_else(refused));
    let (along, down) = (triangles(width, w).transpose()?, triangles(height, h).transpose()?);
    let len = height.checked_mul(w).and_then(|pixels| pixels.checked_mul(CHANNELS));
    let mut narrow = len.and_then(zeros::<u8>).ok_or_else(refused)?;
    let pitch = if along.is_some() { (CHANNELS * width).next_multiple_of(SIDE) } else { 0 };
    let mut lines = zeros::<u8>(LANES * pitch).ok_or_else(refused)?;
    let mut columns = zeros::<[u8; LANES]>(pitch).ok_or_else(refused)?;
    let (rows, blocks) = (&mut narrow[..], (&mut lines[..], &mut columns[..]));
    isa.run(Narrow { picture: image, width: w, triangles: along.as_ref(), blocks, narrow: rows });
    let scale = std.map(|std| (255.0 * std) as f32);
    let shift = std::array::from_fn(|channel| (mean[channel] / std[channel]) as f32);
    isa.run(Normalise { narrow: &narrow, triangles: down.as_ref(), size: (h, w), scale, shift, out });
    Ok(())
}

/// Most values of one buffer.
const MOST: usize = 1 << 40;

/// So many zeros; none where memory is refused.
fn zeros<T: Copy + Default>(len: usize) -> Option<Vec<T>> {
    let mut values = Vec::new();
    if len > MOST {
        return None; // some systems promise memory that they do not have
    }
    values.try_reserve_exact(len).ok()?;
    values.resize(len, T::default());
    Some(values)
}

/// Which old pixels make each new one of a side, and with which weights.
struct Triangles {
    starts: Vec<usize>,
    /// (new, taps); zeros behind shorter ones.
    weights: Vec<i32>,
    taps: usize,
    /// Binary places of the weights.
    places: u32,
}

impl Triangles {
    /// None where memory is refused: a view may repeat a few pixels more often than there is memory for weights.
    fn new(old: usize, new: usize) -> Option<Self> {
        let scale = old as f64 / new as f64;
        let reach = scale.max(1.0);
        let range = |i: usize| {
            let centre = scale * (i as f64 + 0.5);
            let start = (centre - reach + 0.5).max(0.0) as usize;
            (centre, start, ((centre + reach + 0.5) as usize).min(old))
        };
        let taps = (0..new).map(|i| range(i).2 - range(i).1).max().unwrap_or(0);
        let len = new.checked_mul(taps)?;
        let (mut starts, mut shares, mut weights) = (Vec::new(), zeros::<f64>(len)?, zeros::<i32>(len)?);
        starts.try_reserve_exact(new).ok()?;
        for (i, shares) in shares.chunks_exact_mut(taps.max(1)).enumerate() {
            let (centre, start, end) = range(i);
            // all taps are inside the picture: zeros may come first instead of last
            let first = start.min(old - taps);
            starts.push(first);
            let shares = &mut shares[start - first..end - first];
            for (j, share) in shares.iter_mut().enumerate() {
                *share = (1.0 - (((start + j) as f64 - centre + 0.5) / reach).abs()).max(0.0);
            }
            let total: f64 = shares.iter().sum();
            shares.iter_mut().for_each(|share| *share /= total);
        }
        let most = shares.iter().copied().fold(0.0, f64::max);
        let fits = |places: u32| (0.5 + most * f64::from(1u32 << (places + 1))) < f64::from(1 << 15);
        let places = (0..22).find(|places| !fits(*places)).unwrap_or(22);
        for (weight, share) in weights.iter_mut().zip(&shares) {
            *weight = (0.5 + share * f64::from(1u32 << places)) as i32;
        }
        Some(Self { starts, weights, taps, places })
    }

    fn half(&self) -> i32 {
        (1 << self.places) >> 1
    }
}

/// The value of a sum.
#[inline(always)]
fn rounded(sum: i32, places: u32) -> u8 {
    let value = sum >> places;
    if value > 255 { 255 } else { value as u8 }
}

/// Resize along rows: (H, W, 3) -> (H, 3, w).
struct Narrow<'p> {
    picture: ArrayView3<'p, u8>,
    width: usize,
    /// None where the width stays.
    triangles: Option<&'p Triangles>,
    /// Room for so many rows as there are lanes, and their transpose.
    blocks: (&'p mut [u8], &'p mut [[u8; LANES]]),
    narrow: &'p mut [u8],
}

impl Kernel for Narrow<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let Self { picture, width, triangles, blocks: (lines, columns), narrow } = self;
        let old = picture.dim().1;
        let mut copy = Vec::new();
        let Some(triangles) = triangles else {
            for (row, planes) in picture.outer_iter().zip(narrow.chunks_exact_mut(CHANNELS * width)) {
                let pixels = in_order(&row, &mut copy);
                for (channel, plane) in planes.chunks_exact_mut(width).enumerate() {
                    let values = pixels.chunks_exact(CHANNELS).map(|pixel| pixel[channel]);
                    plane.iter_mut().zip(values).for_each(|(to, value)| *to = value);
                }
            }
            return;
        };
        let pitch = columns.len();
        for (block, planes) in narrow.chunks_mut(LANES * CHANNELS * width).enumerate() {
            let first = block * LANES;
            let num_rows = planes.len() / (CHANNELS * width);
            for (row, line) in (first..first + num_rows).zip(lines.chunks_exact_mut(pitch)) {
                let row = picture.slice(s![row, .., ..]);
                line[..CHANNELS * old].copy_from_slice(in_order(&row, &mut copy));
            }
            transpose(lines, columns);
            for (x, start) in triangles.starts.iter().enumerate() {
                let weights = &triangles.weights[x * triangles.taps..(x + 1) * triangles.taps];
                for channel in 0..CHANNELS {
                    let mut sums = [triangles.half(); LANES];
                    let columns = columns[CHANNELS * start + channel..].iter().step_by(CHANNELS);
                    for (weight, column) in weights.iter().zip(columns) {
                        for lane in 0..LANES {
                            sums[lane] += weight * i32::from(column[lane]);
                        }
                    }
                    for (lane, sum) in sums.iter().enumerate().take(num_rows) {
                        planes[(CHANNELS * lane + channel) * width + x] = rounded(*sum, triangles.places);
                    }
                }
            }
        }
    }
}

/// Side of the squares that are transposed as eight integers.
const SIDE: usize = 8;

/// (16, width) -> (width, 16).
#[inline(always)]
fn transpose(lines: &[u8], columns: &mut [[u8; LANES]]) {
    let pitch = columns.len();
    for half in (0..LANES).step_by(SIDE) {
        for (start, columns) in (0..pitch).step_by(SIDE).zip(columns.chunks_exact_mut(SIDE)) {
            let mut square = [0u64; SIDE];
            for (row, values) in square.iter_mut().enumerate() {
                let mut bytes = [0; SIDE];
                bytes.copy_from_slice(&lines[(half + row) * pitch + start..][..SIDE]);
                *values = u64::from_le_bytes(bytes);
            }
            // halves, quarters and eighths of the square change places
            for (step, mask) in [(4, 0x0000_0000_ffff_ffff), (2, 0x0000_ffff_0000_ffff), (1, 0x00ff_00ff_00ff_00ffu64)]
            {
                for row in (0..SIDE).filter(|row| row & step == 0) {
                    let change = ((square[row] >> (8 * step)) ^ square[row + step]) & mask;
                    square[row + step] ^= change;
                    square[row] ^= change << (8 * step);
                }
            }
            for (column, values) in columns.iter_mut().zip(square) {
                column[half..half + SIDE].copy_from_slice(&values.to_le_bytes());
            }
        }
    }
}

/// The values of a row (W, 3), one pixel after the other.
#[inline(always)]
fn in_order<'r>(row: &'r ndarray::ArrayView2<'_, u8>, copy: &'r mut Vec<u8>) -> &'r [u8] {
    match row.as_slice() {
        Some(values) => values,
        None => {
            copy.clear();
            copy.extend(row.iter());
            copy
        }
    }
}

/// Resize along columns and normalise: (H, 3, w) -> (3, h, w).
struct Normalise<'p> {
    narrow: &'p [u8],
    /// None where the height stays.
    triangles: Option<&'p Triangles>,
    size: (usize, usize),
    scale: [f32; CHANNELS],
    shift: [f32; CHANNELS],
    out: &'p mut [f32],
}

impl Kernel for Normalise<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let Self { narrow, triangles, size: (height, width), scale, shift, out } = self;
        for (channel, plane) in out.chunks_exact_mut(height * width).enumerate() {
            let line = |row: usize| &narrow[(CHANNELS * row + channel) * width..][..width];
            for (y, values) in plane.chunks_exact_mut(width).enumerate() {
                let Some(triangles) = triangles else {
                    for (value, pixel) in values.iter_mut().zip(line(y)) {
                        *value = f32::from(*pixel) / scale[channel] - shift[channel];
                    }
                    continue;
                };
                let weights = &triangles.weights[y * triangles.taps..(y + 1) * triangles.taps];
                for (piece, values) in values.chunks_mut(PIECE).enumerate() {
                    let mut sums = [triangles.half(); PIECE];
                    for (tap, weight) in weights.iter().enumerate() {
                        let line = &line(triangles.starts[y] + tap)[piece * PIECE..][..values.len()];
                        for (sum, pixel) in sums.iter_mut().zip(line) {
                            *sum += weight * i32::from(*pixel);
                        }
                    }
                    for (value, sum) in values.iter_mut().zip(&sums) {
                        *value = f32::from(rounded(*sum, triangles.places)) / scale[channel] - shift[channel];
                    }
                }
            }
        }
    }
}
