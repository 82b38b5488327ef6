//! Does an explanation hold where it was not made? The edits are put into prompts that were not
//! used to find it, and what was found is tried there: the named set, patched clean, and a
//! direction. Each block is patched there too: by that profile findings are told apart
//! (`species/profile.rs`).
//!
//! The direction is the difference of the residual stream between the case and its controls after
//! one component, at the positions of the edits or where the symptom is predicted. If it is what
//! the explanation says, adding it to a clean run makes the symptom, and holding a corrupted run at
//! the clean run's value along it takes the symptom away; a random direction of its length does
//! neither (Arditi et al. 2024, "Refusal in Language Models Is Mediated by a Single Direction").

use rand::Rng as _;
use serde::{Deserialize, Serialize};

use super::components::{blocks, is_outside_edits};
use super::graph::Graph;
use super::noise_controls::after;
use super::runs::Direction as PatchDirection;
use super::symptom::{Symptom, shares_of};
use super::symptoms::Symptoms;
use crate::edit::{Component, Edit, ResidualSite, Trial};
use crate::error::Result;
use crate::evaluate::{At, Shift, Variant, Variants};
use crate::model::Config;
use crate::model::hooks::Site;
use crate::rng;

/// The share of an effect from which it counts as made or removed.
const MOST: f64 = 0.5;

/// Prompts in which each block is patched by itself.
pub const PROFILED: usize = 6;

/// The number of prompts that are tried together.
const TOGETHER: usize = 5;

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
    /// Draws a random direction of its length for a prompt, given by its number.
    fn random(&self, seed: u64, prompt: usize) -> Vec<f32> {
        let mut rng = rng::stream(seed, &format!("random direction {prompt}"));
        let random: Vec<f32> = self.values.iter().map(|_| rng.random_range(-1.0..1.0f32)).collect();
        let scale = self.norm as f32 / norm(&random).max(f32::MIN_POSITIVE);
        random.iter().map(|x| x * scale).collect()
    }

    /// Returns the place that it is taken at.
    pub fn site(&self, config: &Config) -> ResidualSite {
        after(&self.component, config)
    }
}

/// The effect of patching a mixer or MLP by itself in new prompts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockEffect {
    /// The mixer or MLP.
    pub component: Component,
    /// Share of the effect that is removed when the corrupted run gets its clean output, between 0
    /// and 1, `[prompts]`.
    pub necessity: Vec<f64>,
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
    /// Each mixer and MLP that the edits are not in, by itself, in the first [`PROFILED`] prompts
    /// with an effect.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blocks: Vec<BlockEffect>,
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
        blocks: blocks_outside_edits(symptom),
    };
    let (mut calls, mut index) = (0, 0);
    for few in trials.chunks(TOGETHER) {
        let few: Vec<&Trial> = few.iter().collect();
        let symptoms = Symptoms::new(evaluator).find_all(&few)?;
        // Each prompt has a random direction of its own.
        let numbers = index..index + few.len();
        index += few.len();
        let (numbers, mut there): (Vec<usize>, Vec<Symptom>) =
            numbers.zip(symptoms).filter_map(|(number, symptom)| Some((number, symptom?))).unzip();
        found.with_effect += there.len();
        if let Some(count) = &mut found.set {
            let sets: Vec<(usize, &[Component])> = (0..there.len()).map(|at| (at, set)).collect();
            let mut runs: Vec<&mut Symptom> = there.iter_mut().collect();
            let removed = shares_of(&mut runs, &sets, PatchDirection::Necessity)?;
            *count += removed.iter().filter(|share| **share >= MOST).count();
        }
        measure_blocks(&mut there, &mut found.blocks)?;
        calls += there.iter().map(|symptom| symptom.calls).sum::<u64>();
        if let Some(direction) = &mut found.direction {
            let random: Vec<Vec<f32>> =
                numbers.iter().map(|number| direction.random(seed, *number)).collect();
            let own = vec![&direction.values[..]; there.len()];
            let random: Vec<&[f32]> = random.iter().map(Vec::as_slice).collect();
            let counted = |shares: &[f64]| shares.iter().filter(|share| **share >= MOST).count();
            let [own, random] = along(&there, direction, [own, random])?;
            direction.made += counted(&own.made);
            direction.removed += counted(&own.removed);
            direction.made_by_random += counted(&random.made);
            direction.removed_by_random += counted(&random.removed);
            calls += 6 * there.len() as u64;
        }
    }
    Ok((Some(found), calls))
}

/// Returns the mixers and MLPs that the edits are not in, without effects yet.
fn blocks_outside_edits(symptom: &Symptom) -> Vec<BlockEffect> {
    let (trial, config) = (&symptom.runs.corrupted.trial, &symptom.runs.evaluator.model.config);
    (0..config.num_hidden_layers)
        .flat_map(|layer| blocks(config, layer))
        .filter(|block| is_outside_edits(block, trial, config))
        .map(|component| BlockEffect { component, necessity: Vec::new() })
        .collect()
}

