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
use super::reach::{Reach, entry_of};
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
    /// The number of leading tokens that are as in a plain forward of the same tokens, at most up
    /// to the first one read: they may come from any forward that begins like them.
    pub plain: usize,
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
            let shares = config.experts.is_none() && !config.is_recurrent();
            let below = if shares { below(request, config) } else { None };
            let plain = reach.first().min(layout.prompt_len.saturating_sub(1));
            return Self { source: layout.ids.clone(), layout, reach, shared: 0, below, plain };
        }
        let source: Vec<u32> =
            trial.base.iter().chain(trial.continuation.iter()).copied().collect();
        let common = source.iter().zip(&layout.ids).take_while(|(a, b)| a == b).count();
        let embedded = trial.edits.iter().filter(|e| e.changes_embedding());
        let first = embedded.filter_map(|e| layout.at(e.position()?)).min();
        let plain = first.unwrap_or(usize::MAX).min(layout.prompt_len.saturating_sub(1));
        let shared = whole_strides(common.min(plain), config);
        Self { layout, reach, shared, source, below: None, plain }
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
        let kept = |edit: &&Edit| inside(edit, config).is_none_or(|entry| entry.layer() >= first);
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

    /// Builds the row that continues another forward: one that has `shared` tokens in common with
    /// [`plain`](Self::plain) ones of this.
    pub fn row_after(&self, cached: &CachedForward, shared: usize) -> Row {
        Row { prefix: cached.prefix(shared), ..Row::new(&self.computed()[shared..]) }
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

/// Returns the entry at which a row could resume and the lesions and steering of lower layers, if
/// there are any: the entry of the lowest patches or, where there are none, of the highest edits.
/// Only for trials that are made of lesions and steering alone: other edits make a sequence that a
/// cached forward does not know.
fn below(request: &Request, config: &Config) -> Option<(Entry, Vec<Edit>)> {
    let trial = &request.trial;
    let entries = trial.edits.iter().map(|edit| inside(edit, config));
    let entries = entries.collect::<Option<Vec<Entry>>>()?;
    let patched = request.patches.iter().map(|patch| entry_of(&patch.component, config)).min();
    let layer = match patched {
        Some(entry) => entry.layer(),
        None => entries.iter().map(|entry| entry.layer()).max()?,
    };
    let here = entries.iter().copied().chain(patched).filter(|entry| entry.layer() == layer);
    let highest = here.min()?;
    let lower: Vec<Edit> = trial
        .edits
        .iter()
        .zip(&entries)
        .filter(|(_, entry)| entry.layer() < layer)
        .map(|(e, _)| e.clone())
        .collect();
    (!lower.is_empty()).then_some((highest, lower))
}

/// Returns the entry of an edit that changes nothing but what a component or the residual stream
/// holds; `None` for others.
fn inside(edit: &Edit, config: &Config) -> Option<Entry> {
    match edit {
        Edit::Steering { steering, .. } => Some(Entry::Layer(steering.site.layer)),
        _ => edit.lesioned().map(|component| entry_of(component, config)),
    }
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
