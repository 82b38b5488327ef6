//! The reach of lesions and patches: the lowest place in the stack and the first position that
//! they touch. Everything below and before is as without them, and can come from a cached forward.

use std::ops::Range;

use super::activations::place;
use super::cache::CachedForward;
use super::observation::Request;
use crate::edit::{Action, Component, Edit, Layout, Matrix};
use crate::model::batch::Entry;
use crate::model::hooks::Site;
use crate::model::{Config, Residual};

/// The reach of a trial's lesions and a request's patches.
pub struct Reach {
    /// The lowest entry of the stack that they touch; `None` without lesions and patches.
    pub entry: Option<Entry>,
    /// The first position that they touch, without those of `routed`; `usize::MAX` for none.
    first: usize,
    /// The lesioned experts, as (layer, expert), whose lesions touch only the tokens routed to
    /// them.
    routed: Vec<(usize, usize)>,
    /// The lowest layer, if only lesions of `routed` touch it.
    sparse: Option<usize>,
}

impl Reach {
    /// Takes the reach of a request.
    pub fn new(request: &Request, layout: &Layout, config: &Config) -> Self {
        let trial = &request.trial;
        let mut reach = Self { entry: None, first: usize::MAX, routed: Vec::new(), sparse: None };
        // For every edit its entry, and its first position unless the router decides it.
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
                Edit::Steering { steering, position } => {
                    let at = position.map_or(Some(0), |position| layout.at(position));
                    touched.extend(at.map(|at| (Entry::Layer(steering.site.layer), Some(at))));
                }
                Edit::AttentionKnockout(knockout) => {
                    let entry = entry_of(&knockout.component, config);
                    let edges = layout.edges(knockout);
                    touched.extend(edges.map(|(queries, _)| (entry, Some(queries.start))));
                }
                // Without token edits, frozen routing changes nothing below the other edits.
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
                | Edit::Delete { .. }
                | Edit::Retokenize { .. } => {}
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

    /// Returns true if a plain forward of the same tokens would save anything.
    pub fn saves(&self) -> bool {
        self.entry.is_some_and(|entry| entry > Entry::START) || self.first > 0
    }

    /// Returns a position before which nothing differs from a plain forward of the same tokens,
    /// whatever the routers decide.
    pub fn first(&self) -> usize {
        if self.routed.is_empty() { self.first } else { 0 }
    }

    /// Returns the first position that differs from a plain forward of the same tokens.
    pub fn start(&self, cached: &CachedForward) -> usize {
        let routed = self
            .routed
            .iter()
            .filter_map(|(layer, expert)| cached.routed_to(*layer, *expert).first().copied());
        routed.min().unwrap_or(usize::MAX).min(self.first)
    }

    /// Returns the lowest layer and the stretches of `positions` that leave it as in the cached
    /// forward, because no edit there touches them.
    pub fn untouched(
        &self,
        cached: &CachedForward,
        positions: Range<usize>,
    ) -> Option<(usize, Vec<Range<usize>>)> {
        let lowest = self.sparse?;
        let experts = self.routed.iter().filter(|(layer, _)| *layer == lowest);
        let mut touched: Vec<usize> = experts
            .flat_map(|(layer, expert)| cached.routed_to(*layer, *expert))
            .copied()
            .collect();
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

/// Returns the layer whose forward a component changes.
pub fn layer_of(component: &Component, config: &Config) -> usize {
    place(component, config).map_or(component.layer(), |(layer, _, _)| layer)
}

/// Returns the first entry of the stack after which a change of a component has an effect.
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
