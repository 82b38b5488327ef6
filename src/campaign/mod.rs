//! The loop: scheduler, mutators, oracles, budget, journal.

mod summary;

pub use summary::{CurvePoint, MutatorYield, Summary, Timing};
