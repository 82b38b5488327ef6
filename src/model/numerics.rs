//! The operations a forward pass is made of, in two numeric modes behind one trait.
//!
//! [`Fused`] is inference: packed weights and fused kernels over plain buffers. [`super::composed`] is
//! the gradient mode: candle operations that all have a backward. The decoder loop is written once.

use std::collections::BTreeSet;
use std::ops::Range;

use rayon::prelude::*;

use super::config::{Activation, Config, Experts, Rotary};
use super::elementwise::{self, Convolution};
use super::hooks::{Block, Change, Site, WeightEdit};
use super::kernels::{self, AttentionRow, AttentionShape};
use super::linear::GATED_MULTIPLE;
use super::pool::Pooled;
use super::scan::{Carry, Recurrence, View};
use super::weights::{Dense, Linear, Norm, Sparse};
use crate::error::Result;

/// Where a row's tokens are in the packed batch and in the row.
#[derive(Debug, Clone)]
pub struct Span {
    /// Packed token indices.
    pub tokens: Range<usize>,
    /// Position in the row of the first of them: the length of the cached prefix.
    pub position: usize,
}

/// One numeric mode. `Array` is `[tokens, width]`.
pub trait Numerics {
    type Array: Clone;

    /// From row-major values.
    fn array(&self, values: Vec<f32>, width: usize) -> Result<Self::Array>;
    /// Row-major values (detached).
    fn values(&self, x: &Self::Array) -> Result<Vec<f32>>;
    /// More tokens at the end.
    fn append(&self, x: Self::Array, more: Self::Array) -> Result<Self::Array>;
    fn add(&self, x: Self::Array, y: &Self::Array) -> Result<Self::Array>;
    /// Normalises each stretch of the norm's width by itself: a token, or one of its heads.
    fn norm(&self, x: &Self::Array, norm: &Norm) -> Result<Self::Array>;
    fn linear(&self, x: &Self::Array, linear: &Linear) -> Result<Self::Array>;
    /// `y[t, first + out] += delta * x[t, input]` for every edit.
    fn edit_weights(&self, y: Self::Array, x: &Self::Array, edits: &[WeightEdit], first: usize) -> Result<Self::Array>;
    fn edit(&self, x: Self::Array, blocks: &[Block]) -> Result<Self::Array>;
    /// Where a gradient is taken of a site; inference takes none.
    fn probe(&self, _layer: usize, _site: Site, x: Self::Array) -> Result<Self::Array> {
        Ok(x)
    }
    /// Splits `[q | k | v]`, normalises heads where the model does, rotates `q` and `k` where it does.
    #[allow(clippy::type_complexity)] // three arrays of one type, named by the line above
    fn heads(
        &self,
        qkv: &Self::Array,
        norms: HeadNorms,
        config: &Config,
        rope: Option<&Rope>,
        spans: &[Span],
    ) -> Result<(Self::Array, Self::Array, Self::Array)>;
    fn attention(
        &self,
        q: &Self::Array,
        k: &Self::Array,
        v: &Self::Array,
        rows: &[AttentionRow],
        shape: AttentionShape,
    ) -> Result<Self::Array>;
    fn activate(&self, x: Self::Array, activation: Activation) -> Result<Self::Array>;
    /// Columns `widths[0]`, then `widths[1]`, ... of `x`.
    fn split(&self, x: &Self::Array, widths: &[usize]) -> Result<Vec<Self::Array>>;
    /// The columns of all, one after the other.
    fn join(&self, parts: &[&Self::Array]) -> Result<Self::Array>;
    fn mul(&self, x: Self::Array, y: &Self::Array) -> Result<Self::Array>;
    /// `scale x + shift`, both by column.
    fn affine(&self, x: Self::Array, scale: &[f32], shift: Option<&[f32]>) -> Result<Self::Array>;
    /// `x + mix by`, `mix` by column.
    fn blend(&self, x: &Self::Array, by: &Self::Array, mix: &[f32]) -> Result<Self::Array>;
    /// `x + (y - x) t`.
    fn interpolate(&self, x: Self::Array, y: &Self::Array, t: &Self::Array) -> Result<Self::Array>;
    fn clamp(&self, x: Self::Array, low: f32, high: f32) -> Result<Self::Array>;
    /// What each token's predecessor in its row has more: `x[t - 1] - x[t]`.
    fn shift(&self, x: &Self::Array, rows: &[Carry]) -> Result<Self::Array>;
    /// A causal convolution of each column; `initial` of a row is the `kernel - 1` inputs before it.
    fn convolve(&self, x: &Self::Array, convolution: &Convolution, rows: &[Carry]) -> Result<Self::Array>;
    /// Each head over its Euclidean norm, or over 1e-12 where that is more.
    fn unit_heads(&self, x: Self::Array, head_dim: usize) -> Result<Self::Array>;
    /// `v` times the sum of `r k weight` over its head.
    fn bonus(&self, r: &Self::Array, k: &Self::Array, v: &Self::Array, weight: &[f32], head_dim: usize) -> Result<Self::Array>;
    /// A recurrence over every row. `blocks` change the state after a token; the states after the tokens of
    /// `keep` (ascending) are returned, one after the other.
    fn scan(
        &self,
        scan: &Recurrence<&Self::Array>,
        rows: &[Carry],
        blocks: &[Block],
        keep: &[usize],
    ) -> Result<(Self::Array, Vec<f32>)>;
    /// `activation(gate) * up` of `[gate | up]`.
    fn gate(&self, gate_up: &Self::Array, activation: Activation) -> Result<Self::Array>;
    /// [`gate`](Self::gate) of [`linear`](Self::linear), with the same result.
    fn gated(&self, x: &Self::Array, gate_up: &Linear, activation: Activation) -> Result<Self::Array> {
        self.gate(&self.linear(x, gate_up)?, activation)
    }
    /// A gated MLP without hooks: an expert.
    fn expert(&self, x: &Self::Array, expert: &Dense, activation: Activation) -> Result<Self::Array> {
        self.linear(&self.gated(x, &expert.up, activation)?, &expert.down)
    }
    /// The mixture of experts that the router's logits `[tokens, num_experts]` choose, and the shared one.
    /// `blocks` are those of [`Site::Experts`](super::hooks::Site::Experts), whose values go to `captured`.
    fn mixture(
        &self,
        x: &Self::Array,
        router_logits: &Self::Array,
        mixture: Mixture,
        blocks: &[Block],
        captured: Option<&mut Vec<f32>>,
    ) -> Result<Self::Array>;
}

