//! The common part of the configurations of models without attention.

use super::fields::Fields;
use crate::error::Result;
use crate::model::config::{Activation, Config, NormKind, QkNorm, Residual};

/// Positions of a model whose state has no end: the length that texts are cut at.
pub(super) const ENDLESS: usize = 1 << 20;

/// Reads the fields of a decoder that has neither attention nor MLP, and no mixers yet.
pub(super) fn bare(
    fields: &Fields,
    hidden_size: usize,
    num_hidden_layers: usize,
) -> Result<Config> {
    Ok(Config {
        model_type: String::new(),
        vocab_size: fields.required("vocab_size", 1 << 24)?,
        hidden_size,
        intermediate_size: 0,
        num_hidden_layers,
        num_attention_heads: 0,
        num_key_value_heads: 0,
        head_dim: 0,
        max_position_embeddings: ENDLESS,
        latent: None,
        mixers: Vec::new(),
        ssm: None,
        rwkv: None,
        norm: NormKind::Rms,
        norm_eps: 1e-5,
        residual: Residual::PreNorm,
        qk_norm: QkNorm::Off,
        activation: Activation::Silu,
        gated_mlp: false,
        attention_scale: 1.0,
        rope: Vec::new(),
        sliding_window: vec![None; num_hidden_layers],
        embedding_scale: 1.0,
        experts: None,
        tie_word_embeddings: false,
        bos_token_id: fields.ids("bos_token_id")?.first().copied(),
        eos_token_ids: fields.ids("eos_token_id")?,
    })
}
