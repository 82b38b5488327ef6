//! The evaluator over a model: single forwards, cached forwards, activations, means and routing of
//! the unedited model. `observe.rs` turns requests into few of these.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use rand::Rng as _;

use super::activations::{Activations, Means};
use super::cache::{CachedForward, ForwardCache};
use super::lower::{Baselines, Lowering, Place, Routing};
use super::plan::Plan;
use crate::edit::{Component, Edit, Trial};
use crate::error::{Error, Result};
use crate::model::batch::{Residuals, Row};
use crate::model::hooks::Site;
use crate::model::{Forward, Model, Pooled};
use crate::rng;

/// Answers requests with a model.
///
/// It can be shared between threads: no lock is held while a forward is computed.
pub struct ModelEvaluator<'m> {
    /// The model that is run.
    pub model: &'m Model,
    forwards: Mutex<ForwardCache>,
    pub(super) means: OnceLock<Arc<Means>>,
    pub(super) stretches: Mutex<Vec<(u64, Arc<Activations>)>>,
    routing: Mutex<Vec<(Trial, Arc<Routing>)>>,
    projections: Vec<f32>,
    tokens: AtomicU64,
}

/// The number of baselines whose routing is remembered.
const ROUTINGS: usize = 8;

/// The number of bits of [`Observation::sketch`](super::Observation::sketch).
const SKETCH_BITS: usize = 64;

impl<'m> ModelEvaluator<'m> {
    /// Creates an evaluator with empty caches.
    pub fn new(model: &'m Model) -> Self {
        let mut rng = rng::stream(0, "sketch");
        let projections = (0..SKETCH_BITS * model.config.hidden_size)
            .map(|_| rng.random_range(-1.0..1.0))
            .collect();
        Self {
            model,
            forwards: Mutex::default(),
            means: OnceLock::new(),
            stretches: Mutex::default(),
            routing: Mutex::default(),
            projections,
            tokens: AtomicU64::new(0),
        }
    }

    /// Returns the number of tokens that went through layers so far; a cached prefix costs none.
    pub fn tokens(&self) -> u64 {
        self.tokens.load(Ordering::Relaxed)
    }

    /// Returns a row that continues the first `first` tokens of a sequence, which come from a plain
    /// cached forward.
    pub(super) fn row_from(&self, ids: &[u32], first: usize) -> Result<Row> {
        if first >= ids.len() {
            return Err(Error::request(format!("position {first} of {} tokens", ids.len())));
        }
        let mut row = Row::new(&ids[first..]);
        if first == 0 {
            return Ok(row);
        }
        row.prefix = match self.start_of(&ids[..first]).filter(|(_, shared)| *shared == first) {
            Some((start, _)) => start.prefix(first),
            None => self.cached_forward(&ids[..first], &[])?.prefix(first),
        };
        Ok(row)
    }

    /// Returns the plain cached forward that a sequence has the longest start in common with, and
    /// how long that is. States are kept at a few positions only, so where there are any, `None`.
    pub(super) fn start_of(&self, ids: &[u32]) -> Option<(Arc<CachedForward>, usize)> {
        let continues = !self.model.config.is_recurrent();
        continues.then(|| lock(&self.forwards).longest_start(ids)).flatten()
    }

    /// Returns the row of a plan that starts from no forward of its own: it continues any that
    /// begins like it.
    pub(super) fn lone_row(&self, plan: &Plan) -> Row {
        match self.start_of(&plan.layout.ids[..plan.plain]).filter(|(_, shared)| *shared > 0) {
            Some((cached, shared)) => plan.row_after(&cached, shared),
            None => plan.row(None, &self.model.config),
        }
    }

    /// Returns the router logits of a trial without edits; the last few trials are remembered.
    pub(super) fn baseline_routing(&self, baseline: &Trial) -> Result<Arc<Routing>> {
        let known = |known: &[(Trial, Arc<Routing>)]| {
            known.iter().find(|(trial, _)| trial == baseline).map(|(_, routing)| routing.clone())
        };
        if let Some(routing) = known(&lock(&self.routing)) {
            return Ok(routing);
        }
        let ids = baseline.layout().ids;
        self.model.check_ids(&ids)?;
        let mut forward = Forward { rows: vec![Row::new(ids)], ..Forward::default() };
        let sparse = (0..self.model.config.num_hidden_layers)
            .filter(|layer| self.model.config.is_sparse(*layer));
        forward.hooks.capture = sparse.map(|layer| (layer, Site::RouterLogits)).collect();
        let captured = self.forward(&forward)?.captured;
        let routing =
            Arc::new(captured.into_iter().map(|((layer, _), logits)| (layer, logits)).collect());
        let mut kept = lock(&self.routing);
        kept.truncate(ROUTINGS - 1);
        kept.insert(0, (baseline.clone(), Arc::clone(&routing)));
        Ok(routing)
    }

