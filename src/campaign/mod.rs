//! The loop: scheduler, mutators, oracles, budget, journal.

mod calibrate;
pub mod config;
mod explain;
mod finding;
mod run;
pub mod scheduler;
pub mod seeds;
mod summary;
#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) mod twin;

pub use config::CampaignConfig;
pub use explain::{Explain, describe};
pub use finding::{Finding, signature};
pub use run::{Control, Event, Follow, Progress, Seed, Sink, Subject, run};
pub use summary::{CurvePoint, MutatorYield, SCHEMA_VERSION, Summary, Timing};
