//! The gradient of a loss with respect to which token stands where: of the one-hot rows that the
//! embedding is multiplied with (Ebrahimi et al. 2018, "HotFlip"; Zou et al. 2023, algorithm 1).

use std::collections::BTreeMap;
use std::ops::Range;

use candle_core::{Tensor, Var};

use super::engine::ModelEvaluator;
use crate::error::{Error, Result};
use crate::model::batch::Row;
use crate::model::hooks::Site;
use crate::model::{Forward, Probes};

/// A loss of the logits that are read, `[reads, vocab]`: its value, and its gradient there.
pub type LossOfLogits<'a> = &'a dyn Fn(&[f32], usize) -> (f64, Vec<f32>);

/// Gradients of one loss.
pub struct OneHotGradient {
    pub loss: f64,
    /// Of the token at each position asked for, `[positions, vocab]`: what the loss changes by, to
    /// first order, is the entry of the new token less that of the old.
    pub tokens: Vec<f32>,
    /// Of the embeddings of those positions, `[positions, d_model]`.
    pub embeddings: Vec<f32>,
    /// Of the residual stream entering some layers, at all positions from the first one asked for,
    /// `[positions, d_model]`.
    pub residuals: BTreeMap<usize, Vec<f32>>,
}

impl ModelEvaluator<'_> {
    /// The gradient of `loss`, of the logits that follow the tokens at `reads`, for the tokens at
    /// `positions` of a sequence, and for the residual stream entering `layers`. What stands before
    /// `positions` is not part of the graph: it comes from a run, which is kept.
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
        self.gradient_of(ids, positions, None, reads, layers, loss)
    }

    /// The same for embeddings in the place of those of the tokens at `positions`, `[positions,
    /// d_model]`.
    ///
    /// # Errors
    /// As [`one_hot_gradient`](Self::one_hot_gradient), and for embeddings of another number.
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
        self.gradient_of(ids, positions, Some(embeddings), reads, &[], loss)
    }

    fn gradient_of(
        &self,
        ids: &[u32],
        positions: Range<usize>,
        instead: Option<&[f32]>,
        reads: &[usize],
        layers: &[usize],
        loss: LossOfLogits,
    ) -> Result<OneHotGradient> {
        let (model, d) = (self.model, self.model.config.hidden_size);
        let (start, end) = (positions.start, reads.iter().map(|read| read + 1).max().unwrap_or(0));
        if positions.is_empty()
            || positions.end > end
            || end > ids.len()
            || reads.iter().any(|read| *read < start)
        {
            return Err(Error::request("a gradient of positions that nothing read depends on"));
        }
        let mut row = Row::new(&ids[start..end]);
        if start > 0 {
            row.prefix = self.cached_forward(&ids[..start], &[])?.prefix(start);
        }
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
        let of = |var: &Var| -> Result<Vec<f32>> {
            let gradient = gradients
                .get(var)
                .ok_or_else(|| Error::internal("a variable without a gradient"))?;
            Ok(gradient.flatten_all()?.to_vec1::<f32>()?)
        };
        let mut embeddings = of(&embeddings)?;
        embeddings.truncate(positions.len() * d);
        Ok(OneHotGradient {
            loss: value,
            tokens: model.along_embeddings(&embeddings),
            embeddings,
            residuals: variables
                .iter()
                .map(|(layer, var)| Ok((*layer, of(var)?)))
                .collect::<Result<_>>()?,
        })
    }
}
