//! Finished forwards that others start from: a sequence's keys, values, states and residual stream.
//! Kept for later calls, the most recently used, up to a budget of bytes.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::edit::Edit;
use crate::model::batch::{KvStore, Residuals, Segment};

/// A finished forward of a sequence, for others to start from.
pub struct CachedForward {
    pub ids: Vec<u32>,
    /// None: a plain run.
    pub lesions: Vec<Edit>,
    pub kv: Arc<KvStore>,
    pub residuals: Arc<Residuals>,
    /// Logits of every router, `[tokens, num_experts]` by layer; of a plain run.
    pub router_logits: BTreeMap<usize, Vec<f32>>,
    /// The tokens of every expert, ascending, by layer.
    pub routed: BTreeMap<usize, Vec<Vec<usize>>>,
}

impl CachedForward {
    fn bytes(&self) -> usize {
        let values =
            self.residuals.pre.iter().chain(&self.residuals.mid).chain(self.router_logits.values());
        let routed = self.routed.values().flatten();
        self.kv.bytes()
            + 4 * values.map(Vec::len).sum::<usize>()
            + 8 * routed.map(Vec::len).sum::<usize>()
    }

    /// What a row that begins at position `len` has before it.
    pub fn prefix(&self, len: usize) -> Vec<Segment> {
        (len > 0).then(|| Segment { store: self.kv.clone(), start: 0, len }).into_iter().collect()
    }

    /// Positions that are routed to an expert, ascending.
    pub fn routed_to(&self, layer: usize, expert: usize) -> &[usize] {
        self.routed.get(&layer).and_then(|experts| experts.get(expert)).map_or(&[], Vec::as_slice)
    }
}

/// The runs kept, most recently used last.
#[derive(Default)]
pub struct ForwardCache(Vec<Arc<CachedForward>>);

/// What kept runs may take.
const CACHE_BYTES: usize = 192 << 20;

impl ForwardCache {
    pub fn get(&mut self, ids: &[u32], lesions: &[Edit]) -> Option<Arc<CachedForward>> {
        let at = self.0.iter().position(|r| r.ids == ids && r.lesions == lesions)?;
        let run = self.0.remove(at);
        self.0.push(run.clone());
        Some(run)
    }

    pub fn insert(&mut self, run: Arc<CachedForward>) {
        self.0.push(run);
        while self.0.len() > 1 && self.0.iter().map(|r| r.bytes()).sum::<usize>() > CACHE_BYTES {
            self.0.remove(0);
        }
    }
}
