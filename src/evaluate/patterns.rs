//! Attention patterns: how much each head attends from each position to each other.

use std::collections::BTreeMap;

use super::engine::ModelEvaluator;
use crate::error::Result;
use crate::model::batch::{KvStore, Row};
use crate::model::hooks::Site;
use crate::model::{Config, Forward};

/// The attention patterns and values of one plain run.
pub struct Patterns {
    /// The length of the sequence.
    pub positions: usize,
    /// For each layer with attention, `[positions, heads, positions]`: query, head, key.
    patterns: BTreeMap<(usize, Site), Vec<f32>>,
    /// Keys and values.
    kv: std::sync::Arc<KvStore>,
}

impl Patterns {
    /// Returns how much a head attends at position `query` to each position, `[positions]`; they
    /// add up to 1, or to less where the head has a sink of its own. `None` for a layer without
    /// attention.
    pub fn row(&self, layer: usize, head: usize, query: usize) -> Option<&[f32]> {
        let pattern = self.patterns.get(&(layer, Site::Pattern))?;
        let heads = pattern.len() / (self.positions * self.positions);
        pattern.chunks_exact(self.positions).nth(query * heads + head)
    }

    /// Returns the value of a head at a position, `[value_dim]`.
    pub fn value(&self, layer: usize, head: usize, position: usize, config: &Config) -> &[f32] {
        let (width, dim) = (config.v_width(), config.v_head_dim());
        let group = config.num_attention_heads / config.num_key_value_heads;
        &self.kv.layers[layer].values[position * width + head / group * dim..][..dim]
    }
}

impl ModelEvaluator<'_> {
    /// Runs `ids` and captures every attention pattern.
    ///
    /// # Errors
    /// [`Error::Request`](crate::Error::Request) for ids that the model does not have.
    pub fn patterns(&self, ids: &[u32]) -> Result<Patterns> {
        self.model.check_ids(ids)?;
        let mut forward =
            Forward { rows: vec![Row::new(ids)], keep_kv: true, ..Forward::default() };
        forward.hooks.capture =
            (0..self.model.config.num_hidden_layers).map(|layer| (layer, Site::Pattern)).collect();
        let output = self.forward(&forward)?;
        Ok(Patterns {
            positions: ids.len(),
            patterns: output.captured,
            kv: output.kv.unwrap_or_default(),
        })
    }
}
