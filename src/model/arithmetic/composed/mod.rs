//! The gradient mode: candle operations that all have a backward, on packed arrays.
//!
//! candle's fused softmax, normalisation and rotation drop gradients silently, so none of them is
//! used here. Tests check that every hooked variable has a gradient, and compare it with finite
//! differences.

mod product;
mod scan;

use std::collections::BTreeMap;

use candle_core::{D, DType, Device, Tensor};

use product::Product;

use super::kernels::elementwise::Convolution;
use super::kernels::{AttentionRow, AttentionShape, Rope};
use super::scan::{Recurrence, RowStart};
use super::{HeadNorms, Mixture, Numerics, Span};
use crate::error::{Error, Result};
use crate::model::config::{Activation, Config, NormKind};
use crate::model::hooks::{Block, Change, Site, WeightEdit};
use crate::model::layers::Routing;
use crate::model::weights::{Linear, Norm};

/// Variables of zeros, `[tokens, width]`, that are added to sites so that these have a gradient.
pub type Probes = BTreeMap<(usize, Site), Tensor>;

/// The gradient mode. Arrays are tensors `[tokens, width]`.
#[derive(Default)]
pub struct Composed {
    /// Variables added to sites.
    pub probes: Probes,
}

/// Creates a tensor `[rows, width]` without a gradient.
fn constant(values: &[f32], rows: usize) -> Result<Tensor> {
    Ok(Tensor::from_slice(values, (rows, values.len() / rows.max(1)), &Device::Cpu)?)
}

/// Creates a tensor `[width]` without a gradient.
fn vector(values: &[f32]) -> Result<Tensor> {
    Ok(Tensor::from_slice(values, values.len(), &Device::Cpu)?)
}

/// Returns minus infinity where a knockout keeps a head's query from a key, and 0 elsewhere:
/// `[heads, tokens, keys]`. `columns` has the place of each row's positions among the keys.
fn knockout_mask(
    rows: &[AttentionRow],
    columns: &[Vec<usize>],
    (heads, tokens, keys): (usize, usize, usize),
) -> Result<Tensor> {
    let mut mask = vec![0f32; heads * tokens * keys];
    for (row, columns) in rows.iter().zip(columns) {
        for head in 0..heads {
            for token in row.tokens.clone() {
                for key in row.knocked_out(token, head) {
                    mask[(head * tokens + token) * keys + columns[key]] = f32::NEG_INFINITY;
                }
            }
        }
    }
    Ok(Tensor::from_vec(mask, (heads, tokens, keys), &Device::Cpu)?)
}

/// Normalises over the last dimension.
fn normalise(x: &Tensor, norm: &Norm) -> Result<Tensor> {
    let centred = match norm.kind {
        NormKind::Rms => x.clone(),
        NormKind::Layer => x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?,
    };
    let square = centred.sqr()?.mean_keepdim(D::Minus1)?;
    let y = centred
        .broadcast_div(&(square + norm.eps)?.sqrt()?)?
        .broadcast_mul(&vector(&norm.weight)?)?;
    Ok(if norm.bias.is_empty() { y } else { y.broadcast_add(&vector(&norm.bias)?)? })
}

impl Composed {
    /// Returns, for every token, the input `n` positions before it. Before the row these are the
    /// inputs it starts from, or zeros.
    fn before(&self, x: &Tensor, rows: &[RowStart], n: usize) -> Result<Tensor> {
        let width = x.dim(1)?;
        let mut parts = Vec::new();
        for row in rows {
            let len = row.tokens.len();
            let before_row = n.min(len);
            if before_row > 0 {
                // The last `n` inputs before the row; a short row takes the first of these.
                let zeros = vec![0f32; n * width];
                let inputs = if row.initial.is_empty() {
                    &zeros
                } else {
                    &row.initial[row.initial.len() - n * width..]
                };
                parts.push(constant(&inputs[..before_row * width], before_row)?);
            }
            if len > before_row {
                parts.push(x.narrow(0, row.tokens.start, len - before_row)?);
            }
        }
        Ok(Tensor::cat(&parts, 0)?)
    }
}

impl Numerics for Composed {
    type Array = Tensor;

