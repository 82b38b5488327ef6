//! Pre-thresholds: scores that are ordinary for each oracle and mutator, measured before the loop.

use super::state::Campaign;
use crate::edit::Trial;
use crate::error::Result;
use crate::oracle::controls;
use crate::rng;
use crate::stats;

/// Controls that a mutator is calibrated with.
const SAMPLES: usize = 24;

/// Share of the controls that stay below a pre-threshold.
const SHARE: f64 = 0.9;

impl Campaign<'_> {
    /// Sets each pre-threshold to the upper decile of what controls of the mutator's own proposals
    /// score: judging a trial costs as much as all its controls, so only what the cheap comparison
    /// leaves is judged.
    pub fn calibrate(&mut self) -> Result<()> {
        let mut rng = rng::stream(self.config.seed, "calibrate");
        let (subject, kinds) = (self.subject, &self.kinds);
        let context = self.proposer.context(subject);
        let mut trials: Vec<(&'static str, Trial)> = Vec::new();
        for mutator in &self.proposer.mutators {
            for parent in subject.seeds.iter().cycle().take(SAMPLES) {
                if let Some(trial) = mutator.propose(&parent.trial, &context, &mut rng) {
                    let (config, vocabulary) = (subject.config, subject.vocabulary);
                    let control = controls::control(&trial, config, vocabulary, &mut rng);
                    trials.push((mutator.name(), control));
                }
            }
        }
        let all: Vec<&Trial> = trials.iter().map(|(_, trial)| trial).collect();
        let baselines = self.baselines.prepare(&all, kinds, subject)?;
        let requests: Vec<_> =
            all.iter().map(|trial| self.baselines.request(kinds, trial)).collect();
        let observations = subject.observe(&requests)?;
        self.summary.follow_up_evaluations += baselines + requests.len() as u64;
        for mutator in &self.proposer.mutators {
            for &kind in kinds.iter().filter(|kind| mutator.oracles().contains(kind)) {
                let own = trials
                    .iter()
                    .zip(&observations)
                    .filter(|((name, _), _)| *name == mutator.name());
                let scores: Vec<f64> = own
                    .filter_map(|((_, trial), observation)| {
                        Some(kind.oracle().score(observation, self.baselines.get(trial)?))
                    })
                    .collect();
                let decile = stats::quantile(&scores, SHARE);
                // `max` ignores NaN: no samples leave the oracle's minimum.
                let threshold = kind.oracle().minimum().max(decile);
                self.thresholds.insert((mutator.name(), kind), threshold);
            }
        }
        Ok(())
    }
}
