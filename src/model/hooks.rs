//! What is read and replaced on the way through the model: sites, the edit table, captures.
//!
//! Every intervention on activations is one of two forms on a block of (tokens x columns) of a
//! site: affine (`scale * x + shift`) or noise in proportion to the activation's own norm. Zeroing,
//! mean ablation, scaling, patching, steering are all affine. A batch's table holds the blocks of
//! all its rows and is applied in one operation per site.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use crate::edit::Matrix;

/// A point of the forward pass, by TransformerLens's names (`embed` counts as layer 0; the ends of
/// the stack too).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Site {
    /// Token embeddings, `[tokens, d_model]`.
    Embed,
    /// Residual stream entering a layer, `[tokens, d_model]`.
    ResidPre,
    /// What goes into the output projection: of attention per head, `[tokens, heads * head_dim]`;
    /// of Mamba the gated channels, of RWKV the gated heads.
    Z,
    /// What attention (or the state space, or time mixing) adds to the residual stream, `[tokens,
    /// d_model]`.
    AttnOut,
    /// Residual stream between a layer's two blocks, `[tokens, d_model]`.
    ResidMid,
    /// MLP hidden units after activation and gate (`mlp.hook_post`), `[tokens, d_mlp]`.
    Neurons,
    /// What the MLP adds to the residual stream, `[tokens, d_model]`.
    MlpOut,
    /// Residual stream leaving a layer, `[tokens, d_model]`.
    ResidPost,
    /// Logits of a mixture's router, before the softmax, `[tokens, num_experts]`.
    RouterLogits,
    /// What a Mamba layer's convolution puts out, after its activation, `[tokens, conv_width]`.
    Conv,
    /// Mamba's time step, `[tokens, dt_width]`.
    Dt,
    /// What a Mamba layer's gate multiplies with, after its activation, `[tokens, channels]`.
    Gate,
    /// What token shift adds to a token before time mixing: its predecessor less itself, `[tokens,
    /// d_model]`.
    Shift,
    /// The same before channel mixing.
    ChannelShift,
    /// The recurrent state after each position, `[tokens, parts * values of each]`
    /// ([`Config::state_parts`](super::Config::state_parts)).
    State,
    /// What each expert adds to its mixture, `[tokens, num_experts * d_model]`: zero where a token
    /// is not routed to it.
    Experts,
}

/// The change of one block.
#[derive(Debug, Clone)]
pub enum Change {
    /// `x <- scale * x + shift`. `shift` is one value per column, or per token and column.
    Affine { scale: f32, shift: Option<Arc<[f32]>> },
    /// `x <- x + strength * |x| * u`, with a unit vector per token, `[tokens, columns]`.
    Noise { strength: f32, directions: Arc<[f32]> },
}

/// A change of some tokens (indices into the packed batch) and columns of a site.
#[derive(Debug, Clone)]
pub struct Block {
    pub tokens: Range<usize>,
    pub columns: Range<usize>,
    pub change: Change,
}

/// A change of one scalar weight for some tokens: `y[t, out] += delta * x[t, input]`, the rank-one
/// correction by which rows with different weights share one forward.
#[derive(Debug, Clone)]
pub struct WeightEdit {
    pub tokens: Range<usize>,
    pub out: usize,
    pub input: usize,
    pub delta: f32,
}

/// Everything done to one batch on its way through.
#[derive(Debug, Clone, Default)]
pub struct Hooks {
    pub blocks: BTreeMap<(usize, Site), Vec<Block>>,
    pub weights: BTreeMap<(usize, Matrix), Vec<WeightEdit>>,
    pub capture: BTreeSet<(usize, Site)>,
}

impl Hooks {
    pub fn push(&mut self, layer: usize, site: Site, block: Block) {
        self.blocks.entry((layer, site)).or_default().push(block);
    }

    /// Tokens that have all they would get from a layer's MLP put in anew: it need not be computed
    /// for those.
    pub fn idle(&self, layer: usize, d_model: usize) -> Vec<bool> {
        let sites = [Site::MlpOut, Site::ResidPost].into_iter();
        let blocks = sites.filter_map(|site| self.blocks.get(&(layer, site))).flatten();
        let blocks: Vec<&Block> =
            blocks.filter(|b| b.replaces() && b.columns.len() == d_model).collect();
        let mut idle = vec![false; blocks.iter().map(|b| b.tokens.end).max().unwrap_or(0)];
        blocks.iter().for_each(|b| idle[b.tokens.clone()].fill(true));
        idle
    }

    pub fn push_weight(&mut self, layer: usize, matrix: Matrix, edit: WeightEdit) {
        self.weights.entry((layer, matrix)).or_default().push(edit);
    }
}

impl Block {
    /// Applies the change in place to `x` `[tokens, width]`.
    pub fn apply(&self, x: &mut [f32], width: usize) {
        for token in self.tokens.clone() {
            self.apply_to(token, &mut x[token * width..][self.columns.clone()]);
        }
    }

    /// Applies the change to one token's values of the block's columns.
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
            Change::Noise { strength, directions } => {
                let norm = x.iter().map(|v| v * v).sum::<f32>().sqrt();
                let u = &directions[i * columns..][..columns];
                x.iter_mut().zip(u).for_each(|(v, u)| *v += strength * norm * u);
            }
        }
    }

    /// Applies the change to those of one token's values that are among the block's columns; `x`
    /// holds `columns` of the site. Noise is in proportion to what is there, so it takes a block
    /// that lies within `columns`.
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

    /// Whether nothing is left of what was there.
    pub fn replaces(&self) -> bool {
        matches!(self.change, Change::Affine { scale: 0.0, .. })
    }

    /// Whether the change makes something of nothing.
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
