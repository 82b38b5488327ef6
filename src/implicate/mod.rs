//! Which components carry a case: activation patching in both directions, and emergence.

mod patching;

pub use patching::{Options, comparable, implicate};

use serde::{Deserialize, Serialize};

use crate::edit::Component;

/// Effect of patching one component, as a share of the case's whole effect (0: none, 1: all of it).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Effect {
    pub component: Component,
    /// Share of the glitch removed when the component is given its clean output in the glitched run.
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
    /// How many of the strongest components together remove 80% of the glitch when they are patched clean;
    /// `None` where those that were tried together do not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub most: Option<usize>,
    /// (joint effect of the set - sum of its members' single effects) / joint effect, on the
    /// sufficiency side; 0 when the parts add up, near 1 when the effect exists only jointly, negative
    /// when the members are redundant. `None` for a set of one or when the joint effect is nil.
    pub emergence: Option<f64>,
    /// Of a mixture of experts: the share of the glitch that goes when every token is routed as without the
    /// edits. The rest acts through what is computed, not through which expert computes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub routing: Option<f64>,
    /// Necessity of the set's size-matched random sets of components of the same kinds, ascending.
    pub controls: Vec<f64>,
    /// Every head and MLP tried, in model order (the heat map), then neurons of the strongest MLPs.
    pub effects: Vec<Effect>,
    /// Where the strongest members of the set act: of each the positions whose output changes most,
    /// strongest first.
    pub positions: Vec<PositionEffect>,
    /// Trials spent.
    pub calls: u64,
}
