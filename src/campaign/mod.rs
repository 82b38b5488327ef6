//! The loop: scheduler, mutators, oracles, budget.

mod baselines;
mod calibrate;
pub mod config;
mod deadline;
mod events;
mod follow_up;
mod proposals;
mod record;
mod round;
mod run;
pub mod scheduler;
pub mod seeds;
pub mod setup;
mod state;
mod subject;
mod summary;
#[cfg(test)]
mod tests;
mod triage;

pub use config::{CampaignConfig, Search};
pub use deadline::StopSignal;
pub use events::{Event, Progress, Sink};
pub use record::Record;
pub use run::run;
pub use subject::{Seed, Subject};
pub use summary::{
    CurvePoint, KindCount, MutatorYield, NEXT_EVALUATIONS, SCHEMA_VERSION, Summary, Timing, Unseen,
};
pub use triage::FOLLOWED_OF_A_KIND;
