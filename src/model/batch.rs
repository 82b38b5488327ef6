//! A batch as the decoder takes it: rows packed end to end, no padding anywhere.
//!
//! Padding is how batches are usually made rectangular, and masks are how its effects are (almost)
//! undone. Packed rows need neither: a row's arithmetic is its own, whatever stands beside it.

use std::collections::BTreeMap;
use std::sync::Arc;

/// What a finished forward keeps, for rows that continue it: nothing is copied when a row refers to
/// a part.
#[derive(Debug, Default)]
pub struct KvStore {
    pub layers: Vec<LayerCache>,
}

/// What one layer keeps.
#[derive(Debug, Default)]
pub struct LayerCache {
    /// Of attention, `[tokens, kv_width]`, rotated; empty for other layers.
    pub keys: Vec<f32>,
    /// `[tokens, v_width]`.
    pub values: Vec<f32>,
    /// Of recurrent layers: the state after some tokens (indices into the packed batch), those at
    /// every [`STATE_STRIDE`]th position of a row and at its end.
    pub states: BTreeMap<usize, State>,
}

/// Positions from one kept state to the next. A state is as large as hundreds of keys, so not each
/// is kept.
pub const STATE_STRIDE: usize = 16;

/// What a recurrent layer carries from one position to the next.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// The last inputs of a Mamba layer's convolution, `[conv_kernel - 1, conv_width]`, oldest
    /// first; of time mixing the last input, `[d_model]`.
    pub inputs: Vec<f32>,
    /// The state of the recurrence ([`Recurrence`](super::arithmetic::scan::Recurrence) has the shapes).
    pub scan: Vec<f32>,
    /// The last input of RWKV's channel mixing, `[d_model]`.
    pub channel_inputs: Vec<f32>,
}

impl KvStore {
    /// What it takes, bytes.
    pub fn bytes(&self) -> usize {
        let states = self.layers.iter().flat_map(|l| l.states.values());
        let states: usize =
            states.map(|s| s.inputs.len() + s.scan.len() + s.channel_inputs.len()).sum();
        4 * (states + self.layers.iter().map(|l| l.keys.len() + l.values.len()).sum::<usize>())
    }
}

/// A stretch of another forward's tokens that stands before a row's own.
#[derive(Debug, Clone)]
pub struct Segment {
    pub store: Arc<KvStore>,
    /// First token of the stretch in the store.
    pub start: usize,
    pub len: usize,
}

/// The residual stream of a finished forward, `[tokens, d_model]` each.
#[derive(Debug, Default)]
pub struct Residuals {
    /// Entering every layer and, at the end, leaving the last.
    pub pre: Vec<Vec<f32>>,
    /// Between the two blocks of every layer; empty where they stand side by side.
    pub mid: Vec<Vec<f32>>,
}

/// Where a row enters the stack. Entries are ordered from the bottom of the stack to its top.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// Before a layer.
    Layer(usize),
    /// Between the two blocks of a layer.
    MidLayer(usize),
}

impl Entry {
    /// Before the first layer.
    pub const START: Self = Self::Layer(0);

    /// The layer of the entry.
    pub fn layer(self) -> usize {
        match self {
            Self::Layer(layer) | Self::MidLayer(layer) => layer,
        }
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let key = |entry: &Self| (entry.layer(), matches!(entry, Self::MidLayer(_)));
        key(self).cmp(&key(other))
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// Where a row enters the stack other than at the embedding.
#[derive(Debug, Clone)]
pub struct Restart {
    pub entry: Entry,
    pub residuals: Arc<Residuals>,
    /// Which token of the run is the row's first computed one.
    pub start: usize,
}

impl Restart {
    /// The residual stream at an entry, `[tokens, d_model]`, from the row's first token on; `None`
    /// if it was not kept there or is shorter.
    pub fn residual(&self, entry: Entry, tokens: usize, d_model: usize) -> Option<&[f32]> {
        let residuals = match entry {
            Entry::Layer(layer) => self.residuals.pre.get(layer),
            Entry::MidLayer(layer) => self.residuals.mid.get(layer),
        };
        residuals?.get(self.start * d_model..(self.start + tokens) * d_model)
    }
}

/// One sequence: cached stretches, then the tokens to compute.
#[derive(Debug, Clone, Default)]
pub struct Row {
    pub prefix: Vec<Segment>,
    /// The tokens to compute, at positions `prefix_len()..`.
    pub ids: Vec<u32>,
    pub restart: Option<Restart>,
}

impl Row {
    pub fn new(ids: impl Into<Vec<u32>>) -> Self {
        Self { ids: ids.into(), ..Self::default() }
    }

    pub fn prefix_len(&self) -> usize {
        self.prefix.iter().map(|s| s.len).sum()
    }

    pub fn entry(&self) -> Entry {
        self.restart.as_ref().map_or(Entry::START, |r| r.entry)
    }
}

/// Strips a padded batch: `ids[r]` where `mask[r]` is true. Rows keep their order, so logits of
/// token `i` of a stripped row belong to the `i`-th true place of its mask, left- or right-padded
/// alike.
pub fn from_padded(ids: &[Vec<u32>], mask: &[Vec<bool>]) -> Vec<Row> {
    ids.iter()
        .zip(mask)
        .map(|(ids, mask)| {
            Row::new(
                ids.iter().zip(mask).filter(|(_, m)| **m).map(|(id, _)| *id).collect::<Vec<_>>(),
            )
        })
        .collect()
}
