//! Runs the lesions of a sweep on a text, and the noise lesions that they are compared with.

use std::ops::Range;
use std::sync::Arc;

use super::noise::noise_lesions;
use super::texts::Text;
use crate::edit::{Action, Component, Edit};
use crate::error::Result;
use crate::evaluate::{Evaluator, ModelEvaluator, Observation, PATCH_VALUES, Request};
use crate::model::Distributions;
use crate::rng;

/// The largest number of lesions in one call, which keeps residual streams small.
const CHUNK: usize = 256;

/// What is done to a component.
#[derive(Clone)]
pub enum Change {
    /// The lesion of the sweep.
    Lesion,
    /// It gets noise of the lesion's norm, once in each of these directions, which are the same for
    /// all texts.
    Noise {
        /// The seed of the sweep.
        seed: u64,
        /// The directions, by number.
        directions: Range<usize>,
    },
}

/// The components of a sweep and the model they are in.
pub struct Swept<'a> {
    /// The evaluator of the model.
    pub evaluator: &'a ModelEvaluator<'a>,
    /// The components.
    pub components: Vec<Component>,
    /// The lesion of each.
    pub action: Action,
}

impl Swept<'_> {
    /// Observes the `chosen` components, by index, on a text, changed in this way: one observation
    /// each, or one in each direction. `done` is told how many more there are.
    ///
    /// # Errors
    /// Errors of the forward pass.
    pub fn observe(
        &self,
        text: &Text,
        chosen: &[usize],
        change: &Change,
        reference: Option<&Arc<Distributions>>,
        done: &dyn Fn(u64),
    ) -> Result<Vec<Observation>> {
        let each = match change {
            Change::Lesion => 1,
            Change::Noise { directions, .. } => directions.len(),
        };
        let values = each * text.trial.len() * self.evaluator.model.config.hidden_size;
        let chunk_len = (PATCH_VALUES / values.max(1)).clamp(1, (CHUNK / each.max(1)).max(1));
        let mut observations = Vec::with_capacity(each * chosen.len());
        for chunk in chosen.chunks(chunk_len) {
            let requests = self.requests(text, chunk, change)?;
            let requests: Vec<Request> = match reference {
                None => requests,
                Some(reference) => {
                    requests.into_iter().map(|r| r.with_reference(reference.clone())).collect()
                }
            };
            observations.extend(self.evaluator.observe(&requests)?);
            done(requests.len() as u64);
        }
        Ok(observations)
    }

    fn requests(&self, text: &Text, chosen: &[usize], change: &Change) -> Result<Vec<Request>> {
        let lesions = chosen.iter().map(|&i| {
            let component = self.components[i];
            (component, Edit::lesion(component, self.action))
        });
        match change {
            Change::Lesion => Ok(lesions
                .map(|(_, edit)| Request::new(text.trial.with_edits(vec![edit])))
                .collect()),
            Change::Noise { seed, directions } => {
                let lesions: Vec<_> = lesions.collect();
                let rngs = |i: usize| {
                    let name = |direction| format!("noise {direction} {}", lesions[i].0);
                    directions.clone().map(|at| rng::stream(*seed, &name(at))).collect()
                };
                let patches = noise_lesions(self.evaluator, &text.ids(), &lesions, &rngs)?;
                let patched = |patch| Request::new(text.trial.clone()).patched(vec![patch]);
                Ok(patches.into_iter().map(patched).collect())
            }
        }
    }
}
