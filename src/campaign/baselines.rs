//! The baselines that trials are compared with, each observed once.

use std::collections::BTreeMap;

use super::subject::Subject;
use crate::edit::Trial;
use crate::error::Result;
use crate::evaluate::{Observation, Request};
use crate::oracle::{self, OracleKind};

/// Baselines observed once each, with what every oracle needs of them.
#[derive(Default)]
pub(super) struct Baselines(BTreeMap<(Vec<u32>, Vec<u32>), Observation>);

impl Baselines {
    /// Observes the baselines of `trials` that are not known yet; returns how many that were.
    pub fn prepare(
        &mut self,
        trials: &[&Trial],
        kinds: &[OracleKind],
        subject: &Subject,
    ) -> Result<u64> {
        let mut missing = BTreeMap::new();
        for trial in trials {
            let key = (trial.base.to_vec(), trial.continuation.to_vec());
            if !self.0.contains_key(&key) {
                missing.insert(key, oracle::baseline_request(kinds, trial));
            }
        }
        let requests: Vec<_> = missing.values().cloned().collect();
        let observations = subject.observe(&requests)?;
        self.0.extend(missing.into_keys().zip(observations));
        Ok(requests.len() as u64)
    }

    /// Returns the observed baseline of a trial.
    pub fn get(&self, trial: &Trial) -> Option<&Observation> {
        self.0.get(&(trial.base.to_vec(), trial.continuation.to_vec()))
    }

    /// Makes the request of a trial that serves these oracles, with its baseline's distributions.
    pub fn request(&self, kinds: &[OracleKind], trial: &Trial) -> Request {
        let reference = self.get(trial).and_then(|baseline| baseline.distributions.as_ref());
        oracle::request(kinds, trial, reference)
    }
}
