//! The operations of a forward pass, as a trait that each numeric mode implements.

use std::ops::Range;

use super::kernels::elementwise::Convolution;
use super::kernels::{AttentionRow, AttentionShape, Rope};
use super::scan::{Recurrence, RowStart};
use crate::error::{Error, Result};
use crate::model::config::{Activation, Config, Experts};
use crate::model::hooks::{Block, Site, WeightEdit};
use crate::model::layers::{Dense, Sparse};
use crate::model::weights::{Linear, Norm};

/// The place of a row's tokens in the packed batch and in their sequence.
#[derive(Debug, Clone)]
pub struct Span {
    /// Packed token indices.
    pub tokens: Range<usize>,
    /// Position of the first of them in the sequence: the length of the cached prefix.
    pub position: usize,
}

/// A numeric mode: the operations of a forward pass on arrays `[tokens, width]`. An operation fails
/// if the mode does not have it.
pub trait Numerics {
    /// An array `[tokens, width]`.
    type Array: Clone;

    /// Creates an array from row-major values.
    fn array(&self, values: Vec<f32>, width: usize) -> Result<Self::Array>;
    /// Returns the values of an array, row-major, without their gradient.
    fn values(&self, x: &Self::Array) -> Result<Vec<f32>>;
    /// Appends the tokens of `more`.
    fn append(&self, x: Self::Array, more: Self::Array) -> Result<Self::Array>;
    /// Returns these tokens of `x`, ascending; `None` if the mode computes all tokens, whatever is
    /// read of them.
    fn gather(&self, _x: &Self::Array, _tokens: &[usize]) -> Option<Self::Array> {
        None
    }
    /// Returns `all` tokens of which these, ascending, are `x`, and the others zeros.
    fn scatter(&self, _x: &Self::Array, _tokens: &[usize], _all: usize) -> Result<Self::Array> {
        Err(Error::internal("a numeric mode that leaves out no tokens"))
    }
    /// Returns `x + y`.
    fn add(&self, x: Self::Array, y: &Self::Array) -> Result<Self::Array>;
    /// Normalises each vector of the norm's width by itself: a token, or one of its heads.
    fn norm(&self, x: &Self::Array, norm: &Norm) -> Result<Self::Array>;
    /// Returns `x W^T + b`.
    fn linear(&self, x: &Self::Array, linear: &Linear) -> Result<Self::Array>;
    /// Applies `y[t, first + out] += delta * x[t, input]` for every edit.
    fn edit_weights(
        &self,
        y: Self::Array,
        x: &Self::Array,
        edits: &[WeightEdit],
        first: usize,
    ) -> Result<Self::Array>;
    /// Applies edits of a site, in order.
    fn edit(&self, x: Self::Array, blocks: &[Block]) -> Result<Self::Array>;
    /// Adds the variable by which the gradient of a site is taken, if there is one; inference has
    /// none.
    fn probe(&self, _layer: usize, _site: Site, x: Self::Array) -> Result<Self::Array> {
        Ok(x)
    }
    /// Splits `[q | k | v]` into its parts, and normalises and rotates `q` and `k` if the model
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
    /// Causal attention of each row over its prefix and itself, without what the row's knockouts
    /// cut: `q` is `[tokens, heads * head_dim]`, `k` `[tokens, kv_heads * head_dim]`, `v` `[tokens,
    /// kv_heads * value_dim]`; returns `z`, `[tokens, heads * value_dim]`.
    fn attention(
        &self,
        q: &Self::Array,
        k: &Self::Array,
        v: &Self::Array,
        rows: &[AttentionRow],
        shape: AttentionShape,
    ) -> Result<Self::Array>;
    /// Applies an activation to each value.
    fn activate(&self, x: Self::Array, activation: Activation) -> Result<Self::Array>;
    /// Splits the columns of `x` into arrays of these widths.
    fn split(&self, x: &Self::Array, widths: &[usize]) -> Result<Vec<Self::Array>>;
    /// Joins the columns of all parts.
    fn join(&self, parts: &[&Self::Array]) -> Result<Self::Array>;
    /// Returns `x * y`.
    fn mul(&self, x: Self::Array, y: &Self::Array) -> Result<Self::Array>;
    /// Returns `scale * x + shift`, with one `scale` and `shift` for each column.
    fn affine(&self, x: Self::Array, scale: &[f32], shift: Option<&[f32]>) -> Result<Self::Array>;
    /// Returns `x + mix * by`, with one `mix` for each column.
    fn blend(&self, x: &Self::Array, by: &Self::Array, mix: &[f32]) -> Result<Self::Array>;
    /// Returns `x + (y - x) * t`.
    fn interpolate(&self, x: Self::Array, y: &Self::Array, t: &Self::Array) -> Result<Self::Array>;
    /// Clamps each value to `low..=high`.
    fn clamp(&self, x: Self::Array, low: f32, high: f32) -> Result<Self::Array>;
    /// Returns the token shift `x[t - 1] - x[t]` within each row.
    fn shift(&self, x: &Self::Array, rows: &[RowStart]) -> Result<Self::Array>;
    /// Applies a causal convolution to each column; `initial` of a row holds the `kernel - 1`
    /// inputs before it.
    fn convolve(
        &self,
        x: &Self::Array,
        convolution: &Convolution,
        rows: &[RowStart],
    ) -> Result<Self::Array>;
    /// Divides each head by its Euclidean norm, or by 1e-12 if that is larger.
    fn unit_heads(&self, x: Self::Array, head_dim: usize) -> Result<Self::Array>;
    /// Returns `v` times the sum of `r * k * weight` over its head.
    fn bonus(
        &self,
        r: &Self::Array,
        k: &Self::Array,
        v: &Self::Array,
        weight: &[f32],
        head_dim: usize,
    ) -> Result<Self::Array>;
    /// Runs a recurrence over every row. `blocks` edit the state after a token. Returns the output,
    /// `[tokens, width]`, and the states after the packed tokens `keep` (ascending), one after the
    /// other.
    fn scan(
        &self,
        scan: &Recurrence<&Self::Array>,
        rows: &[RowStart],
        blocks: &[Block],
        keep: &[usize],
    ) -> Result<(Self::Array, Vec<f32>)>;
    /// Returns `activation(gate) * up` of `[gate | up]`.
    fn gate(&self, gate_up: &Self::Array, activation: Activation) -> Result<Self::Array>;
    /// Returns the [`gate`](Self::gate) of a [`linear`](Self::linear) layer, in one operation with
    /// the same result.
    fn gated(
        &self,
        x: &Self::Array,
        gate_up: &Linear,
        activation: Activation,
    ) -> Result<Self::Array> {
        self.gate(&self.linear(x, gate_up)?, activation)
    }
    /// Applies an expert: a gated MLP without hooks.
    fn expert(
        &self,
        x: &Self::Array,
        expert: &Dense,
        activation: Activation,
    ) -> Result<Self::Array> {
        self.linear(&self.gated(x, &expert.up, activation)?, &expert.down)
    }
    /// Applies the experts that the router's logits `[tokens, num_experts]` choose, and the shared
    /// one. `blocks` are the edits of [`Site::Experts`], whose values go to `captured`.
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
    /// Its weights.
    pub sparse: &'a Sparse,
    /// Its sizes.
    pub experts: &'a Experts,
    /// The activation of the experts.
    pub activation: Activation,
    /// For each token, true if its output is not read; shorter if the remaining tokens are.
    pub idle: &'a [bool],
}

/// The norms of queries and keys, over `[head_dim]` or over all heads.
#[derive(Clone, Copy)]
pub struct HeadNorms<'a> {
    /// The norm of the queries.
    pub q: Option<&'a Norm>,
    /// The norm of the keys.
    pub k: Option<&'a Norm>,
}
