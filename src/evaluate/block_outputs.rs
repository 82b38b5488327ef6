//! What one block (a mixer or an MLP) adds to the residual stream, intact and with lesions in it.

use super::activations::place;
use super::batching::forwards;
use super::engine::ModelEvaluator;
use super::lower::{Lowering, Place};
use super::reach::entry_of;
use crate::edit::{Component, Edit, Trial};
use crate::error::{Error, Result};
use crate::model::batch::{Entry, Restart, Row};
use crate::model::hooks::Site;
use crate::model::{Config, Forward};

/// The outputs of one block on a text, `[positions, d_model]` each.
pub struct BlockOutputs {
    /// The output of the intact block.
    pub intact: Vec<f32>,
    /// The output with each lesion, in the order they were given in.
    pub lesioned: Vec<Vec<f32>>,
}

/// Returns the block whose output a lesion of `component` changes first: the mixer or the MLP of
/// its layer. `None` for the embedding.
pub fn block_of(component: &Component, config: &Config) -> Option<Component> {
    let mlp = match (place(component, config), component) {
        (Some((_, Site::Embed, _)), _) => return None,
        (Some((_, site, _)), _) => matches!(
            site,
            Site::Neurons | Site::MlpOut | Site::RouterLogits | Site::Experts | Site::ChannelShift
        ),
        (None, Component::Weight { matrix, .. }) => matrix.is_of_mlp(),
        (None, _) => return None,
    };
    let layer = component.layer();
    if mlp { config.mlp(layer) } else { Some(config.mixer(layer)) }
}

impl ModelEvaluator<'_> {
    /// Returns the residual stream of the tokens `ids` entering `layer`, or leaving the last one,
    /// `[positions, d_model]`.
    ///
    /// # Errors
    /// [`Error::Request`] for ids that the model does not have.
    pub fn residual_stream(&self, ids: &[u32], layer: usize) -> Result<Vec<f32>> {
        let cached = self.cached_forward(ids, &[])?;
        let stream = cached.residuals.pre.get(layer);
        stream.cloned().ok_or_else(|| Error::internal("the residual stream of no layer"))
    }

    /// Captures what `block` adds to the residual stream on the tokens `ids`: as it is, and with
    /// each of these actions on components inside it. Only this block is computed; everything below
    /// comes from the plain forward.
    ///
    /// # Errors
    /// [`Error::Request`] for components or ids that the model does not have.
    pub fn block_outputs(
        &self,
        ids: &[u32],
        block: Component,
        lesions: &[Edit],
    ) -> Result<BlockOutputs> {
        let (config, d) = (&self.model.config, self.model.config.hidden_size);
        let cached = self.cached_forward(ids, &[])?;
        let (layer, site, _) = place(&block, config)
            .filter(|(_, site, _)| matches!(site, Site::AttnOut | Site::MlpOut))
            .ok_or_else(|| Error::internal("the outputs of a component that is no block"))?;
        let entry = entry_of(&block, config);
        let trial = Trial::new(ids, []);
        let mut outputs = Vec::with_capacity(lesions.len() + 1);
        let residuals = &cached.residuals;
        let row = Row {
            restart: (entry > Entry::START).then(|| Restart {
                entry,
                residuals: residuals.clone(),
                start: 0,
            }),
            ..Row::new(ids)
        };
        let edits = std::iter::once(None).chain(lesions.iter().map(Some));
        for chunk in forwards(edits, |_| ids.len()) {
            let mut forward = Forward {
                rows: vec![row.clone(); chunk.len()],
                layers: Some(layer + 1),
                ..Forward::default()
            };
            for (i, edit) in chunk.iter().enumerate() {
                let trial = trial.with_edits(edit.iter().map(|&edit| edit.clone()).collect());
                Lowering {
                    baselines: self,
                    layout: &trial.layout(),
                    trial: &trial,
                    place: Place { tokens: i * ids.len()..(i + 1) * ids.len(), position: 0, layer },
                    hooks: &mut forward.hooks,
                }
                .run(&[])?;
            }
            forward.hooks.capture = [(layer, site)].into();
            let captured = self.forward(&forward)?.captured;
            let values = captured
                .get(&(layer, site))
                .ok_or_else(|| Error::internal("the output of a block was not captured"))?;
            outputs.extend(values.chunks_exact(ids.len() * d).map(<[f32]>::to_vec));
        }
        let intact = outputs.remove(0);
        Ok(BlockOutputs { intact, lesioned: outputs })
    }
}
