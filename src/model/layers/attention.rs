//! The attention block of a layer.

use std::sync::Arc;

use super::latent::LatentProjection;
use super::pass::{PackedRows, Pass};
use crate::edit::Matrix;
use crate::error::{Error, Result};
use crate::model::arithmetic::kernels::{AttentionRow, AttentionShape, Rope};
use crate::model::arithmetic::linear::PackedMatrix;
use crate::model::arithmetic::{HeadNorms, Numerics, Span};
use crate::model::batch::{Row, Segment};
use crate::model::config::{Config, QkNorm};
use crate::model::families::Qkv;
use crate::model::hooks::{Knockout, Site};
use crate::model::weights::{Linear, Loader, Norm};

/// The weights of an attention block.
pub struct Attention {
    /// Projection to queries, keys and values.
    pub qkv: Projection,
    /// Norm of the queries, over `[head_dim]` or over all heads.
    pub q_norm: Option<Norm>,
    /// Norm of the keys, over `[head_dim]` or over all heads.
    pub k_norm: Option<Norm>,
    /// Output projection, `[d_model, heads * value_dim]`.
    pub o: Linear,
}

/// The projection to queries, keys and values.
pub enum Projection {
    /// One matrix with the rows of q, k and v in this order: fewer, wider products.
    Stacked(Linear),
    /// By way of a latent vector.
    Latent(Box<LatentProjection>),
}

/// The output of an attention block, with the keys and values that later rows may continue.
pub struct Attended<A> {
    /// Output before the post-norm, `[tokens, d_model]`.
    pub out: A,
    /// Rotated keys, `[tokens, kv_width]`.
    pub keys: A,
    /// Values, `[tokens, v_width]`.
    pub values: A,
}

impl Attention {
    pub(super) fn load(loader: &mut Loader, prefix: &str, i: usize) -> Result<Self> {
        let (config, d, o) = (loader.config, loader.config.hidden_size, loader.names.o);
        let (q, k) = match config.qk_norm {
            QkNorm::Off => (0, 0),
            QkNorm::Head => (config.head_dim, config.head_dim),
            QkNorm::Full => (config.q_width(), config.kv_width()),
        };
        Ok(Self {
            qkv: match &config.latent {
                Some(latent) => {
                    Projection::Latent(Box::new(LatentProjection::load(loader, prefix, latent)?))
                }
                None => Projection::Stacked(qkv(loader, prefix)?),
            },
            q_norm: loader.norm_if(q > 0, prefix, "self_attn.q_norm", q)?,
            k_norm: loader.norm_if(k > 0, prefix, "self_attn.k_norm", k)?,
            o: loader.linear(format!("{prefix}.{o}"), d, config.z_width(i))?,
        })
    }

    pub(super) fn parameters(&self, config: &Config) -> usize {
        let norms =
            [&self.q_norm, &self.k_norm].into_iter().flatten().map(Norm::parameters).sum::<usize>();
        let qkv = match &self.qkv {
            Projection::Stacked(qkv) => qkv.parameters(),
            Projection::Latent(latent) => latent.parameters(config),
        };
        qkv + self.o.parameters() + norms
    }

    /// Applies the block to its normalised input `x`, `[tokens, d_model]`.
    pub(in crate::model) fn forward<N: Numerics>(
        &self,
        pass: &Pass<N>,
        layer: usize,
        x: &N::Array,
        rope: Option<&Rope>,
        packed: PackedRows,
    ) -> Result<Attended<N::Array>> {
        let (mode, config) = (pass.mode, &pass.model.config);
        let PackedRows { rows, spans } = packed;
        let qkv = match &self.qkv {
            Projection::Stacked(qkv) => {
                pass.product(layer, x, qkv, &[Matrix::Q, Matrix::K, Matrix::V])?
            }
            Projection::Latent(latent) => latent.qkv(mode, x)?,
        };
        let norms = HeadNorms { q: self.q_norm.as_ref(), k: self.k_norm.as_ref() };
        let (q, keys, values) = mode.heads(&qkv, norms, config, rope, spans)?;
        drop(qkv);
        let knockouts = pass.knockouts(layer);
        let attention_rows: Vec<AttentionRow> = (rows.iter().zip(spans))
            .map(|(row, span)| attention_row(row, span, layer, config, knockouts))
            .collect();
        if pass.captures(layer, Site::Pattern) {
            let pattern = pattern(pass, layer, &q, &keys, &attention_rows)?;
            pass.keep(layer, Site::Pattern, mode.values(&pattern)?);
        }
        let z = mode.attention(&q, &keys, &values, &attention_rows, shape(config, layer))?;
        let z = pass.at(layer, Site::Z, z)?;
        Ok(Attended { out: pass.product(layer, &z, &self.o, &[Matrix::O])?, keys, values })
    }
}

/// Returns the attention pattern, `[tokens, heads * longest row]`: what the attention makes of
/// values that are one-hot vectors of their own positions.
fn pattern<N: Numerics>(
    pass: &Pass<N>,
    layer: usize,
    q: &N::Array,
    keys: &N::Array,
    rows: &[AttentionRow],
) -> Result<N::Array> {
    let config = &pass.model.config;
    if rows.iter().any(|row| !row.prefix.is_empty()) {
        return Err(Error::internal("the attention pattern of a row that continues another"));
    }
    let longest = rows.iter().map(|row| row.tokens.len()).max().unwrap_or(0);
    let tokens: usize = rows.iter().map(|row| row.tokens.len()).sum();
    let width = config.num_key_value_heads * longest;
    let mut one_hot = vec![0f32; tokens * width];
    for row in rows {
        for (position, token) in row.tokens.clone().enumerate() {
            for head in 0..config.num_key_value_heads {
                one_hot[token * width + head * longest + position] = 1.0;
            }
        }
    }
    let shape = AttentionShape { value_dim: longest, ..shape(config, layer) };
    pass.mode.attention(q, keys, &pass.mode.array(one_hot, width)?, rows, shape)
}

