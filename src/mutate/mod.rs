//! Proposers: each takes a parent trial and suggests a changed one.
//!
//! A mutator sees the shape of the model and what is known of its vocabulary, never the model: what
//! a proposal does is for the evaluator to find out and for the oracles to judge.

pub mod embeddings;
pub mod interactions;
mod layers;
pub mod lesions;
mod mutator;
pub mod routing;
mod routing_contrast;
pub mod sets;
pub mod suffix;
pub mod tokens;
pub mod weights;

pub use layers::Layers;
pub use mutator::{Context, MAX_EDITS, Mutator};
pub use routing_contrast::RoutingContrast;

use crate::error::{Error, Result};

/// Every mutator, file by file: the order of the bandit's arms.
const FILES: [&[&dyn Mutator]; 7] = [
    tokens::ALL,
    suffix::ALL,
    embeddings::ALL,
    lesions::ALL,
    routing::ALL,
    sets::ALL,
    weights::ALL,
];

fn all() -> impl Iterator<Item = &'static dyn Mutator> {
    FILES.into_iter().flatten().copied()
}

/// Returns the groups that `--mutate` names.
pub fn groups() -> Vec<&'static str> {
    let mut groups = Vec::new();
    for group in all().flat_map(|mutator| mutator.groups()) {
        if !groups.contains(group) {
            groups.push(*group);
        }
    }
    groups
}

/// Returns the mutators of these groups, each once, in a fixed order.
///
/// # Errors
/// [`Error::Request`] for a group that no mutator is in.
pub fn select(names: &[String]) -> Result<Vec<&'static dyn Mutator>> {
    let groups = groups();
    if let Some(unknown) = names.iter().find(|name| !groups.contains(&name.as_str())) {
        return Err(Error::request(format!(
            "no mutator `{unknown}`; there are {}",
            groups.join(", ")
        )));
    }
    let selected = |mutator: &&dyn Mutator| {
        mutator.groups().iter().any(|group| names.iter().any(|name| name == group))
    };
    Ok(all().filter(selected).collect())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::edit::{Edit, Trial};
    use crate::model::{Config, StoredFloat};
    use crate::testing::fake;
    use proptest::prelude::*;

    fn valid(trial: &Trial, config: &Config) -> bool {
        let known = |id: u32| (id as usize) < config.vocab_size;
        // Echo prompts alone edit the continuation too.
        let end = |edit: &Edit| match edit {
            Edit::Replace { .. } => trial.len(),
            _ => trial.base.len(),
        };
        !trial.edits.is_empty()
            && trial.layout().prompt_len > 0
            && trial.edits.iter().all(|edit| {
                edit.check(end(edit), usize::MAX).is_ok()
                    && edit.component().is_none_or(|component| config.has(component))
                    && edit.token_ids().into_iter().all(known)
            })
    }

    proptest! {
        #[test]
        fn proposals_are_valid(seed in any::<u64>(), length in 1..12_u32, rounds in 1..6_usize) {
            let (config, vocabulary) = (fake::config(), fake::vocabulary());
            let context = Context {
                seeds: &[Arc::from([5, 6, 7, 8, 9]), Arc::from([4])],
                echo: &[fake::echo()],
                weights: &fake::weights(),
                stored: Some(StoredFloat::F16),
                interactions: &[fake::interactions()],
                suffixes: &fake::suffixes(),
                ..fake::context(&config, &vocabulary)
            };
            let mut rng = crate::rng::stream(seed, "test");
            let names: Vec<String> = groups().iter().map(ToString::to_string).collect();
            for mutator in select(&names).unwrap() {
                let mut trial = Trial::new((1..=length).collect::<Vec<u32>>(), [20, 21]);
                for _ in 0..rounds {
                    if let Some(next) = mutator.propose(&trial, &context, &mut rng) {
                        prop_assert!(valid(&next, &config), "{}: {:?}", mutator.name(), next);
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
        let all = select(&groups().iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap();
        let mut names: Vec<_> = all.iter().map(|m| m.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all.len());
    }
}
