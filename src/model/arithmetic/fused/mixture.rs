//! A mixture of experts in inference, computed expert by expert over the tokens routed there.

use std::collections::BTreeSet;

use rayon::prelude::*;

use super::{Buffer, Fused};
use crate::error::Result;
use crate::model::arithmetic::{Mixture, Numerics as _, kernels};
use crate::model::config::Activation;
use crate::model::hooks::Block;
use crate::model::layers::{Dense, Routing};

/// The tokens of one expert.
struct Share<'a> {
    /// The tokens that are routed to the expert, ascending, and then those that are not but have an
    /// edit that adds to its contribution.
    tokens: Vec<usize>,
    /// The routing weights of the former.
    weights: Vec<f32>,
    /// The edits of the expert's contribution.
    blocks: Vec<&'a Block>,
}

impl<'a> Share<'a> {
    fn new(mut routed: Vec<(usize, f32)>, idle: &[bool], blocks: Vec<&'a Block>) -> Self {
        // Contributions that are not read, or are replaced, need not be computed.
        let replaced =
            |token: usize| blocks.iter().any(|b| b.replaces() && b.tokens.contains(&token));
        routed.retain(|(token, _)| idle.get(*token) != Some(&true) && !replaced(*token));
        let (mut tokens, weights): (Vec<usize>, Vec<f32>) = routed.into_iter().unzip();
        let elsewhere: BTreeSet<usize> =
            blocks.iter().filter(|b| b.adds()).flat_map(|b| b.tokens.clone()).collect();
        let elsewhere: Vec<usize> =
            elsewhere.into_iter().filter(|token| tokens.binary_search(token).is_err()).collect();
        tokens.extend(elsewhere);
        Self { tokens, weights, blocks }
    }

    /// Computes the contribution of the expert to its tokens into `added`, `[tokens, d_model]`.
    fn added(
        &self,
        x: &Buffer,
        expert: &Dense,
        activation: Activation,
        added: &mut [f32],
    ) -> Result<()> {
        let (d, routed) = (x.width, self.weights.len());
        let (computed, elsewhere) = added.split_at_mut(routed * d);
        elsewhere.fill(0.0);
        if routed > 0 {
            let mut rows = Buffer::taken(routed, d);
            rows.data
                .chunks_exact_mut(d)
                .zip(&self.tokens)
                .for_each(|(row, t)| row.copy_from_slice(&x.data[t * d..][..d]));
            Fused.linear_into(&Fused.gated(&rows, &expert.up, activation)?, &expert.down, computed);
        }
        for (y, weight) in computed.chunks_exact_mut(d).zip(&self.weights) {
            y.iter_mut().for_each(|y| *y *= weight);
        }
        for (token, y) in self.tokens.iter().zip(added.chunks_exact_mut(d)) {
            self.blocks
                .iter()
                .filter(|b| b.tokens.contains(token))
                .for_each(|b| b.apply_to(*token, y));
        }
        Ok(())
    }
}
/// Implements [`Numerics::mixture`](crate::model::arithmetic::Numerics::mixture).
pub fn mixture(
    x: &Buffer,
    router_logits: &Buffer,
    Mixture { sparse, experts, activation, idle }: Mixture,
    blocks: &[Block],
    captured: Option<&mut Vec<f32>>,
) -> Result<Buffer> {
    let (d, tokens) = (x.width, x.data.len() / x.width);
    let mut out = Buffer::taken(tokens, d);
    match &sparse.shared {
        Some(shared) => {
            let y = Fused.expert(x, &shared.mlp, activation)?;
            match &shared.gate {
                None => out = y,
                Some(gate) => {
                    let gates = Fused.linear(x, gate)?;
                    let rows = out
                        .data
                        .par_chunks_exact_mut(d)
                        .zip(y.data.par_chunks_exact(d))
                        .zip(&gates.data[..]);
                    rows.for_each(|((out, y), gate)| {
                        let gate = kernels::sigmoid(*gate);
                        out.iter_mut().zip(y).for_each(|(out, y)| *out = gate * y);
                    });
                }
            }
        }
        None => out.data.fill(0.0),
    }
    let routed = Routing::new(&router_logits.data, experts).by_expert().into_iter().enumerate();
    let shares: Vec<Share> = routed
        .map(|(e, routed)| {
            Share::new(routed, idle, blocks.iter().filter(|b| b.columns.start == e * d).collect())
        })
        .collect();
    // One buffer for all, which returns to the pool of this thread; buffers taken by the threads of
    // the experts would pile up here.
    let mut added = Buffer::taken(shares.iter().map(|share| share.tokens.len()).sum(), d);
    let mut rest = &mut added.data[..];
    let parts: Vec<&mut [f32]> = shares
        .iter()
        .map(|share| rest.split_off_mut(..share.tokens.len() * d).unwrap_or_default())
        .collect();
    // Experts in parallel: most of them have too few tokens to keep all threads busy.
    let work = parts.into_par_iter().zip(&shares).zip(&sparse.experts);
    work.try_for_each(|((part, share), expert)| share.added(x, expert, activation, part))?;
    let mut rows_by_token = vec![Vec::with_capacity(experts.num_experts_per_tok); tokens];
    let owned = shares
        .iter()
        .enumerate()
        .flat_map(|(e, share)| share.tokens.iter().map(move |token| (e, *token)));
    owned.enumerate().for_each(|(row, (e, token))| rows_by_token[token].push((e, row)));
    // The experts of a token are added in ascending order, whatever else is in the batch.
    out.data.par_chunks_exact_mut(d).zip(&rows_by_token).with_min_len(16).for_each(
        |(out, rows)| {
            for (_, row) in rows {
                out.iter_mut().zip(&added.data[row * d..][..d]).for_each(|(out, y)| *out += y);
            }
        },
    );
    if let Some(captured) = captured {
        captured.resize(x.data.len() * experts.num_experts, 0.0);
        for (token, rows) in rows_by_token.iter().enumerate() {
            for (e, row) in rows {
                captured[(token * experts.num_experts + e) * d..][..d]
                    .copy_from_slice(&added.data[row * d..][..d]);
            }
        }
    }
    Ok(out)
}
