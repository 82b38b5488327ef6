//! The two runs of a trial that patching compares: *clean*, without the edits, and *corrupted*,
//! with them.

use std::sync::Arc;

use crate::edit::{Component, Edit, Trial};
use crate::error::{Error, Result};
use crate::evaluate::{Activations, ModelEvaluator, PATCH_VALUES, Patch, Request};

/// Positions that both runs have: first clean position, first corrupted position, length.
pub type Stretch = (usize, usize, usize);

/// The direction of a patch between the two runs.
#[derive(Clone, Copy)]
pub enum Direction {
    /// The corrupted run gets clean outputs.
    Necessity,
    /// The clean run gets corrupted outputs.
    Sufficiency,
}

/// A trial and the outputs of all components in it.
pub struct Run {
    /// The trial.
    pub trial: Trial,
    /// Its activations.
    pub activations: Arc<Activations>,
}

/// The clean and the corrupted run of a trial, ready to be patched with each other's outputs.
pub struct Runs<'a, 'm> {
    /// The evaluator of the model under test.
    pub evaluator: &'a ModelEvaluator<'m>,
    /// The trial without its edits.
    pub clean: Run,
    /// The trial with its edits.
    pub corrupted: Run,
    /// The positions that both runs have, in stretches, from the first edit on.
    pub aligned: Vec<Stretch>,
}

/// Returns true if the runs with and without the edits predict equally many tokens, so that their
/// predictions can be compared position by position.
pub fn comparable(trial: &Trial) -> bool {
    let layout = trial.layout();
    layout.ids.len() - layout.prompt_len == trial.continuation.len()
}

/// Returns the first position at which the runs with and without the edits can differ: that of the
/// first edit, or the one before a token that is deleted, which may be read in its place.
pub fn first_different(trial: &Trial) -> usize {
    let deletes = trial.edits.iter().any(|edit| matches!(edit, Edit::Delete { .. }));
    let first = trial.first_edited().saturating_sub(usize::from(deletes));
    first.min(trial.layout().ids.len().saturating_sub(1))
}

/// Returns the first position of the run without the edits that is compared with one of the run
/// with them: the one before the first edit, which an inserted token may be read in the place of.
pub fn first_clean(trial: &Trial) -> usize {
    first_different(trial).min(trial.len()).saturating_sub(1)
}

/// Returns the positions that the runs with and without the edits both have, in stretches, from the
/// first one on at which they can differ.
pub fn aligned(trial: &Trial) -> Vec<Stretch> {
    let mut aligned: Vec<Stretch> = Vec::new();
    let (moved, first) = (trial.layout().moved, first_different(trial));
    let kept = moved.iter().enumerate().skip(first);
    for (clean, corrupted) in kept.filter_map(|(p, m)| Some((p, (*m)?))) {
        match aligned.last_mut() {
            Some((c, g, len)) if *c + *len == clean && *g + *len == corrupted => *len += 1,
            _ => aligned.push((clean, corrupted, 1)),
        }
    }
    aligned
}

/// Returns the position in the first run of the stretches that corresponds to one in the second.
pub fn source(stretches: &[Stretch], position: usize) -> Option<usize> {
    let covers = |&&(_, first, len): &&Stretch| (first..first + len).contains(&position);
    stretches.iter().find(covers).map(|(source, first, _)| source + position - first)
}

impl<'a, 'm> Runs<'a, 'm> {
    /// Captures the outputs of all components in both runs, from the first position on at which
    /// they can differ.
    ///
    /// # Errors
    /// Errors of the evaluator.
    pub fn new(evaluator: &'a ModelEvaluator<'m>, trial: &Trial) -> Result<Self> {
        let baseline = trial.baseline();
        let asked = [(&baseline, first_clean(trial)), (trial, first_different(trial))];
        let mut captured = evaluator.activations_from(&asked)?.into_iter().map(Arc::new);
        match (captured.next(), captured.next()) {
            (Some(clean), Some(corrupted)) => Ok(Self::of(evaluator, trial, clean, corrupted)),
            _ => Err(Error::internal("runs that were not captured")),
        }
    }

