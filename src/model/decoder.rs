//! The decoder loop: one for every family and every numeric mode.

use std::borrow::Cow;
use std::rc::Rc;
use std::sync::Arc;

use super::Model;
use super::arithmetic::kernels::Rope;
use super::arithmetic::{Numerics, Span};
use super::batch::{Entry, KvStore, LayerCache, Row, STATE_STRIDE};
use super::config::{Config, Residual, Rotary};
use super::forward::{Forward, Output};
use super::hooks::{Hooks, Site};
use super::layers::{MixerWeights, Mlp, PackedRows, Pass, RecurrentRows};
use super::weights::Norm;
use crate::error::{Error, Result};

impl Model {
    /// Returns the learned position embeddings of the rows that start at the embedding, `[tokens,
    /// d_model]`.
    fn positions(&self, table: &[f32], rows: &[Row], spans: &[Span]) -> Result<Vec<f32>> {
        let d = self.config.hidden_size;
        let mut values = Vec::new();
        for (_, span) in rows.iter().zip(spans).filter(|(row, _)| row.restart.is_none()) {
            let end = span.position + span.tokens.len();
            let row_positions = table.get(span.position * d..end * d);
            values.extend_from_slice(row_positions.ok_or_else(|| {
                Error::request(format!(
                    "{end} tokens are more than the {} positions of the model",
                    table.len() / d
                ))
            })?);
        }
        Ok(values)
    }