/// Adds the necessity of each block in these prompts, until there are [`PROFILED`].
fn measure_blocks(there: &mut [Symptom], blocks: &mut [BlockEffect]) -> Result<()> {
    let measured = blocks.first().map_or(0, |block| block.necessity.len());
    let count = PROFILED.saturating_sub(measured).min(there.len());
    let mut runs: Vec<&mut Symptom> = there[..count].iter_mut().collect();
    for block in blocks {
        let alone = [block.component];
        let sets: Vec<(usize, &[Component])> = (0..count).map(|at| (at, &alone[..])).collect();
        block.necessity.extend(shares_of(&mut runs, &sets, PatchDirection::Necessity)?);
    }
    Ok(())
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
    if trial.edits.iter().any(Edit::moves_tokens) || background.is_empty() {
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
    let mut values = evaluator.capture(trial, vec![here.clone()])?.remove(0);
    for control in background {
        let other = evaluator.capture(control, vec![here.clone()])?.remove(0);
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

/// One of the runs of a symptom.
type Which = for<'s> fn(&'s Symptom<'_, '_>) -> &'s Trial;

/// The shares of the effect in each prompt that a direction makes in the clean run, and that it
/// removes from the corrupted one.
#[derive(Default)]
struct Along {
    made: Vec<f64>,
    removed: Vec<f64>,
}

/// Measures what directions do in each prompt: twice one, `[d_model]`, for each.
fn along(
    there: &[Symptom],
    direction: &Direction,
    directions: [Vec<&[f32]>; 2],
) -> Result<[Along; 2]> {
    let Some(evaluator) = there.first().map(|symptom| symptom.runs.evaluator) else {
        return Ok(<_>::default());
    };
    let config = &evaluator.model.config;
    let (ResidualSite { layer, at }, d) = (after(&direction.component, config), config.hidden_size);
    let site = Site::from(at);
    let positions = |symptom: &Symptom| match direction.at {
        DirectionAt::Symptom => vec![symptom.position],
        DirectionAt::Edits => edited(&symptom.runs.corrupted.trial),
    };
    let clean: Which = |symptom| &symptom.runs.clean.trial;
    let corrupted: Which = |symptom| &symptom.runs.corrupted.trial;
    // What is there in a run of each prompt, `[positions, d_model]`.
    let here = |of: Which| -> Result<Vec<Vec<f32>>> {
        let place = |position| (Variant::default(), (layer, site, 0..d, position..position + 1));
        let places = |symptom| positions(symptom).into_iter().map(place).collect();
        let asked: Vec<Variants> = there.iter().map(|s| (of(s), places(s))).collect();
        let mut captured = evaluator.capture_all(&asked)?.into_iter();
        Ok(asked.iter().map(|(_, v)| captured.by_ref().take(v.len()).flatten().collect()).collect())
    };
    // The log-probability of each symptom's token after changes at these positions.
    let said = |of: Which, changes: &[Vec<f32>]| -> Result<Vec<f64>> {
        let shifted = |(symptom, changes): (&Symptom, &Vec<f32>)| {
            let places = positions(symptom).into_iter().zip(changes.chunks_exact(d));
            let shift = |(position, values): (usize, &[f32])| {
                let values = values.to_vec();
                Shift { layer, site, position, values }
            };
            let (shifts, at) = (places.map(shift).collect(), symptom.position);
            let last: At = (config.num_hidden_layers - 1, Site::ResidPost, 0..d, at..at + 1);
            vec![(Variant { patches: Vec::new(), shifts }, last)]
        };
        let runs = there.iter().map(of);
        let asked: Vec<Variants> = runs.zip(there.iter().zip(changes).map(shifted)).collect();
        let residuals = evaluator.capture_all(&asked)?;
        let read = |(symptom, residual): (&Symptom, &Vec<f32>)| {
            evaluator.read_log_probs(residual, symptom.token).first().copied().unwrap_or(f64::NAN)
        };
        Ok(there.iter().zip(&residuals).map(read).collect())
    };
    let (without, with) = (here(clean)?, here(corrupted)?);
    // Back to the clean run's value along the direction.
    let held = |((with, without), v): ((&Vec<f32>, &Vec<f32>), &&[f32])| -> Vec<f32> {
        let square: f32 = v.iter().map(|x| x * x).sum();
        let back = |(with, without): (&[f32], &[f32])| -> Vec<f32> {
            let along: f32 =
                with.iter().zip(without).zip(v.iter()).map(|((a, b), v)| (a - b) * v).sum();
            v.iter().map(|x| -x * along / square.max(f32::MIN_POSITIVE)).collect()
        };
        with.chunks_exact(d).zip(without.chunks_exact(d)).flat_map(back).collect()
    };
    let share = |value: f64| if value.is_nan() { 0.0 } else { value };
    let mut done = <[Along; 2]>::default();
    for (along, values) in done.iter_mut().zip(directions) {
        let added: Vec<Vec<f32>> =
            there.iter().zip(&values).map(|(s, v)| v.repeat(positions(s).len())).collect();
        let held: Vec<Vec<f32>> = with.iter().zip(&without).zip(&values).map(held).collect();
        let made = there.iter().zip(said(clean, &added)?);
        let removed = there.iter().zip(said(corrupted, &held)?);
        along.made =
            made.map(|(s, said)| share((said - (s.corrupted - s.effect)) / s.effect)).collect();
        along.removed = removed.map(|(s, said)| share((s.corrupted - said) / s.effect)).collect();
    }
    Ok(done)
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
