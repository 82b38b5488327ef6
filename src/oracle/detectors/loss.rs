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

    fn needs_continuation(&self) -> bool {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_nats_per_token_above_the_baseline() {
        let read =
            |log_probs: &[f32]| Observation { log_probs: log_probs.to_vec(), ..Default::default() };
        let check = |trial: &[f32], expect: f64| {
            let got = LossBlowup.score(&read(trial), &read(&[-1.0, -2.0]));
            assert!((got - expect).abs() < 1e-6, "{trial:?}: {got}");
        };
        check(&[-3.0, -4.0], 2.0);
        check(&[-1.0, -2.0], 0.0);
        check(&[-3.0, f32::NAN], 1e3 - 1.5);
    }
}
