//! Gemma 3 (Gemma Team 2025), the language model.

use super::fields::Fields;
use super::names::{self, Names};
use super::rotary::{Window, local_theta};
use super::transformer::{self, Transformer};
use super::{Family, GgufLayout, PLAIN_GGUF};
use crate::error::Result;
use crate::model::config::{Config, QkNorm, Residual, Rotary};

pub(super) const GEMMA3: Family = Family {
    model_type: "gemma3_text",
    config: read,
    names: Names {
        attention_post_norm: "post_attention_layernorm",
        mlp_norm: "pre_feedforward_layernorm",
        mlp_post_norm: "post_feedforward_layernorm",
        norm_offset: 1.0,
        ..names::LLAMA
    },
    gguf: Some(GgufLayout {
        architecture: "gemma3",
        parts: &[
            ("post_attention_layernorm", "post_attention_norm"),
            ("pre_feedforward_layernorm", "ffn_norm"),
            ("post_feedforward_layernorm", "post_ffw_norm"),
        ],
        ..PLAIN_GGUF
    }),
    pth: None,
};

fn read(fields: &Fields) -> Result<Config> {
    let mut config = transformer::read(
        fields,
        &Transformer {
            residual: Residual::Sandwich,
            qk_norm: QkNorm::Head,
            activation: "gelu_pytorch_tanh",
            theta: 1_000_000.0,
            tied: true,
            head_dim: Some(256),
            window: Window::Pattern(6),
            ..transformer::LLAMA
        },
    )?;
    config.attention_scale = fields.positive("query_pre_attn_scalar")?.unwrap_or(256.0).powf(-0.5);
    config.embedding_scale = f64::from((config.hidden_size as f32).sqrt());
    // Layers with a window rotate by another theta, unscaled.
    let theta = local_theta(fields)?;
    for (rope, _) in config.rope.iter_mut().zip(&config.sliding_window).filter(|(_, w)| w.is_some())
    {
        *rope = Rotary { theta, dim: rope.dim, scaling: None };
    }
    Ok(config)
}
