//! Tables of how pairs of lesions interact, measured by [`crate::sweep`] before a campaign.

use serde::{Deserialize, Serialize};

use crate::edit::{Action, Component, Trial};

/// Effects of pairs of lesions on one prompt beyond those of their members alone: second
/// differences of the loss.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interactions {
    /// Name of the prompt, for the reader.
    pub prompt: String,
    /// Ids of the prompt.
    pub base: Vec<u32>,
    /// The tokens whose loss is measured.
    pub continuation: Vec<u32>,
    /// Components that were lesioned, alone and in pairs.
    pub components: Vec<Component>,
    /// Loss without each component minus that of the unedited model, nats per token.
    pub alone: Vec<f64>,
    /// Every pair, the largest interaction first.
    pub pairs: Vec<Interaction>,
}

/// One pair, by indices into [`Interactions::components`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interaction {
    /// Index of the first member.
    pub a: usize,
    /// Index of the second.
    pub b: usize,
    /// Joint effect minus both single ones, nats per token.
    pub nats: f64,
}

impl Interactions {
    /// Returns the prompt and its continuation, unedited.
    pub fn trial(&self) -> Trial {
        Trial::new(&self.base[..], &self.continuation[..])
    }
}

/// Returns the action that removes a component: an expert is masked, so that its tokens go to
/// others; anything else is zeroed.
pub fn removal(component: Component) -> Action {
    if matches!(component, Component::Expert { .. }) { Action::Mask } else { Action::Zero }
}
