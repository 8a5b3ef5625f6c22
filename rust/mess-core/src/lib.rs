//! The CPU-bound core of multi-exit semantic segmentation: when is an early prediction good enough, and which exits,
//! heads and thresholds make the best network.
//!
//! **Image confidence** of logits `y` (C x H x W), pixel threshold `t`, output stride `s`:
//!
//! ```text
//! c = max softmax(y),  l = argmax y                    confidence::pixel
//! E = canny(l)                                         confidence::edges
//! M = E dilated by s x s                               confidence::mask
//! r = M ? median of c over (4 s + 1)^2 : c             confidence::refine
//! image confidence = |{ r >= t }| / (H W)              confidence::image
//! ```
//!
//! An image leaves at an exit when its image confidence is at least the exit's image threshold.
//!
//! **Search**: a calibration table holds, per image and candidate exit, integer intersection and prediction counts and
//! image confidences; a configuration (exits, pixel and image thresholds) is evaluated exactly by summing them.
//! `search` enumerates configurations and proves the best one.
//!
//! **Picture**: what a network is fed, from a picture of any size.
//!
//! Reading order: [`confidence`] (the formula) -> `logits` -> `pixel` -> `tile` -> `decide` -> `upsample` -> `cells` -> `blocks` ->
//! `band` -> `edges` -> `mask` -> `refine` -> `image`, each kernel compiled once per instruction set by [`isa`];
//! [`search`]: `table` -> `space` -> `evaluate` -> `engine` -> `outcome`; [`picture`]. None knows another.

pub mod confidence;
pub mod error;
pub mod isa;
pub mod picture;
pub mod search;

pub use error::{Error, Result};
pub use isa::Isa;
