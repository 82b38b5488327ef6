//! What components of one model would output in the place of those of another: given the residual
//! stream that the other has there.

use std::sync::Arc;

use super::activations::place;
use super::engine::ModelEvaluator;
use super::observation::Patch;
use super::reach::entry_of;
use crate::edit::Component;
use crate::error::{Error, Result};
use crate::model::Forward;
use crate::model::batch::{Entry, Residuals, Restart, Row};
use crate::model::hooks::{Block, Change, Site};

impl ModelEvaluator<'_> {
    /// Returns the residual stream of a plain run of the tokens `ids` at every place.
    ///
    /// # Errors
    /// [`Error::Request`] for ids that the model does not have.
    pub fn residuals(&self, ids: &[u32]) -> Result<Arc<Residuals>> {
        Ok(self.cached_forward(ids, &[])?.residuals.clone())
    }

    /// Returns, as patches of a run of another model on the tokens `ids`, what this model's
    /// components output if they read that run's residual stream: the other model with the weights
    /// that this one has in the component. Only blocks and parts of them have such outputs.
    ///
    /// # Errors
    /// [`Error::Request`] for ids and components that the model does not have.
    pub fn outputs_on(
        &self,
        ids: &[u32],
        residuals: &Arc<Residuals>,
        components: &[Component],
    ) -> Result<Vec<Patch>> {
        let config = &self.model.config;
        let mut entries: Vec<(Entry, Vec<Component>)> = Vec::new();
        for component in components {
            self.model.check_component(component)?;
            let entry = entry_of(component, config);
            match entries.iter_mut().find(|(known, _)| *known == entry) {
                Some((_, of_entry)) => of_entry.push(*component),
                None => entries.push((entry, vec![*component])),
            }
        }
        let mut patches = Vec::with_capacity(components.len());
        for (entry, components) in entries {
            let restart = Restart { entry, residuals: residuals.clone(), start: 0 };
            let mut forward = Forward {
                rows: vec![Row { restart: Some(restart), ..Row::new(ids) }],
                layers: Some(entry.layer() + 1),
                ..Forward::default()
            };
            // Where an MLP cannot be entered by itself, its mixer runs first and is overwritten.
            let d = config.hidden_size;
            let is_mlp = |component: &Component| config.mlp(entry.layer()) == Some(*component);
            let entered_below = entry == Entry::Layer(entry.layer());
            if let Some(mid) = residuals.mid.get(entry.layer()).filter(|mid| !mid.is_empty())
                && entered_below
                && components.iter().any(is_mlp)
            {
                let shift = Some(mid[..ids.len() * d].into());
                let change = Change::Affine { scale: 0.0, shift };
                let block = Block { tokens: 0..ids.len(), columns: 0..d, change };
                forward.hooks.push(entry.layer(), Site::ResidMid, block);
            }
            let places = components.iter().map(|component| {
                place(component, config)
                    .ok_or_else(|| Error::request(format!("{component} has no output")))
            });
            let places = places.collect::<Result<Vec<_>>>()?;
            forward.hooks.capture = places.iter().map(|(layer, site, _)| (*layer, *site)).collect();
            let captured = self.forward(&forward)?.captured;
            for (component, (layer, site, columns)) in components.into_iter().zip(places) {
                let values = captured
                    .get(&(layer, site))
                    .ok_or_else(|| Error::internal("the output of a block was not captured"))?;
                let width = values.len() / ids.len();
                let values =
                    values.chunks_exact(width).flat_map(|row| row[columns.clone()].to_vec());
                patches.push(Patch { component, first: 0, values: values.collect() });
            }
        }
        Ok(patches)
    }

    /// Returns what the mixer of a layer outputs on a residual stream of the tokens `ids`,
    /// `[tokens, d_model]`: as it is, and with each of its heads zeroed in turn. The difference is
    /// what a head adds, by its output matrix too.
    ///
    /// # Errors
    /// [`Error::Request`] for ids that the model does not have.
    pub fn mixer_without_heads(
        &self,
        ids: &[u32],
        residuals: &Arc<Residuals>,
        layer: usize,
    ) -> Result<Vec<Vec<f32>>> {
        let config = &self.model.config;
        let heads = 0..config.heads(layer);
        let restart =
            Restart { entry: Entry::Layer(layer), residuals: residuals.clone(), start: 0 };
        let row = Row { restart: Some(restart), ..Row::new(ids) };
        let mut forward = Forward {
            rows: vec![row; 1 + heads.len()],
            layers: Some(layer + 1),
            ..Forward::default()
        };
        for head in heads {
            let (layer, site, columns) = place(&Component::Head { layer, head }, config)
                .ok_or_else(|| Error::internal("a head without an output"))?;
            let tokens = (1 + head) * ids.len()..(2 + head) * ids.len();
            let change = Change::Affine { scale: 0.0, shift: None };
            forward.hooks.push(layer, site, Block { tokens, columns, change });
        }
        forward.hooks.capture = [(layer, Site::AttnOut)].into();
        let captured = self.forward(&forward)?.captured;
        let outputs = captured
            .get(&(layer, Site::AttnOut))
            .ok_or_else(|| Error::internal("the output of a mixer was not captured"))?;
        Ok(outputs.chunks_exact(ids.len() * config.hidden_size).map(<[f32]>::to_vec).collect())
    }
}
