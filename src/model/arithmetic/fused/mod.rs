//! Inference on CPU: packed weights and fused kernels over plain buffers.

mod mixture;

use rayon::prelude::*;

use super::kernels::elementwise::{self, Convolution};
use super::kernels::{self, AttentionRow, AttentionShape, Rope};
use super::linear::GATED_MULTIPLE;
use super::pool::Pooled;
use super::scan::{Recurrence, RowStart, View};
use super::{HeadNorms, Mixture, Numerics, Span};
use crate::error::Result;
use crate::model::config::{Activation, Config};
use crate::model::hooks::{Block, WeightEdit};
use crate::model::weights::{Linear, Norm};

/// An array `[tokens, width]`.
#[derive(Clone)]
pub struct Buffer {
    /// The values, row-major.
    pub data: Pooled,
    /// Number of columns.
    pub width: usize,
}

impl Buffer {
    /// Creates a buffer of arbitrary values, all of which the caller must write.
    pub(super) fn taken(rows: usize, width: usize) -> Self {
        Self { data: Pooled::take(rows * width), width }
    }
}

/// Number of tokens whose heads one thread splits and rotates at a time.
const HEAD_TOKENS: usize = 16;

/// The inference mode.
pub struct Fused;

impl Numerics for Fused {
    type Array = Buffer;

    fn array(&self, data: Vec<f32>, width: usize) -> Result<Buffer> {
        Ok(Buffer { data: data.into(), width })
    }

    fn values(&self, x: &Buffer) -> Result<Vec<f32>> {
        Ok(x.data.to_vec())
    }

    fn append(&self, mut x: Buffer, more: Buffer) -> Result<Buffer> {
        x.data.extend(&more.data);
        Ok(x)
    }

    fn gather(&self, x: &Buffer, tokens: &[usize]) -> Option<Buffer> {
        let mut kept = Buffer::taken(tokens.len(), x.width);
        let rows = kept.data.chunks_exact_mut(x.width).zip(tokens);
        rows.for_each(|(row, token)| row.copy_from_slice(&x.data[token * x.width..][..x.width]));
        Some(kept)
    }

    fn scatter(&self, x: &Buffer, tokens: &[usize], all: usize) -> Result<Buffer> {
        let mut y = Buffer::taken(all, x.width);
        y.data.fill(0.0);
        let rows = x.data.chunks_exact(x.width).zip(tokens);
        rows.for_each(|(row, token)| y.data[token * x.width..][..x.width].copy_from_slice(row));
        Ok(y)
    }

    fn add(&self, mut x: Buffer, y: &Buffer) -> Result<Buffer> {
        elementwise::add(&mut x.data, &y.data);
        Ok(x)
    }

    fn norm(&self, x: &Buffer, norm: &Norm) -> Result<Buffer> {
        Ok(Buffer { data: kernels::norm(&x.data, norm), width: x.width })
    }

    fn linear(&self, x: &Buffer, linear: &Linear) -> Result<Buffer> {
        let mut y = Buffer::taken(x.data.len() / x.width, linear.matrix.out());
        self.linear_into(x, linear, &mut y.data);
        Ok(y)
    }

    fn edit_weights(
        &self,
        mut y: Buffer,
        x: &Buffer,
        edits: &[WeightEdit],
        first: usize,
    ) -> Result<Buffer> {
        for edit in edits {
            for t in edit.tokens.clone() {
                y.data[t * y.width + first + edit.out] +=
                    edit.delta * x.data[t * x.width + edit.input];
            }
        }
        Ok(y)
    }

    fn edit(&self, mut x: Buffer, blocks: &[Block]) -> Result<Buffer> {
        blocks.iter().for_each(|block| block.apply(&mut x.data, x.width));
        Ok(x)
    }

    fn heads(
        &self,
        qkv: &Buffer,
        norms: HeadNorms,
        config: &Config,
        rope: Option<&Rope>,
        spans: &[Span],
    ) -> Result<(Buffer, Buffer, Buffer)> {
        let (qw, kw, vw) = (config.q_width(), config.kv_width(), config.v_width());
        let positions: Vec<usize> =
            spans.iter().flat_map(|s| (0..s.tokens.len()).map(|i| s.position + i)).collect();
        let [mut q, mut k, mut v] = [qw, kw, vw].map(|width| Buffer::taken(positions.len(), width));
        let qkv_width = qkv.width;
        let rotated = |to: &mut [f32], from: &[f32], norm: Option<&Norm>, position: usize| {
            match norm {
                Some(norm) => kernels::norm_rows(to, from, norm),
                None => to.copy_from_slice(from),
            }
            if let Some((cos, sin)) = rope.map(|rope| rope.at(position)) {
                kernels::rotate_heads(to, config.head_dim, cos, sin);
            }
        };
        let to = (q.data.par_chunks_mut(HEAD_TOKENS * qw))
            .zip(k.data.par_chunks_mut(HEAD_TOKENS * kw))
            .zip(v.data.par_chunks_mut(HEAD_TOKENS * vw));
        let from =
            qkv.data.par_chunks(HEAD_TOKENS * qkv.width).zip(positions.par_chunks(HEAD_TOKENS));
        to.zip(from).for_each(|(((q, k), v), (qkv, positions))| {
            let to = q.chunks_exact_mut(qw).zip(k.chunks_exact_mut(kw)).zip(v.chunks_exact_mut(vw));
            for ((((q, k), v), row), position) in to.zip(qkv.chunks_exact(qkv_width)).zip(positions)
            {
                rotated(q, &row[..qw], norms.q, *position);
                rotated(k, &row[qw..qw + kw], norms.k, *position);
                v.copy_from_slice(&row[qw + kw..]);
            }
        });
        Ok((q, k, v))
    }

