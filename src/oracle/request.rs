//! Requests for a trial and for its baseline that serve one oracle or several at once.

use std::sync::Arc;

use super::detectors::OracleKind;
use crate::edit::Trial;
use crate::evaluate::Request;
use crate::model::Distributions;

/// Returns one request for a trial that serves these oracles. `baseline` are the baseline's
/// distributions, where they were kept.
pub fn request(
    kinds: &[OracleKind],
    trial: &Trial,
    baseline: Option<&Arc<Distributions>>,
) -> Request {
    let mut request = Request::new(trial.clone());
    for oracle in kinds.iter().map(|kind| kind.oracle()) {
        request.generate = request.generate.max(oracle.generate());
        request.generate_elsewhere = request.generate_elsewhere.max(oracle.generate_elsewhere());
        request.memory |= oracle.needs_memory();
        request.compare |= oracle.needs_other_model();
        if oracle.needs_reference() {
            request.reference = baseline.cloned();
        }
    }
    request
}

/// Returns one request for the baseline of trials that these oracles judge.
pub fn baseline_request(kinds: &[OracleKind], trial: &Trial) -> Request {
    let mut request = request(kinds, &trial.baseline(), None);
    request.keep_distributions = kinds.iter().any(|kind| kind.oracle().needs_reference());
    request
}
