//! Logits that are infinite or NaN.

use crate::evaluate::Observation;
use crate::oracle::interface::Oracle;

/// Scores 1 when a logit of the trial is infinite or NaN (and the baseline's are not), else 0.
#[derive(Debug)]
pub struct NonFinite;

impl Oracle for NonFinite {
    fn name(&self) -> &'static str {
        "non_finite"
    }

    fn label(&self) -> &'static str {
        "non-finite"
    }

    fn unit(&self) -> &'static str {
        ""
    }

    fn meaning(&self) -> &'static str {
        "Somewhere the model computed infinity or not-a-number."
    }

    fn sentence(&self, cause: &str, _score: f64) -> String {
        format!("{cause} makes the model compute values that are not finite numbers.")
    }

    fn effect(&self, _score: f64, _continuation: &str) -> String {
        "makes logits that are not finite".to_owned()
    }

    fn judges_mutations(&self) -> bool {
        true
    }

    fn judges_echoes(&self) -> bool {
        true
    }

    fn score(&self, trial: &Observation, baseline: &Observation) -> f64 {
        f64::from(u8::from(!trial.finite && baseline.finite))
    }

    /// Between the only two scores.
    fn minimum(&self) -> f64 {
        0.5
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_baseline_that_overflows_too_is_no_finding() {
        let check = |trial: bool, baseline: bool, expect: f64| {
            let observe = |finite| Observation { finite, ..Default::default() };
            assert_eq!(NonFinite.score(&observe(trial), &observe(baseline)), expect);
        };
        check(false, true, 1.0);
        check(true, true, 0.0);
        check(false, false, 0.0);
    }
}
