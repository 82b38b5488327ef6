//! Runs with their residual stream at chosen layers, and the same runs with one vector of it
//! replaced (activation patching of the residual stream: Meng et al. 2022, section 2.1, "causal
//! tracing"; `get_act_patch_resid_pre` in TransformerLens).
//!
//! A replaced vector changes nothing below its layer and before its position, so its row restarts
//! there from the run's own residual stream, keys, values and states: a cell at the last position
//! costs one token in the layers above. RWKV-7 passes values of its first layer to all others
//! beside the residual stream; such rows start at the embedding.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::batching::forwards;
use super::engine::ModelEvaluator;
use super::lower::{Lowering, Place};
use super::reach::layer_of;
use crate::edit::{AttentionKnockout, Component, Edit, InLayer, Layout, Trial};
use crate::error::{Error, Result};
use crate::model::batch::{Entry, KvStore, Residuals, Restart, Row, STATE_STRIDE, Segment};
use crate::model::hooks::{Block, Change, Site};
use crate::model::{Config, Forward, Read};

/// A run of a trial from one position to another, and its residual stream.
pub struct ResidualRun {
    /// The first position.
    pub first: usize,
    /// The position after the last one.
    pub end: usize,
    trial: Trial,
    layout: Layout,
    prefix: Vec<Segment>,
    kv: Arc<KvStore>,
    /// Entering the chosen layers, empty for others; the last element leaves the last layer.
    residuals: Arc<Residuals>,
    d_model: usize,
}

/// A vector of a run's residual stream, replaced by another one.
#[derive(Debug, Clone)]
pub struct ResidualCell {
    /// The layer that the vector enters (`blocks.N.hook_resid_pre`).
    pub layer: usize,
    /// The position in the edited sequence.
    pub position: usize,
    /// `[d_model]`.
    pub values: Arc<[f32]>,
}

impl ResidualRun {
    /// Returns the residual stream entering a layer (or, for the number of layers, leaving the last
    /// one) at a position, `[d_model]`; `None` where it was not kept.
    pub fn entering(&self, layer: usize, position: usize) -> Option<&[f32]> {
        let start = position.checked_sub(self.first)? * self.d_model;
        self.residuals.pre.get(layer)?.get(start..start + self.d_model)
    }

    /// Returns the row that goes on with this run from the position `start`, entering at `layer`.
    fn row(&self, start: usize, layer: Option<usize>) -> Row {
        let len = start - self.first;
        let own = (len > 0).then(|| Segment { store: self.kv.clone(), start: 0, len });
        let restart = layer.map(|layer| Restart {
            entry: Entry::Layer(layer),
            residuals: self.residuals.clone(),
            start: len,
        });
        let prefix = self.prefix.iter().cloned().chain(own).collect();
        Row { prefix, ids: self.layout.ids[start..self.end].to_vec(), restart }
    }
}

