//! Values at chosen places of many variants of one run, the means of path patching (Wang et al.
//! 2023, "Interpretability in the Wild", section 3.1): what a block outputs when one of its inputs,
//! and nothing else, is changed.

use std::ops::Range;

use super::activations::width;
use super::batching::forwards;
use super::engine::ModelEvaluator;
use super::lower::{Lowering, Place};
use super::observation::Patch;
use crate::edit::{Layout, Trial};
use crate::error::{Error, Result};
use crate::model::batch::Row;
use crate::model::hooks::{Block, Change, Site};
use crate::model::{Forward, Read, Readout};

/// A vector that is added to the residual stream.
#[derive(Debug, Clone)]
pub struct Shift {
    /// The layer.
    pub layer: usize,
    /// The place in the layer: [`Site::ResidPre`], [`Site::ResidMid`] or [`Site::ResidPost`].
    pub site: Site,
    /// The position in the edited sequence.
    pub position: usize,
    /// `[d_model]`.
    pub values: Vec<f32>,
}

/// A variant of a run, and the place whose value is wanted.
#[derive(Debug, Clone, Default)]
pub struct Variant {
    /// Patches, applied after the trial's own edits.
    pub patches: Vec<Patch>,
    /// Changes of the residual stream.
    pub shifts: Vec<Shift>,
}

/// A place in a run: layer, site, columns of it, positions.
pub type At = (usize, Site, Range<usize>, Range<usize>);

/// Variants of one trial, each with its place.
pub type Variants<'t> = (&'t Trial, Vec<(Variant, At)>);

impl ModelEvaluator<'_> {
    /// Runs each variant of a trial and returns what is at its place, `[positions, columns]` each.
    ///
    /// # Errors
    /// As [`capture_all`](Self::capture_all).
    pub fn capture(&self, trial: &Trial, variants: Vec<(Variant, At)>) -> Result<Vec<Vec<f32>>> {
        self.capture_all(&[(trial, variants)])
    }

    /// Runs each variant of each trial and returns what is at its place, `[positions, columns]`
    /// each, in this order.
    ///
    /// # Errors
    /// [`Error::Request`] for ids, patches, shifts or places that the model or a trial does not
    /// have.
    pub fn capture_all(&self, trials: &[Variants]) -> Result<Vec<Vec<f32>>> {
        let (config, d) = (&self.model.config, self.model.config.hidden_size);
        let layouts: Vec<Layout> = trials.iter().map(|(trial, _)| trial.layout()).collect();
        let mut rows: Vec<(&Trial, &Layout, Row, &(Variant, At))> = Vec::new();
        for ((trial, variants), layout) in trials.iter().zip(&layouts) {
            self.model.check_ids(&layout.ids)?;
            // What no variant changes or reads comes from a cached forward.
            let touched = variants.iter().flat_map(|(variant, (.., positions))| {
                let shifts = variant.shifts.iter().map(|shift| shift.position);
                shifts.chain(variant.patches.iter().map(|p| p.first)).chain([positions.start])
            });
            let edited = (!trial.edits.is_empty()).then(|| trial.first_edited());
            let first = touched.chain(edited).min().unwrap_or(0);
            let row = self.row_from(&layout.ids, first)?;
            rows.extend(variants.iter().map(|variant| (*trial, layout, row.clone(), variant)));
        }
        let mut values = Vec::with_capacity(rows.len());
        for chunk in forwards(rows, |(_, _, row, _)| row.ids.len()) {
            let rows = chunk.iter().map(|(_, _, row, _)| row.clone()).collect();
            let mut forward = Forward { rows, ..Forward::default() };
            let offsets = forward.offsets();
            for ((trial, layout, row, (variant, at)), tokens) in
                chunk.iter().zip(offsets.windows(2))
            {
                let (first, len) = (row.prefix_len(), layout.ids.len());
                let (layer, site, columns, positions) = at;
                let place = Place { tokens: tokens[0]..tokens[1], position: first, layer: 0 };
                let hooks = &mut forward.hooks;
                Lowering { baselines: self, trial, layout, place, hooks }.run(&variant.patches)?;
                for shift in &variant.shifts {
                    if shift.position >= len || shift.values.len() != d {
                        return Err(Error::request("a change of a position that the run lacks"));
                    }
                    let token = tokens[0] + shift.position - first;
                    let change =
                        Change::Affine { scale: 1.0, shift: Some(shift.values.clone().into()) };
                    let block = Block { tokens: token..token + 1, columns: 0..d, change };
                    forward.hooks.push(shift.layer, shift.site, block);
                }
                if *layer >= config.num_hidden_layers
                    || positions.end > len
                    || columns.end > width(*layer, *site, config)
                {
                    return Err(Error::request("a place that the run does not have"));
                }
                forward.hooks.capture.insert((*layer, *site));
                forward.layers = forward.layers.max(Some(layer + 1));
            }
            let captured = self.forward(&forward)?.captured;
            for ((_, _, row, (_, (layer, site, columns, positions))), tokens) in
                chunk.iter().zip(offsets.windows(2))
            {
                let width = width(*layer, *site, config);
                let all = captured
                    .get(&(*layer, *site))
                    .ok_or_else(|| Error::internal("a place that was not captured"))?;
                let at = |position: usize| {
                    &all[(tokens[0] + position - row.prefix_len()) * width..][columns.clone()]
                };
                values.push(positions.clone().flat_map(at).copied().collect());
            }
        }
        Ok(values)
    }

    /// Reads the log-probability of the token `id` (nats) from final residual streams, `[rows,
    /// d_model]`.
    pub fn read_log_probs(&self, residuals: &[f32], id: u32) -> Vec<f64> {
        let value = |log_prob: f32, finite| if finite { f64::from(log_prob) } else { f64::NAN };
        let readouts = self.read_residuals(residuals, id);
        readouts.iter().map(|readout| value(readout.log_prob, readout.finite)).collect()
    }

    /// Reads residual streams, `[rows, d_model]`, as if each left the last layer: through the final
    /// norm and the unembedding. The target is the token `id`.
    pub fn read_residuals(&self, residuals: &[f32], id: u32) -> Vec<Readout> {
        let rows = residuals.len() / self.model.config.hidden_size.max(1);
        let read =
            |token| Read { token, target: Some(id), reference: None, keep: false, centre: false };
        self.model.read(residuals, &(0..rows).map(read).collect::<Vec<_>>())
    }
}
