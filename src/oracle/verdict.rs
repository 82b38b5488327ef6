//! Verdicts: a score, the scores of matched controls, and the threshold read off them.

use serde::{Deserialize, Serialize};

use super::detectors::OracleKind;
use crate::stats::{self, sequential};

/// The verdict of one oracle on one trial.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verdict {
    /// The detector that scored.
    pub oracle: OracleKind,
    /// The trial's score, in the oracle's unit; larger is worse.
    pub score: f64,
    /// The score to exceed: set by the controls, never below the oracle's own minimum.
    pub threshold: f64,
    /// `score - threshold`; the trial fails (is anomalous) when it is above `noise_floor`.
    pub margin: f64,
    /// Largest change of the score when nothing but the batch shape changes.
    pub noise_floor: f64,
    /// Scores of the matched controls, ascending.
    pub controls: Vec<f64>,
    /// Share of controls at least as bad, by rank: `(1 + #{c >= score}) / (1 + n)`
    /// ([`stats::p_value`]).
    pub p_value: f64,
    /// How well the model does without the edits what it is judged by with them
    /// ([`Oracle::baseline`](super::Oracle::baseline)), 0 to 1; `None` in cases of versions that
    /// did not keep it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline: Option<f64>,
}

/// Smallest number of controls that a verdict can rest on: the worst of fewer is exceeded by chance
/// too often (by one trial in nine with eight).
pub const LEAST_CONTROLS: usize = 8;

/// Robust standard deviations above the controls' median that a score must exceed.
const DEVIATIONS: f64 = 6.0;

/// Returns the score a trial must exceed, given its controls' scores: the worst control (of 199 or
/// more, the worst that may not be exceeded if [`Verdict::p_value`] is to stay within 1%),
/// `DEVIATIONS` robust standard deviations above their median, or the oracle's own minimum,
/// whichever is largest.
///
/// With fewer than [`LEAST_CONTROLS`] nothing can be said, and nothing fails: `f64::MAX`.
pub fn threshold(kind: OracleKind, controls: &[f64]) -> f64 {
    threshold_above(kind.oracle().minimum(), controls)
}

/// Returns the same [`threshold`] for a quantity that no oracle scores; it is never below
/// `minimum`.
pub fn threshold_above(minimum: f64, controls: &[f64]) -> f64 {
    if controls.len() < LEAST_CONTROLS { f64::MAX } else { exceeding(minimum, controls) }
}

/// Returns by how much a control exceeds the threshold that the others set, however few they are;
/// `None` if there are no others.
pub fn margin_among_controls(minimum: f64, controls: &[f64], index: usize) -> Option<f64> {
    let mut others = controls.to_vec();
    let score = others.remove(index);
    (!others.is_empty()).then(|| score - exceeding(minimum, &others))
}

/// Computes the [`threshold_above`] whatever the number of controls.
fn exceeding(minimum: f64, controls: &[f64]) -> f64 {
    let ascending = stats::sorted(controls);
    let allowed = sequential::allowed(controls.len());
    let worst = ascending.iter().rev().nth(allowed).copied().unwrap_or(f64::MIN);
    let spread =
        stats::median(controls) + DEVIATIONS * stats::MAD_TO_DEVIATION * stats::mad(controls);
    minimum.max(worst).max(spread)
}

impl Verdict {
    /// Returns by how many times the score exceeds the threshold: a ratio, because oracles have
    /// different units. What is not a number comes last.
    pub fn excess_ratio(&self) -> f64 {
        let ratio = self.score / self.threshold.max(1e-9);
        if ratio.is_nan() { f64::NEG_INFINITY } else { ratio }
    }

    /// Compares a score with its controls'.
    pub fn new(oracle: OracleKind, score: f64, controls: &[f64], noise_floor: f64) -> Self {
        let threshold = threshold(oracle, controls);
        Self {
            oracle,
            score,
            threshold,
            margin: score - threshold,
            noise_floor,
            controls: stats::sorted(controls),
            p_value: stats::p_value(score, controls),
            baseline: None,
        }
    }

    /// Adds what the model does without the edits.
    pub fn with_baseline(self, baseline: f64) -> Self {
        Self { baseline: Some(baseline), ..self }
    }

    /// Counts the controls that score at least as much as the trial.
    pub fn as_extreme(&self) -> usize {
        self.controls.iter().filter(|control| control.total_cmp(&self.score).is_ge()).count()
    }

    /// Counts the controls that would be flagged if each were judged against the others: what the
    /// same rule flags where there is nothing to find.
    pub fn controls_flagged(&self) -> usize {
        let minimum = self.oracle.oracle().minimum();
        let flagged = |index: &usize| {
            let margin = margin_among_controls(minimum, &self.controls, *index);
            margin.is_some_and(|margin| margin > self.noise_floor)
        };
        (0..self.controls.len()).filter(flagged).count()
    }

    /// Returns true if the trial is anomalous.
    pub fn fails(&self) -> bool {
        self.margin > self.noise_floor
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(score: f64, controls: &[f64], threshold: f64, fails: bool, flagged: usize) {
        let verdict = Verdict::new(OracleKind::Divergence, score, controls, 1e-3);
        assert!((verdict.threshold - threshold).abs() < 1e-9, "{verdict:?}");
        assert_eq!((verdict.fails(), verdict.controls_flagged()), (fails, flagged), "{verdict:?}");
    }

    #[test]
    fn thresholds_by_hand() {
        check(0.5, &[0.0; 8], 0.1, true, 0); // the oracle's minimum
        let outlier = [0.2, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2, 0.3];
        check(0.5, &outlier, 0.3, true, 1); // the worst control, itself an outlier
        check(0.3005, &outlier, 0.3, false, 1); // within the noise floor
        let spread = [0.1, 0.2, 0.3, 0.3, 0.3, 0.4, 0.5, 0.6];
        check(0.9, &spread, 0.3 + 6.0 * 1.4826 * 0.1, false, 0);
        check(1.0, &[0.0; LEAST_CONTROLS - 1], f64::MAX, false, 0); // too few to say anything
        check(1.0, &[], f64::MAX, false, 0);
        // Of 253, one may score as much: p = 2/254.
        let many = |worst: &[f64]| [vec![0.0; 253 - worst.len()], worst.to_vec()].concat();
        check(0.5, &many(&[0.6]), 0.1, true, 1);
        check(0.5, &many(&[0.6, 0.6]), 0.6, false, 2);
    }
}
