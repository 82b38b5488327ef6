//! Localizes a case: names the components that mediate it, by activation patching.
//!
//! Two runs are compared: the *clean* run, the trial without its edits, and the *corrupted* run,
//! the trial with them. Patching a component's clean output into the corrupted run shows how much
//! of the effect needs that component (necessity); patching its corrupted output into the clean
//! run shows how much of the effect it makes by itself (sufficiency). Nothing in this room looks
//! at the edits: the two runs are all it sees.

mod attribution;
mod components;
mod contrast;
mod generalize;
mod graph;
mod interactions;
mod logit_lens;
mod noise_controls;
mod patching;
mod residual_map;
mod runs;
mod search;
mod set;
mod swaps;
mod symptom;
mod symptoms;

pub use attribution::attribute_tokens;
pub use components::rank;
pub use generalize::{BlockEffect, Direction, DirectionAt, Generalization, PROFILED};
pub use graph::{Baseline, Edge, Graph, MAX_NODES, Node};
pub use interactions::{Interactions, Pair, PairKind};
pub use logit_lens::{LensRun, LogitLens, MAX_LENS_CONTROLS};
pub use noise_controls::noise_controls;
pub use residual_map::{MAX_MAP_POSITIONS, MAX_MEASURED_LAYERS, MapPosition, ResidualMap};
pub use runs::comparable;
pub use search::localize;
pub use set::LocalizeOptions;
pub use swaps::swaps;

use serde::{Deserialize, Serialize};

use crate::edit::{Component, Edit};
use crate::vocabulary::TokenKind;

/// A token that the edits of a case put in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PutIn {
    /// The token.
    pub id: u32,
    /// The token, decoded: a comment.
    pub text: String,
    /// Its kind.
    pub class: TokenKind,
}

/// The controls that tell what is specific to a case.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ComparedWith {
    /// The same edits with ordinary content.
    #[default]
    OrdinaryContent,
    /// Noise in the place of the lesions: what they change, rotated at random.
    Noise,
}

/// The symptom of a case: where the predictions with and without the edits diverge most, the token
/// that the edits make the model say or, where they make it say nothing in particular, the one they
/// make it no longer say. Shares of the effect are shares of the change of its log-probability.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SymptomToken {
    /// The token.
    pub id: u32,
    /// The token, decoded: a comment.
    pub text: String,
    /// The position in the edited sequence that predicts it.
    pub position: usize,
    /// Its log-probability with the edits, nats.
    pub log_prob: f64,
    /// By how much the edits raise it, nats; negative where they lower it.
    pub effect: f64,
}

/// Effect of patching one component, as a share of the case's whole effect (0: none, 1: all of it):
/// of the symptom's where there is one, else of the divergence.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Effect {
    /// The patched component.
    pub component: Component,
    /// Share of the effect that is removed when the corrupted run gets the clean output.
    pub necessity: f64,
    /// Share of the effect that appears when the clean run gets the corrupted output.
    pub sufficiency: f64,
}

/// The part a component has in a case, seen against controls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// It mediates more of the effect of the case than of those of its controls.
    Specific,
    /// It mediates whatever is put in the place of the case's edits: at least half as much of the
    /// effects of the controls.
    Relay,
    /// Neither; also whatever mediates less than a tenth.
    Unclear,
}

impl Role {
    /// Returns the name in tables and files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Specific => "specific",
            Self::Relay => "relay",
            Self::Unclear => "unclear",
        }
    }
}

/// A component's necessity in a case and in its controls ([`ComparedWith`]).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contrast {
    /// The patched component.
    pub component: Component,
    /// Share of the effect that is removed when the corrupted run gets the clean output, between 0
    /// and 1. The effect is by how much the edits raise the log-probability of what the model says
    /// with them: the most probable token where its predictions diverge most.
    pub necessity: f64,
    /// The same share in each control, of its own effect; ascending.
    pub controls: Vec<f64>,
    /// The share of controls (this case counted as one) of which some component stands out as much
    /// from the others: the family-wise p-value of being one more control.
    pub p_value: f64,
    /// The part it has in the case.
    pub role: Role,
}

