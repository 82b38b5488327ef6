//! Loss on text that the model predicted well before.

use super::{Oracle, OracleKind, bounded};
use crate::evaluate::Observation;

/// Loss of the continuation beyond the baseline's, nats per token.
#[derive(Debug)]
pub struct LossBlowup;

impl Oracle for LossBlowup {
    fn kind(&self) -> OracleKind {
        OracleKind::LossBlowup
    }

    fn score(&self, trial: &Observation, baseline: &Observation) -> f64 {
        bounded(trial.loss(), 0.0, 1e3) - bounded(baseline.loss(), 0.0, 1e3)
    }

    /// Half a nat a token: perplexity times 1.65.
    fn minimum(&self) -> f64 {
        0.5
    }
}
