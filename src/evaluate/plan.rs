//! The planner: which part of which trial need not be computed again.
//!
//! Two things are shared. Token and embedding edits leave the positions before the first of them as they
//! were: those come from the keys and values of the unedited run. Lesions and patches leave the layers
//! below the lowest of them as they were: those rows resume from the residual stream of the same tokens'
//! unlesioned run. Rows that have all but their highest lesions in common resume below those, from a run with
//! the lesions they share. Runs are kept for later calls, most recent first, up to a budget of bytes.

use std::borrow::Cow;
use std::sync::Arc;

use super::activations::place;
use super::observation::Request;
use crate::edit::{Component, Edit, Layout, Trial};
use crate::model::batch::{KvStore, Restart, Row, STATE_STRIDE, Segment};
use crate::model::{Config, Model};

/// A finished forward of a sequence, for others to start from.
pub struct Run {
    pub ids: Vec<u32>,
    /// None: a plain run.
    pub lesions: Vec<Edit>,
    pub kv: Arc<KvStore>,
    /// Residual stream entering every layer, `[tokens, d_model]` each.
    pub residuals: Arc<Vec<Vec<f32>>>,
}

impl Run {
    fn bytes(&self) -> usize {
        self.kv.bytes() + 4 * self.residuals.iter().map(Vec::len).sum::<usize>()
    }
}

/// The runs kept, most recently used last.
#[derive(Default)]
pub struct Runs(Vec<Arc<Run>>);

/// What kept runs may take.
const RUN_BYTES: usize = 192 << 20;

impl Runs {
    pub fn get(&mut self, ids: &[u32], lesions: &[Edit]) -> Option<Arc<Run>> {
        let at = self.0.iter().position(|r| r.ids == ids && r.lesions == lesions)?;
        let run = self.0.remove(at);
        self.0.push(run.clone());
        Some(run)
    }

    pub fn insert(&mut self, run: Arc<Run>) {
        self.0.push(run);
        while self.0.len() > 1 && self.0.iter().map(|r| r.bytes()).sum::<usize>() > RUN_BYTES {
            self.0.remove(0);
        }
    }
}

/// What a request needs from a run, before any run exists.
pub struct Plan {
    pub layout: Layout,
    /// First layer that its lesions or patches touch (`None`: it has none).
    pub lowest: Option<usize>,
    /// How many leading tokens are those of the unedited sequence, at most up to the first one read.
    pub shared: usize,
    /// Ids of the run it could start from.
    pub source: Vec<u32>,
    /// Where its highest lesions are, and the lesions below those: a run with the latter could be resumed there.
    pub below: Option<(usize, Vec<Edit>)>,
}

impl Plan {
    pub fn new(request: &Request, config: &Config) -> Self {
        let trial = &request.trial;
        let layout = trial.layout();
        let lowest = lowest_layer(&trial.edits, request.patches.iter().map(|p| &p.component), config);
        if lowest.is_some() {
            let embedded = trial.edits.iter().any(|e| matches!(e, Edit::Embedding { .. }));
            // An embedding edit is at layer 0, below every lesion: such a row runs whole.
            let lowest = if embedded { Some(0) } else { lowest };
            // Routing and recurrent states are observed on the way, and a row has only what it computes itself.
            let shares = request.patches.is_empty() && config.experts.is_none() && !config.is_recurrent();
            let below = if shares { below(trial, config) } else { None };
            return Self { source: layout.ids.clone(), layout, lowest, shared: 0, below };
        }
        let source: Vec<u32> = trial.base.iter().chain(trial.continuation.iter()).copied().collect();
        let common = source.iter().zip(&layout.ids).take_while(|(a, b)| a == b).count();
        let embedded = trial.edits.iter().filter(|e| matches!(e, Edit::Embedding { .. }));
        let first = embedded.filter_map(|e| layout.at(e.position()?)).min();
        let mut shared = common.min(first.unwrap_or(usize::MAX)).min(layout.prompt_len.saturating_sub(1));
        if config.is_recurrent() {
            shared -= shared % STATE_STRIDE; // a row can start where a state was kept
        }
        Self { layout, lowest, shared, source, below: None }
    }

