//! The batch that the decoder takes: rows packed end to end, without padding.
//!
//! Padding makes a batch rectangular, and masks undo its effects, almost. Packed rows need neither:
//! the arithmetic of a row does not depend on the rows beside it.

use std::collections::BTreeMap;
use std::sync::Arc;

/// The keys, values and recurrent states of a finished forward, for rows that continue it. A row
/// refers to a stretch of it; nothing is copied.
#[derive(Debug, Default)]
pub struct KvStore {
    /// One entry for each layer.
    pub layers: Vec<LayerCache>,
}

/// The keys, values and recurrent states of one layer.
#[derive(Debug, Default)]
pub struct LayerCache {
    /// Rotated keys of an attention layer, `[tokens, kv_width]`; empty for other mixers.
    pub keys: Vec<f32>,
    /// Values of an attention layer, `[tokens, v_width]`; empty for other mixers.
    pub values: Vec<f32>,
    /// Recurrent states by the packed token they follow: at every [`STATE_STRIDE`]th position of a
    /// row and at its end. Empty for attention.
    pub states: BTreeMap<usize, RecurrentState>,
}

/// Positions between two kept states. A state is as large as hundreds of keys, so not every one is
/// kept.
pub const STATE_STRIDE: usize = 16;

/// Everything that a recurrent layer hands from one position to the next.
#[derive(Debug, Clone, Default)]
pub struct RecurrentState {
    /// The last inputs of a Mamba layer's convolution, `[conv_kernel - 1, conv_width]`, oldest
    /// first; or the last input of RWKV's time mixing, `[d_model]`.
    pub inputs: Vec<f32>,
    /// The state of the recurrence, in the shape that `arithmetic/scan/` gives for each.
    pub scan: Vec<f32>,
    /// The last input of RWKV's channel mixing, `[d_model]`.
    pub channel_inputs: Vec<f32>,
}

impl KvStore {
    /// Returns the size of all buffers, bytes.
    pub fn bytes(&self) -> usize {
        let states = self.layers.iter().flat_map(|l| l.states.values());
        let states: usize =
            states.map(|s| s.inputs.len() + s.scan.len() + s.channel_inputs.len()).sum();
        4 * (states + self.layers.iter().map(|l| l.keys.len() + l.values.len()).sum::<usize>())
    }
}

/// A stretch of tokens of another forward that a row continues.
#[derive(Debug, Clone)]
pub struct Segment {
    /// The caches of that forward.
    pub store: Arc<KvStore>,
    /// First token of the stretch in the store.
    pub start: usize,
    /// Number of tokens.
    pub len: usize,
}

/// The residual stream of a finished forward, `[tokens, d_model]` at each place.
#[derive(Debug, Default)]
pub struct Residuals {
    /// Before each layer and, as the last element, after the last layer.
    pub pre: Vec<Vec<f32>>,
    /// Between the two blocks of each layer; empty where they run in parallel.
    pub mid: Vec<Vec<f32>>,
}

/// The place where a row enters the stack. Entries are ordered from the bottom of the stack to its
/// top.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// At the input of a layer.
    Layer(usize),
    /// Between the two blocks of a layer: after the mixer, before the MLP.
    MidLayer(usize),
}

impl Entry {
    /// The input of the first layer.
    pub const START: Self = Self::Layer(0);

    /// Returns the layer of the entry.
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

/// An entry into the stack other than the embedding, and the residual stream that enters there.
#[derive(Debug, Clone)]
pub struct Restart {
    /// The place where the row enters.
    pub entry: Entry,
    /// The residual stream of the forward that the row continues.
    pub residuals: Arc<Residuals>,
    /// The token of that forward which is the row's first computed one.
    pub start: usize,
}

impl Restart {
    /// Returns the residual stream at an entry, `[tokens, d_model]`, from the row's first token on;
    /// `None` if it was not kept there or is shorter.
    pub fn residual(&self, entry: Entry, tokens: usize, d_model: usize) -> Option<&[f32]> {
        let residuals = match entry {
            Entry::Layer(layer) => self.residuals.pre.get(layer),
            Entry::MidLayer(layer) => self.residuals.mid.get(layer),
        };
        residuals?.get(self.start * d_model..(self.start + tokens) * d_model)
    }
}

/// One sequence of a batch: cached stretches, then the tokens to compute.
#[derive(Debug, Clone, Default)]
pub struct Row {
    /// Cached stretches before the row's own tokens, in order.
    pub prefix: Vec<Segment>,
    /// The tokens to compute, at positions `prefix_len()..`.
    pub ids: Vec<u32>,
    /// The place where the row enters the stack; `None`: at the embedding.
    pub restart: Option<Restart>,
}

impl Row {
    /// Creates a row that is computed from the embedding, without a prefix.
    pub fn new(ids: impl Into<Vec<u32>>) -> Self {
        Self { ids: ids.into(), ..Self::default() }
    }

    /// Returns the number of cached positions before the row's own tokens.
    pub fn prefix_len(&self) -> usize {
        self.prefix.iter().map(|s| s.len).sum()
    }

    /// Returns the place where the row enters the stack.
    pub fn entry(&self) -> Entry {
        self.restart.as_ref().map_or(Entry::START, |r| r.entry)
    }
}

/// Strips the padding of a batch: row `r` keeps `ids[r]` where `mask[r]` is true. The logits of
/// token `i` of a stripped row belong to the `i`-th true position of its mask, whichever side the
/// padding was on.
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