    fn array(&self, values: Vec<f32>, width: usize) -> Result<Tensor> {
        let rows = values.len() / width.max(1);
        Ok(Tensor::from_vec(values, (rows, width), &Device::Cpu)?)
    }

    fn values(&self, x: &Tensor) -> Result<Vec<f32>> {
        Ok(x.flatten_all()?.to_vec1()?)
    }

    fn append(&self, x: Tensor, more: Tensor) -> Result<Tensor> {
        Ok(Tensor::cat(&[x, more], 0)?)
    }

    fn add(&self, x: Tensor, y: &Tensor) -> Result<Tensor> {
        Ok((x + y)?)
    }

    fn norm(&self, x: &Tensor, norm: &Norm) -> Result<Tensor> {
        let (tokens, width) = x.dims2()?;
        let stretch = norm.weight.len();
        Ok(normalise(&x.reshape((tokens, width / stretch, stretch))?, norm)?
            .reshape((tokens, width))?)
    }

    fn linear(&self, x: &Tensor, linear: &Linear) -> Result<Tensor> {
        let y = x.contiguous()?.apply_op1(Product(linear.matrix.clone()))?;
        match &linear.bias {
            Some(bias) => Ok(y.broadcast_add(&vector(bias)?)?),
            None => Ok(y),
        }
    }

    fn edit_weights(
        &self,
        y: Tensor,
        x: &Tensor,
        edits: &[WeightEdit],
        first: usize,
    ) -> Result<Tensor> {
        let (tokens, width) = y.dims2()?;
        edits.iter().try_fold(y, |y, edit| {
            let mut table = vec![0f32; tokens * width];
            edit.tokens.clone().for_each(|t| table[t * width + first + edit.out] = edit.delta);
            let column = x.narrow(1, edit.input, 1)?;
            Ok((y + constant(&table, tokens)?.broadcast_mul(&column)?)?)
        })
    }

    fn edit(&self, mut x: Tensor, blocks: &[Block]) -> Result<Tensor> {
        let (tokens, width) = x.dims2()?;
        let alike = |a: &Block, b: &Block| is_affine(a) && is_affine(b);
        for blocks in blocks.chunk_by(alike) {
            x = match &blocks[0].change {
                Change::Affine { .. } => {
                    let (scale, shift) = dense_tables(blocks, tokens, width);
                    ((x * constant(&scale, tokens)?)? + constant(&shift, tokens)?)?
                }
                Change::Clamp { value, direction } => {
                    let mut full = vec![0f32; width];
                    full[blocks[0].columns.clone()].copy_from_slice(direction);
                    let square: f32 = full.iter().map(|v| v * v).sum();
                    // `[tokens, 1]`: 1 for the tokens that change.
                    let mut mask = vec![0f32; tokens];
                    mask[blocks[0].tokens.clone()].fill(1.0);
                    let (mask, v) = (constant(&mask, tokens)?, constant(&full, 1)?);
                    let part = (x.matmul(&v.t()?)? / f64::from(square))?;
                    let change = (mask * part.affine(-1.0, f64::from(*value))?)?;
                    (&x + change.matmul(&v)?)?
                }
                Change::Noise { .. } => {
                    return Err(Error::internal(
                        "noise in proportion to an activation has no gradient mode",
                    ));
                }
            };
        }
        Ok(x)
    }

    fn probe(&self, layer: usize, site: Site, x: Tensor) -> Result<Tensor> {
        Ok(match self.probes.get(&(layer, site)) {
            Some(probe) => (x + probe)?,
            None => x,
        })
    }

