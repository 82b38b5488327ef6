//! The distance by which the next-token distributions move.

use crate::evaluate::Observation;
use crate::oracle::interface::{Oracle, bounded};
use crate::text::number;

/// Scores the Jensen-Shannon divergence from the baseline, bits, mean over the read positions.
#[derive(Debug)]
pub struct Divergence;

impl Oracle for Divergence {
    fn name(&self) -> &'static str {
        "divergence"
    }

    fn label(&self) -> &'static str {
        "divergence"
    }

    fn unit(&self) -> &'static str {
        "bits"
    }

    fn meaning(&self) -> &'static str {
        "The predictions after the edit differ from those before it, in bits of Jensen-Shannon \
        divergence: 0 is no change, 1 is no overlap at all."
    }

    fn sentence(&self, cause: &str, score: f64) -> String {
        let score = number(score);
        format!(
            "{cause} changes the next-token distribution by {score} bits (1 is no overlap at all)."
        )
    }

    fn effect(&self, score: f64, _continuation: &str) -> String {
        format!("shifts the next-token distributions by {score:.2} bits")
    }

    fn judges_mutations(&self) -> bool {
        true
    }

    fn needs_reference(&self) -> bool {
        true
    }

    fn score(&self, trial: &Observation, _baseline: &Observation) -> f64 {
        bounded(trial.mean_divergence_bits(), 0.0, 1.0)
    }

    /// A tenth of a bit: about what turns a coin of 50:50 into one of 85:15.
    fn minimum(&self) -> f64 {
        0.1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_over_positions_counts_and_nan_is_the_worst() {
        let check = |divergence_bits: &[f32], expect: f64| {
            let trial =
                Observation { divergence_bits: divergence_bits.to_vec(), ..Default::default() };
            let got = Divergence.score(&trial, &Observation::default());
            assert!((got - expect).abs() < 1e-6, "{divergence_bits:?}: {got}");
        };
        check(&[0.25, 0.75], 0.5);
        check(&[0.0, 0.0], 0.0);
        check(&[0.5, f32::NAN], 1.0);
    }
}
