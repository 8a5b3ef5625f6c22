//! Configuration search over a calibration table: which exits, which heads, which thresholds.
//!
//! A *configuration* is a sequence of candidate exits along the backbone. In the input-dependent setting every exit but
//! the last has a gate: a pixel threshold and an image threshold; an image stops at the first exit whose image
//! confidence reaches the image threshold, and at the last one unconditionally.
//!
//! Reading order: `table` (what was measured) -> `space` (what may be chosen) -> `objective` (what is wanted) ->
//! `evaluate` (exact value of one configuration) -> `engine` (all of them, in order) -> `outcome`.

pub mod engine;
pub mod evaluate;
pub mod objective;
pub mod outcome;
pub mod space;
pub mod table;

pub use engine::{Control, search};
pub use evaluate::{Evaluation, evaluate};
pub use objective::{Objective, Setting};
pub use outcome::{Configuration, Found, Gate, Outcome, Status};
pub use space::Space;
pub use table::Table;
