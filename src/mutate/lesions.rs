//! Lesions of components, sets of one to three of them, attention knockouts, and recurrent states
//! from other texts.

use rand::Rng as _;

use super::mutator::{Context, Mutator, editable, extend, mutators};
use crate::edit::{Action, AttentionKnockout, Component, Edit, Trial};
use crate::model::Config;
use crate::oracle::controls::has_controls;
use crate::rng::Rng;

mutators! {
    /// Lesions attention heads.
    Heads;
    /// Lesions whole MLPs.
    Mlps;
    /// Lesions hidden units of an MLP.
    Neurons;
    /// Lesions experts of a mixture: what they add, or how often the router chooses them.
    Experts;
    /// Scales the logits by which a router chooses, or lets it choose as in another text.
    Routers;
    /// Lesions whole attention blocks, state spaces, time mixings.
    Mixers;
    /// Lesions channels of a state space.
    Channels;
    /// Lesions the recurrent state of a head or a channel, throughout or after one token.
    States;
    /// Puts the recurrent state that another prompt leaves in the place of one.
    CarryState;
    /// Keeps attention heads, or a whole block, from attending to a token of the prompt.
    Knockouts;
}

impl Mutator for Heads {
    fn name(&self) -> &'static str {
        "heads"
    }

    fn groups(&self) -> &'static [&'static str] {
        &["lesions"]
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

    fn groups(&self) -> &'static [&'static str] {
        &["lesions"]
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

    fn groups(&self) -> &'static [&'static str] {
        &["lesions"]
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

    fn groups(&self) -> &'static [&'static str] {
        &["lesions"]
    }

    fn applies(&self, config: &Config) -> bool {
        has(EXPERT, config)
    }

    fn propose(&self, parent: &Trial, context: &Context, rng: &mut Rng) -> Option<Trial> {
        let action = |rng: &mut Rng| match rng.random_range(0..5) {
            0 => Action::Mask,
            1 => Action::Force,
            2 => {
                let logits = if rng.random_bool(0.5) { PROMOTIONS } else { DEMOTIONS };
                Action::Promote { logit: logits[rng.random_range(0..logits.len())] }
            }
            _ => action(rng),
        };
        lesion(&action, parent, context, rng, EXPERT)
    }
}

impl Mutator for Routers {
    fn name(&self) -> &'static str {
        "routers"
    }

    fn groups(&self) -> &'static [&'static str] {
        &["lesions"]
    }

    fn applies(&self, config: &Config) -> bool {
        has_controls(ROUTER, config)
    }

    fn propose(&self, parent: &Trial, context: &Context, rng: &mut Rng) -> Option<Trial> {
        let action = |rng: &mut Rng| match rng.random_range(0..=ROUTER_FACTORS.len()) {
            0 => resample(rng),
            n => Action::Scale { factor: ROUTER_FACTORS[n - 1] },
        };
        lesion(&action, parent, context, rng, ROUTER)
    }
}

impl Mutator for Mixers {
    fn name(&self) -> &'static str {
        "mixers"
    }

    fn groups(&self) -> &'static [&'static str] {
        &["lesions"]
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

    fn groups(&self) -> &'static [&'static str] {
        &["lesions"]
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

    fn groups(&self) -> &'static [&'static str] {
        &["lesions"]
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

    fn groups(&self) -> &'static [&'static str] {
        &["lesions"]
    }

    fn applies(&self, config: &Config) -> bool {
        has(STATE, config)
    }

    fn propose(&self, parent: &Trial, context: &Context, rng: &mut Rng) -> Option<Trial> {
        let layers = layers(WHOLE_STATE, context);
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

impl Mutator for Knockouts {
    fn name(&self) -> &'static str {
        "knockouts"
    }

    fn groups(&self) -> &'static [&'static str] {
        &["lesions"]
    }

    fn applies(&self, config: &Config) -> bool {
        has(ATTENTION, config) && has_controls(HEAD, config)
    }

    fn propose(&self, parent: &Trial, context: &Context, rng: &mut Rng) -> Option<Trial> {
        let config = context.config;
        let layers = layers(ATTENTION, context);
        if !self.applies(config) || layers.is_empty() {
            return None;
        }
        let whole = rng.random_bool(WHOLE_BLOCK) && has_controls(ATTENTION, config);
        let set = match whole {
            true => vec![Component::Attention { layer: layers[rng.random_range(0..layers.len())] }],
            false => some_like(HEAD, &layers, config, rng),
        };
        // At the last token of the prompt a key would have no later query there.
        let tokens = editable(parent, config);
        let keys = tokens.start..tokens.end.saturating_sub(1);
        if keys.is_empty() {
            return None;
        }
        let key = rng.random_range(keys);
        let one_query = rng.random_bool(AT_ONE_POSITION);
        let position = one_query.then(|| rng.random_range(key + 1..tokens.end));
        // Where the parent has deleted an end of the edge, there is nothing to cut.
        let layout = parent.layout();
        layout.at(key).and(layout.at(position.unwrap_or(key)))?;
        let knockout = |component| AttentionKnockout { component, position, key };
        let knockouts = set.into_iter().map(knockout).map(Edit::AttentionKnockout);
        extend(parent, knockouts.collect())
    }
}

