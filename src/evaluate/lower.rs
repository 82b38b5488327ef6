//! Lowering: from edits as plain data to the hooks of a forward pass.
//!
//! Every edit of a row becomes blocks (tokens by columns of a site) or rank-one weight corrections
//! that name the row's own tokens, so that rows with different edits share a forward. Noise is
//! drawn per position of the sequence, not of the row, so that a cached prefix changes nothing.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use rand::Rng as _;

use super::activations::place;
use super::cache::CachedForward;
use super::observation::Patch;
use crate::edit::{
    Action, AttentionKnockout, Component, Edit, EmbeddingChange, Layout, ResidualSite, Steering,
    SteeringChange, SteeringVector, Trial,
};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::model::hooks::{Block, Change, Hooks, Knockout, Site, WeightEdit};
use crate::rng;

/// The place of a row's computed tokens in the packed batch, in the sequence and in the stack.
#[derive(Debug, Clone)]
pub struct Place {
    /// Indices into the packed batch.
    pub tokens: Range<usize>,
    /// The position of the first of them in the sequence.
    pub position: usize,
    /// The first layer that they go through.
    pub layer: usize,
}

impl Place {
    /// Returns the packed index of a position of the sequence, if it is computed in this row.
    fn token(&self, position: usize) -> Option<usize> {
        let token = self.tokens.start + position.checked_sub(self.position)?;
        self.tokens.contains(&token).then_some(token)
    }

    /// Returns the packed indices of those positions of the sequence that are computed in this row.
    fn tokens_at(&self, positions: &Range<usize>) -> Range<usize> {
        let end = self.position + self.tokens.len();
        let token = |position: usize| {
            self.tokens.start + position.clamp(self.position, end) - self.position
        };
        token(positions.start)..token(positions.end)
    }

    /// Returns the position in the sequence of a packed index.
    fn position_of(&self, token: usize) -> usize {
        self.position + token - self.tokens.start
    }
}

/// The logits of every router, `[positions, num_experts]`, by layer.
pub type Routing = BTreeMap<usize, Vec<f32>>;

/// The runs without edits from which some edits take values. The evaluator implements it; lowering
/// knows nothing else of the evaluator.
pub trait Baselines {
    /// The model whose components are edited.
    fn model(&self) -> &Model;

    /// Returns the mean output of a component over the reference text, `[width of the component]`.
    fn mean_output(&self, component: &Component) -> Result<Arc<[f32]>>;

    /// Returns the output of a component at these positions of another text, which `seed` draws,
    /// `[positions, width of the component]`.
    fn resampled(
        &self,
        component: &Component,
        seed: u64,
        positions: Range<usize>,
    ) -> Result<Arc<[f32]>>;

    /// Returns the plain forward of a sequence.
    fn plain_forward(&self, ids: &[u32]) -> Result<Arc<CachedForward>>;

    /// Returns the router logits of a trial without edits.
    fn router_logits(&self, baseline: &Trial) -> Result<Arc<Routing>>;
}

/// The lowering of one row.
pub struct Lowering<'a> {
    /// The source of the values that edits take from runs without edits.
    pub baselines: &'a dyn Baselines,
    /// The trial whose edits are lowered.
    pub trial: &'a Trial,
    /// The trial's tokens after its token edits.
    pub layout: &'a Layout,
    /// The place of the row's tokens.
    pub place: Place,
    /// The hooks that blocks and weight edits are added to.
    pub hooks: &'a mut Hooks,
}

/// A router logit that outweighs every other and keeps the softmax finite.
const CERTAIN: f32 = 1e30;

/// Draws a vector of length 1.
fn unit(rng: &mut rng::Rng, width: usize) -> Vec<f32> {
    // A sum of six uniforms is close enough to normal for a direction, and needs no table.
    let mut v: Vec<f32> =
        (0..width).map(|_| (0..6).map(|_| rng.random_range(-1.0f32..1.0)).sum()).collect();
    let norm = norm(&v).max(f32::MIN_POSITIVE);
    v.iter_mut().for_each(|x| *x /= norm);
    v
}