impl Contrast {
    /// Returns how much more of the effect it mediates than of those of the controls (their mean).
    pub fn excess(&self) -> f64 {
        self.necessity - self.controls.iter().sum::<f64>() / self.controls.len().max(1) as f64
    }
}

/// Effect of patching one component at one position only.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PositionEffect {
    /// The patched component.
    pub component: Component,
    /// Position in the edited sequence (prompt and continuation).
    pub position: usize,
    /// The token at `position`.
    pub id: u32,
    /// As in [`Effect`].
    pub necessity: f64,
    /// As in [`Effect`].
    pub sufficiency: f64,
}

/// Attribution of the replaced tokens of a case (its suffix, say): how they act on the positions
/// after them, compared with other tokens in their place.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenAttribution {
    /// The first replaced position.
    pub first: usize,
    /// The last replaced position; everything from `first` to here counts as replaced.
    pub last: usize,
    /// The heads (or whole mixers, in models without heads) that attend to the replaced tokens,
    /// strongest first: those that remove most of the effect when they are patched at the
    /// positions after the last replaced one, and nowhere else.
    #[serde(rename = "readers")]
    pub attending: Vec<Component>,
    /// Mediation of the effect of the case's own tokens.
    #[serde(rename = "carried")]
    pub mediation: Mediation,
    /// The same figures for other tokens in their place.
    #[serde(rename = "contrasts")]
    pub comparisons: Vec<ComparisonTokens>,
}

/// Mediation of the effect of some tokens: the share that the case's components account for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mediation {
    /// Mean loss of the continuation with these tokens, nats per token; 0 without a continuation.
    pub loss: f64,
    /// Mean Jensen-Shannon divergence from the run without them, bits. All shares are shares of
    /// this.
    pub divergence_bits: f64,
    /// Necessity of the case's set, patched at all positions.
    pub necessity: f64,
    /// Sufficiency of the case's set, patched at all positions.
    pub sufficiency: f64,
    /// Necessity of all attending heads together, patched at the positions after the tokens.
    #[serde(rename = "readers")]
    pub attending: f64,
    /// Necessity of each attending head alone, in the order of [`TokenAttribution::attending`].
    #[serde(rename = "each")]
    pub attending_each: Vec<f64>,
    /// Layer-wise residual patching: for every layer, the share of the effect that is removed when
    /// the residual stream entering it is, at the positions of the tokens, that of the run without
    /// them. It falls from 1 to 0 over the layers in which later positions attend to the tokens.
    #[serde(rename = "handover")]
    pub layerwise: Vec<f64>,
}

impl Mediation {
    /// Returns the layers in which later positions attend to the tokens: the first layer after
    /// which less than 90% of the effect still depends on the tokens' own positions, and the first
    /// after which less than 10% does. After the last layer no position attends to another. `None`
    /// if nothing was measured.
    pub fn transfer_layers(&self) -> Option<(usize, usize)> {
        let last = self.layerwise.len().checked_sub(1)?;
        // A share that is low at the entry of a layer became so in the layer before it.
        let below = |share: f64| {
            self.layerwise
                .iter()
                .position(|left| *left < share)
                .map_or(last, |at| at.saturating_sub(1))
        };
        Some((below(0.9), below(0.1)))
    }
}

/// Other tokens in the place of the replaced ones, for comparison.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ComparisonTokens {
    /// The source of the tokens.
    pub kind: ComparisonKind,
    /// The replacements that put them there.
    pub edits: Vec<Edit>,
    /// Mediation of their effect.
    #[serde(rename = "carried")]
    pub mediation: Mediation,
}

/// The source of the tokens of a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ComparisonKind {
    /// Ordinary tokens, drawn at random.
    Random,
    /// Tokens of a search that come close to its goal in loss and do not reach it.
    Fails,
}