    /// Whether a run of `source` would save this request anything.
    pub fn gains(&self) -> bool {
        self.lowest.map_or(self.shared > 0, |layer| layer > 0)
    }

    /// The tokens that are computed: nothing reads what follows the last token of a continuation.
    fn computed(&self) -> &[u32] {
        let ids = &self.layout.ids;
        &ids[..(ids.len() - 1).max(self.layout.prompt_len)]
    }

    /// Layers saved by resuming from a run with the lower lesions, over a plain one.
    pub fn saved_below(&self) -> usize {
        self.below.as_ref().zip(self.lowest).map_or(0, |((highest, _), lowest)| highest - lowest)
    }

    /// The trial as a row that is resumed at layer `first` has it: without the lesions that the run had below.
    pub fn above<'t>(&self, trial: &'t Trial, first: usize, config: &Config) -> Cow<'t, Trial> {
        if self.below.is_none() || first == 0 {
            return Cow::Borrowed(trial);
        }
        let kept = |edit: &&Edit| !matches!(edit, Edit::Lesion { component, .. } if layer_of(component, config) < first);
        Cow::Owned(trial.with_edits(trial.edits.iter().filter(kept).cloned().collect()))
    }

    /// The row, starting from `run` where there is one: a plain run, or one with the lesions [`Self::below`].
    pub fn row(&self, run: Option<&Run>) -> Row {
        let ids = self.computed();
        let lowest = match (run, &self.below) {
            (Some(run), Some((highest, _))) if !run.lesions.is_empty() => Some(*highest),
            _ => self.lowest,
        };
        match (run, lowest) {
            (Some(run), Some(layer)) if layer > 0 => Row {
                prefix: vec![],
                ids: ids.to_vec(),
                restart: Some(Restart { layer, residuals: run.residuals.clone(), start: 0 }),
            },
            (Some(run), None) if self.shared > 0 => {
                let prefix = vec![Segment { store: run.kv.clone(), start: 0, len: self.shared }];
                Row { prefix, ids: ids[self.shared..].to_vec(), restart: None }
            }
            _ => Row::new(ids),
        }
    }
}

fn layer_of(component: &Component, config: &Config) -> usize {
    place(component, config).map_or(component.layer(), |(layer, _, _)| layer)
}

fn lowest_layer<'a>(edits: &'a [Edit], patched: impl Iterator<Item = &'a Component>, config: &Config) -> Option<usize> {
    let lesioned = edits.iter().filter_map(|edit| match edit {
        Edit::Lesion { component, .. } | Edit::CarryState { component, .. } => Some(layer_of(component, config)),
        Edit::FreezeRouting => (0..config.num_hidden_layers).find(|layer| config.is_sparse(*layer)),
        _ => None,
    });
    lesioned.chain(patched.map(|c| layer_of(c, config))).min()
}

/// The highest layer with a lesion, and the lesions below it, where there are any. For trials whose only edits are
/// lesions at every position: others count positions of a sequence that a run does not know.
fn below(trial: &Trial, config: &Config) -> Option<(usize, Vec<Edit>)> {
    let layers = trial.edits.iter().map(|edit| match edit {
        Edit::Lesion { component, position: None, .. } => Some(layer_of(component, config)),
        _ => None,
    });
    let layers = layers.collect::<Option<Vec<usize>>>()?;
    let highest = layers.iter().copied().max()?;
    let lower: Vec<Edit> =
        trial.edits.iter().zip(&layers).filter(|(_, layer)| **layer < highest).map(|(e, _)| e.clone()).collect();
    (!lower.is_empty()).then_some((highest, lower))
}

/// Checks a request against the model before anything is computed.
pub fn check(model: &Model, request: &Request, layout: &Layout) -> crate::Result<()> {
    use crate::error::Error;
    if layout.prompt_len == 0 {
        return Err(Error::request("a trial needs at least one prompt token"));
    }
    let continuation = layout.ids.len() - layout.prompt_len;
    if let Some(reference) = &request.reference
        && (reference.positions() != continuation.max(1) || reference.vocabulary != model.config.vocab_size)
    {
        return Err(Error::request(format!(
            "a reference of {} positions for {} read positions",
            reference.positions(),
            continuation.max(1)
        )));
    }
    model.check_ids(&layout.ids)
}
