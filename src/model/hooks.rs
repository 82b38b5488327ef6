//! Hooks: the sites of a forward pass, the edits that are made there, and the captures.
//!
//! Every intervention on activations changes a block of tokens by columns of one site, in one of
//! three ways: affine (`scale * x + shift`), a clamp along a direction, or noise in proportion to
//! the norm of the activation. Zero ablation, mean ablation, scaling, patching and adding a
//! steering vector are all affine. A batch has one
//! table with the blocks of all its rows, applied in one operation per site. Edits of weights and
//! attention knockouts have tables of their own.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use crate::edit::{InLayer, Matrix};

/// A point of the forward pass, named as in TransformerLens where it has a name. `Embed` counts as
/// layer 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Site {
    /// Token embeddings, `[tokens, d_model]`.
    Embed,
    /// Residual stream entering a layer, `[tokens, d_model]`.
    ResidPre,
    /// Input of the mixer's output projection (`hook_z`): the heads of attention, `[tokens, heads *
    /// value_dim]`, the gated channels of Mamba, the gated heads of RWKV.
    Z,
    /// Attention pattern of each head (`hook_pattern`), `[tokens, heads * longest row]`: how much
    /// it attends to each position. Captured only, and only where no row continues another.
    Pattern,
    /// Contribution of the mixer (attention, state space or time mixing) to the residual stream,
    /// `[tokens, d_model]`; after the post-norm where there is one.
    AttnOut,
    /// Residual stream between the two blocks of a layer, `[tokens, d_model]`.
    ResidMid,
    /// MLP hidden units after activation and gate (`mlp.hook_post`), `[tokens, d_mlp]`.
    Neurons,
    /// Contribution of the MLP, the mixture or the channel mixing to the residual stream, `[tokens,
    /// d_model]`; after the post-norm where there is one.
    MlpOut,
    /// Residual stream leaving a layer, `[tokens, d_model]`.
    ResidPost,
    /// Router logits of a mixture of experts, before the softmax, `[tokens, num_experts]`.
    RouterLogits,
    /// Output of a Mamba layer's convolution, after its activation, `[tokens, conv_width]`.
    Conv,
    /// Time step of Mamba, after the softplus, `[tokens, dt_width]`.
    Dt,
    /// Gate of a Mamba or RWKV layer, after its activation, `[tokens, channels]`.
    Gate,
    /// Token shift before time mixing: the input of the preceding token minus that of the token,
    /// `[tokens, d_model]`.
    Shift,
    /// Token shift before channel mixing, `[tokens, d_model]`.
    ChannelShift,
    /// Recurrent state after each position, `[tokens, parts * values per part]`
    /// ([`Config::state_parts`](super::Config::state_parts)).
    State,
    /// Contribution of each expert to its mixture, `[tokens, num_experts * d_model]`; zero for
    /// tokens that are not routed to it.
    Experts,
}

impl From<InLayer> for Site {
    fn from(at: InLayer) -> Self {
        match at {
            InLayer::Pre => Self::ResidPre,
            InLayer::Mid => Self::ResidMid,
            InLayer::Post => Self::ResidPost,
        }
    }
}

/// A change of activations.
#[derive(Debug, Clone)]
pub enum Change {
    /// `x <- scale * x + shift`.
    Affine {
        /// Factor of all values; 0 replaces them, NaN included.
        scale: f32,
        /// `[columns]`, or `[tokens, columns]`; `None`: zero.
        shift: Option<Arc<[f32]>>,
    },
    /// `x <- x + (value - x . v / |v|^2) * v`: the part along `v` becomes `value * v`.
    Clamp {
        /// The part in lengths of `v`; 0 removes it.
        value: f32,
        /// `v`, `[columns]`, not zero.
        direction: Arc<[f32]>,
    },
    /// `x <- x + strength * |x| * u`, with a unit vector `u` for each token.
    Noise {
        /// Length of the noise relative to that of the activation.
        strength: f32,
        /// Unit vectors, `[tokens, columns]`.
        directions: Arc<[f32]>,
    },
}

