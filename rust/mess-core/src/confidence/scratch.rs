//! Buffers that live as long as their thread, so that a call allocates nothing once its thread is warm.

use std::cell::Cell;

use super::tile::Tile;

/// Room for one tile and a few rows of a picture.
#[derive(Default)]
pub(crate) struct Scratch {
    pub tile: Box<Tile>,
    pub upsampling: super::band::BandBuffers,
    pub edges: super::edges::RowBuffers,
    pub narrow_mask: super::mask::MaskBuffers<u8>,
    pub wide_mask: super::mask::MaskBuffers<u16>,
    pub narrow_counts: super::image::CountBuffers<u16>,
    pub wide_counts: super::image::CountBuffers<u32>,
    pub median: super::refine::MedianBuffers,
}

thread_local! {
    static SCRATCH: Cell<Option<Box<Scratch>>> = const { Cell::new(None) };
}

/// Call `work` with this thread's buffers. A call inside another gets fresh ones.
pub(crate) fn with_scratch<T>(work: impl FnOnce(&mut Scratch) -> T) -> T {
    let mut scratch = SCRATCH.take().unwrap_or_default();
    let result = work(&mut scratch);
    SCRATCH.set(Some(scratch));
    result
}

/// The first `len` elements of a buffer that grows when it is too short. What they hold is arbitrary.
pub(crate) fn room<T: Copy + Default>(buffer: &mut Vec<T>, len: usize) -> &mut [T] {
    if buffer.len() < len {
        buffer.resize(len, T::default());
    }
    &mut buffer[..len]
}
