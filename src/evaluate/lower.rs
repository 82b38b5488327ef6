//! From edits as data to the hooks of a forward pass.

use std::ops::Range;
use std::sync::Arc;

use rand::Rng as _;

use super::activations::{Means, place};
use super::observation::Patch;
use crate::edit::{Action, Component, Edit, EmbeddingChange, Layout};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::model::hooks::{Block, Change, Hooks, WeightEdit};
use crate::rng;

/// Where a row's computed tokens are: packed indices, and the position of the first in the sequence.
#[derive(Debug, Clone)]
pub struct Place {
    pub tokens: Range<usize>,
    pub position: usize,
}

impl Place {
    /// Packed index of a position of the sequence, if it is computed in this row.
    fn token(&self, position: usize) -> Option<usize> {
        let token = self.tokens.start + position.checked_sub(self.position)?;
        self.tokens.contains(&token).then_some(token)
    }
}

/// Adds the activation edits of one row (and then its patches) to the hooks.
pub fn lower(
    model: &Model,
    means: &dyn Fn() -> Result<Arc<Means>>,
    edits: &[Edit],
    layout: &Layout,
    patches: &[Patch],
    place: &Place,
    hooks: &mut Hooks,
) -> Result<()> {
    for edit in edits {
        match edit {
            Edit::Embedding { position, change } => {
                let Some(at) = layout.moved.get(*position).copied().flatten() else { continue };
                let Some(token) = place.token(at) else { continue };
                embedding(model, layout.ids[at], change, token, hooks)?;
            }
            Edit::Lesion { component, action } => lesion(model, means, component, action, place, hooks)?,
            Edit::Replace { .. } | Edit::Insert { .. } | Edit::Delete { .. } => {}
        }
    }
    for patch in patches {
        apply_patch(model, patch, layout, place, hooks)?;
    }
    Ok(())
}

/// A unit vector drawn from a seed.
fn unit(rng: &mut rng::Rng, width: usize) -> Vec<f32> {
    // Sums of uniforms are near enough to normal for a direction, and need no table.
    let mut v: Vec<f32> = (0..width).map(|_| (0..6).map(|_| rng.random_range(-1.0f32..1.0)).sum()).collect();
    let norm = norm(&v).max(f32::MIN_POSITIVE);
    v.iter_mut().for_each(|x| *x /= norm);
    v
}

fn norm(v: &[f32]) -> f32 {
    v.iter().map(|x| x * x).sum::<f32>().sqrt()
}

fn embedding(model: &Model, id: u32, change: &EmbeddingChange, token: usize, hooks: &mut Hooks) -> Result<()> {
    let e = model.embedding(id);
    let shift: Vec<f32> = match *change {
        EmbeddingChange::Noise { seed, strength } => {
            let length = strength * norm(&e);
            unit(&mut rng::stream(seed, "embedding noise"), e.len()).into_iter().map(|u| u * length).collect()
        }
        EmbeddingChange::Direction { from, to, strength } => {
            model.check_ids(&[from, to])?;
            let difference: Vec<f32> = model.embedding(to).iter().zip(model.embedding(from)).map(|(b, a)| b - a).collect();
            let length = strength * norm(&e) / norm(&difference).max(f32::MIN_POSITIVE);
            difference.into_iter().map(|x| x * length).collect()
        }
        EmbeddingChange::Towards { id, strength } => {
            model.check_ids(&[id])?;
            model.embedding(id).iter().zip(&e).map(|(other, e)| strength * (other - e)).collect()
        }
    };
    let (layer, site, columns) = (0, crate::model::hooks::Site::Embed, 0..e.len());
    hooks.push(
        layer,
        site,
        Block { tokens: token..token + 1, columns, change: Change::Affine { scale: 1.0, shift: Some(shift.into()) } },
    );
    Ok(())
}

fn lesion(
    model: &Model,
    means: &dyn Fn() -> Result<Arc<Means>>,
    component: &Component,
    action: &Action,
    at: &Place,
    hooks: &mut Hooks,
) -> Result<()> {
    model.check_component(component)?;
    if let Component::Weight { layer, matrix, out, input } = *component {
        let weight = model.weight(layer, matrix, out, input);
        let new = match *action {
            Action::Unroute => return Err(Error::request(format!("{component} is no expert: nothing routes to it"))),
            Action::Zero => 0.0,
            Action::Mean => {
                let row = model.weight_row(layer, matrix, out);
                row.iter().sum::<f32>() / row.len() as f32
            }
            Action::Scale { factor } => factor * weight,
            Action::Noise { seed, strength } => {
                weight * (1.0 + strength * rng::stream(seed, "weight noise").random_range(-1.0..1.0))
            }
        };
        hooks.push_weight(layer, matrix, WeightEdit { tokens: at.tokens.clone(), out, input, delta: new - weight });
        return Ok(());
    }
    if let (Action::Unroute, Component::Expert { layer, expert }) = (action, *component) {
        let change = Change::Affine { scale: 0.0, shift: Some([f32::NEG_INFINITY].into()) };
        let block = Block { tokens: at.tokens.clone(), columns: expert..expert + 1, change };
        hooks.push(layer, crate::model::hooks::Site::RouterLogits, block);
        return Ok(());
    }
    let Some((layer, site, columns)) = place(component, &model.config) else { return Ok(()) };
    let change = match *action {
        Action::Unroute => return Err(Error::request(format!("{component} is no expert: nothing routes to it"))),
        Action::Zero => Change::Affine { scale: 0.0, shift: None },
        Action::Scale { factor } => Change::Affine { scale: factor, shift: None },
        Action::Mean => {
            let means = means()?;
            let mean = means.of(component, &model.config).ok_or_else(|| Error::request(format!("{component} has no mean")))?;
            Change::Affine { scale: 0.0, shift: Some(mean.into()) }
        }
        Action::Noise { seed, strength } => {
            // Drawn per position of the sequence, so that a row with a cached prefix gets the same noise.
            let mut rng = rng::stream(seed, "lesion noise");
            let all: Vec<Vec<f32>> = (0..at.position + at.tokens.len()).map(|_| unit(&mut rng, columns.len())).collect();
            Change::Noise { strength, directions: all[at.position..].concat().into() }
        }
    };
    hooks.push(layer, site, Block { tokens: at.tokens.clone(), columns, change });
    Ok(())
}

fn apply_patch(model: &Model, patch: &Patch, layout: &Layout, at: &Place, hooks: &mut Hooks) -> Result<()> {
    let bad = || Error::request(format!("a patch of {} does not fit its row", patch.component));
    let (layer, site, columns) = place(&patch.component, &model.config).ok_or_else(bad)?;
    let positions = patch.values.len() / columns.len();
    if positions == 0 || patch.values.len() != positions * columns.len() || patch.first + positions > layout.ids.len() {
        return Err(bad());
    }
    // The planner shares no prefix that a patch reaches into; what it leaves out at the end is not read.
    let start = at.tokens.start + patch.first.checked_sub(at.position).ok_or_else(bad)?;
    let computed = positions.min(at.tokens.end.saturating_sub(start));
    if computed == 0 {
        return Ok(());
    }
    let shift = if computed == positions { patch.values.clone() } else { patch.values[..computed * columns.len()].into() };
    // One token whose shift has as many values as columns is the same thing either way round.
    let change = Change::Affine { scale: 0.0, shift: Some(shift) };
    hooks.push(layer, site, Block { tokens: start..start + computed, columns, change });
    Ok(())
}
