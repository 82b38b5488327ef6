//! The decoder loop: one for every family and both numeric modes.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use candle_core::Tensor;

use super::Model;
use super::batch::{KvStore, Row};
use super::composed::Composed;
use super::config::{Config, Residual, Rotary};
use super::hooks::{Hooks, Site};
use super::kernels::{AttentionRow, AttentionShape};
use super::numerics::{Fused, HeadNorms, Mixture, Numerics, Rope, Span};
use super::pool::Pooled;
use super::weights::{Linear, Mlp, Norm};
use crate::edit::Matrix;
use crate::error::{Error, Result};

/// One forward pass: rows, what is done to them, what is kept.
#[derive(Default)]
pub struct Forward {
    /// Ascending in [`Row::first_layer`]: a row joins the batch when the loop reaches its layer, so the
    /// packed index of every token is known from the start.
    pub rows: Vec<Row>,
    pub hooks: Hooks,
    /// Keep keys and values for rows that continue these.
    pub keep_kv: bool,
}

/// What a forward pass leaves.
pub struct Output<A> {
    /// The residual stream after the last layer, before the final normalisation, `[tokens, d_model]`.
    pub residual: A,
    pub kv: Option<Arc<KvStore>>,
    /// Captured sites, `[tokens, width]` of the rows that had joined by then.
    pub captured: BTreeMap<(usize, Site), Vec<f32>>,
}

impl Forward {
    /// First packed token of every row, and the total at the end.
    pub fn offsets(&self) -> Vec<usize> {
        let mut offsets = vec![0];
        for row in &self.rows {
            offsets.push(offsets[offsets.len() - 1] + row.ids.len());
        }
        offsets
    }
}

impl Model {
    /// Runs a batch in inference mode.
    ///
    /// # Errors
    /// [`Error::Request`] for ids beyond the vocabulary or rows out of order.
    pub fn forward(&self, forward: &Forward) -> Result<Output<Pooled>> {
        let embeddings = self.embed(forward)?;
        let output = self.run(&Fused, forward, embeddings)?;
        Ok(Output { residual: output.residual.data, kv: output.kv, captured: output.captured })
    }

    /// Runs a batch in gradient mode from the embeddings `[tokens, d_model]` (usually a variable);
    /// returns logits `[tokens, vocab]` that can be differentiated.
    pub fn forward_gradient(&self, forward: &Forward, embeddings: &Tensor) -> Result<Tensor> {
        let mode = Composed;
        let output = self.run(&mode, forward, embeddings.clone())?;
        let x = mode.norm(&output.residual, &self.weights.norm)?;
        mode.linear(&x, &self.weights.head)
    }

    /// Token embeddings of the rows that start at the embedding, `[tokens, d_model]`.
    pub fn embed<A: FromRows>(&self, forward: &Forward) -> Result<A> {
        let d = self.config.hidden_size;
        let rows = forward.rows.iter().filter(|r| r.restart.is_none());
        let ids: Vec<u32> = rows.flat_map(|r| r.ids.iter().copied()).collect();
        self.check_ids(&ids)?;
        let mut x = vec![0f32; ids.len() * d];
        for (x, id) in x.chunks_exact_mut(d).zip(&ids) {
            self.weights.embed.row(*id as usize, x);
        }
        self.scale_embeddings(&mut x);
        A::from_rows(x, d)
    }

    /// Embeddings as the residual stream gets them.
    pub(super) fn scale_embeddings(&self, x: &mut [f32]) {
        let scale = self.config.embedding_scale as f32;
        if scale != 1.0 {
            x.iter_mut().for_each(|x| *x *= scale);
        }
    }

    /// Learned positions of the rows that start at the embedding, `[tokens, d_model]`.
    fn positions(&self, table: &[f32], rows: &[Row], spans: &[Span]) -> Result<Vec<f32>> {
        let d = self.config.hidden_size;
        let mut values = Vec::new();
        for (_, span) in rows.iter().zip(spans).filter(|(row, _)| row.restart.is_none()) {
            let end = span.position + span.tokens.len();
            let of_row = table.get(span.position * d..end * d);
            values.extend_from_slice(of_row.ok_or_else(|| {
                Error::request(format!("{end} tokens are more than the {} positions of the model", table.len() / d))
            })?);
        }
        Ok(values)
    }