    fn heads(
        &self,
        qkv: &Tensor,
        norms: HeadNorms,
        config: &Config,
        rope: Option<&Rope>,
        spans: &[Span],
    ) -> Result<(Tensor, Tensor, Tensor)> {
        let (qw, kw, vw, dim) =
            (config.q_width(), config.kv_width(), config.v_width(), config.head_dim);
        let tokens = qkv.dim(0)?;
        let tables = rope
            .map(|rope| {
                let positions =
                    spans.iter().flat_map(|s| (0..s.tokens.len()).map(|i| s.position + i));
                let (mut cos, mut sin) = (Vec::new(), Vec::new());
                for position in positions {
                    let (c, s) = rope.at(position);
                    cos.extend_from_slice(c);
                    sin.extend_from_slice(s);
                }
                let table = |values: Vec<f32>| {
                    Tensor::from_vec(values, (tokens, 1, rope.half), &Device::Cpu)
                };
                Ok::<_, Error>((rope.half, table(cos)?, table(sin)?))
            })
            .transpose()?;
        let rotated = |x: Tensor, norm: Option<&Norm>, width: usize| -> Result<Tensor> {
            let x = match norm {
                Some(norm) => normalise(
                    &x.reshape((tokens, width / norm.weight.len(), norm.weight.len()))?,
                    norm,
                )?,
                None => x,
            };
            let x = x.reshape((tokens, width / dim, dim))?;
            let Some((half, cos, sin)) = &tables else { return Ok(x.reshape((tokens, width))?) };
            let (a, b) = (x.narrow(2, 0, *half)?, x.narrow(2, *half, *half)?);
            let first = (a.broadcast_mul(cos)? - b.broadcast_mul(sin)?)?;
            let second = (b.broadcast_mul(cos)? + a.broadcast_mul(sin)?)?;
            // Dimensions beyond those that are rotated stay as they are.
            let rest = x.narrow(2, 2 * half, dim - 2 * half)?;
            Ok(Tensor::cat(&[first, second, rest], 2)?.reshape((tokens, width))?)
        };
        Ok((
            rotated(qkv.narrow(1, 0, qw)?, norms.q, qw)?,
            rotated(qkv.narrow(1, qw, kw)?, norms.k, kw)?,
            qkv.narrow(1, qw + kw, vw)?.contiguous()?,
        ))
    }

    /// Uses one dense block-diagonal mask over all tokens of the batch: batches with gradients are
    /// small.
    fn attention(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        rows: &[AttentionRow],
        shape: AttentionShape,
    ) -> Result<Tensor> {
        let (tokens, dim) = (q.dim(0)?, shape.head_dim);
        let kv_width = shape.kv_heads * dim;
        let (mut keys, mut values) = (vec![k.clone()], vec![v.clone()]);
        let (mut offset, mut offsets) = (tokens, Vec::new());
        for row in rows {
            offsets.push(offset);
            for (k, v) in &row.prefix {
                keys.push(constant(k, k.len() / kv_width)?);
                values.push(constant(v, k.len() / kv_width)?);
                offset += k.len() / kv_width;
            }
        }
        let mut mask = vec![f32::NEG_INFINITY; tokens * offset];
        // For each row the columns of its sequence, by position.
        let mut columns: Vec<Vec<usize>> = Vec::new();
        for (row, first) in rows.iter().zip(offsets) {
            let before: usize = row.prefix.iter().map(|(k, _)| k.len() / kv_width).sum();
            let own: Vec<usize> = (first..first + before).chain(row.tokens.clone()).collect();
            for (i, t) in row.tokens.clone().enumerate() {
                let position = before + i;
                let lo = shape.window.map_or(0, |w| (position + 1).saturating_sub(w));
                own[lo..=position].iter().for_each(|at| mask[t * offset + at] = 0.0);
            }
            columns.push(own);
        }
        let mask = constant(&mask, tokens)?;
        let split = |x: Vec<Tensor>, dim: usize| -> Result<Tensor> {
            let x = Tensor::cat(&x, 0)?;
            let n = x.dim(0)?;
            let x = x.reshape((n, shape.kv_heads, 1, dim))?.broadcast_as((
                n,
                shape.kv_heads,
                shape.heads / shape.kv_heads,
                dim,
            ))?;
            Ok(x.reshape((n, shape.heads, dim))?.transpose(0, 1)?.contiguous()?)
        };
        let (keys, values) = (split(keys, dim)?, split(values, shape.value_dim)?);
        let q = q.reshape((tokens, shape.heads, dim))?.transpose(0, 1)?.contiguous()?;
        let mut scores = (q.matmul(&keys.transpose(1, 2)?.contiguous()?)?
            * f64::from(shape.scale))?
        .broadcast_add(&mask)?;
        if rows.iter().any(|row| !row.knockouts.is_empty()) {
            scores = (scores + knockout_mask(rows, &columns, (shape.heads, tokens, offset))?)?;
        }
        let z = candle_nn::ops::softmax(&scores, D::Minus1)?.matmul(&values)?;
        Ok(z.transpose(0, 1)?
            .reshape((tokens, shape.heads * shape.value_dim))?
            .to_dtype(DType::F32)?)
    }