    /// Runs a forward pass and counts its tokens.
    pub(super) fn forward(&self, forward: &Forward) -> Result<crate::model::Output<Pooled>> {
        self.tokens
            .fetch_add(forward.rows.iter().map(|r| r.ids.len() as u64).sum(), Ordering::Relaxed);
        self.model.forward(forward)
    }

    /// Returns the forward of a sequence with these lesions (none: a plain one), if it is cached.
    pub(super) fn kept_forward(&self, ids: &[u32], lesions: &[Edit]) -> Option<Arc<CachedForward>> {
        lock(&self.forwards).get(ids, lesions)
    }

    /// Computes the plain forward of a sequence, unless it is cached: what is asked for next and
    /// begins like it starts from there.
    ///
    /// # Errors
    /// [`Error::Request`] for ids that the model does not have.
    pub fn keep_forward(&self, ids: &[u32]) -> Result<()> {
        self.cached_forward(ids, &[]).map(drop)
    }

    /// Returns the forward of a sequence with these lesions (none: a plain one), from the cache or
    /// computed.
    ///
    /// The cache is not locked while the forward is computed, because lowering the lesions can ask
    /// for another one: the forward whose state [`Edit::CarryState`] carries over.
    pub(super) fn cached_forward(
        &self,
        ids: &[u32],
        lesions: &[Edit],
    ) -> Result<Arc<CachedForward>> {
        self.model.check_ids(ids)?;
        if let Some(cached) = self.kept_forward(ids, lesions) {
            return Ok(cached);
        }
        let start = lesions.is_empty().then(|| self.start_of(ids)).flatten();
        let start = start.map(|(start, shared)| (start, shared.min(ids.len().saturating_sub(1))));
        let shared = start.as_ref().map_or(0, |(_, shared)| *shared);
        let prefix = start.as_ref().map_or_else(Vec::new, |(start, _)| start.prefix(shared));
        let mut forward = Forward {
            rows: vec![Row { prefix, ..Row::new(&ids[shared..]) }],
            keep_kv: lesions.is_empty(),
            ..Forward::default()
        };
        let trial = Trial::new(ids, []).with_edits(lesions.to_vec());
        let (layout, place) =
            (trial.layout(), Place { tokens: 0..ids.len() - shared, position: shared, layer: 0 });
        Lowering {
            baselines: self,
            trial: &trial,
            layout: &layout,
            place,
            hooks: &mut forward.hooks,
        }
        .run(&[])?;
        let sites = [Site::ResidPre, Site::ResidMid, Site::RouterLogits];
        forward.hooks.capture = (0..self.model.config.num_hidden_layers)
            .flat_map(|l| sites.map(|site| (l, site)))
            .collect();
        let output = self.forward(&forward)?;
        let mut residuals = Residuals::default();
        let (mut router_logits, mut routed) = (BTreeMap::new(), BTreeMap::new());
        for ((layer, site), mut values) in output.captured {
            match (site, &self.model.config.experts) {
                (Site::ResidPre, _) => residuals.pre.push(values),
                (Site::ResidMid, _) => residuals.mid.push(values),
                (_, Some(experts)) => {
                    if let Some(before) =
                        start.as_ref().and_then(|(s, _)| s.router_logits.get(&layer))
                    {
                        values = [&before[..shared * experts.num_experts], &values].concat();
                    }
                    routed.insert(layer, crate::model::tokens_of_experts(&values, experts));
                    router_logits.insert(layer, values);
                }
                (_, None) => {}
            }
        }
        residuals.pre.push(output.residual.to_vec());
        // Only plain forwards are continued by other tokens.
        let mut kv = output.kv.unwrap_or_default();
        if let Some((start, shared)) = start.filter(|(_, shared)| *shared > 0) {
            let (all, streams) = start.continued(shared, &kv, &residuals);
            (kv, residuals) = (Arc::new(all), streams);
        }
        let residuals = Arc::new(residuals);
        let cached = Arc::new(CachedForward {
            ids: ids.to_vec(),
            lesions: lesions.to_vec(),
            kv,
            residuals,
            router_logits,
            routed,
        });
        lock(&self.forwards).insert(cached.clone());
        Ok(cached)
    }

    /// Returns the signs of random projections of a residual vector, `[d_model]`, one bit each.
    pub(super) fn sketch(&self, residual: &[f32]) -> u64 {
        let signs = self.projections.chunks_exact(residual.len()).enumerate();
        signs.fold(0, |bits, (i, u)| {
            let dot: f32 = u.iter().zip(residual).map(|(a, b)| a * b).sum();
            bits | (u64::from(dot > 0.0) << i)
        })
    }
}

