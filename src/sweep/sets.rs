//! Sets of lesions on one text: the effect of each set, the smallest subset that keeps it, and the
//! table of interactions that guides the mutator of sets.

use std::sync::Arc;

use rand::Rng as _;
use serde::Serialize;

use super::targets::components;
use super::{Progress, Target};
use crate::edit::{Action, Component, Edit, Trial};
use crate::error::{Error, Result};
use crate::evaluate::{Evaluator, ModelEvaluator, Request};
use crate::minimize::reduce;
use crate::model::Distributions;
use crate::mutate::Layers;
use crate::mutate::interactions::{Interaction, Interactions, removal};
use crate::oracle::controls::has_controls;
use crate::rng;

/// The number of sets in one call, which keeps its residual streams within some tens of MB.
const CHUNK: usize = 256;

/// The effect of a set of lesions on a text.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Effect {
    /// Loss minus that of the intact model, nats per token; negative if the text becomes more
    /// likely.
    pub nats: f64,
    /// Mean Jensen-Shannon divergence from the intact model's predictions, bits.
    pub bits: f64,
}

/// A text with the intact model's predictions on it, from which the effects of lesions are
/// measured.
pub struct Baseline<'a> {
    evaluator: &'a dyn Evaluator,
    trial: Trial,
    reference: Arc<Distributions>,
    /// Loss of the intact model, nats per token.
    pub loss: f64,
}

impl<'a> Baseline<'a> {
    /// Measures the intact model on the continuation of `trial`, without its edits.
    ///
    /// # Errors
    /// [`Error::Request`] for a trial without a continuation; errors of the evaluator.
    pub fn new(evaluator: &'a dyn Evaluator, trial: &Trial) -> Result<Self> {
        if trial.continuation.is_empty() {
            return Err(Error::request("a text needs tokens whose loss is measured"));
        }
        let trial = trial.baseline();
        let observed =
            evaluator.observe(&[Request::new(trial.clone()).keeping_distributions()])?.pop();
        let observed = observed.ok_or_else(|| Error::internal("the baseline was not observed"))?;
        let reference = observed
            .distributions
            .clone()
            .ok_or_else(|| Error::internal("the baseline's distributions were not kept"))?;
        Ok(Self { evaluator, trial, reference, loss: observed.loss() })
    }

    /// Returns the text, unedited.
    pub fn text(&self) -> &Trial {
        &self.trial
    }

    /// Measures the effect of each set of lesions by itself, in batches.
    ///
    /// # Errors
    /// Errors of the evaluator.
    pub fn effects(&self, sets: &[Vec<Edit>], progress: Progress) -> Result<Vec<Effect>> {
        let mut effects = Vec::with_capacity(sets.len());
        for chunk in sets.chunks(CHUNK) {
            let requests: Vec<Request> = chunk
                .iter()
                .map(|edits| {
                    Request::new(self.trial.with_edits(edits.clone()))
                        .with_reference(self.reference.clone())
                })
                .collect();
            let observations = self.evaluator.observe(&requests)?;
            effects.extend(
                observations
                    .iter()
                    .map(|o| Effect { nats: o.loss() - self.loss, bits: o.mean_divergence_bits() }),
            );
            progress(chunk.len() as u64, sets.len() as u64);
        }
        Ok(effects)
    }
}

/// Returns the set of lesions that applies one action to each of these components.
pub fn set_of_lesions(components: &[Component], action: Action) -> Vec<Edit> {
    components.iter().map(|&component| Edit::lesion(component, action)).collect()
}

/// A set reduced to the members that its effect needs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MinimalSet {
    /// The members that are left, in the order they were given in.
    pub members: Vec<Component>,
    /// The effect of all of them together.
    pub joint: Effect,
    /// The effect of each member alone.
    pub alone: Vec<Effect>,
    /// The effect of the set without each member.
    pub without: Vec<Effect>,
    /// `joint - sum(alone)`, nats per token.
    pub interaction: f64,
    /// True if each member was left out alone, and less than the required share of the effect
    /// remained.
    pub one_minimal: bool,
}

