//! Which components carry a case: activation patching in both directions, and emergence.

mod patching;
mod reading;

pub use patching::{Options, comparable, localize};
pub use reading::reading;

use serde::{Deserialize, Serialize};

use crate::edit::{Component, Edit};

/// Effect of patching one component, as a share of the case's whole effect (0: none, 1: all of it).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Effect {
    pub component: Component,
    /// Share of the glitch removed when the component is given its clean output in the glitched
    /// run.
    pub necessity: f64,
    /// Share of the glitch made when the component is given its glitched output in the clean run.
    pub sufficiency: f64,
}

/// Effect of patching one component at one position only.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PositionEffect {
    pub component: Component,
    /// Position in the edited sequence (prompt and continuation), and the token there.
    pub position: usize,
    pub id: u32,
    pub necessity: f64,
    pub sufficiency: f64,
}

/// How the replaced tokens of a case (its suffix, say) act on what comes after them, against other
/// tokens in their place.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reading {
    /// The first and the last position that is replaced; those between them count too.
    pub first: usize,
    pub last: usize,
    /// The heads (or whole mixers, where there are no heads) that read them, strongest first: those
    /// without which most of the effect goes when they are patched at the positions behind the
    /// last, and at no other.
    pub readers: Vec<Component>,
    pub carried: Carried,
    pub contrasts: Vec<Contrast>,
}

/// How much of what some tokens do is carried by the case's components.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Carried {
    /// Mean loss of the continuation with these tokens, nats a token; 0 where there is none.
    pub loss: f64,
    /// Mean Jensen-Shannon divergence from the run without them, bits: the whole that the shares
    /// are of.
    pub divergence_bits: f64,
    /// Of the case's set, at all positions.
    pub necessity: f64,
    pub sufficiency: f64,
    /// Necessity of the case's readers at the positions behind the tokens: of all together, and of
    /// each alone.
    pub readers: f64,
    pub each: Vec<f64>,
    /// By layer: the share that goes when the residual stream entering it is, at the positions of
    /// the tokens, that of the run without them. It falls from 1 to 0 where others read them.
    pub handover: Vec<f64>,
}

impl Carried {
    /// The layers in which others read the tokens: the first one behind which less than 90% still
    /// depends on their own places, and the first behind which less than 10% does; behind the last
    /// no position reads another. `None` where nothing was measured.
    pub fn handed_over(&self) -> Option<(usize, usize)> {
        let last = self.handover.len().checked_sub(1)?;
        // What is below at the entry of a layer was read in the one before.
        let below = |share: f64| {
            self.handover
                .iter()
                .position(|left| *left < share)
                .map_or(last, |at| at.saturating_sub(1))
        };
        Some((below(0.9), below(0.1)))
    }
}

/// Other tokens in the same place.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contrast {
    pub kind: ContrastKind,
    pub edits: Vec<Edit>,
    pub carried: Carried,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContrastKind {
    /// Ordinary tokens, at random.
    Random,
    /// Tokens of a search that come close to its goal in loss and do not reach it.
    Fails,
}

/// What carries a case.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Implication {
    /// The named set, strongest first.
    pub set: Vec<Component>,
    /// Share of the glitch removed when the whole set is patched clean, between 0 and 1.
    pub necessity: f64,
    /// Share of the glitch made when the whole set alone is patched glitched, between 0 and 1.
    pub sufficiency: f64,
    /// How many of the strongest components together remove 80% of the glitch when they are patched
    /// clean; `None` where those that were tried together do not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub most: Option<usize>,
    /// (joint effect of the set - sum of its members' single effects) / joint effect, on the
    /// sufficiency side; 0 when the parts add up, near 1 when the effect exists only jointly,
    /// negative when the members are redundant. `None` for a set of one or when the joint effect is
    /// nil.
    pub emergence: Option<f64>,
    /// Of a mixture of experts: the share of the glitch that goes when every token is routed as
    /// without the edits. The rest acts through what is computed, not through which expert computes
    /// it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub routing: Option<f64>,
    /// Necessity of the set's size-matched random sets of components of the same kinds, ascending.
    pub controls: Vec<f64>,
    /// Every head and MLP tried, in model order (the heat map), then neurons of the strongest MLPs.
    pub effects: Vec<Effect>,
    /// Where the strongest members of the set act: of each the positions whose output changes most,
    /// strongest first.
    pub positions: Vec<PositionEffect>,
    /// Of a case made of replacements in its prompt, where it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reading: Option<Reading>,
    /// Trials spent.
    pub calls: u64,
}