impl Baselines for ModelEvaluator<'_> {
    fn model(&self) -> &Model {
        self.model
    }

    fn mean_output(&self, component: &Component) -> Result<Arc<[f32]>> {
        self.mean_output(component)
    }

    fn resampled(
        &self,
        component: &Component,
        seed: u64,
        positions: Range<usize>,
    ) -> Result<Arc<[f32]>> {
        self.resampled(component, seed, positions)
    }

    fn plain_forward(&self, ids: &[u32]) -> Result<Arc<CachedForward>> {
        self.cached_forward(ids, &[])
    }

    fn router_logits(&self, baseline: &Trial) -> Result<Arc<Routing>> {
        self.baseline_routing(baseline)
    }
}

/// Locks a mutex even if another thread panicked while it held it: what these locks protect is
/// consistent at all times.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::{Barrier, mpsc};
    use std::time::Duration;

    use super::*;

    fn recurrent() -> Model {
        Model::load(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/mamba")).unwrap()
    }

    /// The cache stayed locked through a whole forward, and lowering that asked for another cached
    /// forward waited for itself.
    #[test]
    fn a_forward_that_carries_a_state_over_does_not_wait_for_itself() {
        let (sender, receiver) = mpsc::channel();
        let (ids, from) = ([5, 17, 42, 8, 23, 61], vec![9, 33, 70]);
        let carry = Edit::CarryState {
            component: Component::State { layer: 0, part: None },
            position: 2,
            from: from.clone(),
        };
        let (edits, source) = (vec![carry], from);
        std::thread::spawn(move || {
            let model = recurrent();
            let evaluator = ModelEvaluator::new(&model);
            let plain = evaluator.cached_forward(&ids, &[]).unwrap();
            let carried = evaluator.cached_forward(&ids, &edits).unwrap();
            let source = evaluator.kept_forward(&source, &[]);
            sender.send((plain, carried, source, model.config.hidden_size)).unwrap();
        });
        let received = receiver.recv_timeout(Duration::from_secs(120));
        let (plain, carried, source, d) = received.expect("the forward waits for itself");
        assert!(source.is_some(), "the forward whose state is carried over is cached too");
        let output = |cached: &CachedForward, position: usize| {
            cached.residuals.pre.last().unwrap()[position * d..][..d].to_vec()
        };
        assert_eq!(output(&plain, 1), output(&carried, 1), "before the edit nothing differs");
        assert_ne!(output(&plain, 3), output(&carried, 3), "the state after position 2 is another");
    }

    /// To the bit, whatever the attention, the positions and the routing; also where all but the
    /// last token is shared, or more than all.
    #[test]
    fn a_forward_that_continues_another_is_as_if_it_were_made_alone() {
        let ids: Vec<u32> = (0..12).map(|i| (i * 37 + 5) % 90).collect();
        for name in ["llama", "olmoe", "gpt2", "gpt-neox", "deepseek-v2", "gemma3"] {
            let path = format!("{}/tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"));
            let model = Model::load(&path).unwrap();
            for kept in [&ids[..7], &[&ids[..5], &[1, 2, 3]].concat(), &[&ids[..], &[4]].concat()] {
                let evaluator = ModelEvaluator::new(&model);
                evaluator.keep_forward(kept).unwrap();
                let before = evaluator.tokens();
                let continued = evaluator.cached_forward(&ids, &[]).unwrap();
                let computed = evaluator.tokens() - before;
                let shared = kept.iter().zip(&ids).take_while(|(a, b)| a == b).count();
                assert_eq!(computed as usize, ids.len() - shared.min(ids.len() - 1), "{name}");
                let alone = ModelEvaluator::new(&model).cached_forward(&ids, &[]).unwrap();
                assert_eq!(continued.residuals.pre, alone.residuals.pre, "{name}");
                assert_eq!(continued.residuals.mid, alone.residuals.mid, "{name}");
                assert_eq!(continued.router_logits, alone.router_logits, "{name}");
                assert_eq!(continued.routed, alone.routed, "{name}");
                for (a, b) in continued.kv.layers.iter().zip(&alone.kv.layers) {
                    assert_eq!((&a.keys, &a.values), (&b.keys, &b.values), "{name}");
                }
            }
        }
    }

    #[test]
    fn threads_that_ask_for_one_forward_get_equal_values() {
        let model = recurrent();
        let evaluator = ModelEvaluator::new(&model);
        let (ids, together) = ([5, 17, 42, 8, 23, 61], Barrier::new(2));
        let ask = || {
            together.wait();
            evaluator.cached_forward(&ids, &[]).unwrap()
        };
        let (one, other) = std::thread::scope(|scope| {
            let other = scope.spawn(ask);
            (ask(), other.join().unwrap())
        });
        assert_eq!(one.residuals.pre, other.residuals.pre);
        assert!(one.residuals.pre.iter().flatten().any(|x| *x != 0.0));
        let kept = evaluator.kept_forward(&ids, &[]).unwrap();
        assert_eq!(kept.residuals.pre, one.residuals.pre);
        // Whoever came second replaced an equal forward and did not add one.
        assert_eq!(lock(&evaluator.forwards).len(), 1);
    }
}
