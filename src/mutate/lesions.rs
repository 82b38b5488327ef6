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

    fn applies(&self, config: &Config) -> bool {
        has(HEAD, config)
    }

    fn propose(&self, parent: &Trial, context: &Context, rng: &mut Rng) -> Option<Trial> {
        lesion(&action, parent, context, rng, HEAD)
    }
}

impl Mutator for Mlps {
    fn name(&self) -> &'static str {
        "mlps"
    }

    fn applies(&self, config: &Config) -> bool {
        config.has_mlp()
    }

    fn propose(&self, parent: &Trial, context: &Context, rng: &mut Rng) -> Option<Trial> {
        lesion(&action, parent, context, rng, context.config.mlp(0)?)
    }
}

impl Mutator for Neurons {
    fn name(&self) -> &'static str {
        "neurons"
    }

    fn applies(&self, config: &Config) -> bool {
        has(NEURON, config)
    }

    fn propose(&self, parent: &Trial, context: &Context, rng: &mut Rng) -> Option<Trial> {
        lesion(&action, parent, context, rng, NEURON)
    }
}

impl Mutator for Experts {
    fn name(&self) -> &'static str {
        "experts"
    }

    fn applies(&self, config: &Config) -> bool {
        has(EXPERT, config)
    }

    fn propose(&self, parent: &Trial, context: &Context, rng: &mut Rng) -> Option<Trial> {
        let action = |rng: &mut Rng| if rng.random_bool(0.5) { Action::Unroute } else { action(rng) };
        lesion(&action, parent, context, rng, EXPERT)
    }
}

const HEAD: Component = Component::Head { layer: 0, head: 0 };
const NEURON: Component = Component::Neuron { layer: 0, neuron: 0 };
const EXPERT: Component = Component::Expert { layer: 0, expert: 0 };

fn has(like: Component, config: &Config) -> bool {
    config.all_like(like).next().is_some()
}

/// Adds one to three lesions of one action, of components of the kind of `like`.
fn lesion(
    action: &dyn Fn(&mut Rng) -> Action,
    parent: &Trial,
    context: &Context,
    rng: &mut Rng,
    like: Component,
) -> Option<Trial> {
    // A lesion that has nothing to be compared with would be judged in vain.
    if !has_controls(like, context.config) {
        return None;
    }
    let layers = layers_with(like, context.config);
    let action = action(rng);
    let mut set: Vec<Component> = Vec::new();
    for _ in 0..rng.random_range(1..=3) {
        let layer = layers[rng.random_range(0..layers.len())];
        let index = rng.random_range(0..context.config.count_in(layer, like));
        let drawn = context.config.nth_in(layer, like, index);
        if !set.contains(&drawn) {
            set.push(drawn);
        }
    }
    extend(parent, set.into_iter().map(|component| Edit::lesion(component, action)).collect())
}

/// Zero, mean, or a factor from -2 to 4.
pub(super) fn action(rng: &mut Rng) -> Action {
    match rng.random_range(0..3) {
        0 => Action::Zero,
        1 => Action::Mean,
        _ => Action::Scale { factor: [-2.0, -1.0, 2.0, 4.0][rng.random_range(0..4)] },
    }
}
