//! Gradients of a loss with respect to the one-hot encoding of the tokens.
//!
//! A token enters the model as a one-hot row times the embedding matrix. The gradient at that row
//! has an entry for every token of the vocabulary: to first order, replacing a token changes the
//! loss by the new token's entry minus the old one's (Ebrahimi et al. 2018, "HotFlip"; Zou et al.
//! 2023, "Universal and Transferable Adversarial Attacks on Aligned Language Models", algorithm
//! 1).

use std::collections::BTreeMap;
use std::ops::Range;

use candle_core::{Tensor, Var};

use super::engine::ModelEvaluator;
use crate::error::{Error, Result};
use crate::model::hooks::Site;
use crate::model::{Forward, Probes};

/// A loss of the logits that are read: from `[reads, vocab]` and the size of the vocabulary to its
/// value and its gradient, `[reads, vocab]`.
pub type LossOfLogits<'a> = &'a dyn Fn(&[f32], usize) -> (f64, Vec<f32>);

/// A loss and its gradients.
pub struct OneHotGradient {
    /// The value of the loss.
    pub loss: f64,
    /// The gradient at the one-hot row of each requested position, `[positions, vocab]`.
    pub tokens: Vec<f32>,
    /// The gradient at the embeddings of those positions, `[positions, d_model]`.
    pub embeddings: Vec<f32>,
    /// The gradient at the residual stream entering the requested layers, at all positions from
    /// the first requested one to the last one read, `[positions, d_model]`.
    pub residuals: BTreeMap<usize, Vec<f32>>,
}

/// A sequence, a loss, and the places at which its gradient is taken.
struct GradientRequest<'a> {
    ids: &'a [u32],
    positions: Range<usize>,
    /// Embeddings that take the place of those of the tokens at `positions`.
    embeddings: Option<&'a [f32]>,
    reads: &'a [usize],
    layers: &'a [usize],
    loss: LossOfLogits<'a>,
}

impl ModelEvaluator<'_> {
    /// Computes the gradient of `loss`, a function of the logits after the tokens at `reads`, with
    /// respect to the tokens at `positions` and the residual stream entering `layers`. The
    /// positions before `positions` are not part of the graph; they come from a cached forward.
    ///
    /// # Errors
    /// [`Error::Request`] for positions or reads that the sequence does not have.
    pub fn one_hot_gradient(
        &self,
        ids: &[u32],
        positions: Range<usize>,
        reads: &[usize],
        layers: &[usize],
        loss: LossOfLogits,
    ) -> Result<OneHotGradient> {
        self.gradient(GradientRequest { ids, positions, embeddings: None, reads, layers, loss })
    }

    /// Computes the same gradient with `embeddings`, `[positions, d_model]`, in the place of those
    /// of the tokens at `positions`.
    ///
    /// # Errors
    /// As [`one_hot_gradient`](Self::one_hot_gradient); [`Error::Request`] also if there are not
    /// as many embeddings as positions.
    pub fn soft_gradient(
        &self,
        ids: &[u32],
        positions: Range<usize>,
        embeddings: &[f32],
        reads: &[usize],
        loss: LossOfLogits,
    ) -> Result<OneHotGradient> {
        if embeddings.len() != positions.len() * self.model.config.hidden_size {
            return Err(Error::request(format!(
                "{} values for {} embeddings",
                embeddings.len(),
                positions.len()
            )));
        }
        let embeddings = Some(embeddings);
        self.gradient(GradientRequest { ids, positions, embeddings, reads, layers: &[], loss })
    }

    fn gradient(&self, request: GradientRequest) -> Result<OneHotGradient> {
        let GradientRequest { ids, positions, embeddings: instead, reads, layers, loss } = request;
        let (model, d) = (self.model, self.model.config.hidden_size);
        let (start, end) = (positions.start, reads.iter().map(|read| read + 1).max().unwrap_or(0));
        if positions.is_empty()
            || positions.end > end
            || end > ids.len()
            || reads.iter().any(|read| *read < start)
        {
            return Err(Error::request(
                "no position that is read depends on the positions of the gradient",
            ));
        }
        let row = self.row_from(&ids[..end], start)?;
        let forward = Forward { rows: vec![row], ..Forward::default() };
        let mut embeddings = model.embed_tensor(&forward)?;
        if let Some(instead) = instead {
            let instead = Tensor::from_slice(instead, (positions.len(), d), embeddings.device())?;
            let rest = embeddings.narrow(0, positions.len(), end - start - positions.len())?;
            embeddings = Tensor::cat(&[instead, rest], 0)?;
        }
        let embeddings = Var::from_tensor(&embeddings)?;
        let mut probes = Probes::new();
        let mut variables = BTreeMap::new();
        for &layer in layers {
            let zeros = Var::zeros((end - start, d), embeddings.dtype(), embeddings.device())?;
            probes.insert((layer, Site::ResidPre), zeros.as_tensor().clone());
            variables.insert(layer, zeros);
        }
        let tokens: Vec<u32> = reads.iter().map(|read| (read - start) as u32).collect();
        let logits =
            model.forward_gradient_at(&forward, embeddings.as_tensor(), probes, Some(&tokens))?;
        let (value, seed) = loss(&logits.flatten_all()?.to_vec1::<f32>()?, model.config.vocab_size);
        let seed = Tensor::from_vec(seed, logits.shape(), logits.device())?;
        let gradients = (logits * seed)?.sum_all()?.backward()?;
        let gradient_at = |var: &Var| -> Result<Vec<f32>> {
            let gradient =
                gradients.get(var).ok_or_else(|| Error::internal("a variable has no gradient"))?;
            Ok(gradient.flatten_all()?.to_vec1::<f32>()?)
        };
        let mut embeddings = gradient_at(&embeddings)?;
        embeddings.truncate(positions.len() * d);
        Ok(OneHotGradient {
            loss: value,
            tokens: model.along_embeddings(&embeddings),
            embeddings,
            residuals: variables
                .iter()
                .map(|(layer, var)| Ok((*layer, gradient_at(var)?)))
                .collect::<Result<_>>()?,
        })
    }
}