    /// Takes the runs of a trial whose activations are known.
    pub fn of(
        evaluator: &'a ModelEvaluator<'m>,
        trial: &Trial,
        clean: Arc<Activations>,
        corrupted: Arc<Activations>,
    ) -> Self {
        Self {
            evaluator,
            clean: Run { trial: trial.baseline(), activations: clean },
            corrupted: Run { trial: trial.clone(), activations: corrupted },
            aligned: aligned(trial),
        }
    }

    /// Returns true if a patch of any of these components may change anything: unless what all of
    /// them output is the same in both runs.
    pub fn differ(&self, set: &[Component], at: &[Stretch]) -> bool {
        let config = &self.evaluator.model.config;
        let (clean, corrupted) = (&self.clean.activations, &self.corrupted.activations);
        let differs = |component: &Component, (c, g, len): Stretch| {
            let (a, b) = (
                clean.output(component, c..c + len, config),
                corrupted.output(component, g..g + len, config),
            );
            a.is_none() || a != b
        };
        set.iter().any(|component| at.iter().any(|stretch| differs(component, *stretch)))
    }

    /// Builds the request that patches a set of components at the given stretches.
    ///
    /// # Errors
    /// [`Error::Request`] for a component without an output.
    pub fn request(
        &self,
        set: &[Component],
        at: &[Stretch],
        direction: Direction,
    ) -> Result<Request> {
        let (into, from) = match direction {
            Direction::Necessity => (&self.corrupted, &self.clean),
            Direction::Sufficiency => (&self.clean, &self.corrupted),
        };
        let mut patches = Vec::new();
        for component in set {
            for &(clean, corrupted, len) in at {
                let (first, source) = match direction {
                    Direction::Necessity => (corrupted, clean),
                    Direction::Sufficiency => (clean, corrupted),
                };
                patches.push(self.patch(component, first, &from.activations, source, len)?);
            }
        }
        Ok(Request::new(into.trial.clone()).patched(patches))
    }

    /// Returns how many values the patches of so many components have.
    pub fn values(&self, members: usize) -> usize {
        let positions: usize = self.aligned.iter().map(|(.., len)| len).sum();
        members * positions * self.evaluator.model.config.hidden_size
    }

    /// Returns how many sets of so many components may be patched in one call, so that their
    /// patches stay small.
    pub fn sets_per_call(&self, members: usize) -> usize {
        (PATCH_VALUES / self.values(members).max(1)).max(1)
    }

    /// Builds the patch that puts what a component outputs in another run at `len` positions from
    /// `source` on in the place of what it outputs from `first` on.
    ///
    /// # Errors
    /// [`Error::Request`] for a component without an output.
    pub fn patch(
        &self,
        component: &Component,
        first: usize,
        from: &Activations,
        source: usize,
        len: usize,
    ) -> Result<Patch> {
        let config = &self.evaluator.model.config;
        let values = from
            .output(component, source..source + len, config)
            .ok_or_else(|| Error::request(format!("{component} has no output to patch")))?;
        Ok(Patch { component: *component, first, values: values.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stretches_are_what_both_runs_have() {
        let check = |edits: Vec<Edit>, expect: &[Stretch]| {
            let trial = Trial::new([10, 11, 12, 13], [20]).with_edits(edits);
            assert_eq!(aligned(&trial), expect, "{:?}", trial.edits);
        };
        check(vec![Edit::Replace { position: 1, id: 5 }], &[(1, 1, 4)]);
        check(vec![Edit::Insert { position: 1, id: 5 }], &[(1, 2, 4)]);
        check(vec![Edit::Delete { position: 2 }], &[(1, 1, 1), (3, 2, 2)]);
        // The last piece corresponds to the token; those before it, to nothing.
        check(vec![Edit::Retokenize { position: 1, pieces: vec![5, 6, 7] }], &[(1, 3, 4)]);
    }
}
