//! The symptom of a trial: the token that its edits make the model say or, where they make it say
//! nothing in particular, the one they make it no longer say. Patches are measured by its
//! log-probability, because a divergence would not tell a patch that takes the symptom away from
//! one that does nothing, as long as the predictions are far from those without the edits for
//! whatever reason.

use super::SymptomToken;
use super::components::NEARLY_ALL;
use super::runs::{Direction, Runs};
use crate::edit::Component;
use crate::error::Result;
use crate::evaluate::{Evaluator as _, Observation, PATCH_VALUES, Request, cut};

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
        let asked: Vec<(usize, &[Component])> = sets.iter().map(|set| (0, *set)).collect();
        shares_of(&mut [self], &asked, direction)
    }

    /// Returns the share of the effect that is gone where the token has this log-probability, nats;
    /// negative where the edits have more effect than before, NaN where there is no prediction.
    pub fn removed(&self, log_prob: f64) -> f64 {
        (self.corrupted - log_prob) / self.effect
    }

    /// Returns the share that is taken away or made, between 0 and 1.
    fn share(&self, log_prob: f64, direction: Direction) -> f64 {
        let removed = self.removed(log_prob);
        let share = match direction {
            Direction::Necessity => removed,
            Direction::Sufficiency => 1.0 - removed,
        };
        if share.is_nan() { 0.0 } else { share.clamp(0.0, 1.0) }
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

/// Measures the [`shares`](Symptom::shares) of sets in several symptoms: each set with the index of
/// its symptom.
///
/// # Errors
/// Errors of the evaluator.
pub fn shares_of(
    symptoms: &mut [&mut Symptom],
    sets: &[(usize, &[Component])],
    direction: Direction,
) -> Result<Vec<f64>> {
    let mut shares = vec![0.0; sets.len()];
    // Where the runs do not differ, a patch changes nothing, and its share is 0.
    let differ = |at: &usize| {
        let runs = &symptoms[sets[*at].0].runs;
        runs.differ(sets[*at].1, &runs.aligned)
    };
    let open: Vec<usize> = (0..sets.len()).filter(differ).collect();
    let values = |at: &usize| symptoms[sets[*at].0].runs.values(sets[*at].1.len());
    for now in cut(open.iter().copied(), values, PATCH_VALUES) {
        let request = |at: &usize| {
            let runs = &symptoms[sets[*at].0].runs;
            runs.request(sets[*at].1, &runs.aligned, direction)
        };
        let requests: Vec<Request> = now.iter().map(request).collect::<Result<_>>()?;
        let evaluator = symptoms[sets[now[0]].0].runs.evaluator;
        for (at, observed) in now.iter().zip(evaluator.observe(&requests)?) {
            shares[*at] = symptoms[sets[*at].0].share(last(&observed), direction);
        }
    }
    open.iter().for_each(|at| symptoms[sets[*at].0].calls += 1);
    Ok(shares)
}

/// Returns the log-probability of the last token, nats.
pub fn last(observation: &Observation) -> f64 {
    observation.log_probs.last().map_or(f64::NAN, |log_prob| f64::from(*log_prob))
}
