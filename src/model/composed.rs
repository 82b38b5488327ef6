//! The gradient mode: candle operations, each of which has a backward, on padded-free packed arrays.
//!
//! candle's fused softmax, normalisation and rotation drop gradients silently, so none of them is used
//! here; tests check every hooked variable for a gradient and its values against finite differences.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, D, DType, Device, Layout, Shape, Tensor};

use super::config::Config;
use super::hooks::{Block, WeightEdit};
use super::kernels::{AttentionRow, AttentionShape};
use super::linear::PackedMatrix;
use super::numerics::{HeadNorms, Numerics, Rope, Span, dense_tables};
use super::weights::Linear;
use crate::error::{Error, Result};

/// Gradient mode on CPU. `Array` is a tensor `[tokens, width]`.
pub struct Composed;

/// `x W^T` with a backward for `x` alone: candle's own matmul would also compute the gradient of the
/// frozen weight.
struct Product(Arc<PackedMatrix>);

impl CustomOp1 for Product {
    fn name(&self) -> &'static str {
        "packed-linear"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let x = contiguous(storage, layout)?;
        let rows = x.len() / self.0.in_();
        let mut y = vec![0f32; rows * self.0.out()];
        self.0.matmul(x, rows, &mut y);
        Ok((CpuStorage::F32(y), Shape::from((rows, self.0.out()))))
    }

    fn bwd(&self, _x: &Tensor, _y: &Tensor, gradient: &Tensor) -> candle_core::Result<Option<Tensor>> {
        gradient.contiguous()?.apply_op1_no_bwd(&Transposed(self.0.clone())).map(Some)
    }
}

/// `d W`.
struct Transposed(Arc<PackedMatrix>);

impl CustomOp1 for Transposed {
    fn name(&self) -> &'static str {
        "packed-linear-backward"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let d = contiguous(storage, layout)?;
        let rows = d.len() / self.0.out();
        let mut g = vec![0f32; rows * self.0.in_()];
        self.0.matmul_transposed(d, rows, &mut g);
        Ok((CpuStorage::F32(g), Shape::from((rows, self.0.in_()))))
    }
}

fn contiguous<'a>(storage: &'a CpuStorage, layout: &Layout) -> candle_core::Result<&'a [f32]> {
    let (from, to) = layout.contiguous_offsets().ok_or_else(|| candle_core::Error::msg("operand is not contiguous"))?;
    Ok(&storage.as_slice::<f32>()?[from..to])
}

fn constant(values: &[f32], rows: usize) -> Result<Tensor> {
    Ok(Tensor::from_slice(values, (rows, values.len() / rows.max(1)), &Device::Cpu)?)
}

