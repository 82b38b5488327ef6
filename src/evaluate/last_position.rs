//! The last position of many sequences that begin alike: what each MLP reads there, and what is
//! predicted.

use super::batching::forwards;
use super::engine::ModelEvaluator;
use crate::error::{Error, Result};
use crate::model::hooks::Site;
use crate::model::{Forward, Read, Residual};

/// The last position of some sequences.
#[derive(Debug, Default)]
pub struct LastPosition {
    /// The residual stream that the MLP of each layer reads, `[sequences, d_model]` each.
    pub mlp_inputs: Vec<Vec<f32>>,
    /// Log-probabilities of some tokens as the next one, nats, `[sequences, tokens]`.
    pub log_probs: Vec<f32>,
}

impl ModelEvaluator<'_> {
    /// Runs `prompt` with each of `endings` after it, and returns the last position of each: what
    /// the MLPs read there, and the log-probabilities of the tokens `next`.
    ///
    /// # Errors
    /// [`Error::Request`] for ids that the model does not have, and an empty ending.
    pub fn last_positions(
        &self,
        prompt: &[u32],
        endings: &[Vec<u32>],
        next: &[u32],
    ) -> Result<LastPosition> {
        let (config, d) = (&self.model.config, self.model.config.hidden_size);
        let site = match config.residual {
            Residual::Parallel => Site::ResidPre,
            _ => Site::ResidMid,
        };
        let mut all = LastPosition {
            mlp_inputs: vec![Vec::new(); config.num_hidden_layers],
            ..LastPosition::default()
        };
        for chunk in forwards(endings, |ending| ending.len()) {
            let row = |ending: &&Vec<u32>| self.row_from(&[prompt, ending].concat(), prompt.len());
            let rows = chunk.iter().map(row).collect::<Result<Vec<_>>>()?;
            let mut forward = Forward { rows, ..Forward::default() };
            forward.hooks.capture = (0..config.num_hidden_layers).map(|l| (l, site)).collect();
            let ends: Vec<usize> = forward.offsets()[1..].iter().map(|end| end - 1).collect();
            let output = self.forward(&forward)?;
            for (layer, inputs) in all.mlp_inputs.iter_mut().enumerate() {
                let values = output
                    .captured
                    .get(&(layer, site))
                    .ok_or_else(|| Error::internal("the residual stream was not captured"))?;
                ends.iter().for_each(|end| inputs.extend_from_slice(&values[end * d..][..d]));
            }
            if next.is_empty() {
                continue;
            }
            let read = |end: &usize| Read {
                token: *end,
                target: None,
                reference: None,
                keep: true,
                centre: false,
            };
            let reads: Vec<Read> = ends.iter().map(read).collect();
            for readout in self.model.read(&output.residual, &reads) {
                let row = readout.distribution.unwrap_or_default();
                let of = |id: &u32| row.get(*id as usize).copied().unwrap_or(f32::NEG_INFINITY);
                all.log_probs.extend(next.iter().map(of));
            }
        }
        Ok(all)
    }
}