/// Loads the query, key and value projections as one matrix, however the family stores them.
fn qkv(loader: &mut Loader, prefix: &str) -> Result<Linear> {
    let (config, d) = (loader.config, loader.config.hidden_size);
    let (q, kv, dim) = (config.q_width(), config.kv_width(), config.head_dim);
    match loader.names.qkv {
        Qkv::Separate(names) => {
            let parts: Vec<_> =
                names.iter().zip([q, kv, kv]).map(|(n, w)| (format!("{prefix}.{n}"), w)).collect();
            loader.stacked(&parts, d)
        }
        Qkv::Stacked(name) => loader.linear(format!("{prefix}.{name}"), q + 2 * kv, d),
        Qkv::ByHead(name) => {
            let name = format!("{prefix}.{name}");
            let weight = loader.weight(&name, 3 * q, d)?;
            let bias = loader.optional(&format!("{name}.bias"), &[3 * q])?;
            // `[heads, 3, head_dim, ..]` -> `[3, heads, head_dim, ..]`.
            let regroup = |values: &[f32], width: usize| -> Vec<f32> {
                let part = |which: usize, head: usize| {
                    &values[(head * 3 + which) * dim * width..][..dim * width]
                };
                (0..3)
                    .flat_map(|w| (0..q / dim).flat_map(move |h| part(w, h).iter().copied()))
                    .collect()
            };
            let matrix = Arc::new(PackedMatrix::new(&regroup(&weight, d), 3 * q, d));
            Ok(Linear { matrix, bias: bias.map(|b| regroup(&b, 1)) })
        }
    }
}

/// Returns the shape of the attention of a layer.
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

/// Returns a row with the cached keys and values of its prefix and its attention knockouts.
fn attention_row<'a>(
    row: &'a Row,
    span: &Span,
    layer: usize,
    config: &Config,
    knockouts: &'a [Knockout],
) -> AttentionRow<'a> {
    let part =
        |x: &'a [f32], s: &Segment, width: usize| &x[s.start * width..(s.start + s.len) * width];
    let stretch = |s: &'a Segment| {
        let cache = &s.store.layers[layer];
        (part(&cache.keys, s, config.kv_width()), part(&cache.values, s, config.v_width()))
    };
    let tokens = span.tokens.clone();
    let own = |knockout: &&Knockout| tokens.contains(&knockout.tokens.start);
    AttentionRow {
        prefix: row.prefix.iter().map(stretch).collect(),
        knockouts: knockouts.iter().filter(own).collect(),
        tokens,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::arithmetic::composed::Composed;
    use crate::model::arithmetic::fused::Fused;
    use crate::model::{Forward, Model};

    /// Captures the pattern of a layer, `[queries, heads, keys]`.
    fn captured<N: Numerics>(
        mode: &N,
        model: &Model,
        layer: usize,
        knockouts: &[Knockout],
    ) -> Vec<f32> {
        let ids: Vec<u32> = (0..10).map(|i| (i * 37 + 5) % 90).collect();
        let mut forward = Forward { rows: vec![Row::new(ids)], ..Forward::default() };
        knockouts.iter().for_each(|k| forward.hooks.push_knockout(layer, k.clone()));
        forward.hooks.capture = [(layer, Site::Pattern)].into();
        let embeddings = mode.array(model.embed(&forward).unwrap(), model.config.hidden_size);
        let output = model.run(mode, &forward, embeddings.unwrap()).unwrap();
        output.captured[&(layer, Site::Pattern)].clone()
    }

    /// What a knocked-out edge had goes to the other keys in proportion.
    fn check<N: Numerics>(mode: &N, name: &str) {
        let path = format!("{}/tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"));
        let model = Model::load(&path).unwrap();
        let (heads, layer) = (model.config.num_attention_heads, 1);
        let knockouts = [
            Knockout { tokens: 5..10, heads: 1..2, key: 4 },
            Knockout { tokens: 7..8, heads: 0..heads, key: 6 },
        ];
        let intact = captured(mode, &model, layer, &[]);
        let found = captured(mode, &model, layer, &knockouts);
        let rows = intact.chunks_exact(10).zip(found.chunks_exact(10)).enumerate();
        let mut cut = 0;
        for (i, (intact, found)) in rows {
            let (query, head) = (i / heads, i % heads);
            let applies = |k: &&Knockout| k.tokens.contains(&query) && k.heads.contains(&head);
            let keys: Vec<usize> = knockouts.iter().filter(applies).map(|k| k.key).collect();
            if keys.is_empty() {
                assert_eq!(intact, found, "{name}: {query} {head}");
                continue;
            }
            let lost: f32 = keys.iter().map(|key| intact[*key]).sum();
            for (key, (intact, found)) in intact.iter().zip(found).enumerate() {
                let expected = if keys.contains(&key) { 0.0 } else { intact / (1.0 - lost) };
                assert!((found - expected).abs() < 1e-5, "{name}: {query} {head} {key}");
            }
            assert!(keys.iter().all(|key| found[*key] == 0.0) && lost > 1e-4);
            cut += keys.len();
        }
        assert_eq!(cut, 5 + heads, "{name}");
    }

    #[test]
    fn a_knockout_is_seen_in_the_pattern() {
        for name in ["llama", "gpt2", "gpt-neox", "gemma3", "deepseek-v2", "mixtral"] {
            check(&Fused, name);
            check(&Composed::default(), name);
        }
    }
}
