//! The operations a forward pass is made of, as a trait that each numeric mode implements.

use std::ops::Range;

use super::kernels::elementwise::Convolution;
use super::kernels::{AttentionRow, AttentionShape, Rope};
use super::scan::{Recurrence, RowStart};
use crate::error::Result;
use crate::model::config::{Activation, Config, Experts};
use crate::model::hooks::{Block, Site, WeightEdit};
use crate::model::layers::{Dense, Sparse};
use crate::model::weights::{Linear, Norm};

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
    fn edit_weights(
        &self,
        y: Self::Array,
        x: &Self::Array,
        edits: &[WeightEdit],
        first: usize,
    ) -> Result<Self::Array>;
    fn edit(&self, x: Self::Array, blocks: &[Block]) -> Result<Self::Array>;
    /// Where a gradient is taken of a site; inference takes none.
    fn probe(&self, _layer: usize, _site: Site, x: Self::Array) -> Result<Self::Array> {
        Ok(x)
    }
    /// Splits `[q | k | v]`, normalises heads where the model does, rotates `q` and `k` where it
    /// does.
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
    fn shift(&self, x: &Self::Array, rows: &[RowStart]) -> Result<Self::Array>;
    /// A causal convolution of each column; `initial` of a row is the `kernel - 1` inputs before
    /// it.
    fn convolve(
        &self,
        x: &Self::Array,
        convolution: &Convolution,
        rows: &[RowStart],
    ) -> Result<Self::Array>;
    /// Each head over its Euclidean norm, or over 1e-12 where that is more.
    fn unit_heads(&self, x: Self::Array, head_dim: usize) -> Result<Self::Array>;
    /// `v` times the sum of `r k weight` over its head.
    fn bonus(
        &self,
        r: &Self::Array,
        k: &Self::Array,
        v: &Self::Array,
        weight: &[f32],
        head_dim: usize,
    ) -> Result<Self::Array>;
    /// A recurrence over every row. `blocks` change the state after a token; the states after the
    /// tokens of `keep` (ascending) are returned, one after the other.
    fn scan(
        &self,
        scan: &Recurrence<&Self::Array>,
        rows: &[RowStart],
        blocks: &[Block],
        keep: &[usize],
    ) -> Result<(Self::Array, Vec<f32>)>;
    /// `activation(gate) * up` of `[gate | up]`.
    fn gate(&self, gate_up: &Self::Array, activation: Activation) -> Result<Self::Array>;
    /// [`gate`](Self::gate) of [`linear`](Self::linear), with the same result.
    fn gated(
        &self,
        x: &Self::Array,
        gate_up: &Linear,
        activation: Activation,
    ) -> Result<Self::Array> {
        self.gate(&self.linear(x, gate_up)?, activation)
    }
    /// A gated MLP without hooks: an expert.
    fn expert(
        &self,
        x: &Self::Array,
        expert: &Dense,
        activation: Activation,
    ) -> Result<Self::Array> {
        self.linear(&self.gated(x, &expert.up, activation)?, &expert.down)
    }
    /// The mixture of experts that the router's logits `[tokens, num_experts]` choose, and the
    /// shared one. `blocks` are those of [`Site::Experts`](crate::model::hooks::Site::Experts), whose
    /// values go to `captured`.
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