fn normalise(x: &Tensor, weight: &[f32], eps: f64) -> Result<Tensor> {
    let mean = x.sqr()?.mean_keepdim(D::Minus1)?;
    Ok(x.broadcast_div(&(mean + eps)?.sqrt()?)?.broadcast_mul(&Tensor::from_slice(weight, weight.len(), &Device::Cpu)?)?)
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

    fn rms_norm(&self, x: &Tensor, weight: &[f32], eps: f64) -> Result<Tensor> {
        normalise(x, weight, eps)
    }

    fn linear(&self, x: &Tensor, linear: &Linear) -> Result<Tensor> {
        let y = x.contiguous()?.apply_op1(Product(linear.matrix.clone()))?;
        match &linear.bias {
            Some(bias) => Ok(y.broadcast_add(&Tensor::from_slice(bias, bias.len(), &Device::Cpu)?)?),
            None => Ok(y),
        }
    }

    fn edit_weights(&self, y: Tensor, x: &Tensor, edits: &[WeightEdit], first: usize) -> Result<Tensor> {
        let (tokens, width) = y.dims2()?;
        edits.iter().try_fold(y, |y, edit| {
            let mut table = vec![0f32; tokens * width];
            edit.tokens.clone().for_each(|t| table[t * width + first + edit.out] = edit.delta);
            let column = x.narrow(1, edit.input, 1)?;
            Ok((y + constant(&table, tokens)?.broadcast_mul(&column)?)?)
        })
    }

    fn edit(&self, x: Tensor, blocks: &[Block]) -> Result<Tensor> {
        let (tokens, width) = x.dims2()?;
        let (scale, shift, noise) = dense_tables(blocks, tokens, width);
        if !noise.is_empty() {
            return Err(Error::request("noise in proportion to an activation has no gradient mode"));
        }
        Ok(((x * constant(&scale, tokens)?)? + constant(&shift, tokens)?)?)
    }

    fn heads(
        &self,
        qkv: &Tensor,
        norms: HeadNorms,
        config: &Config,
        rope: &Rope,
        spans: &[Span],
    ) -> Result<(Tensor, Tensor, Tensor)> {
        let (qw, kw, dim) = (config.q_width(), config.kv_width(), config.head_dim);
        let tokens = qkv.dim(0)?;
        let positions = spans.iter().flat_map(|s| (0..s.tokens.len()).map(|i| s.position + i));
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        for position in positions {
            let (c, s) = rope.at(position);
            cos.extend_from_slice(c);
            sin.extend_from_slice(s);
        }
        let half = dim / 2;
        let table = |values: Vec<f32>| Ok::<_, Error>(Tensor::from_vec(values, (tokens, 1, half), &Device::Cpu)?);
        let (cos, sin) = (table(cos)?, table(sin)?);
        let rotated = |x: Tensor, norm: Option<&[f32]>, width: usize| -> Result<Tensor> {
            let mut x = x.reshape((tokens, width / dim, dim))?;
            if let Some(weight) = norm {
                x = normalise(&x, weight, config.rms_norm_eps)?;
            }
            let (a, b) = (x.narrow(2, 0, half)?, x.narrow(2, half, half)?);
            let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
            let second = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
            Ok(Tensor::cat(&[first, second], 2)?.reshape((tokens, width))?)
        };
        Ok((
            rotated(qkv.narrow(1, 0, qw)?, norms.q, qw)?,
            rotated(qkv.narrow(1, qw, kw)?, norms.k, kw)?,
            qkv.narrow(1, qw + kw, kw)?.contiguous()?,
        ))
    }

    /// One dense block-diagonal mask over all tokens of the batch: batches with gradients are small.
    fn attention(&self, q: &Tensor, k: &Tensor, v: &Tensor, rows: &[AttentionRow], shape: AttentionShape) -> Result<Tensor> {
        let (tokens, dim) = (q.dim(0)?, shape.head_dim);
        let kv_width = shape.kv_heads * dim;
        let (mut keys, mut values) = (vec![k.clone()], vec![v.clone()]);
        let (mut offset, mut offsets) = (tokens, Vec::new());
        for row in rows {
            offsets.push(offset);
            for (k, v) in &row.prefix {
                keys.push(constant(k, k.len() / kv_width)?);
                values.push(constant(v, v.len() / kv_width)?);
                offset += k.len() / kv_width;
            }
        }
        let mut mask = vec![f32::NEG_INFINITY; tokens * offset];
        for (row, first) in rows.iter().zip(&offsets) {
            let before: usize = row.prefix.iter().map(|(k, _)| k.len() / kv_width).sum();
            for (i, t) in row.tokens.clone().enumerate() {
                let position = before + i;
                let lo = shape.window.map_or(0, |w| (position + 1).saturating_sub(w));
                for j in lo..=position {
                    let at = if j < before { first + j } else { row.tokens.start + j - before };
                    mask[t * offset + at] = 0.0;
                }
            }
        }
        let mask = constant(&mask, tokens)?;
        let split = |x: Vec<Tensor>| -> Result<Tensor> {
            let x = Tensor::cat(&x, 0)?;
            let n = x.dim(0)?;
            let x =
                x.reshape((n, shape.kv_heads, 1, dim))?.broadcast_as((n, shape.kv_heads, shape.heads / shape.kv_heads, dim))?;
            Ok(x.reshape((n, shape.heads, dim))?.transpose(0, 1)?.contiguous()?)
        };
        let (keys, values) = (split(keys)?, split(values)?);
        let q = q.reshape((tokens, shape.heads, dim))?.transpose(0, 1)?.contiguous()?;
        let scores = (q.matmul(&keys.transpose(1, 2)?.contiguous()?)? / (dim as f64).sqrt())?.broadcast_add(&mask)?;
        let z = candle_nn::ops::softmax(&scores, D::Minus1)?.matmul(&values)?;
        Ok(z.transpose(0, 1)?.reshape((tokens, shape.heads * dim))?.to_dtype(DType::F32)?)
    }

    fn swiglu(&self, gate_up: &Tensor) -> Result<Tensor> {
        let width = gate_up.dim(1)? / 2;
        Ok((gate_up.narrow(1, 0, width)?.silu()? * gate_up.narrow(1, width, width)?)?)
    }
}
