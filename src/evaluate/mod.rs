//! Observing trials: the one question that campaigns, the minimizer, localization and the sweeps
//! ask of a model.
//!
//! A request names a trial and what to measure on it; an observation holds the measurements.
//! `plan.rs` decides what need not be computed again, `lower.rs` turns edits into hooks, `rows.rs`
//! runs many rows in one forward, `runs.rs` captures what all components output, and `engine.rs`
//! keeps what later requests can start from.

mod activations;
mod batching;
mod block_outputs;
mod cache;
mod captures;
mod elsewhere;
mod engine;
mod foreign_block;
mod gradient;
mod halving;
mod integrated_gradients;
mod last_position;
mod lower;
mod memory;
mod observation;
mod observe;
mod one_hot;
mod patterns;
mod plan;
mod reach;
mod reference;
mod residual_patching;
mod residual_run;
mod rows;
mod runs;
mod two_models;

pub use activations::{Activations, Means, hook_name, place};
pub use batching::{PATCH_VALUES, cut};
pub use block_outputs::{BlockOutputs, block_of};
pub use captures::{At, Shift, Variant, Variants};
pub use engine::ModelEvaluator;
pub use halving::{Expected, SuccessiveHalving};
pub use last_position::LastPosition;
pub use observation::{LayerRouting, Observation, Patch, Request};
pub use one_hot::{LossOfLogits, OneHotGradient};
pub use patterns::Patterns;
pub use reference::REFERENCE_TEXT;
pub use residual_patching::LayerwisePatching;
pub use residual_run::{ResidualCell, ResidualRun};
pub use two_models::TwoModels;

use crate::error::Result;

/// Answers requests: a model does ([`ModelEvaluator`]), and in tests a function.
pub trait Evaluator {
    /// Answers requests, in their order. An answer does not depend on which requests share the
    /// call, up to the noise floor.
    ///
    /// # Errors
    /// [`Error::Request`](crate::Error::Request) for a request that does not fit the model, before
    /// anything is computed.
    fn observe(&self, requests: &[Request]) -> Result<Vec<Observation>>;

    /// Answers one request computed by itself at the canonical shape: the whole sequence, no shared
    /// prefix, no restart. This is what confirms a finding.
    ///
    /// # Errors
    /// As [`observe`](Self::observe).
    fn observe_alone(&self, request: &Request) -> Result<Observation>;
}
