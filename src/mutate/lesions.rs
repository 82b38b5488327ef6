//! Lesions of heads, MLPs and neurons, and sets of one to three of them.

use rand::Rng as _;

use super::{Context, Mutator, extend};
use crate::edit::{Action, Component, Edit, Trial};
use crate::model::Config;
use crate::oracle::controls::{has_controls, layers_with};
use crate::rng::Rng;

pub const ALL: [&dyn Mutator; 4] = [&Heads, &Mlps, &Neurons, &Experts];

/// Attention heads.
#[derive(Debug)]
pub struct Heads;
/// Whole MLPs.
#[derive(Debug)]
pub struct Mlps;
/// Hidden units of an MLP.
#[derive(Debug)]
pub struct Neurons;
/// Experts of a mixture: what they add, or that they are chosen at all.
#[derive(Debug)]
pub struct Experts;

impl Mutator for Heads {
    fn name(&self) -> &'static str {
        "heads"
    }

    fn propose(&self, parent: &Trial, context: &Context, rng: &mut Rng) -> Option<Trial> {
        let heads = context.config.num_attention_heads;
        lesion(&action, parent, context, rng, heads, |layer, head| Component::Head { layer, head })
    }
}

impl Mutator for Mlps {
    fn name(&self) -> &'static str {
        "mlps"
    }

    fn propose(&self, parent: &Trial, context: &Context, rng: &mut Rng) -> Option<Trial> {
        lesion(&action, parent, context, rng, 1, |layer, _| Component::Mlp { layer })
    }
}

impl Mutator for Neurons {
    fn name(&self) -> &'static str {
        "neurons"
    }

    fn propose(&self, parent: &Trial, context: &Context, rng: &mut Rng) -> Option<Trial> {
        let neurons = context.config.intermediate_size;
        lesion(&action, parent, context, rng, neurons, |layer, neuron| Component::Neuron { layer, neuron })
    }
}

impl Mutator for Experts {
    fn name(&self) -> &'static str {
        "experts"
    }

    fn applies(&self, config: &Config) -> bool {
        config.experts.is_some()
    }

    fn propose(&self, parent: &Trial, context: &Context, rng: &mut Rng) -> Option<Trial> {
        let experts = context.config.experts.as_ref()?.num_experts;
        let action = |rng: &mut Rng| if rng.random_bool(0.5) { Action::Unroute } else { action(rng) };
        lesion(&action, parent, context, rng, experts, |layer, expert| Component::Expert { layer, expert })
    }
}

/// Adds one to three lesions of one action.
fn lesion(
    action: &dyn Fn(&mut Rng) -> Action,
    parent: &Trial,
    context: &Context,
    rng: &mut Rng,
    per_layer: usize,
    component: impl Fn(usize, usize) -> Component,
) -> Option<Trial> {
    let layers = layers_with(component(0, 0), context.config);
    // A lesion that has nothing to be compared with would be judged in vain.
    let first = *layers.first()?;
    if per_layer == 0 || !has_controls(component(first, 0), context.config) {
        return None;
    }
    let action = action(rng);
    let mut set: Vec<Component> = Vec::new();
    for _ in 0..rng.random_range(1..=3) {
        let drawn = component(layers[rng.random_range(0..layers.len())], rng.random_range(0..per_layer));
        if !set.contains(&drawn) {
            set.push(drawn);
        }
    }
    extend(parent, set.into_iter().map(|component| Edit::Lesion { component, action }).collect())
}

/// Zero, mean, or a factor from -2 to 4.
pub(super) fn action(rng: &mut Rng) -> Action {
    match rng.random_range(0..3) {
        0 => Action::Zero,
        1 => Action::Mean,
        _ => Action::Scale { factor: [-2.0, -1.0, 2.0, 4.0][rng.random_range(0..4)] },
    }
}