/// The components that mediate a case.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Localization {
    /// The named set, strongest first: the smallest that does nearly as much as the largest one
    /// tried, of specific components where there are [`contrasts`](Localization::contrasts). Empty
    /// if none is specific, or if even the largest does next to nothing.
    pub set: Vec<Component>,
    /// Share of the effect removed by patching the whole set clean, between 0 and 1.
    pub necessity: f64,
    /// Share of the effect made by patching only the set corrupted, between 0 and 1.
    pub sufficiency: f64,
    /// The number of strongest components that together remove 80% of the effect when they are
    /// patched clean; `None` if those tried together do not.
    #[serde(rename = "most", default, skip_serializing_if = "Option::is_none")]
    pub components_for_80_percent: Option<usize>,
    /// (joint effect of the set - sum of its members' single effects) / joint effect, in shares of
    /// a divergence. Only in cases of earlier versions: a divergence is bounded and does not add
    /// up, so the figure said little. See [`interactions`](Self::interactions).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub emergence: Option<f64>,
    /// In a mixture of experts, the share of the effect that is removed when every token is routed
    /// as without the edits. The rest acts through what the experts compute, not through which
    /// expert computes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub routing: Option<f64>,
    /// Necessity of random sets of components of the same kinds and number, ascending.
    pub controls: Vec<f64>,
    /// The tokens that the edits put in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tokens: Vec<PutIn>,
    /// The controls of [`contrasts`](Self::contrasts).
    #[serde(default, skip_serializing_if = "is_default")]
    pub compared_with: ComparedWith,
    /// All mixers and MLPs compared with controls, largest necessity first; empty where there are
    /// no controls to compare with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub contrasts: Vec<Contrast>,
    /// The token that shares of the effect are about; `None` in cases of earlier versions, and
    /// where the edits change no token's log-probability much.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub symptom: Option<SymptomToken>,
    /// How the strongest components work together, on an additive scale.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interactions: Option<Interactions>,
    /// The components at single positions that make the symptom together, and the paths between
    /// them; `None` where the edits have no symptom.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub graph: Option<Graph>,
    /// The positions and layers whose residual stream the symptom depends on; `None` where the
    /// edits have no symptom.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub residual_map: Option<ResidualMap>,
    /// The predictions that could be read after each layer where the symptom is predicted; `None`
    /// where the edits have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logit_lens: Option<LogitLens>,
    /// The explanation, tried in prompts that were not used to find it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generalization: Option<Generalization>,
    /// Every mixer, head and MLP tried, in model order (the heat map), then the neurons (or
    /// experts, or channels) of the strongest blocks.
    pub effects: Vec<Effect>,
    /// The places where the strongest members of the set act: for each, the positions at which its
    /// output changes most, strongest first.
    pub positions: Vec<PositionEffect>,
    /// Attribution of the replaced tokens, for a case made of replacements in its prompt, where it
    /// was asked for.
    #[serde(rename = "reading", default, skip_serializing_if = "Option::is_none")]
    pub attribution: Option<TokenAttribution>,
    /// Trials evaluated.
    pub calls: u64,
}

fn is_default(compared_with: &ComparedWith) -> bool {
    *compared_with == ComparedWith::default()
}

impl Localization {
    /// Returns the relay that mediates most, in the lowest layer where several mediate as much.
    pub fn relay(&self) -> Option<&Contrast> {
        let relays = self.contrasts.iter().filter(|contrast| contrast.role == Role::Relay);
        // In whole percent, so that rounding errors do not decide.
        relays.min_by_key(|c| (-(100.0 * c.necessity).round() as i64, c.component))
    }

    /// Returns what mediates the effect: the named set or, where nothing is specific, the relay, or
    /// whatever does most.
    pub fn mediators(&self) -> Vec<Component> {
        let most = || {
            let effects = self.effects.iter().filter(|e| e.necessity > 0.0);
            effects.max_by(|a, b| a.necessity.total_cmp(&b.necessity)).map(|e| e.component)
        };
        match &self.set[..] {
            [] => self.relay().map(|relay| relay.component).or_else(most).into_iter().collect(),
            set => set.to_vec(),
        }
    }
}