/// Reduces a set with the minimizer's algorithm ([`reduce`]) to members that are all needed:
/// without any one of them, the loss increase falls below `share` of the whole set's.
///
/// # Errors
/// [`Error::Request`] if the whole set does not raise the loss.
pub fn minimal(
    baseline: &Baseline,
    set: &[Component],
    action: Action,
    share: f64,
) -> Result<MinimalSet> {
    let quiet = |_, _| {};
    let members = |kept: &[bool]| -> Vec<Component> {
        set.iter().zip(kept).filter(|(_, kept)| **kept).map(|(c, _)| *c).collect()
    };
    let whole = baseline.effects(&[set_of_lesions(set, action)], &quiet)?[0].nats;
    if whole.is_nan() || whole <= 0.0 {
        return Err(Error::request(format!(
            "the set raises the loss by {whole} nats: there is nothing to reduce"
        )));
    }
    let mut holds = |candidates: &[Vec<bool>]| -> Result<Vec<bool>> {
        let sets: Vec<Vec<Edit>> =
            candidates.iter().map(|kept| set_of_lesions(&members(kept), action)).collect();
        Ok(baseline.effects(&sets, &quiet)?.iter().map(|e| e.nats >= share * whole).collect())
    };
    let reduced = reduce::reduce(set.len(), &mut holds, &reduce::ReduceOptions::default())?;
    let members = members(&reduced.kept);
    let alone = members.iter().map(|&c| set_of_lesions(&[c], action));
    let without = (0..members.len()).map(|i| {
        let others: Vec<Component> =
            members.iter().enumerate().filter(|(j, _)| *j != i).map(|(_, c)| *c).collect();
        set_of_lesions(&others, action)
    });
    let sets: Vec<Vec<Edit>> =
        alone.chain(without).chain([set_of_lesions(&members, action)]).collect();
    let mut effects = baseline.effects(&sets, &quiet)?;
    let joint = effects.pop().ok_or_else(|| Error::internal("the reduced set was not measured"))?;
    let without = effects.split_off(members.len());
    let interaction = joint.nats - effects.iter().map(|e| e.nats).sum::<f64>();
    Ok(MinimalSet {
        members,
        joint,
        alone: effects,
        without,
        interaction,
        one_minimal: reduced.one_minimal,
    })
}

/// The largest number of components in the table of a campaign; of more, a random choice is taken.
const TABLE_COMPONENTS: usize = 48;

/// Measures the interactions of every pair of heads, MLPs and experts of these layers (`None`: of
/// all) on each of these prompts: the table that guides the mutator of sets. Kinds with too few
/// components for matched controls are left out, because a set with one of them could not be
/// judged.
///
/// # Errors
/// Errors of the evaluator.
pub fn interactions(
    evaluator: &ModelEvaluator,
    prompts: &[(String, Trial)],
    seed: u64,
    layers: Option<Layers>,
) -> Result<Vec<Interactions>> {
    let targets = [Target::Heads, Target::Mlps, Target::Experts];
    let all = targets.into_iter().flat_map(|target| components(evaluator.model, target));
    let mut all: Vec<Component> = all
        .filter(|c| Layers::allow(layers, c) && has_controls(*c, &evaluator.model.config))
        .collect();
    let mut rng = rng::stream(seed, "components of sets");
    while all.len() > TABLE_COMPONENTS {
        all.swap_remove(rng.random_range(0..all.len()));
    }
    all.sort_unstable();
    let every: Vec<(usize, usize)> =
        (0..all.len()).flat_map(|a| (a + 1..all.len()).map(move |b| (a, b))).collect();
    let lesion = |at: usize| Edit::lesion(all[at], removal(all[at]));
    let quiet = |_, _| {};
    let mut tables = Vec::with_capacity(prompts.len());
    for (prompt, trial) in
        prompts.iter().filter(|(_, trial)| !trial.continuation.is_empty() && !every.is_empty())
    {
        let baseline = Baseline::new(evaluator, trial)?;
        let singles = baseline
            .effects(&(0..all.len()).map(|a| vec![lesion(a)]).collect::<Vec<_>>(), &quiet)?;
        let joint = baseline.effects(
            &every.iter().map(|&(a, b)| vec![lesion(a), lesion(b)]).collect::<Vec<_>>(),
            &quiet,
        )?;
        // The table goes into a JSON file, which has no NaN; a set that breaks everything is found
        // without guidance.
        let finite = |x: f64| if x.is_finite() { x } else { 0.0 };
        let pair = |(&(a, b), joint): (&(usize, usize), &Effect)| Interaction {
            a,
            b,
            nats: finite(joint.nats - singles[a].nats - singles[b].nats),
        };
        let mut pairs: Vec<Interaction> = every.iter().zip(&joint).map(pair).collect();
        pairs.sort_by(|x, y| y.nats.total_cmp(&x.nats).then((x.a, x.b).cmp(&(y.a, y.b))));
        tables.push(Interactions {
            prompt: prompt.clone(),
            base: trial.base.to_vec(),
            continuation: trial.continuation.to_vec(),
            components: all.clone(),
            alone: singles.iter().map(|e| finite(e.nats)).collect(),
            pairs,
        });
    }
    Ok(tables)
}
