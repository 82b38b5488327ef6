//! Sets of lesions on one text: what each does, and which members of a set it takes.

use std::sync::Arc;

use rand::Rng as _;
use serde::Serialize;

use super::lesions::components;
use super::{Progress, Target};
use crate::edit::{Action, Component, Edit, Trial};
use crate::error::{Error, Result};
use crate::evaluate::{Evaluator, ModelEvaluator, Request};
use crate::minimize::reduce;
use crate::model::Distributions;
use crate::mutate::interactions::{Interaction, Interactions, removal};
use crate::oracle::controls::has_controls;
use crate::rng;

/// Sets in one call: keeps the residual streams of a call within some tens of MB.
const CHUNK: usize = 256;

/// What a set of lesions does to a text.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Effect {
    /// Loss over that of the intact model, nats per token; negative where the text becomes more
    /// likely.
    pub nats: f64,
    /// Mean Jensen-Shannon divergence from the intact model's predictions, bits.
    pub bits: f64,
}

/// A text with the intact model's answer to it: what sets of lesions are measured against.
pub struct Intact<'a> {
    evaluator: &'a dyn Evaluator,
    trial: Trial,
    reference: Arc<Distributions>,
    /// Loss of the intact model, nats per token.
    pub loss: f64,
}

impl<'a> Intact<'a> {
    /// Measures the intact model on the continuation of `trial` (its edits are left out).
    pub fn new(evaluator: &'a dyn Evaluator, trial: &Trial) -> Result<Self> {
        if trial.continuation.is_empty() {
            return Err(Error::request("a text needs tokens whose loss is measured"));
        }
        let trial = trial.baseline();
        let observed =
            evaluator.observe(&[Request::new(trial.clone()).keeping_distributions()])?.pop();
        let observed = observed.ok_or_else(|| Error::internal("no baseline"))?;
        let reference = observed
            .distributions
            .clone()
            .ok_or_else(|| Error::internal("distributions were not kept"))?;
        Ok(Self { evaluator, trial, reference, loss: observed.loss() })
    }

    /// The text, unedited.
    pub fn text(&self) -> &Trial {
        &self.trial
    }

    /// Effects of these lesions, each set by itself, in their order; all in batches.
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

/// One action on each of these components.
pub fn lesions(components: &[Component], action: Action) -> Vec<Edit> {
    components.iter().map(|&component| Edit::lesion(component, action)).collect()
}

/// A set reduced to the members that its effect takes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MinimalSet {
    /// In the order they were given in.
    pub members: Vec<Component>,
    pub joint: Effect,
    /// Effect of each member alone.
    pub alone: Vec<Effect>,
    /// Effect of the set without each member.
    pub without: Vec<Effect>,
    /// `joint - sum(alone)`, nats per token.
    pub interaction: f64,
    /// Each member was left out, and less than the share that had to be kept was left.
    pub one_minimal: bool,
}

/// Leaves members of a set out as long as its effect stays at least `share` of the whole set's, in
/// nats: what is left is needed to the last member. By the minimizer's own algorithm.
///
/// # Errors
/// [`Error::Request`] where the whole set does no harm: there is nothing to keep a share of.
pub fn minimal(
    intact: &Intact,
    set: &[Component],
    action: Action,
    share: f64,
) -> Result<MinimalSet> {
    let quiet = |_, _| {};
    let of = |kept: &[bool]| -> Vec<Edit> {
        let members: Vec<Component> =
            set.iter().zip(kept).filter(|(_, kept)| **kept).map(|(c, _)| *c).collect();
        lesions(&members, action)
    };
    let whole = intact.effects(&[lesions(set, action)], &quiet)?[0].nats;
    if whole.is_nan() || whole <= 0.0 {
        return Err(Error::request(format!(
            "the set raises the loss by {whole} nats: there is nothing to reduce"
        )));
    }
    let mut holds = |candidates: &[Vec<bool>]| -> Result<Vec<bool>> {
        let sets: Vec<Vec<Edit>> = candidates.iter().map(|kept| of(kept)).collect();
        Ok(intact.effects(&sets, &quiet)?.iter().map(|e| e.nats >= share * whole).collect())
    };
    let reduced = reduce::reduce(set.len(), &mut holds, &reduce::Options::default())?;
    let members: Vec<Component> =
        set.iter().zip(&reduced.kept).filter(|(_, kept)| **kept).map(|(c, _)| *c).collect();
    let alone = members.iter().map(|&c| lesions(&[c], action));
    let without = (0..members.len()).map(|i| {
        let others: Vec<Component> =
            members.iter().enumerate().filter(|(j, _)| *j != i).map(|(_, c)| *c).collect();
        lesions(&others, action)
    });
    let sets: Vec<Vec<Edit>> = alone.chain(without).chain([lesions(&members, action)]).collect();
    let mut effects = intact.effects(&sets, &quiet)?;
    let joint = effects.pop().ok_or_else(|| Error::internal("no effect"))?;
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

/// Components in the table of one campaign, at most: with more, a random choice of them.
const TABLE: usize = 48;

/// Interactions of every pair of heads, MLPs and experts on each of these prompts: what the mutator
/// of sets is guided by. Kinds of which a lesion would have too few controls are left out, for no
/// set with one could be judged.
pub fn interactions(
    evaluator: &ModelEvaluator,
    prompts: &[(String, Trial)],
    seed: u64,
) -> Result<Vec<Interactions>> {
    let targets = [Target::Heads, Target::Mlps, Target::Experts];
    let all = targets.into_iter().flat_map(|target| components(evaluator.model, target));
    let mut all: Vec<Component> =
        all.filter(|&c| has_controls(c, &evaluator.model.config)).collect();
    let mut rng = rng::stream(seed, "components of sets");
    while all.len() > TABLE {
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
        let intact = Intact::new(evaluator, trial)?;
        let singles =
            intact.effects(&(0..all.len()).map(|a| vec![lesion(a)]).collect::<Vec<_>>(), &quiet)?;
        let joint = intact.effects(
            &every.iter().map(|&(a, b)| vec![lesion(a), lesion(b)]).collect::<Vec<_>>(),
            &quiet,
        )?;
        // The table goes into a file, which knows no NaN; a set that breaks everything is found
        // without a guide.
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
