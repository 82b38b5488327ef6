//! Detectors: observations of a trial, its baseline and its controls become a verdict.
//!
//! A score means nothing by itself: every verdict carries the scores that matched controls got under
//! the same conditions, and the threshold is read off them.

use serde::{Deserialize, Serialize};

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

impl Verdict {
    /// Whether the trial is anomalous.
    pub fn fails(&self) -> bool {
        self.margin > self.noise_floor
    }
}
