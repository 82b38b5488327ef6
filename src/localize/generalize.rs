//! Does an explanation hold where it was not made? The edits are put into prompts that were not
//! used to find it, and what was found is tried there: the named set, patched clean, and a
//! direction.
//!
//! The direction is the difference of the residual stream between the case and its controls after
//! one component, at the positions of the edits or where the symptom is predicted. If it is what
//! the explanation says, adding it to a clean run makes the symptom, and holding a corrupted run at
//! the clean run's value along it takes the symptom away; a random direction of its length does
//! neither (Arditi et al. 2024, "Refusal in Language Models Is Mediated by a Single Direction").

use rand::Rng as _;
use serde::{Deserialize, Serialize};

use super::graph::Graph;
use super::noise_controls::after;
use super::runs::Direction as PatchDirection;
use super::symptom::{Symptom, Symptoms};
use crate::edit::{Component, Edit, ResidualSite, Trial};
use crate::error::Result;
use crate::evaluate::{At, ModelEvaluator, Shift, Variant};
use crate::model::Config;
use crate::model::hooks::Site;
use crate::rng;

/// The share of an effect from which it counts as made or removed.
const MOST: f64 = 0.5;

/// Where a direction is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DirectionAt {
    /// At the positions of the edits.
    Edits,
    /// At the position that predicts the symptom.
    Symptom,
}

/// A direction of the residual stream, and what it does in new prompts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Direction {
    /// The component after which it is taken.
    pub component: Component,
    /// The positions at which it is taken.
    pub at: DirectionAt,
    /// Its length.
    pub norm: f64,
    /// Prompts in which adding it to the clean run makes most of the effect.
    pub made: usize,
    /// Prompts in which it takes most of the effect away to hold the corrupted run at the clean
    /// run's value along it.
    pub removed: usize,
    /// As `made`, with a random direction of its length in each prompt.
    pub made_by_random: usize,
    /// As `removed`, with a random direction in each prompt.
    pub removed_by_random: usize,
    /// The direction, `[d_model]`; not part of the case file.
    #[serde(skip)]
    pub values: Vec<f32>,
}

impl Direction {
    /// Returns the place that it is taken at.
    pub fn site(&self, config: &Config) -> ResidualSite {
        after(&self.component, config)
    }
}

/// An explanation in prompts that were not used to find it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Generalization {
    /// Prompts that the edits were put into.
    pub prompts: usize,
    /// Those in which they have an effect, of which the rest counts.
    pub with_effect: usize,
    /// Those in which patching the named set clean removes most of the effect; `None` where
    /// nothing is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set: Option<usize>,
    /// The direction, where one can be taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direction: Option<Direction>,
}

/// Tries an explanation on `trials`, the edits of the case in other prompts. `background` has runs
/// without the symptom, which end as the case does. Returns also the number of trials evaluated;
/// `None` without trials.
///
/// # Errors
/// Errors of the evaluator.
pub fn generalize(
    symptom: &Symptom,
    set: &[Component],
    graph: Option<&Graph>,
    background: &[Trial],
    trials: &[Trial],
    seed: u64,
) -> Result<(Option<Generalization>, u64)> {
    if trials.is_empty() {
        return Ok((None, 0));
    }
    let evaluator = symptom.runs.evaluator;
    let mut found = Generalization {
        prompts: trials.len(),
        with_effect: 0,
        set: (!set.is_empty()).then_some(0),
        direction: direction(symptom, set, graph, background)?,
    };
    let mut calls = 0;
    for (index, trial) in trials.iter().enumerate() {
        let Some(mut there) = Symptoms::new(evaluator).find(trial)? else { continue };
        found.with_effect += 1;
        if let Some(count) = &mut found.set {
            let removed = there.shares(&[set], PatchDirection::Necessity)?;
            *count += usize::from(removed[0] >= MOST);
        }
        calls += there.calls;
        if let Some(direction) = &mut found.direction {
            let mut rng = rng::stream(seed, &format!("random direction {index}"));
            let random: Vec<f32> =
                direction.values.iter().map(|_| rng.random_range(-1.0..1.0f32)).collect();
            let scale = direction.norm as f32 / norm(&random).max(f32::MIN_POSITIVE);
            let random: Vec<f32> = random.iter().map(|x| x * scale).collect();
            let values = direction.values.clone();
            let done = along(&there, direction, &[&values, &random])?;
            direction.made += usize::from(done[0].0 >= MOST);
            direction.removed += usize::from(done[0].1 >= MOST);
            direction.made_by_random += usize::from(done[1].0 >= MOST);
            direction.removed_by_random += usize::from(done[1].1 >= MOST);
            calls += 6;
        }
    }
    Ok((Some(found), calls))
}

