//! The logit lens of a case (nostalgebraist 2020, "interpreting GPT: the logit lens"): what the
//! model would say if it ended after each layer.
//!
//! The residual stream at the position that predicts the symptom is read through the final norm and
//! the unembedding, without the layers between. That is exact after the last layer. In early layers
//! it is biased: directions that later layers turn are read as they are (Belrose et al. 2023,
//! "Eliciting Latent Predictions from Transformers with the Tuned Lens"), so compare the runs with
//! each other rather than read a layer alone.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::graph::{Background, Baseline};
use super::residual_map::{
    MAX_MEASURED_LAYERS, ResidualMap, ResidualRuns, entered_layers, hook_names,
};
use super::symptom::Symptom;
use crate::edit::InLayer;
use crate::error::Result;
use crate::evaluate::ResidualRun;

/// The largest number of controls that are read.
pub const MAX_LENS_CONTROLS: usize = 3;

/// The logit lens at the position that predicts the symptom.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogitLens {
    /// The position in the edited sequence (prompt and continuation).
    pub position: usize,
    /// The layers after which the residual stream is read, ascending; the last is the model's last.
    pub layers: Vec<usize>,
    /// The hook points that are read in TransformerLens's terms, `[layers]`:
    /// `blocks.N.hook_resid_post`.
    pub hooks: Vec<String>,
    /// The run without the edits.
    pub clean: LensRun,
    /// The run with the edits.
    pub corrupted: LensRun,
    /// The controls of the graph's background, which do not have the symptom; empty where that is
    /// the clean run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub controls: Vec<LensRun>,
}

/// The predictions of one run after each layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LensRun {
    /// The log-probability of the symptom's token after each layer, nats, `[layers]`.
    pub log_probs: Vec<f64>,
    /// The most probable token after each layer, `[layers]`.
    pub top: Vec<u32>,
    /// These tokens, decoded, `[layers]`: a comment.
    pub texts: Vec<String>,
}

impl LogitLens {
    /// Returns the mean of the controls' log-probabilities after each layer, nats, `[layers]`;
    /// empty without controls.
    pub fn mean_of_controls(&self) -> Vec<f64> {
        let n = self.controls.len();
        let mean = |at: usize| {
            let values = self.controls.iter().filter_map(|run| run.log_probs.get(at));
            values.sum::<f64>() / n as f64
        };
        if n == 0 { Vec::new() } else { (0..self.layers.len()).map(mean).collect() }
    }
}

/// Returns every k-th of so many layers, to the last one, at most [`MAX_MEASURED_LAYERS`].
fn left_layers(depth: usize) -> Vec<usize> {
    let mut layers: Vec<usize> =
        (0..depth).rev().step_by(depth.div_ceil(MAX_MEASURED_LAYERS).max(1)).collect();
    layers.reverse();
    layers
}

/// Measures both views of a case's residual stream: the map of patches and the logit lens. Each is
/// `None` where there is nothing to measure or a value is not finite. Returns also the number of
/// trials evaluated.
///
/// # Errors
/// Errors of the evaluator.
pub fn residual_views(
    symptom: &Symptom,
    background: &Background,
) -> Result<(Option<ResidualMap>, Option<LogitLens>, u64)> {
    let (evaluator, config) = (symptom.runs.evaluator, &symptom.runs.evaluator.model.config);
    let layers = left_layers(config.num_hidden_layers);
    // What leaves a layer enters the next one.
    let left: BTreeSet<usize> = layers.iter().map(|layer| layer + 1).collect();
    let mut kept = left.clone();
    kept.extend(entered_layers(config.num_hidden_layers));
    let Some(runs) = ResidualRuns::new(symptom, &kept)? else { return Ok((None, None, 0)) };
    let mut calls = 2;
    let read = |run: &ResidualRun| -> Option<LensRun> {
        let streams = left.iter().map(|layer| run.entering(*layer, run.end - 1));
        let streams = streams.collect::<Option<Vec<&[f32]>>>()?.concat();
        let mut lens = LensRun { log_probs: Vec::new(), top: Vec::new(), texts: Vec::new() };
        for readout in evaluator.read_residuals(&streams, symptom.token) {
            let (id, _) = *readout.top.first().filter(|_| readout.finite)?;
            lens.log_probs.push(f64::from(readout.log_prob));
            lens.top.push(id);
            lens.texts.push(evaluator.model.token(id));
        }
        Some(lens)
    };
    let mut controls = Vec::new();
    if background.baseline == Baseline::Controls {
        for control in background.runs.iter().take(MAX_LENS_CONTROLS) {
            // Nothing before the last position is read.
            let last = symptom.position;
            let first = symptom.runs.corrupted.activations.first.min(last);
            let run = evaluator.residual_run(&control.trial, first, last, &left)?;
            controls.extend(read(&run));
            calls += 1;
        }
    }
    let lens = read(&runs.clean).zip(read(&runs.corrupted)).map(|(clean, corrupted)| LogitLens {
        position: symptom.position,
        hooks: hook_names(&layers, InLayer::Post),
        layers,
        clean,
        corrupted,
        controls,
    });
    let map = runs.map(symptom)?;
    calls += map.as_ref().map_or(0, |(_, cells)| *cells);
    Ok((map.map(|(map, _)| map), lens, calls))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deep_models_are_measured_at_every_kth_layer() {
        assert_eq!((entered_layers(4), left_layers(4)), (vec![0, 1, 2, 3], vec![0, 1, 2, 3]));
        assert_eq!(entered_layers(30), (0..30).step_by(2).collect::<Vec<_>>());
        assert_eq!(left_layers(30), (1..30).step_by(2).collect::<Vec<_>>());
        for depth in 1..200 {
            let (entered, left) = (entered_layers(depth), left_layers(depth));
            assert!(entered.len() <= MAX_MEASURED_LAYERS && entered.len() == left.len(), "{depth}");
            assert!(entered[0] == 0 && left.last() == Some(&(depth - 1)), "{depth}");
        }
    }
}
