//! Loss on text that the model predicted well before.

use crate::evaluate::Observation;
use crate::oracle::interface::{Oracle, bounded};
use crate::text::number;

/// Scores the loss on the continuation above the baseline's, nats per token.
#[derive(Debug)]
pub struct LossBlowup;

impl Oracle for LossBlowup {
    fn name(&self) -> &'static str {
        "loss_blowup"
    }

    fn label(&self) -> &'static str {
        "loss blow-up"
    }

    fn unit(&self) -> &'static str {
        "nats per token"
    }

    fn meaning(&self) -> &'static str {
        "The model predicts an ordinary text much worse than before, in nats per token."
    }

    fn sentence(&self, cause: &str, score: f64) -> String {
        let score = number(score);
        format!("{cause} raises the loss on the text that follows by {score} nats per token.")
    }

    fn effect(&self, score: f64, _continuation: &str) -> String {
        format!("raises the loss by {score:.2} nats a token")
    }

    fn judges_mutations(&self) -> bool {
        true
    }

    fn score(&self, trial: &Observation, baseline: &Observation) -> f64 {
        bounded(trial.loss(), 0.0, 1e3) - bounded(baseline.loss(), 0.0, 1e3)
    }

    /// Half a nat a token: perplexity times 1.65.
    fn minimum(&self) -> f64 {
        0.5
    }
}