/// A mixture of experts and its constants.
#[derive(Clone, Copy)]
pub struct Mixture<'a> {
    pub sparse: &'a Sparse,
    pub experts: &'a Experts,
    pub activation: Activation,
    /// Tokens whose output is not read; shorter where the rest are not idle.
    pub idle: &'a [bool],
}

/// Normalisation of queries and keys, over `[head_dim]` or over all heads.
#[derive(Clone, Copy)]
pub struct HeadNorms<'a> {
    pub q: Option<&'a Norm>,
    pub k: Option<&'a Norm>,
}

/// Cosines and sines, `[positions, half]`: of half of the dimensions that are rotated.
pub struct Rope {
    pub half: usize,
    pub cos: Vec<f32>,
    pub sin: Vec<f32>,
}

impl Rope {
    pub fn new(rotary: &Rotary, positions: usize) -> Self {
        let (frequencies, factor) = (rotary.frequencies(), rotary.attention_factor() as f32);
        let angles = (0..positions).flat_map(|p| frequencies.iter().map(move |f| p as f32 * f));
        let (cos, sin) = angles.map(|a| (a.cos() * factor, a.sin() * factor)).unzip();
        Self { half: frequencies.len(), cos, sin }
    }

    pub fn at(&self, position: usize) -> (&[f32], &[f32]) {
        (&self.cos[position * self.half..][..self.half], &self.sin[position * self.half..][..self.half])
    }
}

/// A buffer and its width.
#[derive(Clone)]
pub struct Buffer {
    pub data: Pooled,
    pub width: usize,
}

impl Buffer {
    /// Of any values, every one of which the caller must write.
    fn taken(rows: usize, width: usize) -> Self {
        Self { data: Pooled::take(rows * width), width }
    }
}