    fn activate(&self, x: Tensor, activation: Activation) -> Result<Tensor> {
        Ok(match activation {
            Activation::Silu => x.silu()?,
            Activation::Gelu => x.gelu_erf()?,
            Activation::GeluTanh => x.gelu()?,
            Activation::ReluSquared => x.relu()?.sqr()?,
            Activation::Sigmoid => candle_nn::ops::sigmoid(&x)?,
            Activation::Tanh => x.tanh()?,
            Activation::Softplus => (x.relu()? + (x.abs()?.neg()?.exp()? + 1.0)?.log()?)?,
            Activation::Decay6 => x.exp()?.neg()?.exp()?,
            Activation::Decay7 => (candle_nn::ops::sigmoid(&x)? * -0.606_531)?.exp()?,
        })
    }

    fn split(&self, x: &Tensor, widths: &[usize]) -> Result<Vec<Tensor>> {
        let starts = widths.iter().scan(0, |at, width| {
            *at += width;
            Some(*at - width)
        });
        starts.zip(widths).map(|(at, width)| Ok(x.narrow(1, at, *width)?.contiguous()?)).collect()
    }

    fn join(&self, parts: &[&Tensor]) -> Result<Tensor> {
        Ok(Tensor::cat(parts, 1)?)
    }

    fn mul(&self, x: Tensor, y: &Tensor) -> Result<Tensor> {
        Ok((x * y)?)
    }

    fn affine(&self, x: Tensor, scale: &[f32], shift: Option<&[f32]>) -> Result<Tensor> {
        let y = x.broadcast_mul(&vector(scale)?)?;
        Ok(match shift {
            Some(shift) => y.broadcast_add(&vector(shift)?)?,
            None => y,
        })
    }

    fn blend(&self, x: &Tensor, by: &Tensor, mix: &[f32]) -> Result<Tensor> {
        Ok((x + by.broadcast_mul(&vector(mix)?)?)?)
    }

    fn interpolate(&self, x: Tensor, y: &Tensor, t: &Tensor) -> Result<Tensor> {
        Ok((&x + ((y - &x)? * t)?)?)
    }

    fn clamp(&self, x: Tensor, low: f32, high: f32) -> Result<Tensor> {
        Ok(x.clamp(low, high)?)
    }

    fn shift(&self, x: &Tensor, rows: &[RowStart]) -> Result<Tensor> {
        Ok((self.before(x, rows, 1)? - x)?)
    }

    fn convolve(&self, x: &Tensor, convolution: &Convolution, rows: &[RowStart]) -> Result<Tensor> {
        let kernel = convolution.kernel();
        let taps = convolution.weight.chunks_exact(convolution.bias.len()).enumerate();
        let bias = vector(&convolution.bias)?.broadcast_as(x.shape())?;
        taps.map(|(k, weight)| {
            Ok(self.before(x, rows, kernel - 1 - k)?.broadcast_mul(&vector(weight)?)?)
        })
        .try_fold(bias, |sum, tap: Result<Tensor>| Ok((sum + tap?)?))
    }

    fn unit_heads(&self, x: Tensor, head_dim: usize) -> Result<Tensor> {
        let (tokens, width) = x.dims2()?;
        let heads = x.reshape((tokens, width / head_dim, head_dim))?;
        // Not the maximum of norm and 1e-12: the root has no derivative at zero.
        let norm = (heads.sqr()?.sum_keepdim(D::Minus1)? + 1e-24)?.sqrt()?;
        Ok(heads.broadcast_div(&norm)?.reshape((tokens, width))?)
    }