/// Takes the direction of a case; `None` where the edits move tokens, or no position corresponds to
/// one in other prompts.
fn direction(
    symptom: &Symptom,
    set: &[Component],
    graph: Option<&Graph>,
    background: &[Trial],
) -> Result<Option<Direction>> {
    let (evaluator, trial) = (symptom.runs.evaluator, &symptom.runs.corrupted.trial);
    let config = &evaluator.model.config;
    let moves = |edit: &Edit| matches!(edit, Edit::Insert { .. } | Edit::Delete { .. });
    if trial.edits.iter().any(moves) || background.is_empty() {
        return Ok(None);
    }
    let nodes = graph.map_or(&[][..], |graph| &graph.nodes);
    // The strongest of what is specific, else the strongest of all.
    let strongest = |of: &dyn Fn(&Component) -> bool| {
        let nodes = nodes.iter().filter(|node| of(&node.component));
        nodes.max_by(|a, b| a.necessity.total_cmp(&b.necessity))
    };
    let specific = set.first().and_then(|named| {
        let part = |c: &Component| c == named || *named == config.mixer(c.layer()) && is_head(c);
        strongest(&part).map(|node| (*named, node.position))
    });
    let any = || strongest(&|_| true).map(|node| (node.component, node.position));
    let Some((component, position)) = specific.or_else(any) else { return Ok(None) };
    let at = match position {
        position if position == symptom.position => DirectionAt::Symptom,
        position if edited(trial).contains(&position) => DirectionAt::Edits,
        _ => return Ok(None),
    };
    let site = after(&component, config);
    let place: At = (site.layer, site.at.into(), 0..config.hidden_size, position..position + 1);
    let here = (Variant::default(), place);
    let mut values = evaluator.capture(trial, std::slice::from_ref(&here))?.remove(0);
    for control in background {
        let other = evaluator.capture(control, std::slice::from_ref(&here))?.remove(0);
        let share = 1.0 / background.len() as f32;
        values.iter_mut().zip(other).for_each(|(value, x)| *value -= share * x);
    }
    let norm = f64::from(norm(&values));
    let found = Direction {
        component,
        at,
        norm,
        made: 0,
        removed: 0,
        made_by_random: 0,
        removed_by_random: 0,
        values,
    };
    Ok(found.norm.is_normal().then_some(found))
}

/// Measures the share of the effect that each of these directions makes in the clean run, and that
/// it removes from the corrupted one.
fn along(there: &Symptom, direction: &Direction, values: &[&[f32]]) -> Result<Vec<(f64, f64)>> {
    let runs = &there.runs;
    let evaluator: &ModelEvaluator = runs.evaluator;
    let config = &evaluator.model.config;
    let ResidualSite { layer, at } = after(&direction.component, config);
    let site = Site::from(at);
    let d = config.hidden_size;
    let (clean, corrupted) = (&runs.clean.trial, &runs.corrupted.trial);
    let positions = match direction.at {
        DirectionAt::Symptom => vec![there.position],
        DirectionAt::Edits => edited(corrupted),
    };
    let here: Vec<(Variant, At)> = positions
        .iter()
        .map(|position| (Variant::default(), (layer, site, 0..d, *position..position + 1)))
        .collect();
    let without = evaluator.capture(clean, &here)?;
    let with = evaluator.capture(corrupted, &here)?;
    let at = there.position;
    let last: At = (config.num_hidden_layers - 1, Site::ResidPost, 0..d, at..at + 1);
    let shifted = |changes: Vec<Vec<f32>>| {
        let shifts = positions.iter().zip(changes);
        let shift = |(position, values): (&usize, Vec<f32>)| Shift {
            layer,
            site,
            position: *position,
            values,
        };
        (Variant { patches: Vec::new(), shifts: shifts.map(shift).collect() }, last.clone())
    };
    let added = values.iter().map(|v| shifted(vec![v.to_vec(); positions.len()])).collect();
    let held = values
        .iter()
        .map(|v| {
            let square: f32 = v.iter().map(|x| x * x).sum();
            let back = |(with, without): (&Vec<f32>, &Vec<f32>)| {
                let along: f32 =
                    with.iter().zip(without).zip(v.iter()).map(|((a, b), v)| (a - b) * v).sum();
                v.iter().map(|x| -x * along / square.max(f32::MIN_POSITIVE)).collect()
            };
            shifted(with.iter().zip(&without).map(back).collect())
        })
        .collect();
    let read = |trial: &Trial, variants: Vec<(Variant, At)>| -> Result<Vec<f64>> {
        let residuals = evaluator.capture(trial, &variants)?.concat();
        Ok(evaluator.read_log_probs(&residuals, there.token))
    };
    let (added, held) = (read(clean, added)?, read(corrupted, held)?);
    let clean = there.corrupted - there.effect;
    let share = |value: f64| if value.is_nan() { 0.0 } else { value };
    Ok(added
        .into_iter()
        .zip(held)
        .map(|(added, held)| {
            let made = (added - clean) / there.effect;
            (share(made), share((there.corrupted - held) / there.effect))
        })
        .collect())
}

/// Returns the positions of the edits, ascending.
fn edited(trial: &Trial) -> Vec<usize> {
    let mut positions: Vec<usize> = trial.edits.iter().filter_map(Edit::position).collect();
    positions.sort_unstable();
    positions.dedup();
    positions
}

fn is_head(component: &Component) -> bool {
    matches!(component, Component::Head { .. })
}

fn norm(values: &[f32]) -> f32 {
    values.iter().map(|x| x * x).sum::<f32>().sqrt()
}