/// Tokens whose heads are split and rotated by one thread at a time.
const HEAD_TOKENS: usize = 16;

/// Inference on CPU.
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

    fn add(&self, mut x: Buffer, y: &Buffer) -> Result<Buffer> {
        kernels::add(&mut x.data, &y.data);
        Ok(x)
    }

    fn norm(&self, x: &Buffer, norm: &Norm) -> Result<Buffer> {
        Ok(Buffer { data: kernels::norm(&x.data, norm), width: x.width })
    }

    fn linear(&self, x: &Buffer, linear: &Linear) -> Result<Buffer> {
        let rows = x.data.len() / x.width;
        let out = linear.matrix.out();
        let mut y = Buffer::taken(rows, out);
        linear.matrix.matmul(&x.data, rows, &mut y.data);
        if let Some(bias) = &linear.bias {
            y.data.par_chunks_exact_mut(out).for_each(|y| y.iter_mut().zip(bias).for_each(|(y, b)| *y += b));
        }
        Ok(y)
    }

    fn edit_weights(&self, mut y: Buffer, x: &Buffer, edits: &[WeightEdit], first: usize) -> Result<Buffer> {
        for edit in edits {
            for t in edit.tokens.clone() {
                y.data[t * y.width + first + edit.out] += edit.delta * x.data[t * x.width + edit.input];
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
        let positions: Vec<usize> = spans.iter().flat_map(|s| (0..s.tokens.len()).map(|i| s.position + i)).collect();
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
        let from = qkv.data.par_chunks(HEAD_TOKENS * qkv.width).zip(positions.par_chunks(HEAD_TOKENS));
        to.zip(from).for_each(|(((q, k), v), (qkv, positions))| {
            let to = q.chunks_exact_mut(qw).zip(k.chunks_exact_mut(kw)).zip(v.chunks_exact_mut(vw));
            for ((((q, k), v), row), position) in to.zip(qkv.chunks_exact(qkv_width)).zip(positions) {
                rotated(q, &row[..qw], norms.q, *position);
                rotated(k, &row[qw..qw + kw], norms.k, *position);
                v.copy_from_slice(&row[qw + kw..]);
            }
        });
        Ok((q, k, v))
    }

    fn attention(&self, q: &Buffer, k: &Buffer, v: &Buffer, rows: &[AttentionRow], shape: AttentionShape) -> Result<Buffer> {
        Ok(Buffer { data: kernels::attention(&q.data, &k.data, &v.data, rows, shape), width: shape.heads * shape.value_dim })
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
        Ok(parts.map(|(at, &width)| Buffer { data: elementwise::columns(&x.data, x.width, at..at + width), width }).collect())
    }

    fn join(&self, parts: &[&Buffer]) -> Result<Buffer> {
        let parts: Vec<(&[f32], usize)> = parts.iter().map(|part| (&part.data[..], part.width)).collect();
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

    fn shift(&self, x: &Buffer, rows: &[Carry]) -> Result<Buffer> {
        Ok(Buffer { data: elementwise::shift(&x.data, x.width, rows), width: x.width })
    }

    fn convolve(&self, x: &Buffer, convolution: &Convolution, rows: &[Carry]) -> Result<Buffer> {
        Ok(Buffer { data: convolution.apply(&x.data, rows), width: x.width })
    }

    fn unit_heads(&self, mut x: Buffer, head_dim: usize) -> Result<Buffer> {
        elementwise::unit_heads(&mut x.data, head_dim);
        Ok(x)
    }

    fn bonus(&self, r: &Buffer, k: &Buffer, v: &Buffer, weight: &[f32], head_dim: usize) -> Result<Buffer> {
        Ok(Buffer { data: elementwise::bonus(&r.data, &k.data, &v.data, weight, head_dim), width: v.width })
    }

    fn scan(&self, scan: &Recurrence<&Buffer>, rows: &[Carry], blocks: &[Block], keep: &[usize]) -> Result<(Buffer, Vec<f32>)> {
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
        matrix.matmul_gated(&x.data, rows, &mut y.data, |y, gate, up| kernels::gate_row(y, gate, up, activation));
        Ok(y)
    }

    fn mixture(
        &self,
        x: &Buffer,
        router_logits: &Buffer,
        Mixture { sparse, experts, activation, idle }: Mixture,
        blocks: &[Block],
        mut captured: Option<&mut Vec<f32>>,
    ) -> Result<Buffer> {
        let d = x.width;
        if let Some(captured) = &mut captured {
            captured.resize(x.data.len() * experts.num_experts, 0.0);
        }
        let routing = Routing::new(&router_logits.data, experts);
        let mut out = Buffer::taken(x.data.len() / d, d);
        match &sparse.shared {
            Some(shared) => {
                let y = self.expert(x, &shared.mlp, activation)?;
                match &shared.gate {
                    None => out = y,
                    Some(gate) => {
                        let gates = self.linear(x, gate)?;
                        let rows = out.data.par_chunks_exact_mut(d).zip(y.data.par_chunks_exact(d)).zip(&gates.data[..]);
                        rows.for_each(|((out, y), gate)| {
                            let gate = kernels::sigmoid(*gate);
                            out.iter_mut().zip(y).for_each(|(out, y)| *out = gate * y);
                        });
                    }
                }
            }
            None => out.data.fill(0.0),
        }
        // Experts side by side, for most of them get too few tokens to keep all threads in one product.
        let of_experts = (sparse.experts.par_iter().enumerate().zip(routing.by_expert()))
            .map(|((e, expert), mut tokens)| {
                tokens.retain(|(token, _)| idle.get(*token) != Some(&true));
                let mine: Vec<&Block> = blocks.iter().filter(|b| b.columns.start == e * d).collect();
                self.added(x, expert, activation, tokens, &mine)
            })
            .collect::<Result<Vec<(Vec<usize>, Buffer)>>>()?;
        let mut rows_of = vec![Vec::with_capacity(experts.num_experts_per_tok); out.data.len() / d];
        for (e, (tokens, _)) in of_experts.iter().enumerate() {
            tokens.iter().enumerate().for_each(|(row, token)| rows_of[*token].push((e, row)));
        }
        // Expert after expert for each token, so that its sum has one order whatever else is in the batch.
        out.data.par_chunks_exact_mut(d).zip(&rows_of).with_min_len(16).for_each(|(out, rows)| {
            for (e, row) in rows {
                out.iter_mut().zip(&of_experts[*e].1.data[row * d..][..d]).for_each(|(out, y)| *out += y);
            }
        });
        if let Some(captured) = captured {
            for (token, rows) in rows_of.iter().enumerate() {
                for (e, row) in rows {
                    let to = &mut captured[(token * experts.num_experts + e) * d..][..d];
                    to.copy_from_slice(&of_experts[*e].1.data[row * d..][..d]);
                }
            }
        }
        Ok(out)
    }
}

impl Fused {
    /// What one expert adds to the tokens that are routed to it with these weights, ascending, after its edits;
    /// and to those where an edit puts something in, which does not ask whether the router would have.
    fn added(
        &self,
        x: &Buffer,
        expert: &Dense,
        activation: Activation,
        mut routed: Vec<(usize, f32)>,
        blocks: &[&Block],
    ) -> Result<(Vec<usize>, Buffer)> {
        let d = x.width;
        routed.retain(|(token, _)| !blocks.iter().any(|b| b.replaces() && b.tokens.contains(token)));
        let mut tokens: Vec<usize> = routed.iter().map(|(token, _)| *token).collect();
        let mut rows = Buffer::taken(tokens.len(), d);
        rows.data.chunks_exact_mut(d).zip(&tokens).for_each(|(row, t)| row.copy_from_slice(&x.data[t * d..][..d]));
        let mut added = if tokens.is_empty() { rows } else { self.expert(&rows, expert, activation)? };
        let weighted = added.data.chunks_exact_mut(d).zip(&routed);
        weighted.for_each(|(y, (_, weight))| y.iter_mut().for_each(|y| *y *= weight));
        let elsewhere: BTreeSet<usize> = blocks.iter().filter(|b| b.adds()).flat_map(|b| b.tokens.clone()).collect();
        let elsewhere: Vec<usize> = elsewhere.into_iter().filter(|token| tokens.binary_search(token).is_err()).collect();
        added.data.extend(&vec![0f32; elsewhere.len() * d]);
        tokens.extend(elsewhere);
        for (token, y) in tokens.iter().zip(added.data.chunks_exact_mut(d)) {
            blocks.iter().filter(|b| b.tokens.contains(token)).for_each(|b| b.apply_to(*token, y));
        }
        Ok((tokens, added))
    }
}

/// The tokens that go to every expert with these router logits `[tokens, num_experts]`, ascending.
pub fn tokens_of_experts(logits: &[f32], experts: &Experts) -> Vec<Vec<usize>> {
    let tokens = |of_expert: Vec<(usize, f32)>| of_expert.into_iter().map(|(token, _)| token).collect();
    Routing::new(logits, experts).by_expert().into_iter().map(tokens).collect()
}

/// The experts that tokens with these router logits go to, `[tokens, num_experts_per_tok]`, the most weighted
/// first.
pub fn chosen_experts(logits: &[f32], experts: &Experts) -> Vec<u32> {
    Routing::new(logits, experts).chosen.into_iter().map(|(expert, _)| expert as u32).collect()
}

/// Which experts each token goes to, and with what weight.
pub struct Routing {
    experts: usize,
    /// `[tokens, num_experts_per_tok]`, the most probable first.
    chosen: Vec<(usize, f32)>,
    per_token: usize,
}

impl Routing {
    /// By the router's logits, `[tokens, num_experts]`: the softmax over all experts, of which the largest
    /// count (of those groups whose best are largest, where there are groups), as they are or divided by their sum.
    /// Equals go by their number.
    pub fn new(logits: &[f32], experts: &Experts) -> Self {
        let per_token = experts.num_experts_per_tok;
        let mut chosen = Vec::with_capacity(logits.len() / experts.num_experts * per_token);
        for logits in logits.chunks_exact(experts.num_experts) {
            let max = kernels::largest(logits);
            let sum: f32 = logits.iter().map(|l| kernels::exp(l - max)).sum();
            let mut order: Vec<usize> = (0..logits.len()).collect();
            if let Some((groups, most)) = experts.groups {
                let size = logits.len() / groups;
                let best = |group: usize| kernels::largest(&logits[group * size..][..size]);
                let mut ranked: Vec<usize> = (0..groups).collect();
                ranked.sort_by(|a, b| best(*b).total_cmp(&best(*a)).then(a.cmp(b)));
                order.retain(|e| ranked[..most].contains(&(e / size)));
            }
            order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
            order.truncate(per_token);
            let probability = |e: usize| kernels::exp(logits[e] - max) / sum;
            let kept: f32 = if experts.norm_topk_prob { order.iter().map(|e| probability(*e)).sum() } else { 1.0 };
            let scale = experts.routed_scaling_factor as f32;
            chosen.extend(order.into_iter().map(|e| (e, probability(e) / kept * scale)));
        }
        Self { experts: experts.num_experts, chosen, per_token }
    }

    /// The tokens of every expert with their weights, ascending.
    pub fn by_expert(&self) -> Vec<Vec<(usize, f32)>> {
        let mut tokens = vec![Vec::new(); self.experts];
        for (token, chosen) in self.chosen.chunks_exact(self.per_token).enumerate() {
            chosen.iter().for_each(|(expert, weight)| tokens[*expert].push((token, *weight)));
        }
        tokens
    }
}

/// Blocks as dense `scale` and `shift` tables `[tokens, width]` plus what cannot be dense: for the modes
/// that apply them as tensor operations. Later blocks compose onto earlier ones.
pub fn dense_tables(blocks: &[Block], tokens: usize, width: usize) -> (Vec<f32>, Vec<f32>, Vec<&Block>) {
    let (mut scale, mut shift, mut noise) = (vec![1f32; tokens * width], vec![0f32; tokens * width], Vec::new());
    for block in blocks {
        let Change::Affine { scale: s, .. } = &block.change else {
            noise.push(block);
            continue;
        };
        let factor = Block { change: Change::Affine { scale: *s, shift: None }, ..block.clone() };
        factor.apply(&mut scale, width);
        block.apply(&mut shift, width);
    }
    (scale, shift, noise)
}
