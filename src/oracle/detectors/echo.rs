//! Failure to repeat a token that the model was shown (Rumbelow and Watkins 2023,
//! "SolidGoldMagikarp").

use crate::evaluate::Observation;
use crate::oracle::interface::{Oracle, bounded, probability};
use crate::text::{number, percent};

/// Scores `-log2 P` of the continuation (mean over its tokens) above the baseline's.
///
/// The baseline is the same echo prompt about an ordinary token; the trial's edits put another
/// token into every slot of the prompt and into the continuation.
#[derive(Debug)]
pub struct Echo;

impl Oracle for Echo {
    fn name(&self) -> &'static str {
        "echo"
    }

    fn label(&self) -> &'static str {
        "echo failure"
    }

    fn unit(&self) -> &'static str {
        "bits"
    }

    fn meaning(&self) -> &'static str {
        "The model is shown how to repeat a token and cannot; the score is by how many bits the \
        right answer is more surprising than that of the ordinary token."
    }

    fn sentence(&self, token: &str, score: f64) -> String {
        let score = number(score);
        format!(
            "The model cannot repeat {token}: it finds the right answer {score} bits more \
            surprising than that of an ordinary token in the same place."
        )
    }

    fn effect(&self, score: f64, _continuation: &str) -> String {
        format!("makes repeating it {score:.1} bits less likely")
    }

    fn judges_mutations(&self) -> bool {
        false
    }

    fn needs_continuation(&self) -> bool {
        true
    }

    fn judges_echoes(&self) -> bool {
        true
    }

    /// Asking for a token without showing it would be a failure, but another one: nobody can
    /// repeat what was not said.
    fn edits_one_token(&self) -> bool {
        true
    }

    fn score(&self, trial: &Observation, baseline: &Observation) -> f64 {
        let bits = |o: &Observation| bounded(o.loss() / std::f64::consts::LN_2, 0.0, 1e3);
        bits(trial) - bits(baseline)
    }

    /// The probability with which the ordinary token is repeated.
    fn baseline(&self, baseline: &Observation) -> f64 {
        probability(baseline)
    }

    fn baseline_sentence(&self, value: f64) -> String {
        format!("It repeats the ordinary token with a probability of {}.", percent(value))
    }

    /// Sixteen times less probable than the ordinary token.
    fn minimum(&self) -> f64 {
        4.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_bits_above_the_baseline() {
        let said = |log2: f32| Observation {
            log_probs: vec![log2 * std::f32::consts::LN_2],
            ..Default::default()
        };
        let check = |trial: f32, baseline: f32, expect: f64| {
            let got = Echo.score(&said(trial), &said(baseline));
            assert!((got - expect).abs() < 1e-5, "{trial} {baseline}: {got}");
        };
        check(-16.0, -2.0, 14.0);
        check(-2.0, -2.0, 0.0);
        check(-1.0, -2.0, -1.0);
        check(f32::NEG_INFINITY, 0.0, 1e3);
        check(f32::NAN, 0.0, 1e3);
    }
}