    /// Runs a batch in a numeric mode, from the embeddings of the rows that start there, `[tokens,
    /// d_model]`.
    ///
    /// # Errors
    /// [`Error::Internal`] for rows that are empty, out of order or cannot be resumed.
    pub(super) fn run<N: Numerics>(
        &self,
        mode: &N,
        forward: &Forward,
        embeddings: N::Array,
    ) -> Result<Output<N::Array>> {
        let (config, hooks, rows) = (&self.config, &forward.hooks, &forward.rows);
        let offsets = forward.offsets();
        if rows.windows(2).any(|w| w[0].entry() > w[1].entry())
            || rows.iter().any(|r| r.ids.is_empty())
        {
            return Err(Error::internal(
                "rows of a batch must be non-empty and ascend in where they start",
            ));
        }
        let longest = rows.iter().map(|r| r.prefix_len() + r.ids.len()).max().unwrap_or(0);
        let ropes = ropes(config, longest);
        let spans: Vec<Span> = rows
            .iter()
            .zip(&offsets)
            .map(|(r, o)| Span { tokens: *o..o + r.ids.len(), position: r.prefix_len() })
            .collect();
        let keep = match config.is_recurrent() {
            true if forward.keep_kv => kept_tokens(&spans),
            true if forward.keep_ends => spans.iter().map(|span| span.tokens.end - 1).collect(),
            _ => Vec::new(),
        };
        let mut caches = Vec::new();
        let pass = Pass::new(mode, self, hooks);
        let mut x = pass.at(0, Site::Embed, embeddings)?;
        if let Some(norm) = &self.weights.embed_norm {
            x = mode.norm(&x, norm)?;
        }
        if let Some(table) = &self.weights.positions {
            let positions = self.positions(table, rows, &spans)?;
            x = mode.add(x, &mode.array(positions, config.hidden_size)?)?;
        }
        let mut joined = rows.iter().filter(|r| r.restart.is_none()).count();
        // The values of the first layer, which those of RWKV-7 above it mix with their own.
        let mut first = None;
        for (i, layer) in
            self.weights.layers.iter().enumerate().take(forward.layers.unwrap_or(usize::MAX))
        {
            let d = config.hidden_size;
            while let Some(row) = rows.get(joined).filter(|r| r.entry() == Entry::Layer(i)) {
                x = mode.append(x, mode.array(resumed(row, row.entry(), d)?, d)?)?;
                if i > 0
                    && let Some(more) = self.first_values(mode, row)?
                {
                    first = Some(match first {
                        Some(values) => mode.append(values, more)?,
                        None => more,
                    });
                }
                joined += 1;
            }
            let mut cache = LayerCache::default();
            let mut out = None;
            if joined > 0 {
                let packed = PackedRows { rows: &rows[..joined], spans: &spans[..joined] };
                x = pass.at(i, Site::ResidPre, x)?;
                let h = normalised(mode, &x, layer.attention_norm.as_ref())?;
                let mixed = match &layer.mixer {
                    MixerWeights::Attention(attention) => {
                        let rope = ropes[i].as_deref();
                        let of_live = match forward.keep_kv {
                            true => None,
                            false => pass.attention_of_live_rows(i, attention, &h, rope, packed)?,
                        };
                        match of_live {
                            Some(out) => out,
                            None => {
                                let attended = attention.forward(&pass, i, &h, rope, packed)?;
                                if forward.keep_kv {
                                    cache.keys = mode.values(&attended.keys)?;
                                    cache.values = mode.values(&attended.values)?;
                                }
                                attended.out
                            }
                        }
                    }
                    MixerWeights::Ssm(mamba) => {
                        let rows = RecurrentRows::new(packed, i, &keep)?;
                        let ssm = config
                            .ssm
                            .as_ref()
                            .ok_or_else(|| Error::internal("a state space without its sizes"))?;
                        let (out, states) = mamba.forward(&pass, i, ssm, &h, &rows)?;
                        cache.states = rows.keep.iter().copied().zip(states).collect();
                        out
                    }
                    MixerWeights::TimeMix(time_mix) => {
                        let rows = RecurrentRows::new(packed, i, &keep)?;
                        let (out, states) = time_mix.forward(&pass, i, &h, &rows, &mut first)?;
                        cache.states = rows.keep.iter().copied().zip(states).collect();
                        out
                    }
                };
                out = Some(pass.at(
                    i,
                    Site::AttnOut,
                    post_normalised(mode, mixed, layer.attention_post_norm.as_ref())?,
                )?);
            }
            // In parallel, the MLP reads the same stream as the attention, and no row can enter
            // between them.
            if config.residual != Residual::Parallel {
                if let Some(out) = out.take() {
                    x = mode.add(x, &out)?;
                }
                while let Some(row) = rows.get(joined).filter(|r| r.entry() == Entry::MidLayer(i)) {
                    x = mode.append(x, mode.array(resumed(row, row.entry(), d)?, d)?)?;
                    joined += 1;
                }
                x = pass.at(i, Site::ResidMid, x)?;
            }
            if joined == 0 {
                caches.push(cache);
                continue;
            }
            if let Some(mlp) = &layer.mlp {
                let h = normalised(mode, &x, layer.mlp_norm.as_ref())?;
                let added = match mlp {
                    Mlp::Dense(dense) => pass.dense(i, dense, &h, spans[joined - 1].tokens.end)?,
                    Mlp::Sparse(sparse) => sparse.forward(&pass, i, &h)?,
                    Mlp::ChannelMix(channel_mix) => {
                        let packed = PackedRows { rows: &rows[..joined], spans: &spans[..joined] };
                        let rows = RecurrentRows::new(packed, i, &keep)?;
                        let (added, inputs) = channel_mix.forward(&pass, i, &h, &rows)?;
                        cache
                            .states
                            .values_mut()
                            .zip(inputs)
                            .for_each(|(state, inputs)| state.channel_inputs = inputs);
                        added
                    }
                };
                drop(h);
                let added = pass.at(
                    i,
                    Site::MlpOut,
                    post_normalised(mode, added, layer.mlp_post_norm.as_ref())?,
                )?;
                if let Some(attention) = out {
                    x = mode.add(x, &attention)?;
                }
                x = mode.add(x, &added)?;
            } else if let Some(attention) = out {
                x = mode.add(x, &attention)?;
            }
            x = pass.at(i, Site::ResidPost, x)?;
            caches.push(cache);
        }
        if joined != rows.len() {
            return Err(Error::internal("a row starts beyond the last layer"));
        }
        let kv =
            (forward.keep_kv || forward.keep_ends).then(|| Arc::new(KvStore { layers: caches }));
        Ok(Output { residual: x, kv, captured: pass.captured() })
    }