/// A change of some tokens and columns of a site.
#[derive(Debug, Clone)]
pub struct Block {
    /// Packed token indices.
    pub tokens: Range<usize>,
    /// Columns of the site.
    pub columns: Range<usize>,
    /// The change.
    pub change: Change,
}

/// A change of one scalar weight for some tokens: `y[t, out] += delta * x[t, input]`. By this
/// rank-one correction of the product, rows with different weights share one forward.
#[derive(Debug, Clone)]
pub struct WeightEdit {
    /// Packed token indices.
    pub tokens: Range<usize>,
    /// Row of the matrix.
    pub out: usize,
    /// Column of the matrix.
    pub input: usize,
    /// Difference between the edited weight and that of the checkpoint.
    pub delta: f32,
}

/// An attention knockout: queries that do not attend to a key. Their scores for it are minus
/// infinity before the softmax.
#[derive(Debug, Clone)]
pub struct Knockout {
    /// Packed token indices of the queries, all of one row.
    pub tokens: Range<usize>,
    /// Query heads.
    pub heads: Range<usize>,
    /// Position of the key in the row's sequence, before those of the queries.
    pub key: usize,
}

/// The edits and captures of one batch.
#[derive(Debug, Clone, Default)]
pub struct Hooks {
    /// Edits of activations by layer and site; those of one site apply in order.
    pub blocks: BTreeMap<(usize, Site), Vec<Block>>,
    /// Edits of weights by layer and matrix.
    pub weights: BTreeMap<(usize, Matrix), Vec<WeightEdit>>,
    /// Attention knockouts by layer.
    pub knockouts: BTreeMap<usize, Vec<Knockout>>,
    /// Layers and sites whose activations are kept, after their edits.
    pub capture: BTreeSet<(usize, Site)>,
}

impl Hooks {
    /// Adds an edit of a site, to be applied after those already there.
    pub fn push(&mut self, layer: usize, site: Site, block: Block) {
        self.blocks.entry((layer, site)).or_default().push(block);
    }

    /// Returns, for each token, whether what is at one of these sites of a layer, `[tokens,
    /// d_model]`, is replaced in full, so that it need not be computed; shorter than the batch
    /// where the remaining tokens are not idle.
    pub fn idle(&self, layer: usize, sites: &[Site], d_model: usize) -> Vec<bool> {
        let blocks = sites.iter().filter_map(|site| self.blocks.get(&(layer, *site))).flatten();
        let blocks: Vec<&Block> =
            blocks.filter(|b| b.replaces() && b.columns.len() == d_model).collect();
        let mut idle = vec![false; blocks.iter().map(|b| b.tokens.end).max().unwrap_or(0)];
        blocks.iter().for_each(|b| idle[b.tokens.clone()].fill(true));
        idle
    }

    /// Adds an edit of a weight.
    pub fn push_weight(&mut self, layer: usize, matrix: Matrix, edit: WeightEdit) {
        self.weights.entry((layer, matrix)).or_default().push(edit);
    }

    /// Adds an attention knockout.
    pub fn push_knockout(&mut self, layer: usize, knockout: Knockout) {
        self.knockouts.entry(layer).or_default().push(knockout);
    }
}

impl Block {
    /// Applies the change in place to a site `x`, `[tokens, width]`.
    pub fn apply(&self, x: &mut [f32], width: usize) {
        for token in self.tokens.clone() {
            self.apply_to(token, &mut x[token * width..][self.columns.clone()]);
        }
    }

