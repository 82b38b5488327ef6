//! The residual stream of one run put into another at some positions, from one layer on at a time:
//! the layer up to which those positions still matter, and from which on what they said has been
//! read by others (Meng et al. 2022, section 2.1, "causal tracing"; here with a whole clean run,
//! not with noise).

use std::ops::Range;
use std::sync::Arc;

use super::batching::forwards;
use super::engine::ModelEvaluator;
use super::observation::Observation;
use crate::error::{Error, Result};
use crate::model::Distributions;
use crate::model::batch::{Entry, Residuals, Restart, Row};
use crate::model::{Forward, Read};

impl ModelEvaluator<'_> {
    /// What a sequence does when the residual stream entering a layer is, at `positions`, that of
    /// `other` (as many tokens): one observation for every layer, the first for the embeddings. The
    /// first `prompt_len` tokens are the prompt.
    ///
    /// # Errors
    /// [`Error::Request`] for sequences of different lengths and for positions or a prompt beyond
    /// them.
    pub fn handover(
        &self,
        ids: &[u32],
        prompt_len: usize,
        positions: Range<usize>,
        other: &[u32],
        reference: &Arc<Distributions>,
    ) -> Result<Vec<Observation>> {
        let (model, d) = (self.model, self.model.config.hidden_size);
        let fits = ids.len() == other.len()
            && positions.end <= ids.len()
            && (1..=ids.len()).contains(&prompt_len);
        if !fits || positions.is_empty() {
            return Err(Error::request(
                "residual streams of other positions than the sequence has",
            ));
        }
        let (run, source) = (self.cached_forward(ids, &[])?, self.cached_forward(other, &[])?);
        let columns = positions.start * d..positions.end * d;
        let entering = |layer: usize| {
            let mut entering = run.residuals.pre[layer].clone();
            entering[columns.clone()]
                .copy_from_slice(&source.residuals.pre[layer][columns.clone()]);
            entering
        };
        let row = |layer: usize| {
            let mut pre = vec![Vec::new(); layer + 1];
            // RWKV-7 hands values of its first layer to all others, beside the residual stream.
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
            };
            let all = (0..layers.len()).flat_map(|row| (0..reads.len()).map(move |n| (row, n)));
            let mut readouts =
                model.read(&residual, &all.map(read).collect::<Vec<_>>()).into_iter();
            let continuation = ids.len() - prompt_len;
            observed.extend(layers.iter().map(|_| {
                Observation::from_readouts(
                    readouts.by_ref().take(reads.len()).collect(),
                    continuation,
                )
            }));
        }
        Ok(observed)
    }
}
