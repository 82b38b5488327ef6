//! How far the next-token distributions move.

use super::{Oracle, OracleKind, bounded};
use crate::evaluate::Observation;

/// Jensen-Shannon divergence from the baseline, bits, mean over the read positions.
#[derive(Debug)]
pub struct Divergence;

impl Oracle for Divergence {
    fn kind(&self) -> OracleKind {
        OracleKind::Divergence
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
