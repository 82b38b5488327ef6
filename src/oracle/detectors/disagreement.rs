//! Two models that predict different things after the same text.

use crate::evaluate::Observation;
use crate::oracle::interface::{Oracle, bounded};
use crate::text::number;

/// Scores the Jensen-Shannon divergence of the model from a second one on the same trial, bits, at
/// the read position where it is largest. The baseline does not enter: what the two disagree about
/// anyway, they disagree about after the controls as well.
#[derive(Debug)]
pub struct Disagreement;

impl Oracle for Disagreement {
    fn name(&self) -> &'static str {
        "disagreement"
    }

    fn label(&self) -> &'static str {
        "disagreement"
    }

    fn unit(&self) -> &'static str {
        "bits"
    }

    fn meaning(&self) -> &'static str {
        "The model and the one it is compared with predict different things after the same text, \
        in bits of Jensen-Shannon divergence: 0 is no difference, 1 is no overlap at all."
    }

    fn sentence(&self, cause: &str, score: f64) -> String {
        let score = number(score);
        format!(
            "{cause} makes the two models predict different things: {score} bits apart (1 is no \
            overlap at all)."
        )
    }

    fn effect(&self, score: f64, _continuation: &str) -> String {
        format!("sets the models {score:.2} bits apart")
    }

    fn judges_mutations(&self) -> bool {
        true
    }

    fn needs_other_model(&self) -> bool {
        true
    }

    fn score(&self, trial: &Observation, _baseline: &Observation) -> f64 {
        let bits = trial.disagreement_bits.iter().map(|bits| bounded(f64::from(*bits), 0.0, 1.0));
        bits.fold(0.0, f64::max)
    }

    /// What the models do without the edits is not part of the finding.
    fn baseline(&self, _baseline: &Observation) -> f64 {
        1.0
    }

    fn baseline_sentence(&self, _value: f64) -> String {
        String::new()
    }

    /// A tenth of a bit, as for the divergence from a baseline.
    fn minimum(&self) -> f64 {
        0.1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_position_counts_and_nan_is_the_worst() {
        let check = |bits: &[f32], expect: f64| {
            let trial = Observation { disagreement_bits: bits.to_vec(), ..Default::default() };
            let got = Disagreement.score(&trial, &Observation::default());
            assert!((got - expect).abs() < 1e-6, "{bits:?}: {got}");
        };
        check(&[0.25, 0.75, 0.0], 0.75);
        check(&[], 0.0);
        check(&[0.5, f32::NAN], 1.0);
    }
}
