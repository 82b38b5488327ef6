//! A given text that a model is made to say.

use crate::evaluate::Observation;
use crate::oracle::interface::{Oracle, bounded};
use crate::text::number;

/// Scores how much more probable the continuation is than without the edits, nats per token, where
/// greedy generation says it word for word; 0 where it does not.
#[derive(Debug)]
pub struct Target;

impl Oracle for Target {
    fn name(&self) -> &'static str {
        "target"
    }

    fn label(&self) -> &'static str {
        "target"
    }

    fn unit(&self) -> &'static str {
        "nats per token"
    }

    fn meaning(&self) -> &'static str {
        "The model is brought to say a given text, word for word; the score is by how many nats \
        per token it became more probable."
    }

    fn sentence(&self, cause: &str, score: f64) -> String {
        let score = number(score);
        format!(
            "{cause} brings the model to say the text that follows; it became more probable by \
            {score} nats per token."
        )
    }

    fn effect(&self, _score: f64, continuation: &str) -> String {
        format!("makes the model say `{continuation}`")
    }

    fn judges_mutations(&self) -> bool {
        false
    }

    fn needs_continuation(&self) -> bool {
        true
    }

    fn keeps_continuation(&self) -> bool {
        true
    }

    fn score(&self, trial: &Observation, baseline: &Observation) -> f64 {
        if !trial.says_continuation() {
            return 0.0;
        }
        bounded(baseline.loss(), 0.0, 1e3) - bounded(trial.loss(), 0.0, 1e3)
    }

    /// Nothing: without the suffix the model is not expected to say it.
    fn baseline(&self, _baseline: &Observation) -> f64 {
        1.0
    }

    fn baseline_sentence(&self, _value: f64) -> String {
        String::new()
    }

    /// Half a nat a token: less, and the model would nearly have said it anyway.
    fn minimum(&self) -> f64 {
        0.5
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_greedy_generation_says_counts() {
        let said = |log_probs: [f32; 2], best: [f32; 2]| Observation {
            log_probs: log_probs.to_vec(),
            top: best.iter().map(|p| vec![(7, *p)]).collect(),
            finite: true,
            ..Observation::default()
        };
        let baseline = said([-5.0, -3.0], [-0.1, -0.1]);
        let check = |log_probs, best, score: f64| {
            let got = Target.score(&said(log_probs, best), &baseline);
            assert!((got - score).abs() < 1e-6, "{log_probs:?}: {got}");
        };
        check([-0.5, -0.5], [-0.5, -0.5], 3.5);
        check([-0.5, -0.7], [-0.5, -0.68], 0.0); // another token is the likelier second
        assert_eq!(Target.score(&Observation::default(), &baseline), 0.0, "nothing was read");
    }
}
