//! Layer-wise residual patching: the residual stream of one run put into another, at some
//! positions, at the entry of one layer at a time.
//!
//! While the patched positions still matter, the patch removes their effect; once later positions
//! have attended to them, it no longer does. The layer at which that changes is where the
//! information leaves those positions (Meng et al. 2022, section 2.1, "causal tracing"; here with a
//! whole clean run in place of noise).

use std::ops::Range;
use std::sync::Arc;

use super::batching::forwards;
use super::engine::ModelEvaluator;
use super::observation::Observation;
use crate::error::{Error, Result};
use crate::model::Distributions;
use crate::model::batch::{Entry, Residuals, Restart, Row};
use crate::model::{Forward, Read};

/// The sequences and positions of [`ModelEvaluator::patch_residual_by_layer`].
#[derive(Debug, Clone)]
pub struct LayerwisePatching<'a> {
    /// The sequence that is run.
    pub ids: &'a [u32],
    /// The number of leading tokens that are the prompt; the rest is the continuation.
    pub prompt_len: usize,
    /// The positions whose residual stream is patched.
    pub positions: Range<usize>,
    /// The sequence whose residual stream is put there, as long as `ids`.
    pub source: &'a [u32],
    /// The predictions that divergences are measured from.
    pub reference: &'a Arc<Distributions>,
}

impl ModelEvaluator<'_> {
    /// Observes a sequence once for every layer, each time with the residual stream entering that
    /// layer taken from another sequence at some positions. The first observation patches the
    /// embeddings.
    ///
    /// # Errors
    /// [`Error::Request`] for sequences of different lengths and for positions or a prompt beyond
    /// them.
    pub fn patch_residual_by_layer(
        &self,
        patching: &LayerwisePatching,
    ) -> Result<Vec<Observation>> {
        let LayerwisePatching { ids, prompt_len, source, reference, .. } = *patching;
        let positions = &patching.positions;
        let (model, d) = (self.model, self.model.config.hidden_size);
        let fits = ids.len() == source.len()
            && positions.end <= ids.len()
            && (1..=ids.len()).contains(&prompt_len);
        if !fits || positions.is_empty() {
            return Err(Error::request(
                "residual patching needs two sequences of one length, and positions in them",
            ));
        }
        let (cached, source) = (self.cached_forward(ids, &[])?, self.cached_forward(source, &[])?);
        let columns = positions.start * d..positions.end * d;
        let entering = |layer: usize| {
            let mut entering = cached.residuals.pre[layer].clone();
            entering[columns.clone()]
                .copy_from_slice(&source.residuals.pre[layer][columns.clone()]);
            entering
        };
        let row = |layer: usize| {
            let mut pre = vec![Vec::new(); layer + 1];
            // RWKV-7 passes values of its first layer to all others, beside the residual stream.
            pre[0] = entering(0);
            pre[layer] = entering(layer);
            let residuals = Arc::new(Residuals { pre, mid: Vec::new() });
            Row {
                restart: Some(Restart { entry: Entry::Layer(layer), residuals, start: 0 }),
                ..Row::new(ids)
            }
        };
        let reads: Vec<usize> = (prompt_len - 1..(ids.len() - 1).max(prompt_len)).collect();
        let mut observed = Vec::new();
        for layers in forwards(0..model.config.num_hidden_layers, |_| ids.len()) {
            let forward = Forward {
                rows: layers.iter().map(|layer| row(*layer)).collect(),
                ..Forward::default()
            };
            let residual = self.forward(&forward)?.residual;
            let read = |(row, n): (usize, usize)| Read {
                token: row * ids.len() + reads[n],
                target: ids.get(reads[n] + 1).copied(),
                reference: Some((reference.clone(), n)),
                keep: false,
                centre: false,
            };
            let all = (0..layers.len()).flat_map(|row| (0..reads.len()).map(move |n| (row, n)));
            let mut readouts =
                model.read(&residual, &all.map(read).collect::<Vec<_>>()).into_iter();
            let continuation = ids.len() - prompt_len;
            observed.extend(layers.iter().map(|_| {
                let readouts = readouts.by_ref().take(reads.len()).collect();
                Observation::from_readouts(readouts, continuation)
            }));
        }
        Ok(observed)
    }
}
