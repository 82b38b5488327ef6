//! How far lesions and patches reach: where in the stack the lowest of them takes hold, and at
//! which position the first. What lies before either is as it was without them.

use std::ops::Range;

use super::activations::place;
use super::cache::CachedForward;
use super::observation::Request;
use crate::edit::{Action, Component, Edit, Layout, Matrix};
use crate::model::batch::Entry;
use crate::model::{Config, Residual};

use crate::model::hooks::Site;

pub struct Reach {
    /// Where the lowest takes hold; `None`: there is none.
    pub entry: Option<Entry>,
    /// The first position touched by any, those of `routed` left out; `usize::MAX`: none is.
    first: usize,
    /// Experts whose edits touch no token that is routed elsewhere, as (layer, expert).
    routed: Vec<(usize, usize)>,
    /// The lowest layer, if nothing but edits of `routed` takes hold there.
    sparse: Option<usize>,
}

impl Reach {
    pub fn new(request: &Request, layout: &Layout, config: &Config) -> Self {
        let trial = &request.trial;
        let mut reach = Self { entry: None, first: usize::MAX, routed: Vec::new(), sparse: None };
        // Every edit: where it takes hold, and the first position, if it is not for the router to
        // say.
        let mut touched: Vec<(Entry, Option<usize>)> = Vec::new();
        for edit in &trial.edits {
            match edit {
                Edit::Lesion { component, action, position: None } => match (component, action) {
                    (
                        Component::Expert { layer, expert },
                        Action::Zero | Action::Scale { .. } | Action::Noise { .. },
                    ) => {
                        reach.routed.push((*layer, *expert));
                        touched.push((entry_of(component, config), None));
                    }
                    _ => touched.push((entry_of(component, config), Some(0))),
                },
                Edit::Lesion { component, position: Some(position), .. }
                | Edit::CarryState { component, position, .. } => {
                    touched.extend(
                        layout.at(*position).map(|at| (entry_of(component, config), Some(at))),
                    );
                }
                // What is as without edits up to some point is routed so, frozen or not.
                Edit::FreezeRouting
                    if layout.ids.iter().eq(trial.base.iter().chain(trial.continuation.iter())) => {
                }
                Edit::FreezeRouting => {
                    let lowest =
                        (0..config.num_hidden_layers).find(|layer| config.is_sparse(*layer));
                    touched.extend(lowest.map(|layer| (Entry::Layer(layer), Some(0))));
                }
                Edit::Embedding { .. }
                | Edit::Replace { .. }
                | Edit::Insert { .. }
                | Edit::Delete { .. } => {}
            }
        }
        touched.extend(
            request.patches.iter().map(|p| (entry_of(&p.component, config), Some(p.first))),
        );
        if touched.is_empty() {
            return reach;
        }
        let embedded =
            trial.edits.iter().filter(|e| e.changes_embedding()).filter_map(|e| e.position());
        touched.extend(
            embedded.filter_map(|position| Some((Entry::START, Some(layout.at(position)?)))),
        );
        reach.entry = touched.iter().map(|(entry, _)| *entry).min();
        reach.first = touched.iter().filter_map(|(_, first)| *first).min().unwrap_or(usize::MAX);
        reach.sparse = reach.entry.map(Entry::layer);
        reach.sparse = reach.sparse.filter(|lowest| {
            touched.iter().all(|(entry, first)| entry.layer() != *lowest || first.is_none())
        });
        reach
    }

    /// Whether a run of the same tokens would save anything.
    pub fn spares(&self) -> bool {
        self.entry.is_some_and(|entry| entry > Entry::START) || self.first > 0
    }

    /// The first position that is not as in `run`, a plain run of the same tokens.
    pub fn start(&self, run: &CachedForward) -> usize {
        let routed = self
            .routed
            .iter()
            .filter_map(|(layer, expert)| run.routed_to(*layer, *expert).first().copied());
        routed.min().unwrap_or(usize::MAX).min(self.first)
    }

    /// The lowest layer and stretches of `positions` that leave it as in `run`: no edit there
    /// touches them.
    pub fn untouched(
        &self,
        run: &CachedForward,
        positions: Range<usize>,
    ) -> Option<(usize, Vec<Range<usize>>)> {
        let lowest = self.sparse?;
        let experts = self.routed.iter().filter(|(layer, _)| *layer == lowest);
        let mut touched: Vec<usize> =
            experts.flat_map(|(layer, expert)| run.routed_to(*layer, *expert)).copied().collect();
        touched.sort_unstable();
        touched.dedup();
        let mut stretches = Vec::new();
        let mut start = positions.start;
        for at in touched.into_iter().filter(|at| positions.contains(at)).chain([positions.end]) {
            if start < at {
                stretches.push(start..at);
            }
            start = at + 1;
        }
        Some((lowest, stretches))
    }
}

/// The layer of a component in the stack.
pub fn layer_of(component: &Component, config: &Config) -> usize {
    place(component, config).map_or(component.layer(), |(layer, _, _)| layer)
}

/// Where a change of a component takes hold.
pub fn entry_of(component: &Component, config: &Config) -> Entry {
    // Recurrent layers keep states of both blocks of a layer at once.
    if config.residual == Residual::Parallel || config.is_recurrent() {
        return Entry::Layer(layer_of(component, config));
    }
    match (place(component, config), component) {
        (
            Some((layer, Site::Neurons | Site::MlpOut | Site::RouterLogits | Site::Experts, _)),
            _,
        ) => Entry::MidLayer(layer),
        (Some((layer, ..)), _) => Entry::Layer(layer),
        (
            None,
            Component::Weight { layer, matrix: Matrix::Gate | Matrix::Up | Matrix::Down, .. },
        ) => Entry::MidLayer(*layer),
        (None, _) => Entry::Layer(component.layer()),
    }
}
