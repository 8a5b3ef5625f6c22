//! Logits as they come: element type, layout and strides, brought to float32 a tile at a time.
//!
//! Contract
//! 1. float32, float16, bfloat16 and float64 of any strides. The three narrow types convert exactly; float64 rounds to
//!    the nearest float32, ties to even.
//! 2. Contiguous float32 planes are read where they lie. Everything else is converted or gathered a tile at a time into
//!    first-level cache, so no converted copy of the logits exists.

use ndarray::ArrayView3;

/// Most pixels handled together. Planes are read in pieces of this length, eight side by side: shorter ones stop memory's
/// streams before they are up to speed (150 x 512 x 512, AVX-512: 9.4, 8.9, 7.9, 7.7 ms at 1024, 2048, 4096, 8192), and
/// upsampled pixels, which are not read from memory, gain from it too (18.3, 15.2, 13.7, 13.4 ms). Longer ones would not
/// leave a group of planes in a small second-level cache.
pub(crate) const TILE: usize = 4096;

/// Classes handled together.
pub(crate) const GROUP: usize = 8;

/// Room for one group of planes of a tile.
pub(crate) type Planes = [[f32; TILE]; GROUP];

/// Logits (C, H, W) in one of the accepted element types; float16 and bfloat16 as their bits.
#[derive(Debug, Clone, Copy)]
pub enum Logits<'a> {
    /// float32.
    F32(ArrayView3<'a, f32>),
    /// float64.
    F64(ArrayView3<'a, f64>),
    /// IEEE 754 binary16, as bits.
    F16(ArrayView3<'a, u16>),
    /// bfloat16, as bits.
    Bf16(ArrayView3<'a, u16>),
}

impl<'a> From<ArrayView3<'a, f32>> for Logits<'a> {
    fn from(view: ArrayView3<'a, f32>) -> Self {
        Self::F32(view)
    }
}

impl Logits<'_> {
    /// (C, H, W).
    pub fn dim(&self) -> (usize, usize, usize) {
        match self {
            Self::F32(view) => view.dim(),
            Self::F64(view) => view.dim(),
            Self::F16(view) | Self::Bf16(view) => view.dim(),
        }
    }
}

/// Run the same expression on `Dense` logits of whichever element type.
macro_rules! with_dense {
    ($logits:expr, $dense:ident => $body:expr) => {
        match $logits {
            crate::confidence::logits::Logits::F32(view) => {
                let $dense = crate::confidence::logits::Dense::<crate::confidence::logits::F32>::new(*view);
                $body
            }
            crate::confidence::logits::Logits::F64(view) => {
                let $dense = crate::confidence::logits::Dense::<crate::confidence::logits::F64>::new(*view);
                $body
            }
            crate::confidence::logits::Logits::F16(view) => {
                let $dense = crate::confidence::logits::Dense::<crate::confidence::logits::F16>::new(*view);
                $body
            }
            crate::confidence::logits::Logits::Bf16(view) => {
                let $dense = crate::confidence::logits::Dense::<crate::confidence::logits::Bf16>::new(*view);
                $body
            }
        }
    };
}
pub(crate) use with_dense;

/// How an element type is stored and read.
pub(crate) trait Format {
    /// What lies in memory.
    type Raw: Copy + Send + Sync;
    /// Its value.
    fn to_f32(raw: Self::Raw) -> f32;
    /// The values where they lie, if they are float32 already.
    fn as_f32(_: &[Self::Raw]) -> Option<&[f32]> {
        None
    }
}

pub(crate) struct F32;
pub(crate) struct F64;
pub(crate) struct F16;
pub(crate) struct Bf16;

impl Format for F32 {
    type Raw = f32;
    #[inline(always)]
    fn to_f32(raw: f32) -> f32 {
        raw
    }
    #[inline(always)]
    fn as_f32(raw: &[f32]) -> Option<&[f32]> {
        Some(raw)
    }
}

impl Format for F64 {
    type Raw = f64;
    #[inline(always)]
    fn to_f32(raw: f64) -> f32 {
        raw as f32
    }
}

impl Format for F16 {
    type Raw = u16;
    /// Exponent and mantissa moved into place give the value times 2^-112, subnormals included; infinities and NaN get
    /// the largest exponent.
    #[inline(always)]
    fn to_f32(raw: u16) -> f32 {
        const SCALE: f32 = f32::from_bits((127 + 112) << 23);
        let magnitude = u32::from(raw & 0x7fff) << 13;
        let scaled = (f32::from_bits(magnitude) * SCALE).to_bits();
        let finite_or_not = if magnitude >= 0x0f80_0000 { magnitude | 0x7f80_0000 } else { scaled };
        f32::from_bits(finite_or_not | u32::from(raw & 0x8000) << 16)
    }
}

impl Format for Bf16 {
    type Raw = u16;
    #[inline(always)]
    fn to_f32(raw: u16) -> f32 {
        f32::from_bits(u32::from(raw) << 16)
    }
}

/// A picture's values class by class, of one tile of pixels.
pub(crate) trait Source {
    /// C.
    fn num_classes(&self) -> usize;
    /// Values of classes `first..first + N`, each as long as the tile, where they lie or brought into `room`.
    fn group<'s, const N: usize>(&'s self, first: usize, room: &'s mut Planes) -> [&'s [f32]; N];
    /// Values of one class at the pixels `picks` of the tile.
    fn pick(&self, class: usize, picks: &[u16], values: &mut [f32]);
}

