//! Lesions of components, sets of one to three of them, and recurrent states from other texts.

use rand::Rng as _;

use super::{Context, Mutator, editable, extend};
use crate::edit::{Action, Component, Edit, Trial};
use crate::model::Config;
use crate::oracle::controls::has_controls;
use crate::rng::Rng;

pub const ALL: [&dyn Mutator; 9] =
    [&Heads, &Mlps, &Neurons, &Experts, &Routers, &Mixers, &Channels, &States, &CarryState];

/// Attention heads.
#[derive(Debug)]
pub struct Heads;
/// Whole MLPs.
#[derive(Debug)]
pub struct Mlps;
/// Hidden units of an MLP.
#[derive(Debug)]
pub struct Neurons;
/// Experts of a mixture: what they add, or that they are chosen at all, or alone.
#[derive(Debug)]
pub struct Experts;
/// How sharply routers choose.
#[derive(Debug)]
pub struct Routers;
/// Whole attention blocks, state spaces, time mixings.
#[derive(Debug)]
pub struct Mixers;
/// Channels of a state space.
#[derive(Debug)]
pub struct Channels;
/// The recurrent state of a head or a channel, throughout or after one token.
#[derive(Debug)]
pub struct States;
/// The recurrent state that another prompt leaves.
#[derive(Debug)]
pub struct CarryState;

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
        let action = |rng: &mut Rng| match rng.random_range(0..4) {
            0 => Action::Unroute,
            1 => Action::Route,
            _ => action(rng),
        };
        lesion(&action, parent, context, rng, EXPERT)
    }
}

impl Mutator for Routers {
    fn name(&self) -> &'static str {
        "routers"
    }

    fn applies(&self, config: &Config) -> bool {
        has_controls(ROUTER, config)
    }

    fn propose(&self, parent: &Trial, context: &Context, rng: &mut Rng) -> Option<Trial> {
        let action = |rng: &mut Rng| Action::Scale {
            factor: [-1.0, 0.0, 0.25, 4.0][rng.random_range(0..4)],
        };
        lesion(&action, parent, context, rng, ROUTER)
    }
}

impl Mutator for Mixers {
    fn name(&self) -> &'static str {
        "mixers"
    }

    fn applies(&self, config: &Config) -> bool {
        has_controls(config.mixer(0), config)
    }

    fn propose(&self, parent: &Trial, context: &Context, rng: &mut Rng) -> Option<Trial> {
        lesion(&action, parent, context, rng, context.config.mixer(0))
    }
}

impl Mutator for Channels {
    fn name(&self) -> &'static str {
        "channels"
    }

    fn applies(&self, config: &Config) -> bool {
        has(CHANNEL, config)
    }

    fn propose(&self, parent: &Trial, context: &Context, rng: &mut Rng) -> Option<Trial> {
        lesion(&action, parent, context, rng, CHANNEL)
    }
}

impl Mutator for States {
    fn name(&self) -> &'static str {
        "states"
    }

    fn applies(&self, config: &Config) -> bool {
        has(STATE, config)
    }

    fn propose(&self, parent: &Trial, context: &Context, rng: &mut Rng) -> Option<Trial> {
        lesion(&action, parent, context, rng, STATE)
    }
}

impl Mutator for CarryState {
    fn name(&self) -> &'static str {
        "carry-state"
    }

    fn applies(&self, config: &Config) -> bool {
        has(STATE, config)
    }

    fn propose(&self, parent: &Trial, context: &Context, rng: &mut Rng) -> Option<Trial> {
        let layers = context.config.layers_with(WHOLE_STATE);
        let layer = *layers.get(rng.random_range(0..layers.len().max(1)))?;
        let seed = context.seeds.get(rng.random_range(0..context.seeds.len().max(1)))?;
        let from = seed[..rng.random_range(1..=seed.len().max(1)).min(seed.len())].to_vec();
        let position = editable(parent, context.config);
        if from.is_empty() || position.is_empty() {
            return None;
        }
        let component = Component::State { layer, part: None };
        extend(
            parent,
            vec![Edit::CarryState { component, position: rng.random_range(position), from }],
        )
    }
}

const HEAD: Component = Component::Head { layer: 0, head: 0 };
const NEURON: Component = Component::Neuron { layer: 0, neuron: 0 };
const EXPERT: Component = Component::Expert { layer: 0, expert: 0 };
const ROUTER: Component = Component::Router { layer: 0 };
const CHANNEL: Component = Component::Channel { layer: 0, channel: 0 };
const STATE: Component = Component::State { layer: 0, part: Some(0) };
const WHOLE_STATE: Component = Component::State { layer: 0, part: None };

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
    let layers = context.config.layers_with(like);
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
    // After one token now and then; what a lesion does throughout, attention can route around.
    let editable = editable(parent, context.config);
    let position =
        (!editable.is_empty() && rng.random_bool(0.25)).then(|| rng.random_range(editable));
    extend(
        parent,
        set.into_iter().map(|component| Edit::Lesion { component, action, position }).collect(),
    )
}

/// Zero, mean, or a factor from -2 to 4.
pub(super) fn action(rng: &mut Rng) -> Action {
    match rng.random_range(0..3) {
        0 => Action::Zero,
        1 => Action::Mean,
        _ => Action::Scale { factor: [-2.0, -1.0, 2.0, 4.0][rng.random_range(0..4)] },
    }
}
