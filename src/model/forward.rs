//! Forward passes of a batch, in inference and in gradient mode. The numeric mode is chosen here
//! and nowhere else.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::Tensor;

use super::Model;
use super::arithmetic::Numerics as _;
use super::arithmetic::composed::{Composed, Probes};
use super::arithmetic::fused::Fused;
use super::arithmetic::pool::Pooled;
use super::batch::{KvStore, Row};
use super::hooks::{Hooks, Site};
use crate::error::Result;

/// One forward pass: the rows, their edits, and what is to be kept.
#[derive(Default)]
pub struct Forward {
    /// The rows, ascending in [`Row::entry`]: a row joins the batch when the loop reaches its
    /// entry, so that the packed index of every token is known from the start.
    pub rows: Vec<Row>,
    /// Edits and captures.
    pub hooks: Hooks,
    /// Keeps keys, values and states, for rows that continue these.
    pub keep_kv: bool,
    /// Keeps the recurrent states at the ends of rows, without keys and values.
    pub keep_ends: bool,
    /// Runs only this many layers, from the bottom of the stack; `None`: all of them.
    pub layers: Option<usize>,
}

/// The results of a forward pass.
pub struct Output<A> {
    /// The residual stream after the last layer, before the final normalisation, `[tokens,
    /// d_model]`.
    pub residual: A,
    /// Keys, values and states, if the forward kept any.
    pub kv: Option<Arc<KvStore>>,
    /// Captured activations by layer and site, `[tokens, width]`, of the rows that had entered the
    /// stack there.
    pub captured: BTreeMap<(usize, Site), Vec<f32>>,
}

impl Forward {
    /// Returns the first packed token of each row and, as the last element, the number of tokens.
    pub fn offsets(&self) -> Vec<usize> {
        let mut offsets = vec![0];
        for row in &self.rows {
            offsets.push(offsets[offsets.len() - 1] + row.ids.len());
        }
        offsets
    }
}

impl Model {
    /// Runs a batch in inference mode.
    ///
    /// # Errors
    /// [`Error::Request`](crate::Error::Request) for ids beyond the vocabulary or rows out of
    /// order.
    pub fn forward(&self, forward: &Forward) -> Result<Output<Pooled>> {
        let embeddings = Fused.array(self.embed(forward)?, self.config.hidden_size)?;
        let output = self.run(&Fused, forward, embeddings)?;
        Ok(Output { residual: output.residual.data, kv: output.kv, captured: output.captured })
    }

    /// Returns what the MLP or mixture of a layer adds to residual streams, given the streams that
    /// it reads, `[tokens, d_model]`, each by itself; `None` for a layer without one, and for
    /// channel mixing, which also reads the token before.
    ///
    /// # Errors
    /// [`Error::Internal`](crate::Error::Internal) for streams of another width.
    pub fn mlp_output(&self, layer: usize, streams: Vec<f32>) -> Result<Option<Pooled>> {
        let streams = Fused.array(streams, self.config.hidden_size)?;
        Ok(self.mlp_alone(&Fused, layer, &streams)?.map(|added| added.data))
    }

    /// Runs a batch in gradient mode from the embeddings `[tokens, d_model]`, usually a variable;
    /// returns differentiable logits `[tokens, vocab]`.
    ///
    /// # Errors
    /// As for [`forward`](Self::forward), and for edits that have no gradient.
    pub fn forward_gradient(&self, forward: &Forward, embeddings: &Tensor) -> Result<Tensor> {
        self.forward_gradient_at(forward, embeddings, Probes::new(), None)
    }

    /// Runs a batch in gradient mode like [`forward_gradient`](Self::forward_gradient), with probes
    /// by which the gradients of sites are taken; returns the logits of the packed tokens `tokens`
    /// alone, if given.
    ///
    /// # Errors
    /// As for [`forward_gradient`](Self::forward_gradient).
    pub fn forward_gradient_at(
        &self,
        forward: &Forward,
        embeddings: &Tensor,
        probes: Probes,
        tokens: Option<&[u32]>,
    ) -> Result<Tensor> {
        let mode = Composed { probes };
        let output = self.run(&mode, forward, embeddings.clone())?;
        let residual = match tokens {
            Some(tokens) => {
                output.residual.index_select(&Tensor::new(tokens, output.residual.device())?, 0)?
            }
            None => output.residual,
        };
        let x = mode.norm(&residual, &self.weights.norm)?;
        mode.linear(&x, &self.weights.head)
    }

    /// Returns the token embeddings of the rows that start at the embedding, `[tokens, d_model]`.
    ///
    /// # Errors
    /// [`Error::Request`](crate::Error::Request) for ids beyond the vocabulary.
    pub fn embed(&self, forward: &Forward) -> Result<Vec<f32>> {
        let d = self.config.hidden_size;
        let rows = forward.rows.iter().filter(|r| r.restart.is_none());
        let ids: Vec<u32> = rows.flat_map(|r| r.ids.iter().copied()).collect();
        self.check_ids(&ids)?;
        let mut x = vec![0f32; ids.len() * d];
        for (x, id) in x.chunks_exact_mut(d).zip(&ids) {
            self.weights.embed.row(*id as usize, x);
        }
        self.scale_embeddings(&mut x);
        Ok(x)
    }

    /// Returns the result of [`embed`](Self::embed) as a tensor, for
    /// [`forward_gradient`](Self::forward_gradient).
    ///
    /// # Errors
    /// As for [`embed`](Self::embed).
    pub fn embed_tensor(&self, forward: &Forward) -> Result<Tensor> {
        Composed::default().array(self.embed(forward)?, self.config.hidden_size)
    }

    /// Multiplies embeddings by the constant with which they enter the residual stream.
    pub(super) fn scale_embeddings(&self, x: &mut [f32]) {
        let scale = self.config.embedding_scale as f32;
        if scale != 1.0 {
            x.iter_mut().for_each(|x| *x *= scale);
        }
    }
}
