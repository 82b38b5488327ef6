//! The background of a graph: runs that do not have the symptom, and where their positions are.

use std::sync::Arc;

use super::Baseline;
use crate::edit::{Component, Edit, Trial};
use crate::error::Result;
use crate::evaluate::{Activations, Evaluator as _, Request, block_of};
use crate::localize::runs::{Stretch, first_different, source};
use crate::localize::symptom::{LEAST_NATS, Symptom, last};

/// The number of controls that are averaged over.
const CONTROLS: usize = 3;

/// One run of the background.
pub struct BackgroundRun {
    /// The trial, which ends with the symptom's token.
    pub trial: Trial,
    /// The log-probability of that token, nats.
    pub log_prob: f64,
    /// Its activations.
    pub activations: Arc<Activations>,
}

/// Runs without the symptom, whose positions correspond to those of the corrupted run.
pub struct Background {
    /// The runs.
    pub runs: Vec<BackgroundRun>,
    /// The source of the runs.
    pub baseline: Baseline,
    /// The positions that the runs and the corrupted run have in common, as in
    /// [`aligned`](crate::localize::runs::aligned).
    pub stretches: Vec<Stretch>,
    /// By how much the symptom's log-probability exceeds the mean over the runs, nats; negative
    /// where the edits lower it.
    pub effect: f64,
    /// The blocks that the edits are in, which are never patched.
    pub edited: Vec<Component>,
}

impl Background {
    /// Takes the first controls that do not have the symptom; else the clean run.
    ///
    /// # Errors
    /// Errors of the evaluator.
    pub fn new(symptom: &Symptom, controls: &[Trial]) -> Result<Self> {
        let (evaluator, config) = (symptom.runs.evaluator, &symptom.runs.evaluator.model.config);
        let shown = &symptom.runs.corrupted.trial;
        let edited = (shown.edits.iter().filter_map(Edit::component))
            .filter_map(|component| block_of(component, config))
            .collect();
        let len = shown.layout().ids.len();
        // An edit elsewhere moves what is between the two.
        let movable = shown.edits.iter().any(Edit::has_controls_elsewhere);
        let counterparts: Vec<Trial> = (controls.iter().filter(|_| !movable))
            .map(|control| counterpart(control, shown))
            .filter(|control| control.layout().ids.len() == len)
            .collect();
        let mut chosen = Vec::new();
        // Most of them do not have it, so the first few are enough.
        for few in counterparts.chunks(2 * CONTROLS) {
            let requests: Vec<Request> = few.iter().cloned().map(Request::new).collect();
            for (trial, observed) in few.iter().zip(evaluator.observe(&requests)?) {
                let log_prob = last(&observed);
                let effect = (symptom.corrupted - log_prob) * symptom.effect.signum();
                if chosen.len() < CONTROLS && effect >= LEAST_NATS {
                    chosen.push((trial, log_prob));
                }
            }
            if chosen.len() == CONTROLS {
                break;
            }
        }
        if chosen.is_empty() {
            let clean = &symptom.runs.clean;
            let run = BackgroundRun {
                trial: clean.trial.clone(),
                log_prob: symptom.corrupted - symptom.effect,
                activations: clean.activations.clone(),
            };
            return Ok(Self {
                runs: vec![run],
                baseline: Baseline::Clean,
                stretches: symptom.runs.aligned.clone(),
                effect: symptom.effect,
                edited,
            });
        }
        let first = first_different(shown);
        let mean = chosen.iter().map(|(_, p)| p).sum::<f64>() / chosen.len() as f64;
        let asked: Vec<(&Trial, usize)> = chosen.iter().map(|(trial, _)| (*trial, first)).collect();
        let captured = evaluator.activations_from(&asked)?;
        let mut runs = Vec::new();
        for ((trial, log_prob), activations) in chosen.into_iter().zip(captured) {
            let activations = Arc::new(activations);
            runs.push(BackgroundRun { trial: trial.clone(), log_prob, activations });
        }
        Ok(Self {
            runs,
            baseline: Baseline::Controls,
            stretches: vec![(first, first, len - first)],
            effect: symptom.corrupted - mean,
            edited,
        })
    }

    /// Returns the position in the background's runs of one in the corrupted run.
    pub fn source(&self, position: usize) -> Option<usize> {
        source(&self.stretches, position)
    }
}

/// Puts the edits of a control into the trial that ends with the symptom.
fn counterpart(control: &Trial, shown: &Trial) -> Trial {
    let end = shown.len() - 1;
    let kept = |edit: &&Edit| edit.least_length() <= end;
    shown.with_edits(control.edits.iter().filter(kept).cloned().collect())
}
