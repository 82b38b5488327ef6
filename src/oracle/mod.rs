//! Detectors: observations of a trial, its baseline and its controls become a verdict.
//!
//! A score means nothing by itself: every verdict carries the scores that matched controls got
//! under the same conditions, and the threshold is read off them.

pub mod collapse;
pub mod controls;
pub mod divergence;
pub mod echo;
pub mod judge;
pub mod loss;
pub mod nonfinite;
pub mod routing;
pub mod state;
pub mod target;

pub use judge::{Judge, ModelJudge};

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::edit::Trial;
use crate::evaluate::{Observation, Request};
use crate::model::Config;
use crate::model::Distributions;
use crate::stats;

/// Which detector made a verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OracleKind {
    /// Jensen-Shannon divergence (bits, mean over the continuation) from the baseline.
    Divergence,
    /// Improbability (bits) of a token that the model was shown how to repeat.
    Echo,
    /// Greedy generation degenerates: loops, or ends at once.
    Collapse,
    /// A logit is not a finite number.
    NonFinite,
    /// Loss on the continuation rises over the baseline's (nats per token).
    LossBlowup,
    /// A mixture's tokens fall onto few experts, or go to others.
    RoutingCollapse,
    /// A recurrent state grows.
    StateBlowup,
    /// A recurrent state forgets, or never does.
    StateMemory,
    /// The model says a given text.
    Target,
}

impl OracleKind {
    pub const ALL: [Self; 9] = [
        Self::Divergence,
        Self::Echo,
        Self::Collapse,
        Self::NonFinite,
        Self::LossBlowup,
        Self::RoutingCollapse,
        Self::StateBlowup,
        Self::StateMemory,
        Self::Target,
    ];

    /// As in files: `divergence`, `non_finite`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Divergence => "divergence",
            Self::Echo => "echo",
            Self::Collapse => "collapse",
            Self::NonFinite => "non_finite",
            Self::LossBlowup => "loss_blowup",
            Self::RoutingCollapse => "routing_collapse",
            Self::StateBlowup => "state_blowup",
            Self::StateMemory => "state_memory",
            Self::Target => "target",
        }
    }

    /// Whether a model has what it looks at.
    pub fn applies(self, config: &Config) -> bool {
        match self {
            Self::RoutingCollapse => config.experts.is_some(),
            Self::StateBlowup | Self::StateMemory => config.is_recurrent(),
            _ => true,
        }
    }

    /// The detector of this kind.
    pub fn oracle(self) -> &'static dyn Oracle {
        match self {
            Self::Divergence => &divergence::Divergence,
            Self::Echo => &echo::Echo,
            Self::Collapse => &collapse::Collapse,
            Self::NonFinite => &nonfinite::NonFinite,
            Self::LossBlowup => &loss::LossBlowup,
            Self::RoutingCollapse => &routing::RoutingCollapse,
            Self::StateBlowup => &state::StateBlowup,
            Self::StateMemory => &state::StateMemory,
            Self::Target => &target::Target,
        }
    }
}

impl fmt::Display for OracleKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A detector: what it needs measured, and how it reads the measurements.
pub trait Oracle: Sync {
    fn kind(&self) -> OracleKind;

    /// Whether it reads the divergence from the baseline's distributions.
    fn needs_reference(&self) -> bool {
        false
    }

    /// Whether it wants to know what is left of the beginning in the recurrent state.
    fn needs_memory(&self) -> bool {
        false
    }

    /// Whether it costs many forwards a trial.
    fn is_costly(&self) -> bool {
        self.generate() > 0 || self.needs_memory()
    }

    /// How many tokens it wants generated.
    fn generate(&self) -> usize {
        0
    }

    /// What to measure on a trial. `baseline` are the baseline's distributions, where they were
    /// kept.
    fn request(&self, trial: &Trial, baseline: Option<&Arc<Distributions>>) -> Request {
        request(&[self.kind()], trial, baseline)
    }

    /// How badly the trial behaves, in the oracle's unit; finite, larger is worse.
    fn score(&self, trial: &Observation, baseline: &Observation) -> f64;

