//! The planner: decides which part of a trial need not be computed again.
//!
//! Token and embedding edits change nothing before the first edited position: those positions come
//! from the keys and values of the unedited sequence's forward. Lesions and patches change nothing
//! below the lowest edited layer and before the first edited position ([`Reach`]): those rows
//! resume from the residual stream of the same tokens' plain forward. Rows that share all but their
//! highest lesions resume below those, from a forward with the lesions they share.

use std::borrow::Cow;
use std::ops::Range;

use super::cache::CachedForward;
use super::observation::Request;
use super::reach::{Reach, entry_of, layer_of};
use crate::edit::{Edit, Layout, Trial};
use crate::error::{Error, Result};
use crate::model::batch::{Entry, Restart, Row, STATE_STRIDE};
use crate::model::{Config, Model};

/// The forward that a request could start from, and how much of it.
pub struct Plan {
    /// The trial's tokens after its token edits.
    pub layout: Layout,
    /// The reach of the trial's lesions and patches.
    pub reach: Reach,
    /// The number of leading tokens that are those of the unedited sequence, at most up to the
    /// first one read.
    pub shared: usize,
    /// The token ids of the forward to start from.
    pub source: Vec<u32>,
    /// The entry of the trial's highest lesions and the lesions below it: a forward with the latter
    /// could be resumed there.
    pub below: Option<(Entry, Vec<Edit>)>,
}

impl Plan {
    /// Plans a request.
    pub fn new(request: &Request, config: &Config) -> Self {
        let trial = &request.trial;
        let layout = trial.layout();
        let reach = Reach::new(request, &layout, config);
        if reach.entry.is_some() {
            // Routing and recurrent states are observed during the forward, and only in the layers
            // that a row computes itself.
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

    /// Returns true if a plain forward of `source` would save this request anything.
    pub fn gains(&self) -> bool {
        if self.reach.entry.is_some() { self.reach.saves() } else { self.shared > 0 }
    }

    /// Returns the positions that predict the continuation: the last prompt token, and every
    /// continuation token but the last.
    pub fn read_positions(&self) -> Range<usize> {
        self.layout.prompt_len - 1..self.computed().len()
    }

    /// Returns the tokens that have to be computed: all but the last of the continuation, whose
    /// outputs are not read.
    fn computed(&self) -> &[u32] {
        let ids = &self.layout.ids;
        &ids[..(ids.len() - 1).max(self.layout.prompt_len)]
    }

    /// Returns the number of layers saved by resuming from a forward with the lower lesions instead
    /// of a plain one.
    pub fn saved_below(&self) -> usize {
        self.below
            .as_ref()
            .zip(self.reach.entry)
            .map_or(0, |((highest, _), lowest)| highest.layer() - lowest.layer())
    }

    /// Returns the trial as a row that resumes at layer `first` has it: without the lesions below,
    /// which the cached forward already had.
    pub fn above<'t>(&self, trial: &'t Trial, first: usize, config: &Config) -> Cow<'t, Trial> {
        if self.below.is_none() || first == 0 {
            return Cow::Borrowed(trial);
        }
        let kept = |edit: &&Edit| match edit {
            Edit::Lesion { component, .. } => layer_of(component, config) >= first,
            _ => true,
        };
        Cow::Owned(trial.with_edits(trial.edits.iter().filter(kept).cloned().collect()))
    }

    /// Builds the row, starting from a cached forward if there is one: a plain one, or one with the
    /// lesions of [`Self::below`].
    pub fn row(&self, start: Option<&CachedForward>, config: &Config) -> Row {
        let ids = self.computed();
        let Some(cached) = start else { return Row::new(ids) };
        let (entry, start) = match (&self.below, self.reach.entry) {
            (Some((highest, _)), _) if !cached.lesions.is_empty() => (*highest, 0),
            (_, Some(entry)) => {
                (entry, whole_strides(self.reach.start(cached).min(ids.len() - 1), config))
            }
            (_, None) => (Entry::START, self.shared),
        };
        let restart = (entry > Entry::START).then(|| Restart {
            entry,
            residuals: cached.residuals.clone(),
            start,
        });
        Row { prefix: cached.prefix(start), ids: ids[start..].to_vec(), restart }
    }

    /// Returns the lowest layer that the lesions touch, and the stretches of `positions` that leave
    /// it as in the cached forward.
    pub fn untouched(
        &self,
        cached: &CachedForward,
        positions: Range<usize>,
    ) -> Option<(usize, Vec<Range<usize>>)> {
        if cached.lesions.is_empty() { self.reach.untouched(cached, positions) } else { None }
    }
}

/// Rounds a position down to one where a row can start: on a recurrent model, where a state was
/// kept.
fn whole_strides(position: usize, config: &Config) -> usize {
    if config.is_recurrent() { position - position % STATE_STRIDE } else { position }
}

/// Returns the entry of the highest lesions and the lesions of lower layers, if there are any. Only
/// for trials whose edits are all lesions at every position: other edits count positions of a
/// sequence that a cached forward does not know.
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
///
/// # Errors
/// [`Error::Request`] for a trial without a prompt, for a reference of other
/// positions, and for ids that the model does not have.
pub fn check(model: &Model, request: &Request, layout: &Layout) -> Result<()> {
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