    /// Returns what the MLP or mixture of a layer adds to residual streams, given the streams that
    /// it reads, `[tokens, d_model]`, each by itself; `None` for a layer without one, and for
    /// channel mixing, which also reads the token before.
    ///
    /// # Errors
    /// Those of the operations.
    pub(super) fn mlp_alone<N: Numerics>(
        &self,
        mode: &N,
        layer: usize,
        x: &N::Array,
    ) -> Result<Option<N::Array>> {
        let hooks = Hooks::default();
        let pass = Pass::new(mode, self, &hooks);
        let weights = &self.weights.layers[layer];
        let Some(mlp) = &weights.mlp else { return Ok(None) };
        let h = normalised(mode, x, weights.mlp_norm.as_ref())?;
        let added = match mlp {
            Mlp::Dense(dense) => dense.forward(&pass, layer, &h)?,
            Mlp::Sparse(sparse) => sparse.forward(&pass, layer, &h)?,
            Mlp::ChannelMix(_) => return Ok(None),
        };
        post_normalised(mode, added, weights.mlp_post_norm.as_ref()).map(Some)
    }

    /// Returns the values of the first layer for a row that enters above it (RWKV-7), from the
    /// residual stream it had there; `None` where no later layer reads them.
    fn first_values<N: Numerics>(&self, mode: &N, row: &Row) -> Result<Option<N::Array>> {
        let first = &self.weights.layers[0];
        let MixerWeights::TimeMix(time_mix) = &first.mixer else { return Ok(None) };
        let d = self.config.hidden_size;
        let x = mode.array(resumed(row, Entry::START, d)?, d)?;
        let x = normalised(mode, &x, first.attention_norm.as_ref())?;
        let span = [Span { tokens: 0..row.ids.len(), position: row.prefix_len() }];
        let packed = PackedRows { rows: std::slice::from_ref(row), spans: &span };
        let rows = RecurrentRows::new(packed, 0, &[])?;
        time_mix.first_values(mode, &x, &rows.starts(|s| &s.inputs))
    }
}

/// Returns the packed tokens after which states are kept: at every [`STATE_STRIDE`]th position of a
/// row, and its last.
fn kept_tokens(spans: &[Span]) -> Vec<usize> {
    let kept = |span: &Span| {
        let (start, position, last) = (span.tokens.start, span.position, span.tokens.end - 1);
        span.tokens
            .clone()
            .filter(move |t| (position + t - start + 1).is_multiple_of(STATE_STRIDE) || *t == last)
    };
    spans.iter().flat_map(kept).collect()
}

/// Returns the input of a block: the residual stream, normalised where the model has a pre-norm.
fn normalised<'a, N: Numerics>(
    mode: &N,
    x: &'a N::Array,
    norm: Option<&Norm>,
) -> Result<Cow<'a, N::Array>> {
    Ok(match norm {
        Some(norm) => Cow::Owned(mode.norm(x, norm)?),
        None => Cow::Borrowed(x),
    })
}

/// Returns the contribution of a block to the residual stream: its output, normalised where the
/// model has a post-norm.
fn post_normalised<N: Numerics>(mode: &N, out: N::Array, norm: Option<&Norm>) -> Result<N::Array> {
    match norm {
        Some(norm) => mode.norm(&out, norm),
        None => Ok(out),
    }
}

/// Returns the rotary table of each layer; layers that rotate alike share one.
fn ropes(config: &Config, positions: usize) -> Vec<Option<Rc<Rope>>> {
    let mut made: Vec<(&Rotary, Rc<Rope>)> = Vec::new();
    let mut table = |rotary| match made.iter().find(|(known, _)| *known == rotary) {
        Some((_, rope)) => rope.clone(),
        None => {
            let rope = Rc::new(Rope::new(rotary, positions));
            made.push((rotary, rope.clone()));
            rope
        }
    };
    (0..config.num_hidden_layers).map(|layer| config.rope.get(layer).map(&mut table)).collect()
}

/// Returns the residual stream with which a row enters the stack, `[tokens, d_model]`.
fn resumed(row: &Row, entry: Entry, d: usize) -> Result<Vec<f32>> {
    let restart = row
        .restart
        .as_ref()
        .ok_or_else(|| Error::internal("a row without a restart must start at layer 0"))?;
    let residual = restart.residual(entry, row.ids.len(), d);
    residual.map(<[f32]>::to_vec).ok_or_else(|| {
        Error::internal("the residual stream to resume from is shorter than the row")
    })
}
