//! Sets of two to four lesions, guided by how pairs of them interact.
//!
//! Lesions drawn at random seldom hit both a component and the one that backs it up. A table of
//! interactions, measured once before a campaign starts, says which do: a set begins with a pair of
//! the table, strong pairs more often than weak ones, and grows along pairs that share a member.

use rand::Rng as _;

use super::interactions::{Interaction, removal};
use super::layers::Layers;
use super::mutator::{Context, Mutator, extend, mutators};
use crate::edit::{Action, Edit, Trial};
use crate::rng::Rng;
use crate::rng::pick;

/// Largest number of members of a set.
const MAX_MEMBERS: usize = 4;

/// Probability of one more member: most sets are pairs, for which the table speaks.
const GROWS: f64 = 0.3;

/// Share of sets whose members are replaced by their means instead of removed.
const MEANS: f64 = 0.2;

/// Share of sets that are tried on the parent instead of the prompt they were measured on.
const ELSEWHERE: f64 = 0.25;

mutators! {
    /// Lesions two to four components that interact.
    Sets;
}

impl Mutator for Sets {
    fn name(&self) -> &'static str {
        "sets"
    }

    fn groups(&self) -> &'static [&'static str] {
        &["sets"]
    }

    fn propose(&self, parent: &Trial, context: &Context, rng: &mut Rng) -> Option<Trial> {
        let table = pick(context.interactions, rng)?;
        // The cube: an eighth of the pairs gets half of the draws.
        let at = (table.pairs.len() as f64 * rng.random::<f64>().powi(3)) as usize;
        let pair = table.pairs.get(at)?;
        let mut set = vec![pair.a, pair.b];
        while set.len() < MAX_MEMBERS && rng.random_bool(GROWS) {
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
        let mean = rng.random_bool(MEANS);
        let lesion = |&at: &usize| {
            let component = *table.components.get(at)?;
            if !Layers::allow(context.layers, &component) {
                return None;
            }
            let action = if mean && removal(component) == Action::Zero {
                Action::Mean
            } else {
                removal(component)
            };
            Some(Edit::lesion(component, action))
        };
        let edits = set.iter().map(lesion).collect::<Option<Vec<Edit>>>()?;
        if rng.random_bool(ELSEWHERE) {
            extend(parent, edits)
        } else {
            extend(&table.trial(), edits)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::edit::Component;
    use crate::testing::fake;

    #[test]
    fn strong_pairs_come_often_and_together() {
        let (config, vocabulary) = (fake::config(), fake::vocabulary());
        let interactions = [fake::interactions()];
        let context =
            Context { interactions: &interactions, ..fake::context(&config, &vocabulary) };
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
