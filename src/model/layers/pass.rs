//! What every block of a forward pass needs at hand: the mode, the hooks, what is captured.

use std::cell::RefCell;
use std::collections::BTreeMap;

use crate::edit::Matrix;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::model::arithmetic::scan::{Carry, Recurrence};
use crate::model::arithmetic::{Numerics, Span};
use crate::model::batch::{Row, State};
use crate::model::hooks::{Block, Hooks, Site};
use crate::model::weights::Linear;

/// One forward pass under way.
pub struct Pass<'a, N> {
    pub mode: &'a N,
    pub model: &'a Model,
    pub hooks: &'a Hooks,
    captured: RefCell<BTreeMap<(usize, Site), Vec<f32>>>,
}

impl<'a, N: Numerics> Pass<'a, N> {
    pub fn new(mode: &'a N, model: &'a Model, hooks: &'a Hooks) -> Self {
        Self { mode, model, hooks, captured: RefCell::default() }
    }

    /// A site: what is to be done there is done, what is to be kept is kept.
    pub fn at(&self, layer: usize, site: Site, x: N::Array) -> Result<N::Array> {
        let x = match self.blocks(layer, site) {
            [] => x,
            blocks => self.mode.edit(x, blocks)?,
        };
        let x = self.mode.probe(layer, site, x)?;
        if self.captures(layer, site) {
            self.keep(layer, site, self.mode.values(&x)?);
        }
        Ok(x)
    }

    pub fn blocks(&self, layer: usize, site: Site) -> &'a [Block] {
        self.hooks.blocks.get(&(layer, site)).map_or(&[], Vec::as_slice)
    }

    pub fn captures(&self, layer: usize, site: Site) -> bool {
        self.hooks.capture.contains(&(layer, site))
    }

    pub fn keep(&self, layer: usize, site: Site, values: Vec<f32>) {
        self.captured.borrow_mut().insert((layer, site), values);
    }

    pub fn captured(self) -> BTreeMap<(usize, Site), Vec<f32>> {
        self.captured.into_inner()
    }

    /// A matrix product with the single-weight edits of the matrices stacked in it.
    pub fn product(
        &self,
        layer: usize,
        x: &N::Array,
        linear: &Linear,
        stacked: &[Matrix],
    ) -> Result<N::Array> {
        let mut y = self.mode.linear(x, linear)?;
        for matrix in stacked {
            if let Some(edits) = self.hooks.weights.get(&(layer, *matrix)) {
                let located = self.model.weights.layers[layer].locate(*matrix, &self.model.config);
                let (_, first) = located.ok_or_else(|| {
                    Error::request(format!("layer {layer} has no {}", matrix.name()))
                })?;
                y = self.mode.edit_weights(y, x, edits, first)?;
            }
        }
        Ok(y)
    }
}

/// The rows that have entered the stack so far, and where their tokens are in the batch.
#[derive(Clone, Copy)]
pub struct PackedRows<'a> {
    pub rows: &'a [Row],
    /// One for each row.
    pub spans: &'a [Span],
}

/// The rows of a batch as a recurrent layer sees them.
pub struct RecurrentRows<'a> {
    pub spans: &'a [Span],
    /// What each row starts from.
    pub initial: Vec<Option<&'a State>>,
    /// Packed tokens, ascending, after which the state is kept for rows that continue these.
    pub keep: &'a [usize],
}

impl<'a> RecurrentRows<'a> {
    /// # Errors
    /// [`Error::Request`] for a row whose prefix ends where no state was kept.
    pub fn new(packed: PackedRows<'a>, layer: usize, keep: &'a [usize]) -> Result<Self> {
        let PackedRows { rows, spans } = packed;
        let initial = rows.iter().map(|row| {
            let Some(last) = row.prefix.last() else { return Ok(None) };
            let state = last.store.layers[layer].states.get(&(last.start + last.len - 1));
            state.map(Some).ok_or_else(|| {
                Error::internal("a row continues a sequence where no state was kept")
            })
        });
        let tokens = spans.last().map_or(0, |s| s.tokens.end);
        Ok(Self {
            spans,
            initial: initial.collect::<Result<_>>()?,
            keep: &keep[..keep.partition_point(|t| *t < tokens)],
        })
    }

    /// One part of what the rows start from.
    pub fn carry(&self, part: fn(&State) -> &[f32]) -> Vec<Carry<'a>> {
        let rows = self.spans.iter().zip(&self.initial);
        rows.map(|(span, state)| Carry {
            tokens: span.tokens.clone(),
            initial: state.map_or(&[], part),
        })
        .collect()
    }

    /// The last `n` inputs up to each kept token, oldest first, of `x` `[tokens, width]`; what came
    /// before the row's own is taken from `rows`.
    pub fn last_inputs(&self, x: &[f32], width: usize, n: usize, rows: &[Carry]) -> Vec<Vec<f32>> {
        let inputs_up_to = |token: &usize| {
            let row = rows.iter().find(|r| r.tokens.contains(token));
            let mut inputs = vec![0f32; n * width];
            let Some(row) = row else { return inputs };
            let own = (token - row.tokens.start + 1).min(n);
            inputs[(n - own) * width..]
                .copy_from_slice(&x[(token + 1 - own) * width..(token + 1) * width]);
            if !row.initial.is_empty() {
                inputs[..(n - own) * width].copy_from_slice(&row.initial[own * width..]);
            }
            inputs
        };
        self.keep.iter().map(inputs_up_to).collect()
    }
}

/// Runs a recurrence with the edits of the state, capturing it where that is asked for; the states
/// after the tokens that `rows` keeps.
pub(super) fn scanned<N: Numerics>(
    pass: &Pass<N>,
    layer: usize,
    scan: &Recurrence<&N::Array>,
    rows: &RecurrentRows,
) -> Result<(N::Array, Vec<Vec<f32>>)> {
    let carry = rows.carry(|s| &s.scan);
    let blocks = pass.blocks(layer, Site::State);
    if !pass.captures(layer, Site::State) {
        let (y, states) = pass.mode.scan(scan, &carry, blocks, rows.keep)?;
        return Ok((y, split_states(&states, rows.keep.len())));
    }
    let all: Vec<usize> = rows.spans.iter().flat_map(|s| s.tokens.clone()).collect();
    let (y, states) = pass.mode.scan(scan, &carry, blocks, &all)?;
    let width = states.len() / all.len().max(1);
    let (parts, size) = pass.model.config.state_parts(layer);
    // What lies behind the parts (RWKV-4's exponents) is no output of a component.
    let visible =
        states.chunks_exact(width).flat_map(|s| s[..parts * size].iter().copied()).collect();
    let kept = rows.keep.iter().map(|t| states[t * width..][..width].to_vec()).collect();
    pass.keep(layer, Site::State, visible);
    Ok((y, kept))
}

fn split_states(states: &[f32], n: usize) -> Vec<Vec<f32>> {
    states.chunks_exact((states.len() / n.max(1)).max(1)).map(<[f32]>::to_vec).collect()
}