    fn attention(
        &self,
        q: &Buffer,
        k: &Buffer,
        v: &Buffer,
        rows: &[AttentionRow],
        shape: AttentionShape,
    ) -> Result<Buffer> {
        Ok(Buffer {
            data: kernels::attention(&q.data, &k.data, &v.data, rows, shape),
            width: shape.heads * shape.value_dim,
        })
    }

    fn activate(&self, mut x: Buffer, activation: Activation) -> Result<Buffer> {
        kernels::activate(&mut x.data, activation);
        Ok(x)
    }

    fn split(&self, x: &Buffer, widths: &[usize]) -> Result<Vec<Buffer>> {
        let starts = widths.iter().scan(0, |at, width| {
            *at += width;
            Some(*at - width)
        });
        let parts = starts.zip(widths);
        Ok(parts
            .map(|(at, &width)| Buffer {
                data: elementwise::columns(&x.data, x.width, at..at + width),
                width,
            })
            .collect())
    }

    fn join(&self, parts: &[&Buffer]) -> Result<Buffer> {
        let parts: Vec<(&[f32], usize)> =
            parts.iter().map(|part| (&part.data[..], part.width)).collect();
        Ok(Buffer { width: parts.iter().map(|part| part.1).sum(), data: elementwise::join(&parts) })
    }

    fn mul(&self, mut x: Buffer, y: &Buffer) -> Result<Buffer> {
        elementwise::mul(&mut x.data, &y.data);
        Ok(x)
    }

    fn affine(&self, mut x: Buffer, scale: &[f32], shift: Option<&[f32]>) -> Result<Buffer> {
        elementwise::affine(&mut x.data, scale, shift);
        Ok(x)
    }

    fn blend(&self, x: &Buffer, by: &Buffer, mix: &[f32]) -> Result<Buffer> {
        Ok(Buffer { data: elementwise::blend(&x.data, &by.data, mix), width: x.width })
    }

    fn interpolate(&self, mut x: Buffer, y: &Buffer, t: &Buffer) -> Result<Buffer> {
        elementwise::interpolate(&mut x.data, &y.data, &t.data);
        Ok(x)
    }

    fn clamp(&self, mut x: Buffer, low: f32, high: f32) -> Result<Buffer> {
        x.data.iter_mut().for_each(|x| *x = x.clamp(low, high));
        Ok(x)
    }

    fn shift(&self, x: &Buffer, rows: &[RowStart]) -> Result<Buffer> {
        Ok(Buffer { data: elementwise::shift(&x.data, x.width, rows), width: x.width })
    }

    fn convolve(&self, x: &Buffer, convolution: &Convolution, rows: &[RowStart]) -> Result<Buffer> {
        Ok(Buffer { data: convolution.apply(&x.data, rows), width: x.width })
    }

    fn unit_heads(&self, mut x: Buffer, head_dim: usize) -> Result<Buffer> {
        elementwise::unit_heads(&mut x.data, head_dim);
        Ok(x)
    }

    fn bonus(
        &self,
        r: &Buffer,
        k: &Buffer,
        v: &Buffer,
        weight: &[f32],
        head_dim: usize,
    ) -> Result<Buffer> {
        Ok(Buffer {
            data: elementwise::bonus(&r.data, &k.data, &v.data, weight, head_dim),
            width: v.width,
        })
    }

    fn scan(
        &self,
        scan: &Recurrence<&Buffer>,
        rows: &[RowStart],
        blocks: &[Block],
        keep: &[usize],
    ) -> Result<(Buffer, Vec<f32>)> {
        let scan = scan.map(|x| View { data: &x.data, width: x.width });
        let (data, kept) = scan.scan(rows, blocks, keep);
        Ok((Buffer { data, width: scan.width() }, kept))
    }

    fn gate(&self, gate_up: &Buffer, activation: Activation) -> Result<Buffer> {
        let width = gate_up.width / 2;
        Ok(Buffer { data: kernels::gate(&gate_up.data, width, activation), width })
    }

    fn gated(&self, x: &Buffer, gate_up: &Linear, activation: Activation) -> Result<Buffer> {
        let matrix = &gate_up.matrix;
        if gate_up.bias.is_some() || !matrix.out().is_multiple_of(GATED_MULTIPLE) {
            return self.gate(&self.linear(x, gate_up)?, activation);
        }
        let rows = x.data.len() / x.width;
        let mut y = Buffer::taken(rows, matrix.out() / 2);
        matrix.matmul_gated(&x.data, rows, &mut y.data, |y, gate, up| {
            kernels::gate_row(y, gate, up, activation)
        });
        Ok(y)
    }

    fn mixture(
        &self,
        x: &Buffer,
        router_logits: &Buffer,
        mixture: Mixture,
        blocks: &[Block],
        captured: Option<&mut Vec<f32>>,
    ) -> Result<Buffer> {
        mixture::mixture(x, router_logits, mixture, blocks, captured)
    }
}

impl Fused {
    /// Computes [`linear`](Numerics::linear) into `y`, `[tokens, out]`.
    pub(super) fn linear_into(&self, x: &Buffer, linear: &Linear, y: &mut [f32]) {
        linear.matrix.matmul(&x.data, x.data.len() / x.width, y);
        if let Some(bias) = &linear.bias {
            y.par_chunks_exact_mut(bias.len())
                .for_each(|y| y.iter_mut().zip(bias).for_each(|(y, b)| *y += b));
        }
    }
}
