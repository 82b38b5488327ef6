//! Whether the model can repeat a token that it was shown.

use super::{Oracle, OracleKind, bounded};
use crate::evaluate::Observation;

/// `-log2 P` of the continuation (mean over its tokens) beyond the baseline's.
///
/// The baseline is the same echo prompt about an ordinary token; the trial's edits put another
/// token into every slot of the prompt and into the continuation.
#[derive(Debug)]
pub struct Echo;

impl Oracle for Echo {
    fn kind(&self) -> OracleKind {
        OracleKind::Echo
    }

    fn score(&self, trial: &Observation, baseline: &Observation) -> f64 {
        let bits = |o: &Observation| bounded(o.loss() / std::f64::consts::LN_2, 0.0, 1e3);
        bits(trial) - bits(baseline)
    }

    /// Sixteen times less probable than the ordinary token.
    fn minimum(&self) -> f64 {
        4.0
    }
}
