//! Which components a localization tries, and how their effects are ranked.

use super::Effect;
use crate::edit::{Component, Edit, Trial};
use crate::evaluate::block_of;
use crate::model::Config;

/// The mixer and the MLP of a layer.
pub fn blocks(config: &Config, layer: usize) -> Vec<Component> {
    std::iter::once(config.mixer(layer)).chain(config.mlp(layer)).collect()
}

/// Returns true if a component is in no block that the trial's edits are in: a lesion does not
/// mediate itself.
pub fn is_outside_edits(component: &Component, trial: &Trial, config: &Config) -> bool {
    let mut edited = trial.edits.iter().filter_map(Edit::component);
    edited.all(|edited| block_of(edited, config) != block_of(component, config))
}

/// The heads of a layer's mixer, with their states where they have some.
pub fn parts_of_mixer(config: &Config, layer: usize) -> Vec<Component> {
    let heads = config.heads(layer);
    let states = if heads > 0 { config.state_parts(layer).0 } else { 0 };
    let mut all: Vec<Component> = (0..heads).map(|head| Component::Head { layer, head }).collect();
    all.extend((0..states).map(|part| Component::State { layer, part: Some(part) }));
    all
}

/// The place of a component among those of its layer: heads, states, mixer, MLP.
pub fn order_in_layer(component: &Component) -> (u8, usize) {
    match *component {
        Component::Head { head, .. } => (0, head),
        Component::State { part: Some(part), .. } => (1, part),
        Component::Attention { .. } | Component::Ssm { .. } | Component::TimeMix { .. } => (2, 0),
        _ => (3, 0),
    }
}

/// Returns the effects of heads, mixers and MLPs. A mixer gives way to its heads where these were
/// tried.
pub fn coarse_effects(effects: &[Effect]) -> Vec<Effect> {
    let has_heads = |layer: usize| {
        effects
            .iter()
            .any(|e| matches!(e.component, Component::Head { layer: l, .. } if l == layer))
    };
    let is_unit = |c: &Component| match *c {
        Component::Head { .. } | Component::Mlp { .. } | Component::ChannelMix { .. } => true,
        Component::Attention { layer }
        | Component::Ssm { layer }
        | Component::TimeMix { layer } => !has_heads(layer),
        _ => false,
    };
    effects.iter().filter(|e| is_unit(&e.component)).cloned().collect()
}

/// Returns true if two components share a part, so that a set with both would count it twice.
pub fn overlap(a: &Component, b: &Component) -> bool {
    // The block of a component (mixer or MLP) and its part of that block; `None` is the whole.
    let place = |c: &Component| match *c {
        Component::Head { head: part, .. } | Component::Channel { channel: part, .. } => {
            Some((0, Some(part)))
        }
        Component::State { part, .. } => Some((0, part)),
        Component::Attention { .. } | Component::Ssm { .. } | Component::TimeMix { .. } => {
            Some((0, None))
        }
        Component::Neuron { neuron: part, .. } | Component::Expert { expert: part, .. } => {
            Some((1, Some(part)))
        }
        // A router decides over all experts, and counts as one more part beside them.
        Component::Router { .. } => Some((1, Some(usize::MAX))),
        Component::Mlp { .. } | Component::ChannelMix { .. } => Some((1, None)),
        _ => None,
    };
    let (Some((block_a, part_a)), Some((block_b, part_b))) = (place(a), place(b)) else {
        return false;
    };
    a.layer() == b.layer()
        && block_a == block_b
        && (part_a == part_b || part_a.is_none() || part_b.is_none())
}

/// The share of a mixer's strength from which its strongest head is named in its place.
pub const NEARLY_ALL: f64 = 0.8;

/// Returns the mean of necessity and sufficiency, each capped at 1.
pub fn strength(effect: &Effect) -> f64 {
    0.5 * (effect.necessity.min(1.0) + effect.sufficiency.min(1.0))
}

/// Ranks components by the mean of necessity and sufficiency, each capped at 1, strongest first.
/// Leaves out a mixer of which one head has nearly all of the strength.
///
/// Between equals the finer component comes first: an MLP whose one neuron does everything acts
/// through that neuron, and an RWKV head whose state does everything acts through its state.
pub fn rank(effects: &[Effect]) -> Vec<Component> {
    let fineness = |c: &Component| match c {
        Component::Neuron { .. }
        | Component::Expert { .. }
        | Component::Router { .. }
        | Component::State { part: Some(_), .. } => 0,
        Component::Head { .. } | Component::Channel { .. } => 1,
        _ => 2,
    };
    let head_of = |e: &Effect| match e.component {
        Component::Head { layer, .. } => Some((layer, strength(e))),
        _ => None,
    };
    let strongest_head = |layer: usize| {
        let of_layer = effects.iter().filter_map(head_of).filter(|(l, _)| *l == layer);
        of_layer.map(|(_, strength)| strength).fold(f64::NEG_INFINITY, f64::max)
    };
    let is_mixer = |c: &Component| {
        matches!(c, Component::Attention { .. } | Component::Ssm { .. } | Component::TimeMix { .. })
    };
    let in_a_head = |e: &Effect| {
        is_mixer(&e.component) && strongest_head(e.component.layer()) >= NEARLY_ALL * strength(e)
    };
    let mut order: Vec<&Effect> = effects.iter().filter(|e| !in_a_head(e)).collect();
    // Rounded, so that effects that are equal up to rounding errors compare as equal.
    let key =
        |e: &Effect| (-(strength(e) * 1e5).round() as i64, fineness(&e.component), e.component);
    order.sort_by_key(|e| key(e));
    order.into_iter().map(|e| e.component).collect()
}