/// Logits at full size.
pub(crate) struct Dense<'a, F: Format> {
    view: ArrayView3<'a, F::Raw>,
    layout: Layout<'a, F::Raw>,
}

enum Layout<'a, R> {
    /// (C, H, W) in C order.
    Planar(&'a [R]),
    /// (H, W, C) in C order: channels last.
    Interleaved(&'a [R]),
    /// Anything else.
    Strided,
}

impl<'a, F: Format> Dense<'a, F> {
    pub fn new(view: ArrayView3<'a, F::Raw>) -> Self {
        let layout = match (view.to_slice(), view.permuted_axes([1, 2, 0]).to_slice()) {
            (Some(data), _) => Layout::Planar(data),
            (_, Some(data)) => Layout::Interleaved(data),
            _ => Layout::Strided,
        };
        Self { view, layout }
    }

    pub fn dim(&self) -> (usize, usize, usize) {
        self.view.dim()
    }

    /// Pixels of each tile, when `len` pixels are divided into equal ones.
    pub fn tile_len(&self, len: usize) -> usize {
        let most = match self.layout {
            // a tile of all classes in second-level cache: its lines are read once for each group of classes
            Layout::Interleaved(_) => {
                let bytes = size_of::<F::Raw>() * self.view.dim().0.max(1);
                ((384 << 10) / bytes / 64 * 64).clamp(64, TILE)
            }
            _ => TILE,
        };
        len.div_ceil(len.div_ceil(most).max(1)).next_multiple_of(64).clamp(1, most)
    }

    /// All values, converted, in (C, H, W) order.
    #[inline(always)]
    pub fn copy_to(&self, values: &mut [f32]) {
        let (num_classes, height, width) = self.view.dim();
        if let Layout::Planar(data) = self.layout {
            values.iter_mut().zip(data).for_each(|(to, from)| *to = F::to_f32(*from));
            return;
        }
        if let Layout::Interleaved(data) = self.layout {
            for (pixel, classes) in data.chunks_exact(num_classes).enumerate() {
                for (class, raw) in classes.iter().enumerate() {
                    values[class * height * width + pixel] = F::to_f32(*raw);
                }
            }
            return;
        }
        for (to, from) in values.chunks_exact_mut(width).zip(self.view.rows()) {
            to.iter_mut().zip(from).for_each(|(to, from)| *to = F::to_f32(*from));
        }
    }

    /// The tile of `len` pixels that starts at pixel `start`, in row order.
    pub fn tile(&self, start: usize, len: usize) -> DenseTile<'_, 'a, F> {
        DenseTile { dense: self, start, len }
    }
}

/// Some consecutive pixels of [`Dense`] logits.
pub(crate) struct DenseTile<'d, 'a, F: Format> {
    dense: &'d Dense<'a, F>,
    start: usize,
    len: usize,
}

impl<F: Format> DenseTile<'_, '_, F> {
    /// Bring class `class` into `values`, row piece by row piece.
    #[inline(always)]
    fn gather(&self, class: usize, values: &mut [f32]) {
        let width = self.dense.view.dim().2;
        let mut done = 0;
        while done < values.len() {
            let (row, column) = ((self.start + done) / width, (self.start + done) % width);
            let piece = (width - column).min(values.len() - done);
            let from = self.dense.view.slice(ndarray::s![class, row, column..column + piece]);
            let to = &mut values[done..done + piece];
            match from.as_slice() {
                Some(from) => to.iter_mut().zip(from).for_each(|(to, from)| *to = F::to_f32(*from)),
                None => to.iter_mut().zip(from).for_each(|(to, from)| *to = F::to_f32(*from)),
            }
            done += piece;
        }
    }
}

impl<F: Format> Source for DenseTile<'_, '_, F> {
    #[inline(always)]
    fn num_classes(&self) -> usize {
        self.dense.view.dim().0
    }

    #[inline(always)]
    fn group<'s, const N: usize>(&'s self, first: usize, room: &'s mut Planes) -> [&'s [f32]; N] {
        let (num_classes, height, width) = self.dense.view.dim();
        match self.dense.layout {
            Layout::Planar(data) => {
                let plane = |k: usize| {
                    let at = (first + k) * height * width + self.start;
                    &data[at..at + self.len]
                };
                if F::as_f32(&[]).is_some() {
                    return std::array::from_fn(|k| F::as_f32(plane(k)).unwrap_or(&[]));
                }
                for (k, values) in room.iter_mut().enumerate().take(N) {
                    values[..self.len].iter_mut().zip(plane(k)).for_each(|(to, from)| *to = F::to_f32(*from));
                }
            }
            Layout::Interleaved(data) => {
                let pixels = &data[self.start * num_classes..(self.start + self.len) * num_classes];
                for (k, values) in room.iter_mut().enumerate().take(N) {
                    let classes = pixels[first + k..].iter().step_by(num_classes);
                    values[..self.len].iter_mut().zip(classes).for_each(|(to, from)| *to = F::to_f32(*from));
                }
            }
            Layout::Strided => {
                for (k, values) in room.iter_mut().enumerate().take(N) {
                    self.gather(first + k, &mut values[..self.len]);
                }
            }
        }
        let room = &*room;
        std::array::from_fn(|k| &room[k][..self.len])
    }

    #[inline(always)]
    fn pick(&self, class: usize, picks: &[u16], values: &mut [f32]) {
        let (num_classes, height, width) = self.dense.view.dim();
        let pairs = values.iter_mut().zip(picks);
        match self.dense.layout {
            Layout::Planar(data) => {
                let plane = &data[class * height * width + self.start..][..self.len];
                pairs.for_each(|(value, pick)| *value = F::to_f32(plane[usize::from(*pick)]));
            }
            Layout::Interleaved(data) => {
                let pixels = &data[self.start * num_classes..][..self.len * num_classes];
                pairs.for_each(|(value, pick)| *value = F::to_f32(pixels[usize::from(*pick) * num_classes + class]));
            }
            Layout::Strided => pairs.for_each(|(value, pick)| {
                let pixel = self.start + usize::from(*pick);
                *value = F::to_f32(self.dense.view[[class, pixel / width, pixel % width]]);
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_precision_by_hand() {
        let cases = [
            (0x3c00, 1.0),
            (0xc000, -2.0),
            (0x0000, 0.0),
            (0x0001, 2f32.powi(-24)), // smallest subnormal
            (0x03ff, 1023.0 * 2f32.powi(-24)),
            (0x7bff, 65504.0),
            (0x7c00, f32::INFINITY),
            (0xfc00, f32::NEG_INFINITY),
        ];
        for (bits, value) in cases {
            assert_eq!(F16::to_f32(bits), value);
        }
        assert!(F16::to_f32(0x7e00).is_nan() && F16::to_f32(0x7c01).is_nan());
        assert_eq!(Bf16::to_f32(0xc040), -3.0);
        assert!(Bf16::to_f32(0x7fc0).is_nan());
    }
}