const HEAD: Component = Component::Head { layer: 0, head: 0 };
const NEURON: Component = Component::Neuron { layer: 0, neuron: 0 };
const EXPERT: Component = Component::Expert { layer: 0, expert: 0 };
const ATTENTION: Component = Component::Attention { layer: 0 };
const ROUTER: Component = Component::Router { layer: 0 };
const CHANNEL: Component = Component::Channel { layer: 0, channel: 0 };
const STATE: Component = Component::State { layer: 0, part: Some(0) };
const WHOLE_STATE: Component = Component::State { layer: 0, part: None };

fn has(like: Component, config: &Config) -> bool {
    config.all_like(like).next().is_some()
}

/// Returns the layers that have components like this one, of those that may be drawn from.
fn layers(like: Component, context: &Context) -> Vec<usize> {
    let mut layers = context.config.layers_with(like);
    layers.retain(|layer| context.layers.is_none_or(|range| range.contains(*layer)));
    layers
}

/// Adds one to three lesions with the same action, of components of the same kind as `like`.
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
    let layers = layers(like, context);
    if layers.is_empty() {
        return None;
    }
    let action = action(rng);
    let set = some_like(like, &layers, context.config, rng);
    let editable = editable(parent, context.config);
    let position = (!editable.is_empty() && rng.random_bool(AT_ONE_POSITION))
        .then(|| rng.random_range(editable));
    extend(
        parent,
        set.into_iter().map(|component| Edit::Lesion { component, action, position }).collect(),
    )
}

/// Draws one to three different components of the same kind as `like` from these layers.
fn some_like(like: Component, layers: &[usize], config: &Config, rng: &mut Rng) -> Vec<Component> {
    let mut set: Vec<Component> = Vec::new();
    for _ in 0..rng.random_range(1..=3) {
        let layer = layers[rng.random_range(0..layers.len())];
        let index = rng.random_range(0..config.count_in(layer, like));
        let drawn = config.nth_in(layer, like, index);
        if !set.contains(&drawn) {
            set.push(drawn);
        }
    }
    set
}

/// Factors by which outputs are scaled: turned round or amplified. Zero is an action of its own.
const FACTORS: [f32; 4] = [-2.0, -1.0, 2.0, 4.0];

/// Changes of the router logit of an expert, nats, that promote it a little, or past most others.
pub(super) const PROMOTIONS: [f32; 3] = [1.0, 2.0, 4.0];

/// Changes of the router logit of an expert, nats, that demote it.
pub(super) const DEMOTIONS: [f32; 3] = [-1.0, -2.0, -4.0];

/// Factors for router logits: the worst experts, any expert, a flatter choice, a sharper one.
const ROUTER_FACTORS: [f32; 4] = [-1.0, 0.0, 0.25, 4.0];

/// Share of lesions that act after one token instead of throughout. Attention can route around a
/// lesion of one position, so most act everywhere.
const AT_ONE_POSITION: f64 = 0.25;

/// Share of attention knockouts that are of a whole block instead of single heads.
const WHOLE_BLOCK: f64 = 0.25;

/// The number of other texts that outputs come from: their runs are remembered.
const TEXTS: u64 = 4;

/// Draws one of the actions that suit every component.
fn action(rng: &mut Rng) -> Action {
    match rng.random_range(0..4) {
        0 => Action::Zero,
        1 => Action::Mean,
        2 => resample(rng),
        _ => Action::Scale { factor: FACTORS[rng.random_range(0..FACTORS.len())] },
    }
}

fn resample(rng: &mut Rng) -> Action {
    Action::Resample { seed: rng.random_range(0..TEXTS) }
}