fn norm(v: &[f32]) -> f32 {
    v.iter().map(|x| x * x).sum::<f32>().sqrt()
}

/// Returns the change that replaces whatever is there.
fn put(values: impl Into<Arc<[f32]>>) -> Change {
    Change::Affine { scale: 0.0, shift: Some(values.into()) }
}

impl<'a> Lowering<'a> {
    /// Adds the row's edits of activations and weights, and then its patches, to the hooks.
    ///
    /// # Errors
    /// [`Error::Request`] for components, ids or patches that do not fit the model or the row.
    pub fn run(mut self, patches: &[Patch]) -> Result<()> {
        // Before any other edit of a router, so that a masked expert stays masked.
        if self.trial.edits.contains(&Edit::FreezeRouting) {
            self.freeze_routing()?;
        }
        for edit in &self.trial.edits {
            match edit {
                Edit::Embedding { position, change } => self.embedding(*position, change)?,
                Edit::Lesion { component, action, position } => {
                    let Some(tokens) = self.tokens(*position) else { continue };
                    self.lesion(component, action, tokens)?;
                }
                Edit::Steering { steering, position } => {
                    let Some(tokens) = self.tokens(*position) else { continue };
                    self.steering(steering, tokens)?;
                }
                Edit::AttentionKnockout(knockout) => self.knockout(knockout)?,
                Edit::CarryState { component, position, from } => {
                    self.carry_state(component, *position, from)?
                }
                Edit::Replace { .. }
                | Edit::Insert { .. }
                | Edit::Delete { .. }
                | Edit::Retokenize { .. }
                | Edit::FreezeRouting => {}
            }
        }
        patches.iter().try_for_each(|patch| self.patch(patch))
    }

