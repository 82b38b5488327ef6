//! The attention block of a layer.

use super::batch::Row;
use super::config::Config;
use super::hooks::Site;
use super::kernels::{AttentionRow, AttentionShape};
use super::numerics::{HeadNorms, Numerics, Rope, Span};
use super::pass::Pass;
use super::weights::{Attention, Projection};
use crate::edit::Matrix;
use crate::error::Result;

/// What a block gives, and what rows that continue these need of it.
pub struct Attended<A> {
    /// Before its normalisation, `[tokens, d_model]`.
    pub out: A,
    /// `[tokens, kv_width]`, rotated.
    pub keys: A,
    pub values: A,
}

impl Attention {
    /// Attends over `x` `[tokens, d_model]`.
    pub(super) fn forward<N: Numerics>(
        &self,
        pass: &Pass<N>,
        layer: usize,
        x: &N::Array,
        rope: Option<&Rope>,
        rows: &[Row],
        spans: &[Span],
    ) -> Result<Attended<N::Array>> {
        let (mode, config) = (pass.mode, &pass.model.config);
        let qkv = match &self.qkv {
            Projection::Stacked(qkv) => {
                pass.product(layer, x, qkv, &[Matrix::Q, Matrix::K, Matrix::V])?
            }
            Projection::Latent(latent) => latent.qkv(mode, x)?,
        };
        let norms = HeadNorms { q: self.q_norm.as_ref(), k: self.k_norm.as_ref() };
        let (q, keys, values) = mode.heads(&qkv, norms, config, rope, spans)?;
        drop(qkv);
        let attention_rows: Vec<AttentionRow> =
            rows.iter().zip(spans).map(|(r, s)| attention_row(r, s, layer, config)).collect();
        let z = mode.attention(&q, &keys, &values, &attention_rows, shape(config, layer))?;
        let z = pass.at(layer, Site::Z, z)?;
        Ok(Attended { out: pass.product(layer, &z, &self.o, &[Matrix::O])?, keys, values })
    }
}

fn shape(config: &Config, layer: usize) -> AttentionShape {
    AttentionShape {
        heads: config.num_attention_heads,
        kv_heads: config.num_key_value_heads,
        head_dim: config.head_dim,
        value_dim: config.v_head_dim(),
        window: config.sliding_window[layer],
        scale: config.attention_scale as f32,
    }
}

fn attention_row<'a>(row: &'a Row, span: &Span, layer: usize, config: &Config) -> AttentionRow<'a> {
    let part = |x: &'a [f32], s: &super::batch::Segment, width: usize| {
        &x[s.start * width..(s.start + s.len) * width]
    };
    let of = |s: &'a super::batch::Segment| {
        let cache = &s.store.layers[layer];
        (part(&cache.keys, s, config.kv_width()), part(&cache.values, s, config.v_width()))
    };
    AttentionRow { tokens: span.tokens.clone(), prefix: row.prefix.iter().map(of).collect() }
}
