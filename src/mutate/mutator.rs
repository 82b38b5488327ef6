//! The trait of a mutator, what its proposals are made of, and helpers that mutators share.

use std::ops::Range;
use std::sync::Arc;

use super::interactions::Interactions;
use super::layers::Layers;
use super::routing_contrast::RoutingContrast;
use super::suffix::promising::Promising;
use crate::echo::EchoPrompt;
use crate::edit::{Component, Edit, Trial};
use crate::model::{Config, StoredFloat};
use crate::oracle::OracleKind;
use crate::rng::Rng;
use crate::vocabulary::Vocabulary;

/// Largest number of edits of a trial; more are noise, and a trial that has them has no children.
pub const MAX_EDITS: usize = 12;

/// Material that proposals are made of.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// Shape of the model.
    pub config: &'a Config,
    /// Suspect, ordinary and special tokens.
    pub vocabulary: &'a Vocabulary,
    /// Prompts to splice from.
    pub seeds: &'a [Arc<[u32]>],
    /// Echo prompts; empty for a model that cannot repeat ordinary tokens.
    pub echo: &'a [EchoPrompt],
    /// Proposed super weights.
    pub weights: &'a [Component],
    /// The format of the file's weights, whose bits may be flipped; `None`: not known.
    pub stored: Option<StoredFloat>,
    /// Interactions of pairs of lesions, one table per prompt; empty unless sets are proposed.
    pub interactions: &'a [Interactions],
    /// Tokens that a gradient ranks highest after each prompt; empty unless suffixes are proposed.
    pub suffixes: &'a [Promising],
    /// The routing of each prompt against that of the others; empty for a model without experts.
    pub routing: &'a [RoutingContrast],
    /// Layers whose components may be drawn; `None`: all.
    pub layers: Option<Layers>,
}

/// One way to change a trial: an arm of the campaign's bandit.
pub trait Mutator: Sync {
    /// Name in journals and tables.
    fn name(&self) -> &'static str;

    /// Groups of `--mutate` that select this mutator.
    fn groups(&self) -> &'static [&'static str];

    /// Oracles that can judge its trials.
    fn oracles(&self) -> &'static [OracleKind] {
        OracleKind::of_mutations()
    }

    /// Returns true if a model has what it changes.
    fn applies(&self, _config: &Config) -> bool {
        true
    }

    /// Returns a changed copy of `parent`, or `None` where the change is not possible.
    fn propose(&self, parent: &Trial, context: &Context, rng: &mut Rng) -> Option<Trial>;
}

/// Declares the mutators of a file: a unit struct each, all of them in `ALL` in this order.
macro_rules! mutators {
    ($($(#[$doc:meta])* $mutator:ident;)*) => {
        $($(#[$doc])* #[derive(Debug)] pub struct $mutator;)*

        /// The mutators of this file, in the order in which the bandit numbers them.
        pub const ALL: &[&dyn Mutator] = &[$(&$mutator),*];
    };
}
pub(super) use mutators;

/// Returns the positions of the prompt that may be edited.
pub(super) fn editable(trial: &Trial, config: &Config) -> Range<usize> {
    trial.first_editable(config.bos_token_id)..trial.base.len()
}

/// Returns `parent` with further edits; a new token edit replaces an older one at its position.
/// `None` where there are too many, or no prompt token would be left.
pub(super) fn extend(parent: &Trial, new: Vec<Edit>) -> Option<Trial> {
    let superseded = |old: &Edit| new.iter().any(|edit| edit.supersedes(old));
    let mut edits: Vec<Edit> =
        parent.edits.iter().filter(|old| !superseded(old)).cloned().collect();
    edits.extend(new);
    // At least one token of the prompt must be left to read at.
    let deleted = edits.iter().filter(|edit| matches!(edit, Edit::Delete { .. })).count();
    (edits.len() <= MAX_EDITS && deleted + 1 < parent.base.len()).then(|| parent.with_edits(edits))
}
