//! What the tasks of one family of chains share: a plane for the whole of it, and the values of its exits by that plane.

use super::bound::{Plane, Ranges, Values};
use super::engine::Shared;
use super::spread::{Widths, widen};
use crate::isa::Isa;

/// Chains with one exit at each of some points.
pub(crate) struct Field {
    pub plane: Plane,
    pub bands: Vec<Band>,
    /// Exits at each of the points.
    pub exits: Vec<Vec<usize>>,
    num_images: usize,
    /// Number of the row of each exit.
    row_of: Vec<usize>,
    /// (rows, n) value of each image at each exit less that at the last one.
    values: Vec<f32>,
    /// Sum of what was taken off.
    pub reference: f64,
    /// Of each exit, the widest step to the next point, in the order of `row_of`.
    next_steps: Vec<Widths>,
    /// Of each point, the widest step from any of its exits to any of the next.
    pub any_steps: Vec<Widths>,
    /// Sum over images of the largest magnitude of a value.
    pub magnitude: f64,
}

/// A range of costs that has targets of its own (see [`Shared::targets`]), and a multiplier that suits them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Band {
    pub costs: (f64, f64),
    pub multiplier: f64,
}

impl Field {
    /// `typical` is a chain of the family, which the plane is fitted to.
    pub fn new(shared: &Shared<'_, '_>, exits: Vec<Vec<usize>>, typical: &[usize], bands: Vec<Band>) -> Self {
        let compact = shared.compact;
        let num_images = compact.num_images;
        let mut ranges = Ranges::new(compact.padded());
        widen(shared.steps.alone(typical[0]), &shared.steps.along(typical), &compact.truth, &mut ranges);
        let plane = Plane::secant(shared.query.scoring.metric, compact, &ranges);
        let chosen: Vec<usize> = exits.iter().flatten().copied().collect();
        let mut row_of = vec![usize::MAX; compact.num_exits];
        chosen.iter().enumerate().for_each(|(row, exit)| row_of[*exit] = row);
        let exact = Isa::best().run(Values { plane: &plane, compact, exits: &chosen });
        let references = &exact[exact.len() - num_images..];
        let mut values = vec![0.0; exact.len()];
        let mut largest = vec![0.0f32; num_images];
        for (row, exact) in values.chunks_exact_mut(num_images).zip(exact.chunks_exact(num_images)) {
            for (image, (at, largest)) in row.iter_mut().zip(&mut largest).enumerate() {
                *at = (exact[image] - references[image]) as f32;
                *largest = largest.max(at.abs());
            }
        }
        let magnitude = largest.iter().map(|v| f64::from(*v)).sum();
        let reference = references.iter().sum();
        let steps =
            |pair: &[Vec<usize>]| pair[0].iter().map(|e| shared.steps.widest(&[*e], &pair[1])).collect::<Vec<_>>();
        let next_steps = exits.windows(2).flat_map(steps).collect();
        let any_steps = exits.windows(2).map(|pair| shared.steps.widest(&pair[0], &pair[1])).collect();
        Self { plane, bands, exits, num_images, row_of, values, reference, next_steps, any_steps, magnitude }
    }

    /// The widest step from an exit to the next point.
    pub fn next_step(&self, exit: usize) -> &Widths {
        &self.next_steps[self.row_of[exit]]
    }

    /// (n,) values of one exit.
    pub fn row(&self, exit: usize) -> &[f32] {
        &self.values[self.row_of[exit] * self.num_images..][..self.num_images]
    }
}