    fn run<N: Numerics>(&self, mode: &N, forward: &Forward, embeddings: N::Array) -> Result<Output<N::Array>> {
        let (config, hooks, rows) = (&self.config, &forward.hooks, &forward.rows);
        let offsets = forward.offsets();
        if rows.windows(2).any(|w| w[0].first_layer() > w[1].first_layer()) || rows.iter().any(|r| r.ids.is_empty()) {
            return Err(Error::request("rows of a batch must be non-empty and ascend in the layer they start at"));
        }
        let longest = rows.iter().map(|r| r.prefix_len() + r.ids.len()).max().unwrap_or(0);
        let ropes = ropes(config, longest);
        let spans: Vec<Span> =
            rows.iter().zip(&offsets).map(|(r, o)| Span { tokens: *o..o + r.ids.len(), position: r.prefix_len() }).collect();
        let mut captured = BTreeMap::new();
        let mut kv = Vec::new();
        let at = |layer: usize, site: Site, x: N::Array, captured: &mut BTreeMap<_, _>| -> Result<N::Array> {
            let x = match hooks.blocks.get(&(layer, site)) {
                Some(blocks) => mode.edit(x, blocks)?,
                None => x,
            };
            if hooks.capture.contains(&(layer, site)) {
                captured.insert((layer, site), mode.values(&x)?);
            }
            Ok(x)
        };
        // A matrix product with the single-weight edits of the matrices stacked in it.
        let product = |layer: usize, x: &N::Array, linear: &Linear, stacked: &[Matrix]| -> Result<N::Array> {
            let mut y = mode.linear(x, linear)?;
            for matrix in stacked {
                if let Some(edits) = hooks.weights.get(&(layer, *matrix)) {
                    let located = self.weights.layers[layer].locate(*matrix, config);
                    let (_, first) = located.ok_or_else(|| Error::request(format!("layer {layer} has no {}", matrix.name())))?;
                    y = mode.edit_weights(y, x, edits, first)?;
                }
            }
            Ok(y)
        };
        let mut x = at(0, Site::Embed, embeddings, &mut captured)?;
        if let Some(table) = &self.weights.positions {
            let positions = self.positions(table, rows, &spans)?;
            x = mode.add(x, &mode.array(positions, config.hidden_size)?)?;
        }
        let mut joined = rows.iter().filter(|r| r.restart.is_none()).count();
        for (i, layer) in self.weights.layers.iter().enumerate() {
            while let Some(row) = rows.get(joined).filter(|r| r.first_layer() == i) {
                x = mode.append(x, mode.array(resumed(row, i, config.hidden_size)?, config.hidden_size)?)?;
                joined += 1;
            }
            if joined == 0 {
                continue;
            }
            let spans = &spans[..joined];
            x = at(i, Site::ResidPre, x, &mut captured)?;
            let h = normalised(mode, &x, layer.attention_norm.as_ref())?;
            let qkv = product(i, &h, &layer.qkv, &[Matrix::Q, Matrix::K, Matrix::V])?;
            drop(h);
            let norms = HeadNorms { q: layer.q_norm.as_ref(), k: layer.k_norm.as_ref() };
            let (q, k, v) = mode.heads(&qkv, norms, config, ropes[i].as_deref(), spans)?;
            let attention_rows: Vec<AttentionRow> =
                rows[..joined].iter().zip(spans).map(|(r, s)| attention_row(r, s, i, config.kv_width())).collect();
            let shape = AttentionShape {
                heads: config.num_attention_heads,
                kv_heads: config.num_key_value_heads,
                head_dim: config.head_dim,
                window: config.sliding_window[i],
                scale: config.attention_scale as f32,
            };
            let z = at(i, Site::Z, mode.attention(&q, &k, &v, &attention_rows, shape)?, &mut captured)?;
            if forward.keep_kv {
                kv.push((mode.values(&k)?, mode.values(&v)?));
            }
            let out = product(i, &z, &layer.o, &[Matrix::O])?;
            let out = at(i, Site::AttnOut, post_normalised(mode, out, layer.attention_post_norm.as_ref())?, &mut captured)?;
            // Side by side, the MLP reads what the attention reads.
            let waiting = if config.residual == Residual::Parallel {
                Some(out)
            } else {
                x = mode.add(x, &out)?;
                None
            };
            let h = normalised(mode, &x, layer.mlp_norm.as_ref())?;
            let out = match &layer.mlp {
                Mlp::Dense(mlp) => {
                    let edited = [Matrix::Gate, Matrix::Up].iter().any(|m| hooks.weights.contains_key(&(i, *m)));
                    let hidden = match (config.gated_mlp, edited) {
                        (true, false) => mode.gated(&h, &mlp.up, config.activation)?,
                        (true, true) => {
                            let gate_up = product(i, &h, &mlp.up, &[Matrix::Gate, Matrix::Up])?;
                            mode.gate(&gate_up, config.activation)?
                        }
                        (false, _) => mode.activate(product(i, &h, &mlp.up, &[Matrix::Up])?, config.activation)?,
                    };
                    let hidden = at(i, Site::Neurons, hidden, &mut captured)?;
                    product(i, &hidden, &mlp.down, &[Matrix::Down])?
                }
                Mlp::Sparse(sparse) => {
                    let experts = config.experts.as_ref().ok_or_else(|| Error::request("a mixture without experts"))?;
                    let logits = at(i, Site::RouterLogits, mode.linear(&h, &sparse.router)?, &mut captured)?;
                    let blocks = hooks.blocks.get(&(i, Site::Experts)).map_or(&[][..], Vec::as_slice);
                    let mut kept = hooks.capture.contains(&(i, Site::Experts)).then(Vec::new);
                    let mixture = Mixture { sparse, experts, activation: config.activation };
                    let out = mode.mixture(&h, &logits, mixture, blocks, kept.as_mut())?;
                    kept.into_iter().for_each(|kept| drop(captured.insert((i, Site::Experts), kept)));
                    out
                }
            };
            drop(h);
            let out = at(i, Site::MlpOut, post_normalised(mode, out, layer.mlp_post_norm.as_ref())?, &mut captured)?;
            if let Some(attention) = waiting {
                x = mode.add(x, &attention)?;
            }
            x = at(i, Site::ResidPost, mode.add(x, &out)?, &mut captured)?;
        }
        if joined != rows.len() {
            return Err(Error::request("a row starts beyond the last layer"));
        }
        let kv = forward.keep_kv.then(|| Arc::new(KvStore { layers: kv }));
        Ok(Output { residual: x, kv, captured })
    }
}

