//! The planner: which part of which trial need not be computed again.
//!
//! Two things are shared. Token and embedding edits leave the positions before the first of them as
//! they were: those come from the keys and values of the unedited run. Lesions and patches leave
//! what is below the lowest of them, and before the first, as it was ([`Reach`]): those rows resume
//! from the residual stream of the same tokens' unlesioned run. Rows that have all but their
//! highest lesions in common resume below those, from a run with the lesions they share. ForwardCache are
//! kept for later calls, most recent first, up to a budget of bytes.

use std::borrow::Cow;
use std::ops::Range;

use super::cache::CachedForward;
use super::observation::Request;
use super::reach::{Reach, entry_of, layer_of};
use crate::edit::{Edit, Layout, Trial};
use crate::model::batch::{Entry, Restart, Row, STATE_STRIDE};
use crate::model::{Config, Model};

/// What a request needs from a run, before any run exists.
pub struct Plan {
    pub layout: Layout,
    pub reach: Reach,
    /// How many leading tokens are those of the unedited sequence, at most up to the first one
    /// read.
    pub shared: usize,
    /// Ids of the run it could start from.
    pub source: Vec<u32>,
    /// Where its highest lesions take hold, and the lesions below those: a run with the latter
    /// could be resumed there.
    pub below: Option<(Entry, Vec<Edit>)>,
}

impl Plan {
    pub fn new(request: &Request, config: &Config) -> Self {
        let trial = &request.trial;
        let layout = trial.layout();
        let reach = Reach::new(request, &layout, config);
        if reach.entry.is_some() {
            // Routing and recurrent states are observed on the way, and a row has only what it
            // computes itself.
            let shares =
                request.patches.is_empty() && config.experts.is_none() && !config.is_recurrent();
            let below = if shares { below(trial, config) } else { None };
            return Self { source: layout.ids.clone(), layout, reach, shared: 0, below };
        }
        let source: Vec<u32> =
            trial.base.iter().chain(trial.continuation.iter()).copied().collect();
        let common = source.iter().zip(&layout.ids).take_while(|(a, b)| a == b).count();
        let embedded = trial.edits.iter().filter(|e| e.changes_embedding());
        let first = embedded.filter_map(|e| layout.at(e.position()?)).min();
        let shared =
            common.min(first.unwrap_or(usize::MAX)).min(layout.prompt_len.saturating_sub(1));
        let shared = whole_strides(shared, config);
        Self { layout, reach, shared, source, below: None }
    }

    /// Whether a run of `source` would save this request anything.
    pub fn gains(&self) -> bool {
        if self.reach.entry.is_some() { self.reach.spares() } else { self.shared > 0 }
    }

    /// Where the continuation is predicted: the last prompt token, and all of the continuation but
    /// the last.
    pub fn read_positions(&self) -> Range<usize> {
        self.layout.prompt_len - 1..self.computed().len()
    }

    /// The tokens that are computed: nothing reads what follows the last token of a continuation.
    fn computed(&self) -> &[u32] {
        let ids = &self.layout.ids;
        &ids[..(ids.len() - 1).max(self.layout.prompt_len)]
    }

    /// Layers saved by resuming from a run with the lower lesions, over a plain one.
    pub fn saved_below(&self) -> usize {
        self.below
            .as_ref()
            .zip(self.reach.entry)
            .map_or(0, |((highest, _), lowest)| highest.layer() - lowest.layer())
    }

    /// The trial as a row that is resumed at layer `first` has it: without the lesions that the run
    /// had below.
    pub fn above<'t>(&self, trial: &'t Trial, first: usize, config: &Config) -> Cow<'t, Trial> {
        if self.below.is_none() || first == 0 {
            return Cow::Borrowed(trial);
        }
        let kept = |edit: &&Edit| !matches!(edit, Edit::Lesion { component, .. } if layer_of(component, config) < first);
        Cow::Owned(trial.with_edits(trial.edits.iter().filter(kept).cloned().collect()))
    }

    /// The row, starting from `run` where there is one: a plain run, or one with the lesions
    /// [`Self::below`].
    pub fn row(&self, run: Option<&CachedForward>, config: &Config) -> Row {
        let ids = self.computed();
        let Some(run) = run else { return Row::new(ids) };
        let (entry, start) = match (&self.below, self.reach.entry) {
            (Some((highest, _)), _) if !run.lesions.is_empty() => (*highest, 0),
            (_, Some(entry)) => {
                (entry, whole_strides(self.reach.start(run).min(ids.len() - 1), config))
            }
            (_, None) => (Entry::START, self.shared),
        };
        let restart = (entry > Entry::START).then(|| Restart {
            entry,
            residuals: run.residuals.clone(),
            start,
        });
        Row { prefix: run.prefix(start), ids: ids[start..].to_vec(), restart }
    }

    /// The lowest layer that its lesions touch, and stretches of the row's positions that leave it
    /// as in `run`.
    pub fn untouched(
        &self,
        run: &CachedForward,
        positions: Range<usize>,
    ) -> Option<(usize, Vec<Range<usize>>)> {
        if run.lesions.is_empty() { self.reach.untouched(run, positions) } else { None }
    }
}

/// A row can start where a state was kept.
fn whole_strides(position: usize, config: &Config) -> usize {
    if config.is_recurrent() { position - position % STATE_STRIDE } else { position }
}

/// Where the highest lesions take hold, and those of lower layers, where there are any. For trials
/// whose only edits are lesions at every position: others count positions of a sequence that a run
/// does not know.
fn below(trial: &Trial, config: &Config) -> Option<(Entry, Vec<Edit>)> {
    let entries = trial.edits.iter().map(|edit| match edit {
        Edit::Lesion { component, position: None, .. } => Some(entry_of(component, config)),
        _ => None,
    });
    let entries = entries.collect::<Option<Vec<Entry>>>()?;
    let layer = entries.iter().map(|entry| entry.layer()).max()?;
    let highest = entries.iter().copied().filter(|entry| entry.layer() == layer).min()?;
    let lower: Vec<Edit> = trial
        .edits
        .iter()
        .zip(&entries)
        .filter(|(_, entry)| entry.layer() < layer)
        .map(|(e, _)| e.clone())
        .collect();
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
        && (reference.positions() != continuation.max(1)
            || reference.vocabulary != model.config.vocab_size)
    {
        return Err(Error::request(format!(
            "a reference of {} positions for {} read positions",
            reference.positions(),
            continuation.max(1)
        )));
    }
    model.check_ids(&layout.ids)
}
