//! The loop: parents, mutators, oracles, budget.

mod archive;
pub mod bandit;
mod baselines;
mod calibrate;
mod cell;
pub mod config;
mod deadline;
mod events;
mod follow_up;
mod parents;
mod proposals;
mod queue;
mod record;
mod round;
mod run;
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
    kinds_seen,
};
pub use triage::FOLLOWED_OF_A_KIND;
