//! What the fuzz targets share: inputs drawn from bytes, biased to what breaks things.

use arbitrary::{Result, Unstructured};
use ndarray::{Array2, Array3};

/// A float32: any bit pattern, or a small number, or one of those that arithmetic stumbles over.
pub fn float(bytes: &mut Unstructured<'_>) -> Result<f32> {
    const ODD: [f32; 10] =
        [0.0, -0.0, 1.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, f32::MIN_POSITIVE, 88.8];
    Ok(match bytes.int_in_range(0..=3u8)? {
        0 => f32::from_bits(bytes.arbitrary()?),
        1 => ODD[bytes.choose_index(ODD.len())?],
        _ => f32::from(bytes.arbitrary::<i8>()?) / 16.0,
    })
}

/// A probability, mostly one between 0 and 1.
pub fn share(bytes: &mut Unstructured<'_>) -> Result<f32> {
    Ok(match bytes.int_in_range(0..=7u8)? {
        0 => float(bytes)?,
        _ => f32::from(bytes.arbitrary::<u8>()?) / 255.0,
    })
}

/// An array of a size that the bytes say, filled by a few of them, repeated.
pub fn volume(bytes: &mut Unstructured<'_>, most: (usize, usize, usize)) -> Result<Array3<f32>> {
    let size = (bytes.int_in_range(0..=most.0)?, bytes.int_in_range(0..=most.1)?, bytes.int_in_range(0..=most.2)?);
    let palette: Vec<f32> = (0..bytes.int_in_range(1..=12usize)?).map(|_| float(bytes)).collect::<Result<_>>()?;
    let mut state: u64 = bytes.arbitrary()?;
    Ok(Array3::from_shape_simple_fn(size, || palette[pick(&mut state, palette.len())]))
}

/// As [`volume`], of small integers.
pub fn labels(bytes: &mut Unstructured<'_>, most: (usize, usize)) -> Result<Array2<u8>> {
    let size = (bytes.int_in_range(0..=most.0)?, bytes.int_in_range(0..=most.1)?);
    let palette: Vec<u8> = (0..bytes.int_in_range(1..=4usize)?).map(|_| bytes.arbitrary()).collect::<Result<_>>()?;
    let (mut state, run): (u64, u8) = (bytes.arbitrary()?, bytes.int_in_range(1..=9)?);
    let mut left = 0;
    let mut value = 0;
    Ok(Array2::from_shape_simple_fn(size, || {
        if left == 0 {
            (left, value) = (run, palette[pick(&mut state, palette.len())]);
        }
        left -= 1;
        value
    }))
}

/// SplitMix64 (Steele et al., Fast splittable pseudorandom number generators, 2014).
pub fn pick(state: &mut u64, end: usize) -> usize {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((z ^ (z >> 31)) % end as u64) as usize
}