    fn bonus(
        &self,
        r: &Tensor,
        k: &Tensor,
        v: &Tensor,
        weight: &[f32],
        head_dim: usize,
    ) -> Result<Tensor> {
        let (tokens, width) = v.dims2()?;
        let heads = |x: &Tensor| x.reshape((tokens, width / head_dim, head_dim));
        let sum = heads(&(r * k)?.broadcast_mul(&vector(weight)?)?)?.sum_keepdim(D::Minus1)?;
        Ok(heads(v)?.broadcast_mul(&sum)?.reshape((tokens, width))?)
    }

    fn scan(
        &self,
        scan: &Recurrence<&Tensor>,
        rows: &[RowStart],
        blocks: &[Block],
        keep: &[usize],
    ) -> Result<(Tensor, Vec<f32>)> {
        scan::run(scan, rows, blocks, keep)
    }

    fn gate(&self, gate_up: &Tensor, activation: Activation) -> Result<Tensor> {
        let width = gate_up.dim(1)? / 2;
        Ok((self.activate(gate_up.narrow(1, 0, width)?, activation)?
            * gate_up.narrow(1, width, width)?)?)
    }

    /// The choice of experts has no gradient; the weights of the chosen ones have.
    fn mixture(
        &self,
        x: &Tensor,
        router_logits: &Tensor,
        Mixture { sparse, experts, activation, idle: _ }: Mixture,
        blocks: &[Block],
        captured: Option<&mut Vec<f32>>,
    ) -> Result<Tensor> {
        let (tokens, d) = x.dims2()?;
        if captured.is_some() {
            return Err(Error::internal("what experts add is not kept in gradient mode"));
        }
        let routing = Routing::new(&self.values(router_logits)?, experts).by_expert();
        let probabilities = candle_nn::ops::softmax(router_logits, D::Minus1)?;
        let mut chosen = vec![0f32; tokens * experts.num_experts];
        for (expert, routed) in routing.iter().enumerate() {
            routed.iter().for_each(|(token, _)| chosen[token * experts.num_experts + expert] = 1.0);
        }
        let mut weights = (probabilities * constant(&chosen, tokens)?)?;
        if experts.norm_topk_prob {
            weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
        }
        weights = (weights * experts.routed_scaling_factor)?;
        let mut out = match &sparse.shared {
            Some(shared) => {
                let y = self.expert(x, &shared.mlp, activation)?;
                match &shared.gate {
                    Some(gate) => {
                        y.broadcast_mul(&candle_nn::ops::sigmoid(&self.linear(x, gate)?)?)?
                    }
                    None => y,
                }
            }
            None => x.zeros_like()?,
        };
        for (e, (expert, routed)) in sparse.experts.iter().zip(&routing).enumerate() {
            let mine: Vec<Block> =
                blocks.iter().filter(|b| b.columns.start == e * d).cloned().collect();
            if routed.is_empty() && mine.is_empty() {
                continue;
            }
            let rows =
                Tensor::from_iter(routed.iter().map(|(token, _)| *token as u32), &Device::Cpu)?;
            let y = self.expert(&x.index_select(&rows, 0)?, expert, activation)?;
            let weight = weights.narrow(1, e, 1)?.contiguous()?.index_select(&rows, 0)?;
            let y = y.broadcast_mul(&weight)?;
            out = if mine.is_empty() {
                out.index_add(&rows, &y, 0)?
            } else {
                let all = x.zeros_like()?.index_add(&rows, &y, 0)?;
                let mine: Vec<Block> =
                    mine.into_iter().map(|b| Block { columns: 0..d, ..b }).collect();
                (out + self.edit(all, &mine)?)?
            };
        }
        Ok(out)
    }
}

fn is_affine(block: &Block) -> bool {
    matches!(block.change, Change::Affine { .. })
}

/// Composes affine blocks into dense tables `scale` and `shift`, `[tokens, width]`, in their order.
fn dense_tables(blocks: &[Block], tokens: usize, width: usize) -> (Vec<f32>, Vec<f32>) {
    let (mut scale, mut shift) = (vec![1f32; tokens * width], vec![0f32; tokens * width]);
    for block in blocks {
        if let Change::Affine { scale: s, .. } = &block.change {
            let change = Change::Affine { scale: *s, shift: None };
            Block { change, ..block.clone() }.apply(&mut scale, width);
            block.apply(&mut shift, width);
        }
    }
    (scale, shift)
}
