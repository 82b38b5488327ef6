//! The context of a forward pass that every block needs: the numeric mode, the hooks, the captures.

use std::cell::RefCell;
use std::collections::BTreeMap;

use crate::edit::Matrix;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::model::arithmetic::scan::{Recurrence, RowStart};
use crate::model::arithmetic::{Numerics, Span};
use crate::model::batch::{RecurrentState, Row};
use crate::model::hooks::{Block, Hooks, Knockout, Site};
use crate::model::weights::Linear;

/// A forward pass in progress.
pub struct Pass<'a, N> {
    /// The numeric mode.
    pub mode: &'a N,
    /// The model.
    pub model: &'a Model,
    /// Edits and captures.
    pub hooks: &'a Hooks,
    captured: RefCell<BTreeMap<(usize, Site), Vec<f32>>>,
}

impl<'a, N: Numerics> Pass<'a, N> {
    /// Begins a pass.
    pub fn new(mode: &'a N, model: &'a Model, hooks: &'a Hooks) -> Self {
        Self { mode, model, hooks, captured: RefCell::default() }
    }

    /// Passes `x` through a site: applies the edits and the probe there, and captures the result if
    /// it is to be kept.
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

    /// Returns the edits of a site.
    pub fn blocks(&self, layer: usize, site: Site) -> &'a [Block] {
        self.hooks.blocks.get(&(layer, site)).map_or(&[], Vec::as_slice)
    }

    /// Returns the attention knockouts of a layer.
    pub fn knockouts(&self, layer: usize) -> &'a [Knockout] {
        self.hooks.knockouts.get(&layer).map_or(&[], Vec::as_slice)
    }

    /// Returns whether a site is to be captured.
    pub fn captures(&self, layer: usize, site: Site) -> bool {
        self.hooks.capture.contains(&(layer, site))
    }

    /// Captures the values of a site, `[tokens, width]`.
    pub fn keep(&self, layer: usize, site: Site, values: Vec<f32>) {
        self.captured.borrow_mut().insert((layer, site), values);
    }

    /// Ends the pass and returns the captures.
    pub fn captured(self) -> BTreeMap<(usize, Site), Vec<f32>> {
        self.captured.into_inner()
    }

    /// Applies a linear layer with the single-weight edits of the matrices stacked in it.
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
    /// The rows.
    pub rows: &'a [Row],
    /// One for each row.
    pub spans: &'a [Span],
}

/// The rows of a batch for a recurrent layer, each with the state it starts from.
pub struct RecurrentRows<'a> {
    /// The tokens of each row.
    pub spans: &'a [Span],
    /// The state each row starts from; `None`: the start of a sequence.
    pub initial: Vec<Option<&'a RecurrentState>>,
    /// Packed tokens, ascending, after which the state is kept for rows that continue these.
    pub keep: &'a [usize],
}

impl<'a> RecurrentRows<'a> {
    /// Looks up the states that the rows start from. Of the packed tokens `keep`, those after which
    /// states are kept, only those of the given rows count.
    ///
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

    /// Returns the rows with one part of the states they start from.
    pub fn starts(&self, part: fn(&RecurrentState) -> &[f32]) -> Vec<RowStart<'a>> {
        let rows = self.spans.iter().zip(&self.initial);
        rows.map(|(span, state)| RowStart {
            tokens: span.tokens.clone(),
            initial: state.map_or(&[], part),
        })
        .collect()
    }

    /// Returns the last `n` inputs up to each kept token, `[n, width]` each, oldest first, from the
    /// inputs `x`, `[tokens, width]`, and those before the rows' own tokens in `rows`.
    pub fn last_inputs(
        &self,
        x: &[f32],
        width: usize,
        n: usize,
        rows: &[RowStart],
    ) -> Vec<Vec<f32>> {
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

/// Runs a recurrence with the edits of the state, and captures the state if it is to be kept.
/// Returns the output, `[tokens, width]`, and the states after the tokens that `rows` keeps.
pub(super) fn scanned<N: Numerics>(
    pass: &Pass<N>,
    layer: usize,
    scan: &Recurrence<&N::Array>,
    rows: &RecurrentRows,
) -> Result<(N::Array, Vec<Vec<f32>>)> {
    let starts = rows.starts(|s| &s.scan);
    let blocks = pass.blocks(layer, Site::State);
    if !pass.captures(layer, Site::State) {
        let (y, states) = pass.mode.scan(scan, &starts, blocks, rows.keep)?;
        return Ok((y, split_states(&states, rows.keep.len())));
    }
    let all: Vec<usize> = rows.spans.iter().flat_map(|s| s.tokens.clone()).collect();
    let (y, states) = pass.mode.scan(scan, &starts, blocks, &all)?;
    let width = states.len() / all.len().max(1);
    let (parts, size) = pass.model.config.state_parts(layer);
    // The exponents of RWKV-4, which follow the parts, belong to no component.
    let visible =
        states.chunks_exact(width).flat_map(|s| s[..parts * size].iter().copied()).collect();
    let kept = rows.keep.iter().map(|t| states[t * width..][..width].to_vec()).collect();
    pass.keep(layer, Site::State, visible);
    Ok((y, kept))
}

fn split_states(states: &[f32], n: usize) -> Vec<Vec<f32>> {
    states.chunks_exact((states.len() / n.max(1)).max(1)).map(<[f32]>::to_vec).collect()
}
