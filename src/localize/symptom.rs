//! The symptom of a trial: the token that its edits make the model say or, where they make it say
//! nothing in particular, the one they make it no longer say. Patches are measured by its
//! log-probability, because a divergence would not tell a patch that takes the symptom away from
//! one that does nothing, as long as the predictions are far from those without the edits for
//! whatever reason.

use std::sync::Arc;

use super::SymptomToken;
use super::components::NEARLY_ALL;
use super::runs::{Direction, Runs, Stretch, comparable, first_clean};
use crate::edit::{Component, Edit, Trial};
use crate::error::{Error, Result};
use crate::evaluate::{Activations, Evaluator as _, ModelEvaluator, Observation, Request};
use crate::model::Distributions;

/// The effect below which shares of it are not taken, nats.
pub const LEAST_NATS: f64 = 1.0;

/// The necessity below which nothing is named.
pub const LEAST_NECESSITY: f64 = 0.1;

/// A symptom and the runs that show it. Where the predictions with and without the edits diverge
/// most, it is the token that is the most probable with them; if they raise its log-probability by
/// less than [`LEAST_NATS`], the one that is the most probable without them.
pub struct Symptom<'a, 'm> {
    /// The runs, which end at the token: it is the last of the continuation.
    pub runs: Runs<'a, 'm>,
    /// The token.
    pub token: u32,
    /// The position in the corrupted run that predicts it.
    pub position: usize,
    /// Its log-probability with the edits, nats.
    pub corrupted: f64,
    /// By how much the edits raise it, nats; negative where they lower it.
    pub effect: f64,
    /// Trials evaluated so far.
    pub calls: u64,
}

/// Finds the symptoms of a case and of its controls, which have the clean run in common.
pub struct Symptoms<'a, 'm> {
    evaluator: &'a ModelEvaluator<'m>,
    baseline: Option<(Trial, Arc<Distributions>)>,
    clean: Option<(Vec<u32>, Arc<Activations>)>,
}

impl<'a, 'm> Symptoms<'a, 'm> {
    /// Looks for symptoms in a model.
    pub fn new(evaluator: &'a ModelEvaluator<'m>) -> Self {
        Self { evaluator, baseline: None, clean: None }
    }

    fn baseline(&mut self, trial: &Trial) -> Result<Arc<Distributions>> {
        let baseline = trial.baseline();
        if let Some((_, distributions)) = self.baseline.as_ref().filter(|(b, _)| *b == baseline) {
            return Ok(distributions.clone());
        }
        // Everything that is asked for begins like it.
        self.evaluator.keep_forward(&baseline.layout().ids)?;
        let request = Request::new(baseline.clone()).keeping_distributions();
        let observed = self.evaluator.observe(&[request])?.pop().and_then(|o| o.distributions);
        let observed = observed.ok_or_else(|| Error::internal("the clean run's distributions"))?;
        self.baseline = Some((baseline, observed.clone()));
        Ok(observed)
    }

    /// Finds the symptom of a trial; `None` if the edits change neither token's log-probability by
    /// [`LEAST_NATS`].
    ///
    /// # Errors
    /// Errors of the evaluator.
    pub fn find(&mut self, trial: &Trial) -> Result<Option<Symptom<'a, 'm>>> {
        let reference = self.baseline(trial)?;
        let request =
            Request::new(trial.clone()).with_reference(reference.clone()).keeping_distributions();
        let Some(observed) = self.evaluator.observe(&[request])?.pop().filter(|o| o.finite) else {
            return Ok(None);
        };
        let most = (observed.divergence_bits.iter().enumerate())
            .max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0)));
        let (Some((at, _)), Some(distributions)) = (most, &observed.distributions) else {
            return Ok(None);
        };
        let (before, after) = (reference.row(at), distributions.row(at));
        let found = [after, before].map(most_probable).into_iter().flatten().find_map(|token| {
            let said = f64::from(after[token]);
            let effect = said - f64::from(before[token]);
            (effect.abs() >= LEAST_NATS).then_some((token as u32, said, effect))
        });
        let Some((token, corrupted, effect)) = found else { return Ok(None) };
        let end = trial.base.len() + at;
        let kept = |edit: &&Edit| match edit {
            Edit::Insert { position, .. } => *position <= end,
            other => other.position().is_none_or(|position| position < end),
        };
        // All but the token is prompt, so that nothing else is read.
        let said = &trial.continuation[..at.min(trial.continuation.len())];
        let shown = Trial::new([&trial.base[..], said].concat(), [token])
            .with_edits(trial.edits.iter().filter(kept).cloned().collect());
        if !comparable(&shown) {
            return Ok(None);
        }
        // The last token is predicted and its outputs are never read.
        let mut ids = shown.baseline().layout().ids;
        ids.pop();
        let first = first_clean(&shown);
        let fits =
            |(known, run): &&(Vec<u32>, Arc<Activations>)| *known == ids && run.first <= first;
        let known = self.clean.as_ref().filter(fits);
        let mut runs = Runs::new(self.evaluator, &shown, known.map(|(_, run)| run.clone()))?;
        self.clean = Some((ids, runs.clean.activations.clone()));
        // The position that the token is read at corresponds to itself, though it may hold another
        // token: one inserted at the end of the prompt, or what a deletion leaves there.
        let position = shown.layout().prompt_len - 1;
        align(&mut runs.aligned, end - 1, position);
        Ok(Some(Symptom { runs, token, position, corrupted, effect, calls: 4 }))
    }
}

