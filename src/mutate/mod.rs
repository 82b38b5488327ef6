//! Proposers: each takes a parent and suggests a trial.
//!
//! A mutator sees the shape of the model and what is known of its vocabulary, never the model: what
//! a proposal does is for the evaluator to find out and for the oracles to judge.

pub mod embeddings;
pub mod lesions;
pub mod sets;
pub mod suffix;
pub mod tokens;
pub mod weights;

use std::sync::Arc;

use crate::echo::EchoPrompt;
use crate::edit::{Component, Edit, Trial};
use crate::error::{Error, Result};
use crate::model::Config;
use crate::oracle::OracleKind;
use crate::rng::Rng;
use crate::vocabulary::Vocabulary;

/// More edits than this are noise: a trial that has them has no more children.
pub const MAX_EDITS: usize = 12;

/// Oracles for trials that keep the continuation as it is.
const BEHAVIOUR: &[OracleKind] = &[
    OracleKind::Divergence,
    OracleKind::Collapse,
    OracleKind::NonFinite,
    OracleKind::LossBlowup,
    OracleKind::RoutingCollapse,
    OracleKind::StateBlowup,
    OracleKind::StateMemory,
];

/// What proposals are made of.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    pub config: &'a Config,
    pub vocabulary: &'a Vocabulary,
    /// Prompts to splice from.
    pub seeds: &'a [Arc<[u32]>],
    /// Echo prompts; empty for a model that cannot repeat ordinary tokens.
    pub echo: &'a [EchoPrompt],
    /// Proposed super weights.
    pub weights: &'a [Component],
    /// How pairs of lesions interact, a table a prompt; empty unless sets are proposed.
    pub interactions: &'a [sets::Interactions],
    /// What a gradient expects most of after the prompts; empty unless suffixes are proposed.
    pub suffixes: &'a [suffix::Promising],
}

/// One way to change a trial: an arm of the campaign's bandit.
pub trait Mutator: Sync {
    fn name(&self) -> &'static str;

    /// The oracles that can judge its trials.
    fn oracles(&self) -> &'static [OracleKind] {
        BEHAVIOUR
    }

    /// Whether a model has what it changes.
    fn applies(&self, _config: &Config) -> bool {
        true
    }

    /// A changed copy of `parent`, or `None` where the change is not possible.
    fn propose(&self, parent: &Trial, context: &Context, rng: &mut Rng) -> Option<Trial>;
}

/// The groups that `--mutate` names.
pub const GROUPS: [&str; 8] =
    ["tokens", "dictionary", "vocabulary", "suffix", "embeddings", "lesions", "sets", "weights"];

/// The mutators of these groups, each once, in a fixed order.
pub fn select(groups: &[String]) -> Result<Vec<&'static dyn Mutator>> {
    if let Some(unknown) = groups.iter().find(|group| !GROUPS.contains(&group.as_str())) {
        return Err(Error::request(format!(
            "no mutator `{unknown}`; there are {}",
            GROUPS.join(", ")
        )));
    }
    let on = |group: &str| groups.iter().any(|g| g == group);
    let mut selected: Vec<&'static dyn Mutator> = Vec::new();
    if on("tokens") {
        selected.extend(tokens::ALL);
    }
    if on("dictionary") || on("vocabulary") {
        selected.extend(tokens::DICTIONARY);
    }
    if on("vocabulary") {
        selected.push(&tokens::Echo);
    }
    if on("suffix") {
        selected.push(&suffix::Suffix);
    }
    if on("embeddings") {
        selected.extend(embeddings::ALL);
    }
    if on("lesions") {
        selected.extend(lesions::ALL);
    }
    if on("sets") {
        selected.push(&sets::Sets);
    }
    if on("weights") {
        selected.push(&weights::Weights);
    }
    Ok(selected)
}

/// Positions of the prompt that may be edited.
fn editable(trial: &Trial, config: &Config) -> std::ops::Range<usize> {
    trial.first_editable(config.bos_token_id)..trial.base.len()
}

/// `parent` with further edits; a new token edit takes the place of an older one at its position.
fn extend(parent: &Trial, new: Vec<Edit>) -> Option<Trial> {
    let replaces = |edit: &Edit| {
        matches!(edit, Edit::Replace { .. } | Edit::Delete { .. } | Edit::Embedding { .. })
    };
    let superseded = |old: &Edit| {
        new.iter().any(|n| match (old, n) {
            (
                Edit::Lesion { component: a, position: p, .. },
                Edit::Lesion { component: b, position: q, .. },
            ) => (a, p) == (b, q),
            (
                Edit::CarryState { component: a, position: p, .. },
                Edit::CarryState { component: b, position: q, .. },
            ) => (a, p) == (b, q),
            _ => replaces(old) && replaces(n) && old.position() == n.position(),
        })
    };
    let mut edits: Vec<Edit> =
        parent.edits.iter().filter(|old| !superseded(old)).cloned().collect();
    edits.extend(new);
    // At least one token of the prompt must be left to read at.
    let deleted = edits.iter().filter(|edit| matches!(edit, Edit::Delete { .. })).count();
    (edits.len() <= MAX_EDITS && deleted + 1 < parent.base.len()).then(|| parent.with_edits(edits))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::fake;
    use proptest::prelude::*;

    fn valid(trial: &Trial, config: &Config) -> bool {
        !trial.edits.is_empty()
            && trial.layout().prompt_len > 0
            && trial.edits.iter().all(|edit| match *edit {
                Edit::Insert { position, id } => {
                    position <= trial.base.len() && (id as usize) < config.vocab_size
                }
                Edit::Replace { position, id } => {
                    position < trial.len() && (id as usize) < config.vocab_size
                }
                Edit::Delete { position } => position < trial.base.len(),
                Edit::Embedding { position, change } => {
                    position < trial.base.len() && change.strength().is_finite()
                }
                Edit::Lesion { component, .. } => config.has(&component),
                Edit::CarryState { component, position, ref from } => {
                    config.has(&component) && position < trial.len() && !from.is_empty()
                }
                Edit::FreezeRouting => config.experts.is_some(),
            })
    }

    proptest! {
        #[test]
        fn proposals_are_valid(seed in any::<u64>(), length in 1..12_u32, rounds in 1..6_usize) {
            let (config, vocabulary) = (fake::config(), fake::vocabulary());
            let (echo, weights, interactions) = ([fake::echo()], fake::weights(), [fake::interactions()]);
            let suffixes = fake::suffixes();
            let seeds = [Arc::from([5, 6, 7, 8, 9]), Arc::from([4])];
            let (config, vocabulary, interactions, suffixes) = (&config, &vocabulary, &interactions, &suffixes);
            let context = Context { config, vocabulary, seeds: &seeds, echo: &echo, weights: &weights, interactions, suffixes };
            let mut rng = crate::rng::stream(seed, "test");
            for mutator in select(&GROUPS.map(String::from)).unwrap() {
                let mut trial = Trial::new((1..=length).collect::<Vec<u32>>(), [20, 21]);
                for _ in 0..rounds {
                    if let Some(next) = mutator.propose(&trial, &context, &mut rng) {
                        prop_assert!(valid(&next, config), "{}: {:?}", mutator.name(), next);
                        trial = next;
                    }
                }
            }
        }
    }

    #[test]
    fn groups_are_named() {
        assert!(
            select(&["tokns".into()]).err().unwrap().to_string().contains("no mutator `tokns`")
        );
        let all = select(&GROUPS.map(String::from)).unwrap();
        let mut names: Vec<_> = all.iter().map(|m| m.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all.len());
    }
}
