//! The decoder loop: one for every family and both numeric modes.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::Tensor;

use super::Model;
use super::batch::{KvStore, Row};
use super::composed::Composed;
use super::hooks::{Hooks, Site};
use super::kernels::{AttentionRow, AttentionShape};
use super::numerics::{Fused, HeadNorms, Numerics, Rope, Span};
use super::pool::Pooled;
use super::weights::Linear;
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
        let x = mode.rms_norm(&output.residual, &self.weights.norm, self.config.rms_norm_eps)?;
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
        A::from_rows(x, d)
    }

    fn run<N: Numerics>(&self, mode: &N, forward: &Forward, embeddings: N::Array) -> Result<Output<N::Array>> {
        let (config, hooks, rows) = (&self.config, &forward.hooks, &forward.rows);
        let offsets = forward.offsets();
        if rows.windows(2).any(|w| w[0].first_layer() > w[1].first_layer()) || rows.iter().any(|r| r.ids.is_empty()) {
            return Err(Error::request("rows of a batch must be non-empty and ascend in the layer they start at"));
        }
        let longest = rows.iter().map(|r| r.prefix_len() + r.ids.len()).max().unwrap_or(0);
        let rope = Rope::new(&self.weights.rope, longest);
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
                    y = mode.edit_weights(y, x, edits, self.weights.layers[layer].locate(*matrix, config).1)?;
                }
            }
            Ok(y)
        };
        let mut x = at(0, Site::Embed, embeddings, &mut captured)?;
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
            let h = mode.rms_norm(&x, &layer.attention_norm, config.rms_norm_eps)?;
            let qkv = product(i, &h, &layer.qkv, &[Matrix::Q, Matrix::K, Matrix::V])?;
            let norms = HeadNorms { q: layer.q_norm.as_deref(), k: layer.k_norm.as_deref() };
            let (q, k, v) = mode.heads(&qkv, norms, config, &rope, spans)?;
            let attention_rows: Vec<AttentionRow> =
                rows[..joined].iter().zip(spans).map(|(r, s)| attention_row(r, s, i, config.kv_width())).collect();
            let shape = AttentionShape {
                heads: config.num_attention_heads,
                kv_heads: config.num_key_value_heads,
                head_dim: config.head_dim,
                window: config.sliding_window[i],
            };
            let z = at(i, Site::Z, mode.attention(&q, &k, &v, &attention_rows, shape)?, &mut captured)?;
            if forward.keep_kv {
                kv.push((mode.values(&k)?, mode.values(&v)?));
            }
            let out = at(i, Site::AttnOut, product(i, &z, &layer.o, &[Matrix::O])?, &mut captured)?;
            x = mode.add(x, &out)?;
            let h = mode.rms_norm(&x, &layer.mlp_norm, config.rms_norm_eps)?;
            let edited = [Matrix::Gate, Matrix::Up].iter().any(|m| hooks.weights.contains_key(&(i, *m)));
            let hidden = match edited {
                true => mode.swiglu(&product(i, &h, &layer.gate_up, &[Matrix::Gate, Matrix::Up])?)?,
                false => mode.gated(&h, &layer.gate_up)?,
            };
            let hidden = at(i, Site::Neurons, hidden, &mut captured)?;
            let out = at(i, Site::MlpOut, product(i, &hidden, &layer.down, &[Matrix::Down])?, &mut captured)?;
            x = at(i, Site::ResidPost, mode.add(x, &out)?, &mut captured)?;
        }
        if joined != rows.len() {
            return Err(Error::request("a row starts beyond the last layer"));
        }
        let kv = forward.keep_kv.then(|| Arc::new(KvStore { layers: kv }));
        Ok(Output { residual: x, kv, captured })
    }
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
