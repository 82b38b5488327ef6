//! Sets of two to four lesions, guided by how pairs of them interact.
//!
//! Lesions drawn at random seldom meet the one component that covers for another. A table of
//! interactions, measured once before a campaign starts, says which do: sets begin with a pair of
//! it, the more often the more it does beyond its members, and grow along pairs that share a
//! member.

use rand::Rng as _;
use serde::{Deserialize, Serialize};

use super::{Context, Mutator, extend};
use crate::edit::{Action, Component, Edit, Trial};
use crate::rng::Rng;
use crate::rng::pick;

/// Most members of a set.
const MOST: usize = 4;

/// What pairs of lesions do together on one prompt, beyond what each does alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interactions {
    /// What a reader calls the prompt.
    pub prompt: String,
    pub base: Vec<u32>,
    /// The tokens whose loss is measured.
    pub continuation: Vec<u32>,
    pub components: Vec<Component>,
    /// Loss without each component over that of the intact model, nats per token.
    pub alone: Vec<f64>,
    /// Every pair, the one that does most beyond the sum of its members first.
    pub pairs: Vec<Interaction>,
}

/// One pair, by its places in [`Interactions::components`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interaction {
    pub a: usize,
    pub b: usize,
    /// Joint effect less both single ones, nats per token.
    pub nats: f64,
}

impl Interactions {
    /// The prompt, unedited.
    pub fn trial(&self) -> Trial {
        Trial::new(&self.base[..], &self.continuation[..])
    }
}

/// How a component is taken out: an expert by never being chosen, so that others have its tokens;
/// anything else by zero.
pub fn removal(component: Component) -> Action {
    if matches!(component, Component::Expert { .. }) { Action::Unroute } else { Action::Zero }
}

/// Sets of lesions that interact.
#[derive(Debug)]
pub struct Sets;

impl Mutator for Sets {
    fn name(&self) -> &'static str {
        "sets"
    }

    fn propose(&self, parent: &Trial, context: &Context, rng: &mut Rng) -> Option<Trial> {
        let table = pick(context.interactions, rng)?;
        // The cube: an eighth of the pairs gets half of the draws.
        let at = (table.pairs.len() as f64 * rng.random::<f64>().powi(3)) as usize;
        let pair = table.pairs.get(at)?;
        let mut set = vec![pair.a, pair.b];
        while set.len() < MOST && rng.random_bool(0.3) {
            let other = |p: &Interaction| match (set.contains(&p.a), set.contains(&p.b)) {
                (true, false) => Some(p.b),
                (false, true) => Some(p.a),
                _ => None,
            };
            let next = if rng.random_bool(0.5) {
                table.pairs.iter().find_map(other)?
            } else {
                rng.random_range(0..table.components.len())
            };
            if !set.contains(&next) {
                set.push(next);
            }
        }
        let mean = rng.random_bool(0.2);
        let lesion = |&at: &usize| {
            let component = *table.components.get(at)?;
            let action = if mean && removal(component) == Action::Zero {
                Action::Mean
            } else {
                removal(component)
            };
            Some(Edit::lesion(component, action))
        };
        let edits = set.iter().map(lesion).collect::<Option<Vec<Edit>>>()?;
        // Mostly where the interaction was measured; now and then elsewhere, for what it is worth
        // there.
        if rng.random_bool(0.25) { extend(parent, edits) } else { extend(&table.trial(), edits) }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::testing::fake;

    #[test]
    fn strong_pairs_come_often_and_together() {
        let (config, vocabulary) = (fake::config(), fake::vocabulary());
        let interactions = [fake::interactions()];
        let context = Context {
            config: &config,
            vocabulary: &vocabulary,
            seeds: &[],
            echo: &[],
            weights: &[],
            interactions: &interactions,
            suffixes: &[],
        };
        let components = &interactions[0].components;
        let parent = Trial::new([1, 2, 3], [4]);
        let mut rng = crate::rng::stream(3, "test");
        let (mut with, mut sizes) = (BTreeMap::new(), BTreeMap::new());
        for _ in 0..2000 {
            let trial = Sets.propose(&parent, &context, &mut rng).unwrap();
            assert!(trial.base == parent.base || trial.base[..] == interactions[0].base[..]);
            let lesioned: Vec<Component> = trial
                .edits
                .iter()
                .map(|edit| match edit {
                    Edit::Lesion { component, position: None, .. } => *component,
                    other => panic!("{other:?}"),
                })
                .collect();
            *sizes.entry(lesioned.len()).or_insert(0) += 1;
            for (i, pair) in interactions[0].pairs.iter().enumerate() {
                if lesioned.contains(&components[pair.a]) && lesioned.contains(&components[pair.b])
                {
                    *with.entry(i).or_insert(0) += 1;
                }
            }
        }
        let last = interactions[0].pairs.len() - 1;
        assert!(with[&0] > 4 * with[&last], "{with:?}");
        assert_eq!(sizes.keys().copied().collect::<Vec<_>>(), [2, 3, 4]);
        assert!(sizes[&2] > sizes[&3] && sizes[&3] > sizes[&4], "{sizes:?}");
        let none = Context { interactions: &[], ..context };
        assert_eq!(Sets.propose(&parent, &none, &mut rng), None);
    }
}
