//! Which components a localization tries, and how their effects are ranked.

use super::Effect;
use crate::edit::Component;
use crate::model::Config;

/// The components of a layer that are tried first: its mixer, the mixer's heads, with their states
/// where they have some, and its MLP.
pub fn coarse(config: &Config, layer: usize) -> Vec<Component> {
    let heads = config.heads(layer);
    let states = if heads > 0 { config.state_parts(layer).0 } else { 0 };
    let mut all: Vec<Component> = (0..heads).map(|head| Component::Head { layer, head }).collect();
    all.extend((0..states).map(|part| Component::State { layer, part: Some(part) }));
    all.push(config.mixer(layer));
    all.extend(config.mlp(layer));
    all
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

/// Ranks components by the mean of necessity and sufficiency, each capped at 1, strongest first.
/// Leaves out a mixer of which one head has nearly all of the strength.
///
/// Between equals the finer component comes first: an MLP whose one neuron does everything acts
/// through that neuron, and an RWKV head whose state does everything acts through its state.
pub fn rank(effects: &[Effect]) -> Vec<Component> {
    let strength = |e: &Effect| 0.5 * (e.necessity.min(1.0) + e.sufficiency.min(1.0));
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
