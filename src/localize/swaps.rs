//! What two models disagree about on a text, by component: each gets the weights that the other has
//! in one component.
//!
//! A component of one model is made to output what the other's would on the same input (the
//! residual stream of its own run), which is what swapping its weights does. If that removes the
//! disagreement, the component is needed for it; if the same swap in the other model makes them
//! agree, it is enough. Upstream of a component that was changed nothing differs, and downstream of
//! it components pass on the difference but do not make it: unlike patching of activations, a swap
//! leaves them out.

use super::components::{blocks, parts_of_mixer};
use super::{Effect, rank};
use crate::edit::{Component, Trial};
use crate::error::Result;
use crate::evaluate::{Evaluator as _, ModelEvaluator, Patch, Request, TwoModels};

/// Returns the effect of swapping each mixer, MLP and head, strongest first, on the disagreement
/// about a trial of token edits: the share of it that is removed if the model under test gets the
/// other's weights (necessity), and if the other gets those of the model under test (sufficiency).
/// Empty if they agree, if they are built differently, and for trials that edit more than tokens.
///
/// # Errors
/// Those of the evaluators.
pub fn swaps(models: &TwoModels, trial: &Trial) -> Result<Vec<Effect>> {
    let config = &models.evaluator.model.config;
    if !trial.edits.iter().all(|edit| edit.is_token_edit() && !edit.changes_embedding())
        || !models.are_alike()
    {
        return Ok(Vec::new());
    }
    let of_layer = |layer| {
        let parts = parts_of_mixer(config, layer).into_iter();
        let heads = parts.filter(|part| matches!(part, Component::Head { .. }));
        heads.chain(blocks(config, layer)).collect::<Vec<_>>()
    };
    let components: Vec<Component> = (0..config.num_hidden_layers).flat_map(of_layer).collect();
    let necessity = shares_removed(models.evaluator, models.against, trial, &components)?;
    let sufficiency = shares_removed(models.against, models.evaluator, trial, &components)?;
    let (Some(necessity), Some(sufficiency)) = (necessity, sufficiency) else {
        return Ok(Vec::new());
    };
    let shares = necessity.into_iter().zip(sufficiency);
    let effects: Vec<Effect> = (components.iter().zip(shares))
        .map(|(&component, (necessity, sufficiency))| Effect { component, necessity, sufficiency })
        .collect();
    let order = rank(&effects);
    let of = |component| effects.iter().find(|effect| effect.component == component).cloned();
    Ok(order.into_iter().filter_map(of).collect())
}

/// The disagreement below which there is nothing to share out, bits.
const LEAST_BITS: f64 = 1e-3;

/// Returns the share of the disagreement of two models that goes if `model` gets the weights that
/// `other` has in each component; `None` if they agree.
fn shares_removed(
    model: &ModelEvaluator,
    other: &ModelEvaluator,
    trial: &Trial,
    components: &[Component],
) -> Result<Option<Vec<f64>>> {
    let ids = trial.layout().ids;
    let theirs = other.observe(&[Request::new(trial.clone()).keeping_distributions()])?;
    let reference = theirs.into_iter().next().and_then(|theirs| theirs.distributions);
    let residuals = model.residuals(&ids)?;
    let is_head = |component: &&Component| matches!(component, Component::Head { .. });
    let whole: Vec<Component> = components.iter().filter(|c| !is_head(c)).copied().collect();
    let mut patches: Vec<(Component, Patch)> = other
        .outputs_on(&ids, &residuals, &whole)?
        .into_iter()
        .map(|patch| (patch.component, patch))
        .collect();
    // The weights of a head are those of its output too: its mixer's output without it, and what
    // the other's adds to that.
    for layer in 0..model.model.config.num_hidden_layers {
        let ours = model.mixer_without_heads(&ids, &residuals, layer)?;
        let theirs = other.mixer_without_heads(&ids, &residuals, layer)?;
        let component = model.model.config.mixer(layer);
        for (head, (ours, without)) in ours.iter().zip(&theirs).skip(1).enumerate() {
            let added = theirs[0].iter().zip(without).map(|(with, without)| with - without);
            let values = ours.iter().zip(added).map(|(ours, added)| ours + added).collect();
            let head = Component::Head { layer, head };
            patches.push((head, Patch { component, first: 0, values }));
        }
    }
    let mut requests = vec![Request { reference, ..Request::new(trial.clone()) }];
    for component in components {
        let of = patches.iter().find(|(of, _)| of == component).map(|(_, patch)| patch.clone());
        requests.push(requests[0].clone().patched(of.into_iter().collect()));
    }
    let bits: Vec<f64> = model
        .observe(&requests)?
        .iter()
        .map(|observation| observation.mean_divergence_bits())
        .collect();
    Ok((bits[0] >= LEAST_BITS)
        .then(|| bits[1..].iter().map(|swapped| 1.0 - swapped / bits[0]).collect()))
}
