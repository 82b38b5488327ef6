//! Trials judged against their matched controls, on a model.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use super::controls::{self, Substitution};
use super::detectors::OracleKind;
use super::request::{baseline_request, request};
use super::verdict::Verdict;
use crate::edit::Trial;
use crate::error::{Error, Result};
use crate::evaluate::{Evaluator, Observation, Request};
use crate::model::Config;
use crate::stats::sequential::{self, Decision};
use crate::vocabulary::Vocabulary;

/// Gives verdicts: an oracle on a model or, in tests, a function.
pub trait Judge {
    /// Judges trials, each against its own baseline and matched controls; verdicts come in the
    /// order of the trials.
    ///
    /// # Errors
    /// Those of the evaluator.
    fn judge(&self, trials: &[Trial]) -> Result<Vec<Verdict>>;
}

/// Judges trials by one oracle on a model, for campaigns, reductions and replays.
pub struct ModelJudge<'a> {
    /// Evaluator of the model.
    pub evaluator: &'a dyn Evaluator,
    /// Shape of the model.
    pub config: &'a Config,
    /// Tokens that controls draw from.
    pub vocabulary: &'a Vocabulary,
    /// The oracle.
    pub oracle: OracleKind,
    /// Largest number of controls of a trial.
    pub controls_per_trial: usize,
    /// Seed of the controls (`Case::control_seed`).
    pub seed: u64,
    /// Noise floor of the oracle's score, in its unit.
    pub noise_floor: f64,
    /// Controls of a trial that is being reduced; `None`: drawn for each trial.
    fixed: Option<Vec<Substitution>>,
    calls: AtomicU64,
}

/// Default number of controls that a verdict of the search rests on.
pub const CONTROLS_PER_TRIAL: usize = 16;

/// Tokens that the controls of a confirmation may run through the model.
const MOST_CONTROL_TOKENS: usize = 1 << 22;

impl<'a> ModelJudge<'a> {
    /// Returns a judge with [`CONTROLS_PER_TRIAL`] controls per trial.
    pub fn new(
        evaluator: &'a dyn Evaluator,
        config: &'a Config,
        vocabulary: &'a Vocabulary,
        oracle: OracleKind,
        seed: u64,
        noise_floor: f64,
    ) -> Self {
        let controls_per_trial = CONTROLS_PER_TRIAL;
        Self {
            evaluator,
            config,
            vocabulary,
            oracle,
            controls_per_trial,
            seed,
            noise_floor,
            fixed: None,
            calls: AtomicU64::new(0),
        }
    }

    /// Returns a judge that compares every trial with the same controls, `count` of those that a
    /// `seed` draws for `trial`: for reductions of that trial. With controls drawn anew at each
    /// step, a reduction would keep the steps whose draw was a lucky one.
    pub fn with_controls_of(&self, trial: &Trial, count: usize, seed: u64) -> Self {
        let drawn = controls::substitutions(trial, count, seed, self.config, self.vocabulary);
        Self { fixed: Some(drawn), ..self.with_seed(seed) }
    }

    /// Returns the same judge with controls of another seed.
    pub fn with_seed(&self, seed: u64) -> Self {
        let Self { evaluator, config, vocabulary, oracle, noise_floor, controls_per_trial, .. } =
            *self;
        Self::new(evaluator, config, vocabulary, oracle, seed, noise_floor)
            .with_controls(controls_per_trial)
    }

    /// Counts the calls of a judge that was made from this one.
    pub fn add_calls(&self, calls: u64) {
        self.calls.fetch_add(calls, Ordering::Relaxed);
    }

    /// Sets the number of controls per trial.
    pub fn with_controls(mut self, controls_per_trial: usize) -> Self {
        self.controls_per_trial = controls_per_trial;
        self
    }

