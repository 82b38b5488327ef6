//! Finished forwards of whole sequences, kept as starting points for other rows: keys, values,
//! recurrent states and the residual stream at every layer.
//!
//! The cache keeps the most recently used forwards within a budget of bytes, across calls.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::edit::Edit;
use crate::model::batch::{KvStore, LayerCache, Residuals, Segment};

/// A finished forward of a sequence, from which other rows can start.
pub struct CachedForward {
    /// The token ids of the sequence.
    pub ids: Vec<u32>,
    /// The lesions that held in the forward; none in a plain one.
    pub lesions: Vec<Edit>,
    /// Keys, values and states; empty for a forward with lesions, from which no row continues.
    pub kv: Arc<KvStore>,
    /// The residual stream entering and between the blocks of every layer, `[tokens, d_model]`
    /// each, and leaving the last.
    pub residuals: Arc<Residuals>,
    /// The logits of every router, `[tokens, num_experts]`, by layer.
    pub router_logits: BTreeMap<usize, Vec<f32>>,
    /// The tokens routed to each expert, ascending, by layer.
    pub routed: BTreeMap<usize, Vec<Vec<usize>>>,
}

impl CachedForward {
    /// Puts the first `shared` positions of this forward before another one that continues it.
    /// There are no states in it.
    pub fn continued(&self, shared: usize, kv: &KvStore, rest: &Residuals) -> (KvStore, Residuals) {
        let before = |all: &[f32], rest: &[f32]| {
            let width = all.len() / self.ids.len();
            [&all[..shared * width], rest].concat()
        };
        let layer = |(all, rest): (&LayerCache, &LayerCache)| LayerCache {
            keys: before(&all.keys, &rest.keys),
            values: before(&all.values, &rest.values),
            states: BTreeMap::new(),
        };
        let layers = self.kv.layers.iter().zip(&kv.layers).map(layer).collect();
        let streams = |all: &[Vec<f32>], rest: &[Vec<f32>]| {
            all.iter().zip(rest).map(|(all, rest)| before(all, rest)).collect()
        };
        let residuals = Residuals {
            pre: streams(&self.residuals.pre, &rest.pre),
            mid: streams(&self.residuals.mid, &rest.mid),
        };
        (KvStore { layers }, residuals)
    }

    fn bytes(&self) -> usize {
        let values =
            self.residuals.pre.iter().chain(&self.residuals.mid).chain(self.router_logits.values());
        let routed = self.routed.values().flatten();
        self.kv.bytes()
            + 4 * values.map(Vec::len).sum::<usize>()
            + 8 * routed.map(Vec::len).sum::<usize>()
    }

    /// Returns the prefix of a row that starts at position `len`: the keys, values and states of
    /// all positions before it.
    pub fn prefix(&self, len: usize) -> Vec<Segment> {
        (len > 0).then(|| Segment { store: self.kv.clone(), start: 0, len }).into_iter().collect()
    }

    /// Returns the positions that are routed to an expert, ascending.
    pub fn routed_to(&self, layer: usize, expert: usize) -> &[usize] {
        self.routed.get(&layer).and_then(|experts| experts.get(expert)).map_or(&[], Vec::as_slice)
    }
}

/// The cached forwards, most recently used last.
#[derive(Default)]
pub struct ForwardCache(Vec<Arc<CachedForward>>);

/// The memory that cached forwards may take together.
const CACHE_BYTES: usize = 192 << 20;

impl ForwardCache {
    /// Returns the number of cached forwards.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns the forward of a sequence with these lesions, if it is cached, and marks it as used.
    pub fn get(&mut self, ids: &[u32], lesions: &[Edit]) -> Option<Arc<CachedForward>> {
        let at = self.0.iter().position(|f| f.ids == ids && f.lesions == lesions)?;
        let forward = self.0.remove(at);
        self.0.push(forward.clone());
        Some(forward)
    }

    /// Returns the plain forward that has the longest start in common with a sequence, and how long
    /// that is.
    pub fn longest_start(&self, ids: &[u32]) -> Option<(Arc<CachedForward>, usize)> {
        let shared = |forward: &CachedForward| {
            forward.ids.iter().zip(ids).take_while(|(a, b)| a == b).count()
        };
        let plain = self.0.iter().filter(|forward| forward.lesions.is_empty());
        let longest = plain.map(|forward| (forward, shared(forward))).max_by_key(|(_, len)| *len);
        longest.map(|(forward, len)| (forward.clone(), len))
    }

    /// Adds a forward, in the place of an equal one that was added meanwhile, and drops the least
    /// recently used ones beyond the budget. The newest always stays.
    pub fn insert(&mut self, forward: Arc<CachedForward>) {
        self.0.retain(|f| f.ids != forward.ids || f.lesions != forward.lesions);
        self.0.push(forward);
        while self.0.len() > 1 && self.0.iter().map(|f| f.bytes()).sum::<usize>() > CACHE_BYTES {
            self.0.remove(0);
        }
    }
}