    fn model(&self) -> &'a Model {
        self.baselines.model()
    }

    /// Returns the packed index of a token by its position before the edits; `None` where it was
    /// deleted or is not computed in this row.
    fn token(&self, position: usize) -> Option<usize> {
        self.place.token(self.layout.at(position)?)
    }

    /// Returns the tokens that an edit acts on: all of the row, or the one at `position`.
    fn tokens(&self, position: Option<usize>) -> Option<Range<usize>> {
        match position {
            None => Some(self.place.tokens.clone()),
            Some(position) => self.token(position).map(|token| token..token + 1),
        }
    }

    fn embedding(&mut self, position: usize, change: &EmbeddingChange) -> Result<()> {
        let Some(token) = self.token(position) else { return Ok(()) };
        let model = self.model();
        let e = model.embedding(self.layout.ids[self.place.position_of(token)]);
        let shift: Vec<f32> = match *change {
            EmbeddingChange::Noise { seed, strength } => {
                let length = strength * norm(&e);
                unit(&mut rng::stream(seed, "embedding noise"), e.len())
                    .into_iter()
                    .map(|u| u * length)
                    .collect()
            }
            EmbeddingChange::Direction { from, to, strength } => {
                model.check_ids(&[from, to])?;
                let difference: Vec<f32> = model
                    .embedding(to)
                    .iter()
                    .zip(model.embedding(from))
                    .map(|(b, a)| b - a)
                    .collect();
                let length = strength * norm(&e) / norm(&difference).max(f32::MIN_POSITIVE);
                difference.into_iter().map(|x| x * length).collect()
            }
            EmbeddingChange::Towards { id, strength } => {
                model.check_ids(&[id])?;
                model
                    .embedding(id)
                    .iter()
                    .zip(&e)
                    .map(|(other, e)| strength * (other - e))
                    .collect()
            }
        };
        let change = Change::Affine { scale: 1.0, shift: Some(shift.into()) };
        self.hooks.push(
            0,
            Site::Embed,
            Block { tokens: token..token + 1, columns: 0..e.len(), change },
        );
        Ok(())
    }

    fn lesion(
        &mut self,
        component: &Component,
        action: &Action,
        tokens: Range<usize>,
    ) -> Result<()> {
        self.model().check_component(component)?;
        if action.is_of_experts() {
            let Component::Expert { layer, expert } = *component else {
                return Err(Error::request(format!(
                    "{component} is no expert: no router chooses it"
                )));
            };
            let change = match *action {
                Action::Force => put([CERTAIN]),
                Action::Promote { logit } => {
                    Change::Affine { scale: 1.0, shift: Some([logit].into()) }
                }
                _ => put([f32::NEG_INFINITY]),
            };
            self.hooks.push(
                layer,
                Site::RouterLogits,
                Block { tokens, columns: expert..expert + 1, change },
            );
            return Ok(());
        }
        if let Component::Weight { layer, matrix, out, input } = *component {
            let weight = self.model().weight(layer, matrix, out, input);
            let new = match *action {
                Action::Zero | Action::Mask | Action::Force | Action::Promote { .. } => 0.0,
                Action::Mean => {
                    let row = self.model().weight_row(layer, matrix, out);
                    row.iter().sum::<f32>() / row.len() as f32
                }
                Action::Flip { bit } => self.model().flipped(weight, bit)?,
                Action::Resample { .. } => {
                    return Err(Error::request(format!(
                        "{component} is a weight, the same in any text"
                    )));
                }
                Action::Scale { factor } => factor * weight,
                Action::Noise { seed, strength } => {
                    weight
                        * (1.0
                            + strength * rng::stream(seed, "weight noise").random_range(-1.0..1.0))
                }
            };
            self.hooks.push_weight(
                layer,
                matrix,
                WeightEdit { tokens, out, input, delta: new - weight },
            );
            return Ok(());
        }
        if let (Action::Noise { .. }, Component::State { layer, part: None }) = (action, *component)
        {
            // Each part gets noise in proportion to its own norm, as parts are independent.
            let parts = self.model().config.state_parts(layer).0;
            let mut parts = (0..parts).map(|part| Component::State { layer, part: Some(part) });
            return parts.try_for_each(|part| self.lesion(&part, action, tokens.clone()));
        }
        let Some((layer, site, columns)) = place(component, &self.model().config) else {
            return Ok(());
        };
        let change = match *action {
            Action::Zero | Action::Mask | Action::Force | Action::Promote { .. } => {
                Change::Affine { scale: 0.0, shift: None }
            }
            Action::Scale { factor } => Change::Affine { scale: factor, shift: None },
            Action::Flip { .. } => {
                return Err(Error::request(format!("{component} is no weight")));
            }
            Action::Mean => put(self.baselines.mean_output(component)?),
            Action::Resample { seed } => {
                let (start, end) =
                    (self.place.position_of(tokens.start), self.place.position_of(tokens.end));
                put(self.baselines.resampled(component, seed, start..end)?)
            }
            Action::Noise { seed, strength } => {
                // Drawn per position of the sequence, so that a row with a cached prefix gets the
                // same noise.
                let mut rng = rng::stream(seed, "lesion noise");
                let end = self.place.position_of(tokens.end);
                let all: Vec<Vec<f32>> = (0..end).map(|_| unit(&mut rng, columns.len())).collect();
                let directions = all[self.place.position_of(tokens.start)..].concat().into();
                Change::Noise { strength, directions }
            }
        };
        self.hooks.push(layer, site, Block { tokens, columns, change });
        Ok(())
    }

    fn steering(&mut self, steering: &Steering, tokens: Range<usize>) -> Result<()> {
        self.model().check_steering(steering)?;
        let columns = 0..self.model().config.hidden_size;
        let vector: Vec<f32> = match &steering.vector {
            SteeringVector::Values { values } => values.clone(),
            SteeringVector::Random { seed, norm } => {
                let direction = unit(&mut rng::stream(*seed, "steering vector"), columns.len());
                direction.into_iter().map(|u| u * norm).collect()
            }
        };
        let change = match steering.change {
            SteeringChange::Add { strength } => {
                let shift: Vec<f32> = vector.into_iter().map(|v| strength * v).collect();
                Change::Affine { scale: 1.0, shift: Some(shift.into()) }
            }
            SteeringChange::Remove => Change::Clamp { value: 0.0, direction: vector.into() },
            SteeringChange::Clamp { value } => Change::Clamp { value, direction: vector.into() },
        };
        let ResidualSite { layer, at } = steering.site;
        self.hooks.push(layer, at.into(), Block { tokens, columns, change });
        Ok(())
    }

    fn knockout(&mut self, knockout: &AttentionKnockout) -> Result<()> {
        self.model().check_attention(&knockout.component)?;
        let Some((queries, key)) = self.layout.edges(knockout) else { return Ok(()) };
        let tokens = self.place.tokens_at(&queries);
        let (layer, heads) = match knockout.component {
            Component::Head { layer, head } => (layer, head..head + 1),
            whole => (whole.layer(), 0..self.model().config.heads(whole.layer())),
        };
        if !tokens.is_empty() {
            self.hooks.push_knockout(layer, Knockout { tokens, heads, key });
        }
        Ok(())
    }

    fn carry_state(&mut self, component: &Component, position: usize, from: &[u32]) -> Result<()> {
        self.model().check_component(component)?;
        self.model().check_ids(from)?;
        let Some((layer, Site::State, columns)) = place(component, &self.model().config) else {
            return Err(Error::request(format!("{component} is no state to carry over")));
        };
        let Some(token) = self.token(position) else { return Ok(()) };
        let cached = self.baselines.plain_forward(from)?;
        let state =
            from.len().checked_sub(1).and_then(|last| cached.kv.layers[layer].states.get(&last));
        let state = state
            .ok_or_else(|| Error::request("a state to carry over comes from at least one token"))?;
        self.hooks.push(
            layer,
            Site::State,
            Block { tokens: token..token + 1, change: put(&state.scan[columns.clone()]), columns },
        );
        Ok(())
    }

    fn freeze_routing(&mut self) -> Result<()> {
        let routing = self.baselines.router_logits(&self.trial.baseline())?;
        for (&layer, logits) in routing.range(self.place.layer..) {
            let experts = self.model().config.num_experts(layer);
            for (position, logits) in logits.chunks_exact(experts).enumerate() {
                let Some(token) = self.token(position) else { continue };
                let block =
                    Block { tokens: token..token + 1, columns: 0..experts, change: put(logits) };
                self.hooks.push(layer, Site::RouterLogits, block);
            }
        }
        Ok(())
    }

    fn patch(&mut self, patch: &Patch) -> Result<()> {
        let bad = || Error::request(format!("a patch of {} does not fit its row", patch.component));
        let (layer, site, columns) =
            place(&patch.component, &self.model().config).ok_or_else(bad)?;
        let positions = patch.values.len() / columns.len().max(1);
        if positions == 0
            || patch.values.len() != positions * columns.len()
            || patch.first + positions > self.layout.ids.len()
        {
            return Err(bad());
        }
        // The planner shares no prefix that a patch reaches into; positions that it leaves out at
        // the end are not read.
        let at = &self.place;
        let start = at.tokens.start + patch.first.checked_sub(at.position).ok_or_else(bad)?;
        let computed = positions.min(at.tokens.end.saturating_sub(start));
        if computed == 0 {
            return Ok(());
        }
        let shift = if computed == positions {
            patch.values.clone()
        } else {
            patch.values[..computed * columns.len()].into()
        };
        // For one token, `[columns]` and `[1, columns]` are the same shift.
        self.hooks.push(
            layer,
            site,
            Block { tokens: start..start + computed, columns, change: put(shift) },
        );
        Ok(())
    }
}