    /// Returns the number of trials evaluated so far, baselines and controls included.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// Judges one trial with baseline, trial and each control run alone at the canonical shape: the
    /// confirmation that turns a provisional verdict into a finding.
    ///
    /// # Errors
    /// Those of the evaluator.
    pub fn judge_alone(&self, trial: &Trial) -> Result<Verdict> {
        let alone = |request: &Request| {
            self.calls.fetch_add(1, Ordering::Relaxed);
            self.evaluator.observe_alone(request)
        };
        let baseline = alone(&baseline_request(&[self.oracle], trial))?;
        let score = |trial: &Trial| -> Result<f64> {
            Ok(self.oracle.oracle().score(&alone(&self.request(trial, &baseline))?, &baseline))
        };
        let controls = self.controls(trial).iter().map(score).collect::<Result<Vec<_>>>()?;
        Ok(self.verdict(score(trial)?, &controls, &baseline))
    }

    /// Judges one trial against controls of `seed`, as many as it takes until the verdict is clear
    /// ([`sequential`]); returns also whether it is confirmed, which takes a little more than a
    /// verdict that fails: else what is confirmed once would often not be under other controls.
    /// Baseline and trial are run alone, controls in batches: a row does not depend on its batch.
    ///
    /// # Errors
    /// Those of the evaluator.
    pub fn confirm(&self, trial: &Trial, seed: u64) -> Result<(Verdict, bool)> {
        self.calls.fetch_add(2, Ordering::Relaxed);
        let baseline = self.evaluator.observe_alone(&baseline_request(&[self.oracle], trial))?;
        let score = |observation: &Observation| self.oracle.oracle().score(observation, &baseline);
        let own = score(&self.evaluator.observe_alone(&self.request(trial, &baseline))?);
        let tokens = trial.layout().ids.len();
        let most =
            sequential::MOST.min((MOST_CONTROL_TOKENS / tokens.max(1)).max(sequential::LEAST));
        let mut drawn = controls::draw(trial, most, seed, self.config, self.vocabulary).into_iter();
        let (decision, controls) = sequential::test(own, |count| -> Result<Vec<f64>> {
            let requests: Vec<Request> =
                drawn.by_ref().take(count).map(|c| self.request(&c, &baseline)).collect();
            Ok(self.observe(&requests)?.iter().map(score).collect())
        })?;
        let verdict = self.verdict(own, &controls, &baseline);
        let confirmed = verdict.fails() && decision != Decision::Ordinary;
        Ok((verdict, confirmed))
    }

    fn verdict(&self, score: f64, controls: &[f64], baseline: &Observation) -> Verdict {
        Verdict::new(self.oracle, score, controls, self.noise_floor)
            .with_baseline(self.oracle.oracle().baseline(baseline))
    }

    /// Returns the controls that this judge compares `trial` with.
    pub fn controls(&self, trial: &Trial) -> Vec<Trial> {
        match &self.fixed {
            Some(fixed) => fixed.iter().map(|substitution| substitution.apply(trial)).collect(),
            None => controls::draw(
                trial,
                self.controls_per_trial,
                self.seed,
                self.config,
                self.vocabulary,
            ),
        }
    }

    fn request(&self, trial: &Trial, baseline: &Observation) -> Request {
        request(&[self.oracle], trial, baseline.distributions.as_ref())
    }

    fn observe(&self, requests: &[Request]) -> Result<Vec<Observation>> {
        self.calls.fetch_add(requests.len() as u64, Ordering::Relaxed);
        let observations = self.evaluator.observe(requests)?;
        if observations.len() != requests.len() {
            return Err(Error::internal(format!(
                "{} answers to {} requests",
                observations.len(),
                requests.len()
            )));
        }
        Ok(observations)
    }
}

