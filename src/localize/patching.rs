//! Activation patching in both directions (Meng et al. 2022, "Locating and Editing Factual
//! Associations in GPT", section 2; Zhang and Nanda 2024, "Towards Best Practices of Activation
//! Patching"), batched.
//!
//! The effect of a trial is one number: the mean Jensen-Shannon divergence of the corrupted run
//! from the clean run over the read positions. *Necessity* of a set of components is the share of
//! that divergence which disappears when the corrupted run gets the set's clean outputs;
//! *sufficiency* is the share which appears when the clean run gets the set's corrupted outputs.
//! Positions are matched through the edits' layout, so that inserted and deleted tokens do not
//! shift what is patched where.

use std::sync::Arc;

use super::Effect;
use crate::edit::{Component, Edit, Trial};
use crate::error::{Error, Result};
use crate::evaluate::{Activations, Evaluator as _, ModelEvaluator, Patch, Request};
use crate::model::Distributions;

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

/// Below this divergence, in bits, two runs count as equal: there is no effect to localize.
pub const NEGLIGIBLE_BITS: f64 = 1e-6;

/// Returns true if the runs with and without the edits predict equally many tokens, so that their
/// predictions can be compared position by position.
pub fn comparable(trial: &Trial) -> bool {
    let layout = trial.layout();
    layout.ids.len() - layout.prompt_len == trial.continuation.len()
}

/// The clean and the corrupted run of a trial, ready to be patched with each other's outputs.
pub struct Patching<'a, 'm> {
    /// The evaluator of the model under test.
    pub evaluator: &'a ModelEvaluator<'m>,
    /// The trial without its edits, and its activations.
    pub clean: (Trial, Activations),
    /// The trial with its edits, and its activations.
    pub corrupted: (Trial, Activations),
    /// All positions that both runs have, in stretches.
    pub aligned: Vec<Stretch>,
    /// The clean run's predictions.
    pub reference: Arc<Distributions>,
    /// Mean divergence of the corrupted run from the clean one, bits.
    pub total: f64,
    /// Loss of the corrupted run, nats per token.
    pub loss: f64,
    /// Trials evaluated so far.
    pub calls: u64,
}

impl<'a, 'm> Patching<'a, 'm> {
    /// Observes both runs and captures the outputs of all components.
    ///
    /// # Errors
    /// Errors of the evaluator; [`Error::Request`] if the edits change how many tokens are
    /// predicted.
    pub fn new(evaluator: &'a ModelEvaluator<'m>, trial: &Trial) -> Result<Self> {
        let baseline = trial.baseline();
        let observed =
            evaluator.observe(&[Request::new(baseline.clone()).keeping_distributions()])?.pop();
        let reference = observed
            .and_then(|o| o.distributions)
            .ok_or_else(|| Error::internal("the clean run's distributions were not kept"))?;
        let layout = trial.layout();
        if !comparable(trial) {
            return Err(Error::request(
                "the edits change how many tokens are predicted: the two runs cannot be compared",
            ));
        }
        let mut aligned: Vec<Stretch> = Vec::new();
        for (clean, corrupted) in
            layout.moved.iter().enumerate().filter_map(|(p, m)| Some((p, (*m)?)))
        {
            match aligned.last_mut() {
                Some((c, g, len)) if *c + *len == clean && *g + *len == corrupted => *len += 1,
                _ => aligned.push((clean, corrupted, 1)),
            }
        }
        let observed =
            evaluator.observe(&[Request::new(trial.clone()).with_reference(reference.clone())])?;
        let (total, loss) =
            observed.first().map_or((0.0, 0.0), |o| (o.mean_divergence_bits(), o.loss()));
        let clean = (baseline.clone(), evaluator.activations(&baseline, &[])?);
        let corrupted = (trial.clone(), evaluator.activations(trial, &[])?);
        Ok(Self { evaluator, clean, corrupted, aligned, reference, total, loss, calls: 4 })
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
        let config = &self.evaluator.model.config;
        let (into, from) = match direction {
            Direction::Necessity => (&self.corrupted.0, &self.clean.1),
            Direction::Sufficiency => (&self.clean.0, &self.corrupted.1),
        };
        let mut patches = Vec::new();
        for component in set {
            for &(clean, corrupted, len) in at {
                let (first, source) = match direction {
                    Direction::Necessity => (corrupted, clean),
                    Direction::Sufficiency => (clean, corrupted),
                };
                let values = from.output(component, source..source + len, config);
                let values = values
                    .ok_or_else(|| Error::request(format!("{component} has no output to patch")))?;
                patches.push(Patch { component: *component, first, values: values.into() });
            }
        }
        Ok(Request::new(into.clone()).with_reference(self.reference.clone()).patched(patches))
    }

    /// Measures the share of the effect that is removed by routing every token as in the clean
    /// run; `None` for models without experts.
    pub fn routing(&mut self) -> Result<Option<f64>> {
        let trial = &self.corrupted.0;
        if self.evaluator.model.config.experts.is_none()
            || trial.edits.contains(&Edit::FreezeRouting)
        {
            return Ok(None);
        }
        let frozen =
            trial.with_edits(trial.edits.iter().cloned().chain([Edit::FreezeRouting]).collect());
        let observed = self
            .evaluator
            .observe(&[Request::new(frozen).with_reference(self.reference.clone())])?;
        self.calls += 1;
        Ok(observed.first().map(|o| 1.0 - o.mean_divergence_bits() / self.total))
    }

    /// Measures necessity and sufficiency of each set, patched at all positions that both runs
    /// have.
    pub fn measure(&mut self, sets: &[Vec<Component>]) -> Result<Vec<(f64, f64)>> {
        let aligned = self.aligned.clone();
        let sets: Vec<(&[Component], &[Stretch])> =
            sets.iter().map(|set| (&set[..], &aligned[..])).collect();
        self.measure_at(&sets)
    }

    /// Measures necessity and sufficiency of each set, patched at its stretches.
    pub fn measure_at(&mut self, sets: &[(&[Component], &[Stretch])]) -> Result<Vec<(f64, f64)>> {
        let mut requests = Vec::with_capacity(2 * sets.len());
        for (set, at) in sets {
            requests.push(self.request(set, at, Direction::Necessity)?);
            requests.push(self.request(set, at, Direction::Sufficiency)?);
        }
        self.calls += requests.len() as u64;
        let observed = self.evaluator.observe(&requests)?;
        let bits: Vec<f64> =
            observed.iter().map(|o| o.mean_divergence_bits() / self.total).collect();
        Ok(bits.chunks_exact(2).map(|pair| (1.0 - pair[0], pair[1])).collect())
    }

    /// Measures the effect of each component alone.
    pub fn effects(&mut self, components: &[Component]) -> Result<Vec<Effect>> {
        let sets: Vec<Vec<Component>> = components.iter().map(|c| vec![*c]).collect();
        let measured = self.measure(&sets)?;
        Ok(components
            .iter()
            .zip(measured)
            .map(|(&component, (necessity, sufficiency))| Effect {
                component,
                necessity,
                sufficiency,
            })
            .collect())
    }
}