    /// Applies the change in place to the values `x` of one token, `[columns]`.
    pub fn apply_to(&self, token: usize, x: &mut [f32]) {
        let (columns, i) = (self.columns.len(), token - self.tokens.start);
        match &self.change {
            Change::Affine { scale, shift } => {
                // Replacement must not keep a NaN or an infinity alive through 0 * x.
                x.iter_mut().for_each(|v| *v = if *scale == 0.0 { 0.0 } else { *scale * *v });
                if let Some(shift) = shift {
                    let shift = if shift.len() == columns {
                        &shift[..]
                    } else {
                        &shift[i * columns..][..columns]
                    };
                    x.iter_mut().zip(shift).for_each(|(v, s)| *v += s);
                }
            }
            Change::Clamp { value, direction } => {
                let square: f32 = direction.iter().map(|v| v * v).sum();
                let part: f32 = x.iter().zip(&direction[..]).map(|(x, v)| x * v).sum();
                let change = value - part / square;
                x.iter_mut().zip(&direction[..]).for_each(|(x, v)| *x += change * v);
            }
            Change::Noise { strength, directions } => {
                let norm = x.iter().map(|v| v * v).sum::<f32>().sqrt();
                let u = &directions[i * columns..][..columns];
                x.iter_mut().zip(u).for_each(|(v, u)| *v += strength * norm * u);
            }
        }
    }

    /// Applies the change in place to `x`, which holds `columns` of the site for one token; only
    /// those that are among the block's columns change. Noise and clamps depend on all of the
    /// block's columns, so they are applied only if these lie within `columns`.
    pub fn apply_within(&self, token: usize, columns: Range<usize>, x: &mut [f32]) {
        let (from, to) = (self.columns.start.max(columns.start), self.columns.end.min(columns.end));
        if from >= to {
            return;
        }
        let x = &mut x[from - columns.start..to - columns.start];
        if x.len() == self.columns.len() {
            return self.apply_to(token, x);
        }
        let Change::Affine { scale, shift } = &self.change else { return };
        let part = shift.as_ref().map(|shift| {
            let first = if shift.len() == self.columns.len() {
                0
            } else {
                (token - self.tokens.start) * self.columns.len()
            };
            shift[first + from - self.columns.start..first + to - self.columns.start].into()
        });
        let change = Change::Affine { scale: *scale, shift: part };
        Self { tokens: token..token + 1, columns: from..to, change }.apply_to(token, x);
    }

    /// Returns whether the change replaces the activation, whatever it was.
    pub fn replaces(&self) -> bool {
        matches!(self.change, Change::Affine { scale: 0.0, .. })
    }

    /// Returns whether the change can turn zeros into something else.
    pub fn adds(&self) -> bool {
        matches!(self.change, Change::Affine { shift: Some(_), .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(change: Change, expect: [f32; 6]) {
        let mut x = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        Block { tokens: 0..2, columns: 1..3, change }.apply(&mut x, 3);
        assert_eq!(x, expect);
    }

    #[test]
    fn a_block_changes_its_tokens_and_columns_and_nothing_else() {
        check(Change::Affine { scale: 0.0, shift: None }, [1.0, 0.0, 0.0, 4.0, 0.0, 0.0]);
        check(Change::Affine { scale: 2.0, shift: None }, [1.0, 4.0, 6.0, 4.0, 10.0, 12.0]);
        check(
            Change::Affine { scale: 0.0, shift: Some([7.0, 8.0].into()) },
            [1.0, 7.0, 8.0, 4.0, 7.0, 8.0],
        );
        check(
            Change::Affine { scale: 1.0, shift: Some([1.0, 2.0, 3.0, 4.0].into()) },
            [1.0, 3.0, 5.0, 4.0, 8.0, 10.0],
        );
        let directions: Arc<[f32]> = [1.0, 0.0, 0.0, 1.0].into();
        let (a, b) = (13f32.sqrt(), 61f32.sqrt());
        let direction = [0.0, 2.0].into();
        check(Change::Clamp { value: 3.0, direction }, [1.0, 2.0, 6.0, 4.0, 5.0, 6.0]);
        check(Change::Noise { strength: 1.0, directions }, [1.0, 2.0 + a, 3.0, 4.0, 5.0, 6.0 + b]);
    }

    #[test]
    fn replacing_ends_a_nan() {
        let mut x = [f32::NAN];
        Block {
            tokens: 0..1,
            columns: 0..1,
            change: Change::Affine { scale: 0.0, shift: Some([2.0].into()) },
        }
        .apply(&mut x, 1);
        assert_eq!(x, [2.0]);
    }
}