impl Judge for ModelJudge<'_> {
    /// Two calls of the evaluator whatever the number of trials: the distinct baselines, then all
    /// trials with all their controls.
    fn judge(&self, trials: &[Trial]) -> Result<Vec<Verdict>> {
        if trials.is_empty() {
            return Ok(Vec::new());
        }
        let mut index = BTreeMap::new();
        let mut requests = Vec::new();
        let mut baseline_of = Vec::with_capacity(trials.len());
        for trial in trials {
            let next = index.len();
            let at = *index.entry((&trial.base, &trial.continuation)).or_insert(next);
            if at == next {
                requests.push(baseline_request(&[self.oracle], trial));
            }
            baseline_of.push(at);
        }
        let baselines = self.observe(&requests)?;

        let mut requests = Vec::new();
        let mut spans = Vec::with_capacity(trials.len());
        for (trial, &at) in trials.iter().zip(&baseline_of) {
            let start = requests.len();
            requests.push(self.request(trial, &baselines[at]));
            requests.extend(
                self.controls(trial).iter().map(|control| self.request(control, &baselines[at])),
            );
            spans.push(start..requests.len());
        }
        let observations = self.observe(&requests)?;
        let verdict = |(span, &at): (std::ops::Range<usize>, &usize)| {
            let score = |observation| self.oracle.oracle().score(observation, &baselines[at]);
            let scores: Vec<f64> = observations[span].iter().map(score).collect();
            self.verdict(scores[0], &scores[1..], &baselines[at])
        };
        Ok(spans.into_iter().zip(&baseline_of).map(verdict).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edit::{Action, Component, Edit};
    use crate::testing::fake::{self, FakeEvaluator};

    fn trial(edits: Vec<Edit>) -> Trial {
        Trial::new((1..=10).collect::<Vec<u32>>(), [20, 21]).with_edits(edits)
    }

    fn check(oracle: OracleKind, trial: &Trial, fails: bool) {
        let (evaluator, config, vocabulary) = (FakeEvaluator, fake::config(), fake::vocabulary());
        let judge = ModelJudge::new(&evaluator, &config, &vocabulary, oracle, 5, 1e-4);
        let verdict = judge.judge(std::slice::from_ref(trial)).unwrap().remove(0);
        assert_eq!(verdict.fails(), fails, "{:?}: {verdict:?}", trial.edits);
        assert_eq!(verdict, judge.judge_alone(trial).unwrap());
    }

    #[test]
    fn planted_glitches_fail_and_ordinary_edits_do_not() {
        use OracleKind::*;
        let head = |head| Edit::lesion(Component::Head { layer: 1, head }, Action::Zero);
        check(Divergence, &trial(vec![Edit::Replace { position: 4, id: 666 }]), true);
        check(Divergence, &trial(vec![Edit::Replace { position: 4, id: 55 }]), false);
        check(Divergence, &trial(vec![head(2)]), true);
        check(Divergence, &trial(vec![head(1)]), false);
        check(LossBlowup, &trial(vec![Edit::Insert { position: 10, id: 666 }]), true);
        check(NonFinite, &trial(vec![Edit::Insert { position: 10, id: 667 }]), true);
        check(NonFinite, &trial(vec![Edit::Insert { position: 10, id: 60 }]), false);
        check(Collapse, &trial(vec![Edit::Replace { position: 4, id: 668 }]), true);
        check(Collapse, &trial(vec![Edit::Replace { position: 4, id: 61 }]), false);
        let echo = fake::echo();
        let swap = |id: u32| {
            let edits = echo.positions().map(|position| Edit::Replace { position, id }).collect();
            echo.baseline().with_edits(edits)
        };
        check(Echo, &swap(669), true);
        check(Echo, &swap(70), false);
    }

    #[test]
    fn a_verdict_does_not_depend_on_what_shares_its_batch() {
        let (evaluator, config, vocabulary) = (FakeEvaluator, fake::config(), fake::vocabulary());
        let judge =
            ModelJudge::new(&evaluator, &config, &vocabulary, OracleKind::Divergence, 5, 1e-4);
        let mut trials: Vec<Trial> =
            (30..60).map(|id| trial(vec![Edit::Replace { position: 3, id }])).collect();
        trials.push(Trial::new([9, 8, 7], [6]).with_edits(vec![Edit::Delete { position: 1 }]));
        let together = judge.judge(&trials).unwrap();
        trials.reverse();
        let mut reversed = judge.judge(&trials).unwrap();
        reversed.reverse();
        assert_eq!(together, reversed);
    }
}