impl ModelEvaluator<'_> {
    /// Runs a trial with its edits up to the position `last` and keeps the residual stream from the
    /// position `first` on, before which nothing may be edited, entering each of `layers` and
    /// leaving the last layer.
    ///
    /// # Errors
    /// [`Error::Request`] for ids, edits or positions that do not fit the model or the trial.
    pub fn residual_run(
        &self,
        trial: &Trial,
        first: usize,
        last: usize,
        layers: &BTreeSet<usize>,
    ) -> Result<ResidualRun> {
        let (layout, config) = (trial.layout(), &self.model.config);
        self.model.check_ids(&layout.ids)?;
        let end = last + 1;
        if end > layout.ids.len() {
            return Err(Error::request(format!("position {last} of {}", layout.ids.len())));
        }
        let row = self.row_from(&layout.ids[..end], first)?;
        let prefix = row.prefix.clone();
        let mut forward = Forward { rows: vec![row], keep_kv: true, ..Forward::default() };
        let place = Place { tokens: 0..end - first, position: first, layer: 0 };
        Lowering { baselines: self, trial, layout: &layout, place, hooks: &mut forward.hooks }
            .run(&[])?;
        let depth = config.num_hidden_layers;
        let kept = layers.iter().filter(|layer| **layer < depth);
        forward.hooks.capture = kept.map(|layer| (*layer, Site::ResidPre)).collect();
        let mut output = self.forward(&forward)?;
        let mut pre: Vec<Vec<f32>> = (0..depth)
            .map(|layer| output.captured.remove(&(layer, Site::ResidPre)).unwrap_or_default())
            .collect();
        pre.push(output.residual.to_vec());
        Ok(ResidualRun {
            first,
            end,
            trial: trial.clone(),
            layout,
            prefix,
            kv: output.kv.unwrap_or_default(),
            residuals: Arc::new(Residuals { pre, mid: Vec::new() }),
            d_model: config.hidden_size,
        })
    }

    /// Runs a trial again once for each cell, with that cell replaced, and returns the
    /// log-probability of the token `id` after the run's last position in each, nats; NaN where a
    /// logit is not finite.
    ///
    /// # Errors
    /// [`Error::Request`] for cells that the run does not have.
    pub fn patch_residual_cells(
        &self,
        run: &ResidualRun,
        cells: &[ResidualCell],
        id: u32,
    ) -> Result<Vec<f64>> {
        let (config, d) = (&self.model.config, self.model.config.hidden_size);
        self.model.check_ids(&[id])?;
        let fits = |cell: &ResidualCell| {
            cell.position < run.end
                && cell.values.len() == d
                && cell.layer < config.num_hidden_layers
                && run.entering(cell.layer, cell.position).is_some()
        };
        if !cells.iter().all(fits) {
            return Err(Error::request("a residual stream that the run does not have"));
        }
        let start = |cell: &ResidualCell| match config.is_recurrent() {
            true => (cell.position - cell.position % STATE_STRIDE).max(run.first),
            false => cell.position,
        };
        let restarts = config.rwkv.is_none();
        let mut order: Vec<usize> = (0..cells.len()).collect();
        // The rows of a forward ascend in the layers they enter.
        order.sort_by_key(|index| cells[*index].layer);
        let mut log_probs = vec![f64::NAN; cells.len()];
        for chunk in forwards(order, |index| run.end - start(&cells[*index])) {
            let row = |index: &usize| {
                let cell = &cells[*index];
                run.row(start(cell), restarts.then_some(cell.layer))
            };
            let mut forward =
                Forward { rows: chunk.iter().map(row).collect(), ..Forward::default() };
            let offsets = forward.offsets();
            for (index, tokens) in chunk.iter().zip(offsets.windows(2)) {
                let cell = &cells[*index];
                let place = Place {
                    tokens: tokens[0]..tokens[1],
                    position: start(cell),
                    layer: if restarts { cell.layer } else { 0 },
                };
                let token = place.tokens.start + cell.position - place.position;
                let trial = if restarts {
                    above(&run.trial, cell.layer, config)
                } else {
                    run.trial.clone()
                };
                let (layout, hooks) = (&run.layout, &mut forward.hooks);
                Lowering { baselines: self, trial: &trial, layout, place, hooks }.run(&[])?;
                let change = Change::Affine { scale: 0.0, shift: Some(cell.values.clone()) };
                let block = Block { tokens: token..token + 1, columns: 0..d, change };
                forward.hooks.push(cell.layer, Site::ResidPre, block);
            }
            let residual = self.forward(&forward)?.residual;
            let read = |end: &usize| Read {
                token: end - 1,
                target: Some(id),
                reference: None,
                keep: false,
                centre: false,
            };
            let reads: Vec<Read> = offsets[1..].iter().map(read).collect();
            for (index, readout) in chunk.iter().zip(self.model.read(&residual, &reads)) {
                if readout.finite {
                    log_probs[*index] = f64::from(readout.log_prob);
                }
            }
        }
        Ok(log_probs)
    }
}

/// Returns the trial as a row has it that enters at a layer: without the edits below, which the
/// residual stream already has.
fn above(trial: &Trial, layer: usize, config: &Config) -> Trial {
    let kept = |edit: &&Edit| match edit {
        Edit::Lesion { component, .. }
        | Edit::AttentionKnockout(AttentionKnockout { component, .. })
        | Edit::CarryState { component, .. } => {
            *component != Component::Embed && layer_of(component, config) >= layer
        }
        // What is done to the stream that enters the layer is in what the row starts from.
        Edit::Steering { steering, .. } => {
            let site = steering.site;
            site.layer > layer || site.layer == layer && site.at != InLayer::Pre
        }
        Edit::Embedding { .. } => false,
        Edit::Replace { .. }
        | Edit::Insert { .. }
        | Edit::Delete { .. }
        | Edit::Retokenize { .. }
        | Edit::FreezeRouting => true,
    };
    trial.with_edits(trial.edits.iter().filter(kept).cloned().collect())
}
