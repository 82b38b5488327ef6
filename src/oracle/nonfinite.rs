//! Logits that are no numbers.

use super::{Oracle, OracleKind};
use crate::evaluate::Observation;

/// 1 when a logit of the trial is infinite or NaN (and the baseline's are not), else 0.
#[derive(Debug)]
pub struct NonFinite;

impl Oracle for NonFinite {
    fn kind(&self) -> OracleKind {
        OracleKind::NonFinite
    }

    fn score(&self, trial: &Observation, baseline: &Observation) -> f64 {
        f64::from(u8::from(!trial.finite && baseline.finite))
    }

    fn minimum(&self) -> f64 {
        0.5
    }
}
