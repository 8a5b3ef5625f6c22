//! What may be chosen.

use super::table::Table;
use crate::error::{Error, Result};

/// The set of configurations to consider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Exits of a configuration, the last one included; at least 1.
    pub max_exits: usize,
    /// Image thresholds of a gate: `None` for every distinct observed confidence, else that many of them, at evenly
    /// spaced quantiles.
    pub image_thresholds: Option<usize>,
}

impl Space {
    /// # Errors
    /// [`Error::Value`] when no exit or no threshold may be chosen.
    pub fn validate(&self) -> Result<()> {
        if self.max_exits == 0 {
            return Err(Error::value("max_exits", "at least 1", 0));
        }
        if self.image_thresholds == Some(0) {
            return Err(Error::value("image_thresholds", "at least 1, or none for all observed ones", 0));
        }
        Ok(())
    }
}

/// Images of one gate in the order in which a falling image threshold lets them go, and where it may stop.
#[derive(Debug, Clone)]
pub(crate) struct Order {
    /// (image, confidence), most confident first, ties by image.
    pub images: Vec<(u32, f64)>,
    /// Image thresholds that may be chosen, largest first.
    pub thresholds: Vec<f64>,
}

/// `orders[exit][pixel threshold]`.
pub(crate) fn orders(table: &Table<'_>, space: &Space) -> Vec<Vec<Order>> {
    let order = |exit: usize, pixel: usize| {
        let mut images: Vec<(u32, f64)> =
            (0..table.num_images()).map(|i| (i as u32, table.image_confidence[[exit, pixel, i]])).collect();
        images.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let mut distinct: Vec<f64> = images.iter().map(|(_, confidence)| *confidence).collect();
        distinct.dedup();
        let thresholds = match space.image_thresholds {
            Some(count) if count < distinct.len() => {
                let mut chosen: Vec<f64> = (1..=count).map(|i| images[i * images.len() / (count + 1)].1).collect();
                chosen.dedup();
                chosen
            }
            _ => distinct,
        };
        Order { images, thresholds }
    };
    (0..table.num_exits())
        .map(|exit| (0..table.num_pixel_thresholds()).map(|pixel| order(exit, pixel)).collect())
        .collect()
}
