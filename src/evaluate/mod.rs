//! "Observe these trials": the one question that the campaign, the minimizer and the implication
//! ask.

mod activations;
mod batching;
mod cache;
mod engine;
mod gradient;
mod halving;
mod handover;
mod lower;
mod memory;
mod observation;
mod observe;
mod one_hot;
mod plan;
mod reach;
mod rows;

pub use activations::{Activations, Means};
pub use engine::{ModelEvaluator, REFERENCE_TEXT};
pub use halving::{Expected, SuccessiveHalving};
pub use observation::{LayerRouting, Observation, Patch, Request};
pub use one_hot::{LossOfLogits, OneHotGradient};

use crate::error::Result;

/// Answers requests. The engine behind it is a model ([`ModelEvaluator`]) or, in tests, a function.
///
/// Contract: answers come in the order of the requests; an answer does not depend on which requests
/// share the call beyond the noise floor; `observe_alone` computes every request by itself at the
/// canonical shape (whole sequence, no shared prefix, no restart), which is what confirms a
/// finding.
pub trait Evaluator {
    fn observe(&self, requests: &[Request]) -> Result<Vec<Observation>>;

    fn observe_alone(&self, request: &Request) -> Result<Observation>;
}