impl Symptom<'_, '_> {
    /// Returns what a case file has of it.
    pub fn record(&self) -> SymptomToken {
        let Self { token: id, position, corrupted: log_prob, effect, .. } = *self;
        let text = self.runs.evaluator.model.token(id);
        SymptomToken { id, text, position, log_prob, effect }
    }

    /// Measures which share of the effect each set takes away with its clean outputs (necessity) or
    /// makes with its corrupted ones (sufficiency), between 0 and 1: a patch that makes matters
    /// worse mediates nothing.
    ///
    /// # Errors
    /// Errors of the evaluator.
    pub fn shares(&mut self, sets: &[&[Component]], direction: Direction) -> Result<Vec<f64>> {
        let aligned = self.runs.aligned.clone();
        let share = |said: f64| match direction {
            Direction::Necessity => (self.corrupted - said) / self.effect,
            Direction::Sufficiency => 1.0 - (self.corrupted - said) / self.effect,
        };
        let share = |o: &Observation| {
            let share = share(last(o));
            if share.is_nan() { 0.0 } else { share.clamp(0.0, 1.0) }
        };
        let members = sets.iter().map(|set| set.len()).max().unwrap_or(1);
        let mut shares = Vec::with_capacity(sets.len());
        for chunk in sets.chunks(self.runs.sets_per_call(members)) {
            let requests: Vec<Request> = chunk
                .iter()
                .map(|set| self.runs.request(set, &aligned, direction))
                .collect::<Result<_>>()?;
            let observed = self.runs.evaluator.observe(&requests)?;
            shares.extend(observed.iter().map(share));
        }
        self.calls += sets.len() as u64;
        Ok(shares)
    }

    /// Measures the necessity of each component alone.
    ///
    /// # Errors
    /// Errors of the evaluator.
    pub fn necessities(&mut self, components: &[Component]) -> Result<Vec<f64>> {
        self.shares(&components.chunks(1).collect::<Vec<_>>(), Direction::Necessity)
    }

    /// Returns the component that is named for a block: itself, or the head of a mixer that
    /// mediates nearly all that the mixer does.
    ///
    /// # Errors
    /// Errors of the evaluator.
    pub fn named_for(&mut self, block: Component, necessity: f64) -> Result<Component> {
        let config = &self.runs.evaluator.model.config;
        let layer = block.layer();
        if config.mixer(layer) != block {
            return Ok(block);
        }
        let heads: Vec<Component> =
            (0..config.heads(layer)).map(|head| Component::Head { layer, head }).collect();
        let necessities = self.necessities(&heads)?;
        let strongest = heads.into_iter().zip(necessities).max_by(|a, b| a.1.total_cmp(&b.1));
        Ok(match strongest {
            Some((head, share)) if share >= (NEARLY_ALL * necessity).max(LEAST_NECESSITY) => head,
            _ => block,
        })
    }
}

/// Makes a position of the corrupted run correspond to one of the clean run, whatever the stretches
/// have it correspond to.
fn align(stretches: &mut Vec<Stretch>, clean: usize, corrupted: usize) {
    let covers = |&(_, first, len): &Stretch| (first..first + len).contains(&corrupted);
    let Some(at) = stretches.iter().position(covers) else {
        return stretches.push((clean, corrupted, 1));
    };
    let (c, first, len) = stretches[at];
    let before = corrupted - first;
    if c + before != clean {
        let parts = [(c, first, before), (clean, corrupted, 1)];
        let after = (c + before + 1, corrupted + 1, len - before - 1);
        let parts = parts.into_iter().chain([after]).filter(|(_, _, len)| *len > 0);
        stretches.splice(at..=at, parts);
    }
}

/// Returns the index of the largest value.
fn most_probable(log_probs: &[f32]) -> Option<usize> {
    let largest =
        log_probs.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0)));
    largest.map(|(token, _)| token)
}

/// Returns the log-probability of the last token, nats.
pub fn last(observation: &Observation) -> f64 {
    observation.log_probs.last().map_or(f64::NAN, |log_prob| f64::from(*log_prob))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_position_can_be_made_to_correspond_to_another() {
        let aligned = |clean, corrupted| {
            let mut stretches = vec![(0, 0, 5), (7, 6, 2)];
            align(&mut stretches, clean, corrupted);
            stretches
        };
        assert_eq!(aligned(4, 4), [(0, 0, 5), (7, 6, 2)]);
        // The last of what a deletion leaves; a token that was inserted; one in the middle.
        assert_eq!(aligned(5, 4), [(0, 0, 4), (5, 4, 1), (7, 6, 2)]);
        assert_eq!(aligned(5, 5), [(0, 0, 5), (7, 6, 2), (5, 5, 1)]);
        assert_eq!(aligned(9, 1), [(0, 0, 1), (9, 1, 1), (2, 2, 3), (7, 6, 2)]);
    }
}
