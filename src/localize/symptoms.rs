//! Finds the symptoms of trials: of a case, of its controls, of the same edits in other prompts.

use std::sync::Arc;

use super::runs::{Runs, Stretch, comparable, first_clean, first_different};
use super::symptom::{LEAST_NATS, Symptom};
use crate::edit::{Edit, Trial};
use crate::error::{Error, Result};
use crate::evaluate::{Activations, Evaluator as _, ModelEvaluator, Observation, Request};
use crate::model::Distributions;

/// The number of positions whose predictions are kept at a time: of SmolLM2's, 50 MB.
const KEPT_POSITIONS: usize = 256;

/// Finds symptoms. Trials of one baseline, a case and its controls, have the clean run in common.
pub struct Symptoms<'a, 'm> {
    evaluator: &'a ModelEvaluator<'m>,
    baseline: Option<(Trial, Arc<Distributions>)>,
    clean: Option<Clean>,
}

/// A clean run: its tokens, and its activations from some position on.
struct Clean {
    ids: Vec<u32>,
    trial: Trial,
    first: usize,
    activations: Option<Arc<Activations>>,
}

/// A trial that ends with the token of its symptom, which is all that is read.
struct Shown {
    trial: Trial,
    token: u32,
    corrupted: f64,
    effect: f64,
}

impl<'a, 'm> Symptoms<'a, 'm> {
    /// Looks for symptoms in a model.
    pub fn new(evaluator: &'a ModelEvaluator<'m>) -> Self {
        Self { evaluator, baseline: None, clean: None }
    }

    /// Finds the symptom of a trial; `None` if the edits change neither token's log-probability by
    /// [`LEAST_NATS`].
    ///
    /// # Errors
    /// Errors of the evaluator.
    pub fn find(&mut self, trial: &Trial) -> Result<Option<Symptom<'a, 'm>>> {
        Ok(self.find_all(&[trial])?.pop().flatten())
    }

    /// Finds the symptom of each trial, as [`find`](Self::find) does.
    ///
    /// # Errors
    /// Errors of the evaluator.
    pub fn find_all(&mut self, trials: &[&Trial]) -> Result<Vec<Option<Symptom<'a, 'm>>>> {
        let longest = trials.iter().map(|trial| trial.continuation.len()).max().unwrap_or(0);
        let mut found = Vec::with_capacity(trials.len());
        for few in trials.chunks((KEPT_POSITIONS / longest.max(1)).max(1)) {
            let shown = self.shown(few)?;
            found.extend(self.with_runs(shown)?);
        }
        Ok(found)
    }

    /// Observes the trials and tells what each of them makes the model say.
    fn shown(&mut self, trials: &[&Trial]) -> Result<Vec<Option<Shown>>> {
        let references = self.references(trials)?;
        let request = |(trial, reference): (&&Trial, &Arc<Distributions>)| {
            let request = Request::new((*trial).clone()).with_reference(reference.clone());
            request.keeping_distributions()
        };
        let requests: Vec<Request> = trials.iter().zip(&references).map(request).collect();
        let observed = self.evaluator.observe(&requests)?;
        let shown = trials.iter().zip(&references).zip(&observed);
        Ok(shown
            .map(|((trial, reference), observed)| shown_by(trial, reference, observed))
            .collect())
    }

    /// Returns the predictions of the trials without their edits.
    fn references(&mut self, trials: &[&Trial]) -> Result<Vec<Arc<Distributions>>> {
        let mut known: Vec<(Trial, Arc<Distributions>)> =
            self.baseline.take().into_iter().collect();
        let mut missing: Vec<Trial> = Vec::new();
        let baselines: Vec<Trial> = trials.iter().map(|trial| trial.baseline()).collect();
        for baseline in &baselines {
            if known.iter().all(|(other, _)| other != baseline) && !missing.contains(baseline) {
                // Everything that is asked for begins like it.
                self.evaluator.keep_forward(&baseline.layout().ids)?;
                missing.push(baseline.clone());
            }
        }
        let requests: Vec<Request> =
            missing.iter().map(|b| Request::new(b.clone()).keeping_distributions()).collect();
        for (baseline, observed) in missing.into_iter().zip(self.evaluator.observe(&requests)?) {
            let kept = observed.distributions;
            known.push((
                baseline,
                kept.ok_or_else(|| Error::internal("a run without predictions"))?,
            ));
        }
        let of = |baseline: &Trial| {
            let found = known.iter().find(|(other, _)| other == baseline);
            found.map(|(_, distributions)| distributions.clone())
        };
        let references = baselines.iter().map(of).collect::<Option<_>>();
        let references = references.ok_or_else(|| Error::internal("a run without predictions"))?;
        self.baseline = known.pop();
        Ok(references)
    }

