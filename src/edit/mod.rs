//! The vocabulary of mutations: what may be done to a trial, as plain data.
//!
//! An [`Edit`] is small, ordered, serialisable and independent of any model object. How a batch of
//! them becomes one table per site of the forward pass is `evaluate`'s business
//! ([`crate::evaluate`]).

mod component;
mod trial;

pub use component::{Component, Matrix};
pub use trial::{Layout, Trial};

use serde::{Deserialize, Serialize};

/// One mutation. Positions count tokens of the *unedited* sequence (base then continuation), so the
/// members of a set of edits can be removed one by one without renumbering the others.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "edit", rename_all = "snake_case", deny_unknown_fields)]
pub enum Edit {
    /// Put `id` where the token at `position` was.
    Replace { position: usize, id: u32 },
    /// Put `id` before the token at `position` (`position` = length: at the end). Several inserts
    /// at one position keep their order in the list.
    Insert { position: usize, id: u32 },
    /// Remove the token at `position`.
    Delete { position: usize },
    /// Change the embedding of the token at `position`.
    Embedding { position: usize, change: EmbeddingChange },
    /// Change what a component puts out: at every position of the row, or at one. A recurrent state
    /// changes after the position, before the next token meets it.
    Lesion {
        component: Component,
        action: Action,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        position: Option<usize>,
    },
    /// Put the recurrent state that reading `from` leaves in the place of the one after `position`.
    CarryState { component: Component, position: usize, from: Vec<u32> },
    /// Route every token as it is without the other edits: what they do through values is left,
    /// what they do by sending tokens to other experts is not.
    FreezeRouting,
}

impl Edit {
    /// A lesion at every position.
    pub fn lesion(component: Component, action: Action) -> Self {
        Self::Lesion { component, action, position: None }
    }

    /// Whether the edit changes token ids (and not activations or weights).
    pub fn is_token_edit(&self) -> bool {
        matches!(self, Self::Replace { .. } | Self::Insert { .. } | Self::Delete { .. })
    }

    /// The position it acts at, for edits that act at one.
    pub fn position(&self) -> Option<usize> {
        match *self {
            Self::Replace { position, .. }
            | Self::Insert { position, .. }
            | Self::Delete { position }
            | Self::Embedding { position, .. }
            | Self::CarryState { position, .. } => Some(position),
            Self::Lesion { position, .. } => position,
            Self::FreezeRouting => None,
        }
    }

    /// Its continuous strength, for edits that have one; the minimizer makes it smaller.
    pub fn strength(&self) -> Option<f32> {
        match self {
            Self::Embedding { change, .. } => Some(change.strength()),
            Self::Lesion { action: Action::Scale { factor }, .. } => Some(factor - 1.0),
            _ => None,
        }
    }

    /// The same edit at another strength; edits without one are returned unchanged.
    pub fn with_strength(&self, strength: f32) -> Self {
        let mut edit = self.clone();
        match &mut edit {
            Self::Embedding { change, .. } => change.set_strength(strength),
            Self::Lesion { action: Action::Scale { factor }, .. } => *factor = 1.0 + strength,
            _ => {}
        }
        edit
    }
}

/// A change of one embedding vector `e` `[d_model]`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum EmbeddingChange {
    /// `e + strength * |e| * u`, `u` a random unit vector drawn from `seed`.
    Noise { seed: u64, strength: f32 },
    /// `e + strength * |e| * v`, `v` the unit vector from the embedding of `from` to that of `to`.
    Direction { from: u32, to: u32, strength: f32 },
    /// `e + strength * (E[id] - e)`: 1 is the other token's embedding.
    Towards { id: u32, strength: f32 },
}

impl EmbeddingChange {
    pub fn strength(&self) -> f32 {
        match *self {
            Self::Noise { strength, .. }
            | Self::Direction { strength, .. }
            | Self::Towards { strength, .. } => strength,
        }
    }

    fn set_strength(&mut self, new: f32) {
        match self {
            Self::Noise { strength, .. }
            | Self::Direction { strength, .. }
            | Self::Towards { strength, .. } => *strength = new,
        }
    }
}

/// What a lesion does to the output of a component (or to a single weight).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Action {
    /// Replace the output by zero.
    Zero,
    /// Replace the output by its mean over the built-in reference text; a weight by the mean of its
    /// matrix row.
    Mean,
    /// Keep the router from choosing an expert: its logit is minus infinity before the choice, and
    /// the others share what it would have got as the model has it.
    Unroute,
    /// Send a token to one expert alone.
    Route,
    /// Multiply the output by `factor`.
    Scale { factor: f32 },
    /// Add Gaussian noise of `strength` times the output's own norm, drawn from `seed` (one draw
    /// per position).
    Noise { seed: u64, strength: f32 },
}

impl Action {
    /// As it is called in files and tables.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Zero => "zero",
            Self::Mean => "mean",
            Self::Unroute => "unroute",
            Self::Route => "route",
            Self::Scale { .. } => "scale",
            Self::Noise { .. } => "noise",
        }
    }

    /// Whether only a router's choice of an expert can be changed so.
    pub fn is_of_experts(&self) -> bool {
        matches!(self, Self::Unroute | Self::Route)
    }
}
