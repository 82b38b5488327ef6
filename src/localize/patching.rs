//! Activation patching in both directions (Meng et al. 2022, "Locating and Editing Factual
//! Associations in GPT", section 2; Zhang and Nanda 2024, "Towards Best Practices of Activation
//! Patching"), batched.
//!
//! The effect of a trial is one number: by how much it changes the log-probability of its symptom
//! (`symptom.rs`) or, where it has none, the mean Jensen-Shannon divergence of the corrupted run
//! from the clean run over the read positions. *Necessity* of a set of components is the share of
//! the effect which disappears when the corrupted run gets the set's clean outputs; *sufficiency*
//! is the share which appears when the clean run gets the set's corrupted outputs.
//! Positions are matched through the edits' layout, so that inserted and deleted tokens do not
//! shift what is patched where.

use std::sync::Arc;

use super::Effect;
use super::runs::{Direction, Runs, Stretch, comparable};
use super::symptom::{Symptom, last};
use crate::edit::{Component, Edit, Trial};
use crate::error::{Error, Result};
use crate::evaluate::{Evaluator as _, ModelEvaluator, Request};
use crate::model::Distributions;

/// Below this divergence, in bits, two runs count as equal: there is no effect to localize.
pub const NEGLIGIBLE_BITS: f64 = 1e-6;

/// The runs of a trial, and by how much they diverge.
pub struct Patching<'a, 'm> {
    /// The clean and the corrupted run.
    pub runs: Runs<'a, 'm>,
    /// The clean run's predictions.
    pub reference: Arc<Distributions>,
    /// Mean divergence of the corrupted run from the clean one, bits.
    pub total: f64,
    /// Loss of the corrupted run, nats per token.
    pub loss: f64,
    /// The trial's symptom, by which sets are measured where there is one.
    pub symptom: Option<Symptom<'a, 'm>>,
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
        if !comparable(trial) {
            return Err(Error::request(
                "the edits change how many tokens are predicted: the two runs cannot be compared",
            ));
        }
        let observed =
            evaluator.observe(&[Request::new(trial.baseline()).keeping_distributions()])?.pop();
        let reference = observed
            .and_then(|o| o.distributions)
            .ok_or_else(|| Error::internal("the clean run's distributions were not kept"))?;
        let observed =
            evaluator.observe(&[Request::new(trial.clone()).with_reference(reference.clone())])?;
        let (total, loss) =
            observed.first().map_or((0.0, 0.0), |o| (o.mean_divergence_bits(), o.loss()));
        let runs = Runs::new(evaluator, trial)?;
        Ok(Self { runs, reference, total, loss, symptom: None, calls: 4 })
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
        Ok(self.runs.request(set, at, direction)?.with_reference(self.reference.clone()))
    }

    /// Measures the share of the effect that is removed by routing every token as in the clean
    /// run; `None` for models without experts.
    pub fn routing(&mut self) -> Result<Option<f64>> {
        let trial = match &self.symptom {
            Some(symptom) => &symptom.runs.corrupted.trial,
            None => &self.runs.corrupted.trial,
        };
        if self.runs.evaluator.model.config.experts.is_none()
            || trial.edits.contains(&Edit::FreezeRouting)
        {
            return Ok(None);
        }
        let frozen =
            trial.with_edits(trial.edits.iter().cloned().chain([Edit::FreezeRouting]).collect());
        self.calls += 1;
        let request = Request::new(frozen);
        if let Some(symptom) = &self.symptom {
            let observed = self.runs.evaluator.observe(&[request])?;
            let removed = observed.first().map(|o| symptom.removed(last(o)));
            return Ok(removed.filter(|share| share.is_finite()));
        }
        let request = request.with_reference(self.reference.clone());
        let observed = self.runs.evaluator.observe(&[request])?;
        Ok(observed.first().map(|o| 1.0 - o.mean_divergence_bits() / self.total))
    }

    /// Measures necessity and sufficiency of each set, patched at all positions that both runs
    /// have.
    pub fn measure(&mut self, sets: &[Vec<Component>]) -> Result<Vec<(f64, f64)>> {
        if let Some(symptom) = &mut self.symptom {
            let sets: Vec<&[Component]> = sets.iter().map(Vec::as_slice).collect();
            let necessity = symptom.shares(&sets, Direction::Necessity)?;
            let sufficiency = symptom.shares(&sets, Direction::Sufficiency)?;
            return Ok(necessity.into_iter().zip(sufficiency).collect());
        }
        let aligned = self.runs.aligned.clone();
        let sets: Vec<(&[Component], &[Stretch])> =
            sets.iter().map(|set| (&set[..], &aligned[..])).collect();
        self.measure_at(&sets)
    }

    /// Measures necessity and sufficiency of each set, patched at its stretches.
    pub fn measure_at(&mut self, sets: &[(&[Component], &[Stretch])]) -> Result<Vec<(f64, f64)>> {
        let mut requests = Vec::with_capacity(2 * sets.len());
        // Where the runs do not differ, a patch changes nothing.
        let open: Vec<bool> = sets.iter().map(|(set, at)| self.runs.differ(set, at)).collect();
        for ((set, at), _) in sets.iter().zip(&open).filter(|(_, open)| **open) {
            requests.push(self.request(set, at, Direction::Necessity)?);
            requests.push(self.request(set, at, Direction::Sufficiency)?);
        }
        self.calls += requests.len() as u64;
        let observed = self.runs.evaluator.observe(&requests)?;
        let bits: Vec<f64> =
            observed.iter().map(|o| o.mean_divergence_bits() / self.total).collect();
        let mut measured = bits.chunks_exact(2).map(|pair| (1.0 - pair[0], pair[1]));
        let of = |open: &bool| if *open { measured.next() } else { None };
        Ok(open.iter().map(of).map(Option::unwrap_or_default).collect())
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
