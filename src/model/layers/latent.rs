//! Multi-head latent attention (DeepSeek-V2, section 2.1): the keys and values of all heads are
//! projected from one short vector per token, and the rotated part of the keys is shared by the
//! heads.
//!
//! Weights are rearranged while they are loaded, so that the attention itself is that of all other
//! families: the rotated dimensions of a head come first, and those that rotate as a pair
//! `(2i, 2i + 1)` are moved half the rotation apart. Queries and keys share that order, so their
//! products stay the same.

use std::sync::Arc;

use crate::error::Result;
use crate::model::arithmetic::Numerics;
use crate::model::arithmetic::linear::PackedMatrix;
use crate::model::config::{Config, Latent};
use crate::model::weights::{Linear, Loader, Norm};

/// The projections of a layer.
pub struct LatentProjection {
    /// Projection to the latent vector of the queries and its norm; not in DeepSeek-V2-Lite.
    query_down: Option<(Linear, Norm)>,
    /// Projection to the queries, `[rotated | rest]` in each head.
    query: Linear,
    /// Projection to `[latent | rotated key]`.
    down: Linear,
    /// Norm of the latent vector of keys and values.
    norm: Norm,
    /// Projection from the latent vector to the keys, zero in the rotated dimensions.
    key: Linear,
    /// Copies the rotated key into the rotated dimensions of every head.
    spread: Linear,
    /// Projection from the latent vector to the values.
    value: Linear,
}

/// Returns, for each dimension of a head as it is ordered here, its place in the checkpoint: the
/// rotated pairs taken apart, then the rest.
fn order(latent: &Latent) -> Vec<usize> {
    let (nope, rope) = (latent.qk_nope_head_dim, latent.qk_rope_head_dim);
    let rotated = (0..rope).step_by(2).chain((1..rope).step_by(2)).map(|i| nope + i);
    rotated.chain(0..nope).collect()
}

fn packed(rows: &[f32], out: usize, input: usize) -> Linear {
    Linear { matrix: Arc::new(PackedMatrix::new(rows, out, input)), bias: None }
}

impl LatentProjection {
    /// Loads the projections of the layer at `prefix` and rearranges them.
    pub(super) fn load(loader: &mut Loader, prefix: &str, latent: &Latent) -> Result<Self> {
        let (d, heads) = (loader.config.hidden_size, loader.config.num_attention_heads);
        let (nope, rope, v) = (latent.qk_nope_head_dim, latent.qk_rope_head_dim, latent.v_head_dim);
        let (rank, dim) = (latent.kv_lora_rank, nope + rope);
        let name = |tensor: &str| format!("{prefix}.self_attn.{tensor}");
        // The normalisation of the latent vectors does not take the configuration's epsilon.
        let norm = |loader: &mut Loader, tensor: &str, width: usize| -> Result<Norm> {
            Ok(Norm { eps: 1e-6, ..loader.norm(&name(tensor), width)? })
        };
        let (query_down, query_name, query_in) = match latent.q_lora_rank {
            None => (None, "q_proj", d),
            Some(rank) => {
                let down = loader.linear(name("q_a_proj"), rank, d)?;
                (Some((down, norm(loader, "q_a_layernorm", rank)?)), "q_b_proj", rank)
            }
        };
        let order = order(latent);
        let rows =
            loader.tensor(&name(&format!("{query_name}.weight")), &[heads * dim, query_in])?;
        let row = |head: usize, i: usize| &rows[(head * dim + i) * query_in..][..query_in];
        let query: Vec<f32> = (0..heads)
            .flat_map(|h| order.iter().flat_map(move |i| row(h, *i).iter().copied()))
            .collect();
        let rows = loader.tensor(&name("kv_a_proj_with_mqa.weight"), &[rank + rope, d])?;
        let places = (0..rank).chain(order[..rope].iter().map(|i| rank + i - nope));
        let down: Vec<f32> = places.flat_map(|i| rows[i * d..][..d].iter().copied()).collect();
        let rows = loader.tensor(&name("kv_b_proj.weight"), &[heads * (nope + v), rank])?;
        let (mut key, mut value) =
            (vec![0f32; heads * dim * rank], Vec::with_capacity(heads * v * rank));
        let mut spread = vec![0f32; heads * dim * rope];
        for head in 0..heads {
            let head_rows = &rows[head * (nope + v) * rank..][..(nope + v) * rank];
            key[(head * dim + rope) * rank..][..nope * rank]
                .copy_from_slice(&head_rows[..nope * rank]);
            value.extend_from_slice(&head_rows[nope * rank..]);
            (0..rope).for_each(|i| spread[(head * dim + i) * rope + i] = 1.0);
        }
        Ok(Self {
            query_down,
            query: packed(&query, heads * dim, query_in),
            down: packed(&down, rank + rope, d),
            norm: norm(loader, "kv_a_layernorm", rank)?,
            key: packed(&key, heads * dim, rank),
            spread: packed(&spread, heads * dim, rope),
            value: packed(&value, heads * v, rank),
        })
    }

    /// Returns the number of parameters of the checkpoint, which has no copying matrix.
    pub(super) fn parameters(&self, config: &Config) -> usize {
        let queries = self
            .query_down
            .as_ref()
            .map_or(0, |(down, norm)| down.parameters() + norm.weight.len());
        let (heads, rank) = (config.num_attention_heads, self.norm.weight.len());
        let key = config.latent.as_ref().map_or(0, |l| heads * l.qk_nope_head_dim * rank);
        queries
            + self.query.parameters()
            + self.down.parameters()
            + rank
            + key
            + self.value.parameters()
    }

    /// Returns the unrotated `[q | k | v]` of an input `x`, `[tokens, d_model]`.
    pub(super) fn qkv<N: Numerics>(&self, mode: &N, x: &N::Array) -> Result<N::Array> {
        let q = match &self.query_down {
            None => mode.linear(x, &self.query)?,
            Some((down, norm)) => {
                mode.linear(&mode.norm(&mode.linear(x, down)?, norm)?, &self.query)?
            }
        };
        let (rank, rope) = (self.norm.weight.len(), self.spread.matrix.in_());
        let parts = mode.split(&mode.linear(x, &self.down)?, &[rank, rope])?;
        let latent = mode.norm(&parts[0], &self.norm)?;
        let k =
            mode.add(mode.linear(&latent, &self.key)?, &mode.linear(&parts[1], &self.spread)?)?;
        mode.join(&[&q, &k, &mode.linear(&latent, &self.value)?])
    }
}