/// What a block reads: the residual stream, normalised where the model does so before a block.
fn normalised<'a, N: Numerics>(mode: &N, x: &'a N::Array, norm: Option<&Norm>) -> Result<Cow<'a, N::Array>> {
    Ok(match norm {
        Some(norm) => Cow::Owned(mode.norm(x, norm)?),
        None => Cow::Borrowed(x),
    })
}

/// What a block adds to the residual stream.
fn post_normalised<N: Numerics>(mode: &N, out: N::Array, norm: Option<&Norm>) -> Result<N::Array> {
    match norm {
        Some(norm) => mode.norm(&out, norm),
        None => Ok(out),
    }
}

/// Tables of cosines and sines for every layer; layers that rotate alike share one.
fn ropes(config: &Config, positions: usize) -> Vec<Option<Rc<Rope>>> {
    let mut made: Vec<(&Rotary, Rc<Rope>)> = Vec::new();
    let mut of = |rotary| match made.iter().find(|(known, _)| *known == rotary) {
        Some((_, rope)) => rope.clone(),
        None => {
            let rope = Rc::new(Rope::new(rotary, positions));
            made.push((rotary, rope.clone()));
            rope
        }
    };
    (0..config.num_hidden_layers).map(|layer| config.rope.get(layer).map(&mut of)).collect()
}

/// The residual stream a resumed row enters layer `i` with.
fn resumed(row: &Row, i: usize, d: usize) -> Result<Vec<f32>> {
    let restart = row.restart.as_ref().ok_or_else(|| Error::request("a row without a restart must start at layer 0"))?;
    let residual = restart.residuals.get(i).and_then(|r| r.get(restart.start * d..(restart.start + row.ids.len()) * d));
    residual.map(<[f32]>::to_vec).ok_or_else(|| Error::request("the residual stream to resume from is shorter than the row"))
}

fn attention_row<'a>(row: &'a Row, span: &Span, layer: usize, kv_width: usize) -> AttentionRow<'a> {
    let part = |x: &'a [f32], s: &super::batch::Segment| &x[s.start * kv_width..(s.start + s.len) * kv_width];
    let prefix = row.prefix.iter().map(|s| (part(&s.store.layers[layer].0, s), part(&s.store.layers[layer].1, s))).collect();
    AttentionRow { tokens: span.tokens.clone(), prefix }
}

/// How embeddings are handed to a mode.
pub trait FromRows: Sized {
    fn from_rows(values: Vec<f32>, width: usize) -> Result<Self>;
}

impl FromRows for super::numerics::Buffer {
    fn from_rows(data: Vec<f32>, width: usize) -> Result<Self> {
        Ok(Self { data: data.into(), width })
    }
}

impl FromRows for Tensor {
    fn from_rows(values: Vec<f32>, width: usize) -> Result<Self> {
        Composed.array(values, width)
    }
}