    /// A score below this is of no interest, however quiet the controls are.
    fn minimum(&self) -> f64;
}

/// One request that serves several oracles at once.
pub fn request(
    kinds: &[OracleKind],
    trial: &Trial,
    baseline: Option<&Arc<Distributions>>,
) -> Request {
    let mut request = Request::new(trial.clone());
    for oracle in kinds.iter().map(|kind| kind.oracle()) {
        request.generate = request.generate.max(oracle.generate());
        request.memory |= oracle.needs_memory();
        if oracle.needs_reference() {
            request.reference = baseline.cloned();
        }
    }
    request
}

/// One request for the baseline of trials judged by these oracles.
pub fn baseline_request(kinds: &[OracleKind], trial: &Trial) -> Request {
    let mut request = request(kinds, &trial.baseline(), None);
    request.keep_distributions = kinds.iter().any(|kind| kind.oracle().needs_reference());
    request
}

/// `value` within bounds; what is no number counts as the worst. Scores go into JSON, which knows
/// neither infinities nor NaN.
fn bounded(value: f64, low: f64, high: f64) -> f64 {
    if value.is_nan() { high } else { value.clamp(low, high) }
}

/// The verdict of one oracle on one trial.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verdict {
    pub oracle: OracleKind,
    /// The trial's score, in the oracle's unit; larger is worse.
    pub score: f64,
    /// What a score must exceed: set by the controls, never below the oracle's own minimum.
    pub threshold: f64,
    /// `score - threshold`; the trial fails (is anomalous) when it is above `noise_floor`.
    pub margin: f64,
    /// How far the score moves when nothing changes but the batch shape.
    pub noise_floor: f64,
    /// Scores of the matched controls, ascending.
    pub controls: Vec<f64>,
    /// Share of controls at least as bad, by rank: `(1 + #{c >= score}) / (1 + n)`.
    pub p_value: f64,
}

/// Fewest controls that a verdict can rest on: the worst of fewer is exceeded by chance too often
/// (by one trial in nine with eight).
pub const LEAST_CONTROLS: usize = 8;

/// The score a trial must exceed, given its controls' scores: the worst control, six robust
/// standard deviations over their median, and the oracle's own minimum, whichever is largest.
///
/// With fewer than [`LEAST_CONTROLS`] nothing can be said, and nothing fails.
pub fn threshold(kind: OracleKind, controls: &[f64]) -> f64 {
    if controls.len() < LEAST_CONTROLS { f64::MAX } else { exceeding(kind, controls) }
}

/// [`threshold`] of however many controls there are.
fn exceeding(kind: OracleKind, controls: &[f64]) -> f64 {
    let worst = controls.iter().copied().fold(f64::MIN, f64::max);
    let spread = stats::median(controls) + 6.0 * 1.4826 * stats::mad(controls);
    kind.oracle().minimum().max(worst).max(spread)
}

impl Verdict {
    /// Reads a score against its controls.
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
        }
    }

    /// How many of the controls would be flagged if each were judged against the others: what the
    /// same rule flags where there is nothing to find.
    pub fn controls_flagged(&self) -> usize {
        let flagged = |index: &usize| {
            let mut others = self.controls.clone();
            let score = others.remove(*index);
            !others.is_empty() && score - exceeding(self.oracle, &others) > self.noise_floor
        };
        (0..self.controls.len()).filter(flagged).count()
    }

    /// Whether the trial is anomalous.
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
        check(0.9, &[0.1, 0.2, 0.3, 0.3, 0.3, 0.4, 0.5, 0.6], 0.3 + 6.0 * 1.4826 * 0.1, false, 0); // the spread
        check(1.0, &[0.0; LEAST_CONTROLS - 1], f64::MAX, false, 0); // too few to say anything
        check(1.0, &[], f64::MAX, false, 0);
    }

    #[test]
    fn names_are_those_of_the_files() {
        for kind in OracleKind::ALL {
            assert_eq!(serde_json::to_string(&kind).unwrap(), format!("\"{kind}\""));
            assert_eq!(kind.oracle().kind(), kind);
        }
    }
}
