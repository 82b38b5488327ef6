//! The loop: scheduler, mutators, oracles, budget, journal.

mod calibrate;
pub mod config;
mod events;
mod explain;
mod finding;
mod run;
pub mod scheduler;
pub mod seeds;
pub mod setup;
mod subject;
mod summary;
#[cfg(test)]
mod tests;

pub use config::CampaignConfig;
pub use events::{Event, Follow, Progress, Sink};
pub use explain::{Explain, attribute_against, describe};
pub use finding::{Finding, reduced, signature};
pub use run::run;
pub use subject::{Control, Seed, Subject};
pub use summary::{CurvePoint, MutatorYield, SCHEMA_VERSION, Summary, Timing};
