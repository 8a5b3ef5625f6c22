//! Configuration search over a calibration table: which exits, which heads, which thresholds.
//!
//! A *configuration* is a sequence of candidate exits along the backbone. In the input-dependent setting every exit but
//! the last has a gate: a pixel threshold and an image threshold; an image stops at the first exit whose image
//! confidence reaches the image threshold, and at the last one unconditionally.
//!
//! Reading order: `table` (what was measured) -> `space` (what may be chosen) -> `objective` and `limits` (what is wanted)
//! -> `evaluate` (exact value of one configuration) -> `engine` (the search) -> `outcome`. Behind the engine: `compact`
//! (the table in its own form), `bound` (why a set of configurations may be given up), `ascent` (good ones to begin
//! with), `field`, `rows`, `tails`, `spread`, `gates` (chains of exits), `regions` and `stakes` (their thresholds), `incumbent` (the best so far),
//! `journal`, `anytime`. `pieces` is the same search for many processes.

mod anytime;
mod ascent;
mod bound;
mod compact;
pub mod control;
pub mod engine;
pub mod evaluate;
mod field;
mod gates;
mod incumbent;
pub mod journal;
pub mod limits;
pub mod objective;
pub mod outcome;
pub mod pieces;
mod regions;
mod rows;
pub mod space;
mod spread;
mod stakes;
pub mod table;
mod tails;

pub use control::{Control, Progress};
pub use engine::search;
pub use evaluate::{Evaluation, evaluate};
pub use journal::Journal;
pub use limits::{CostLimit, Limits, Statistic};
pub use objective::{Metric, Objective, Query, Scoring, Setting};
pub use outcome::{Configuration, Found, Gate, Outcome, Status};
pub use pieces::{Done, Pieces};
pub use space::Space;
pub use table::{Costs, Table};
