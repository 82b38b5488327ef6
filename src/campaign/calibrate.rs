//! What is ordinary for each oracle and mutator, before the loop starts.

use std::collections::BTreeMap;

use super::subject::Subject;
use crate::edit::Trial;
use crate::error::Result;
use crate::evaluate::Observation;
use crate::mutate::{Context, Mutator};
use crate::oracle::{self, OracleKind, controls};
use crate::rng;
use crate::stats;

/// Baselines observed once each, with what every oracle needs of them.
#[derive(Default)]
pub(super) struct Baselines(BTreeMap<(Vec<u32>, Vec<u32>), Observation>);

impl Baselines {
    /// Observes those that are not known yet; how many that were.
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
        let observations =
            if requests.is_empty() { Vec::new() } else { subject.evaluator.observe(&requests)? };
        self.0.extend(missing.into_keys().zip(observations));
        Ok(requests.len() as u64)
    }

    pub fn of(&self, trial: &Trial) -> Option<&Observation> {
        self.0.get(&(trial.base.to_vec(), trial.continuation.to_vec()))
    }
}

/// Scores that a trial must exceed to be judged, by mutator and oracle.
pub(super) type PreThresholds = BTreeMap<(&'static str, OracleKind), f64>;

/// Controls a mutator is calibrated with.
const SAMPLES: usize = 24;

/// The upper decile of what controls of each mutator's own proposals score: judging a trial costs
/// as much as all its controls, so only what the cheap comparison leaves is judged.
pub(super) fn calibrate(
    mutators: &[&'static dyn Mutator],
    kinds: &[OracleKind],
    seeds: &[Trial],
    context: &Context,
    subject: &Subject,
    baselines: &mut Baselines,
    seed: u64,
) -> Result<(PreThresholds, u64)> {
    let mut rng = rng::stream(seed, "calibrate");
    let mut trials: Vec<(&'static str, Trial)> = Vec::new();
    for mutator in mutators {
        for parent in seeds.iter().cycle().take(SAMPLES) {
            if let Some(trial) = mutator.propose(parent, context, &mut rng) {
                trials.push((
                    mutator.name(),
                    controls::control(&trial, subject.config, subject.vocabulary, &mut rng),
                ));
            }
        }
    }
    let all: Vec<&Trial> = trials.iter().map(|(_, trial)| trial).collect();
    let mut calls = baselines.prepare(&all, kinds, subject)?;
    let reference = |trial: &Trial| baselines.of(trial).and_then(|b| b.distributions.as_ref());
    let requests: Vec<_> =
        all.iter().map(|trial| oracle::request(kinds, trial, reference(trial))).collect();
    calls += requests.len() as u64;
    let observations =
        if requests.is_empty() { Vec::new() } else { subject.evaluator.observe(&requests)? };
    let mut thresholds = PreThresholds::new();
    for mutator in mutators {
        for &kind in kinds.iter().filter(|kind| mutator.oracles().contains(kind)) {
            let of_this =
                trials.iter().zip(&observations).filter(|((name, _), _)| *name == mutator.name());
            let scores: Vec<f64> = of_this
                .filter_map(|((_, trial), observation)| {
                    Some(kind.oracle().score(observation, baselines.of(trial)?))
                })
                .collect();
            let decile = stats::quantile(&scores, 0.9);
            // `max` ignores NaN: no samples leave the oracle's minimum.
            thresholds.insert((mutator.name(), kind), kind.oracle().minimum().max(decile));
        }
    }
    Ok((thresholds, calls))
}