    /// Captures the runs that show each symptom.
    fn with_runs(&mut self, shown: Vec<Option<Shown>>) -> Result<Vec<Option<Symptom<'a, 'm>>>> {
        let mut cleans: Vec<Clean> = self.clean.take().into_iter().collect();
        for shown in shown.iter().flatten() {
            let (ids, first) = (clean_ids(&shown.trial), first_clean(&shown.trial));
            match cleans.iter_mut().find(|clean| clean.ids == ids) {
                Some(clean) if clean.first <= first => {}
                Some(clean) => (clean.first, clean.activations) = (first, None),
                None => {
                    let trial = shown.trial.baseline();
                    cleans.push(Clean { ids, trial, first, activations: None });
                }
            }
        }
        let missing = |clean: &&Clean| clean.activations.is_none();
        let corrupted = shown.iter().flatten().map(|s| (&s.trial, first_different(&s.trial)));
        let asked: Vec<(&Trial, usize)> = cleans
            .iter()
            .filter(missing)
            .map(|clean| (&clean.trial, clean.first))
            .chain(corrupted)
            .collect();
        let mut captured = self.evaluator.activations_from(&asked)?.into_iter().map(Arc::new);
        for clean in cleans.iter_mut().filter(|clean| clean.activations.is_none()) {
            clean.activations = captured.next();
        }
        let mut symptoms = Vec::with_capacity(shown.len());
        for shown in shown {
            let Some(Shown { trial, token, corrupted, effect }) = shown else {
                symptoms.push(None);
                continue;
            };
            let ids = clean_ids(&trial);
            let clean = cleans.iter().find(|clean| clean.ids == ids);
            let clean = clean.and_then(|clean| clean.activations.clone());
            let (Some(clean), Some(activations)) = (clean, captured.next()) else {
                return Err(Error::internal("a run that was not captured"));
            };
            let mut runs = Runs::of(self.evaluator, &trial, clean, activations);
            // The position that the token is read at corresponds to itself, though it may hold
            // another token: one inserted at the end of the prompt, or what a deletion leaves.
            let position = trial.layout().prompt_len - 1;
            align(&mut runs.aligned, trial.base.len() - 1, position);
            symptoms.push(Some(Symptom { runs, token, position, corrupted, effect, calls: 4 }));
        }
        self.clean = cleans.pop();
        Ok(symptoms)
    }
}

/// Returns the tokens of the run without the edits that are run: the last one is predicted, and its
/// outputs are never read.
fn clean_ids(trial: &Trial) -> Vec<u32> {
    let mut ids = trial.baseline().layout().ids;
    ids.pop();
    ids
}

/// Tells what a trial makes the model say, from its predictions and those without its edits.
fn shown_by(trial: &Trial, reference: &Distributions, observed: &Observation) -> Option<Shown> {
    if !observed.finite {
        return None;
    }
    let most = (observed.divergence_bits.iter().enumerate())
        .max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0)));
    let (at, distributions) = (most?.0, observed.distributions.as_ref()?);
    let (before, after) = (reference.row(at), distributions.row(at));
    let (token, corrupted, effect) =
        [after, before].map(most_probable).into_iter().flatten().find_map(|token| {
            let said = f64::from(after[token]);
            let effect = said - f64::from(before[token]);
            (effect.abs() >= LEAST_NATS).then_some((token as u32, said, effect))
        })?;
    let end = trial.base.len() + at;
    let kept = |edit: &&Edit| edit.least_length() <= end;
    // All but the token is prompt, so that nothing else is read.
    let said = &trial.continuation[..at.min(trial.continuation.len())];
    let shown = Trial::new([&trial.base[..], said].concat(), [token])
        .with_edits(trial.edits.iter().filter(kept).cloned().collect());
    comparable(&shown).then_some(Shown { trial: shown, token, corrupted, effect })
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
