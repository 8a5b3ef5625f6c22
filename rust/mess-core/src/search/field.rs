//! The affine bound at one anchor, worked out for the exits of one chain of points: what a family of tasks shares.

use super::bound::{Anchor, Values};
use super::engine::Shared;
use crate::isa::Isa;

/// Chains with one exit at each of some points, an anchor in their midst, and a multiplier that suits them.
pub(crate) struct Field {
    /// Costs that this field is responsible for, see [`Shared::targets`].
    pub band: (f64, f64),
    /// Fields that share these chains.
    pub num_bands: usize,
    pub multiplier: f64,
    pub anchor: Anchor,
    /// Exits at each of the points.
    pub exits: Vec<Vec<usize>>,
    num_images: usize,
    /// Number of the row of each exit.
    row_of: Vec<usize>,
    /// (rows, n) value of each image at each exit less that at the last one.
    values: Vec<f32>,
    /// Sum of what was taken off.
    pub reference: f64,
    /// Sum over images of the largest magnitude of a term.
    pub magnitude: f64,
}

impl Field {
    pub fn new(
        shared: &Shared<'_, '_>,
        exits: Vec<Vec<usize>>,
        anchor: Anchor,
        multiplier: f64,
        band: (f64, f64),
        num_bands: usize,
    ) -> Self {
        let compact = shared.compact;
        let num_images = compact.num_images;
        let chosen: Vec<usize> = exits.iter().flatten().copied().collect();
        let mut row_of = vec![usize::MAX; compact.num_exits];
        chosen.iter().enumerate().for_each(|(row, exit)| row_of[*exit] = row);
        let exact = Isa::best().run(Values { anchor: &anchor, compact, exits: &chosen });
        let references = &exact[exact.len() - num_images..];
        let mut values = vec![0.0; exact.len()];
        let mut largest = vec![0.0f32; num_images];
        for (row, exact) in values.chunks_exact_mut(num_images).zip(exact.chunks_exact(num_images)) {
            for (image, (at, largest)) in row.iter_mut().zip(&mut largest).enumerate() {
                *at = (exact[image] - references[image]) as f32;
                *largest = largest.max(at.abs());
            }
        }
        let magnitude = largest.iter().map(|v| f64::from(*v)).sum::<f64>() + multiplier * shared.ceiling;
        let reference = references.iter().sum();
        Self { band, num_bands, multiplier, anchor, exits, num_images, row_of, values, reference, magnitude }
    }

    /// (n,) values of one exit.
    pub fn row(&self, exit: usize) -> &[f32] {
        &self.values[self.row_of[exit] * self.num_images..][..self.num_images]
    }
}
