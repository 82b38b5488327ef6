//! Suffixes as mutations of a campaign: tokens that a gradient ranks highest, put after a prompt.

use rand::Rng as _;

use crate::edit::{Edit, Trial};
use crate::mutate::mutator::{Context, Mutator, extend, mutators};
use crate::rng::Rng;
use crate::rng::pick;

mutators! {
    /// Appends a few of the tokens that the gradient ranks highest.
    Suffix;
}

impl Mutator for Suffix {
    fn name(&self) -> &'static str {
        "suffix"
    }

    fn groups(&self) -> &'static [&'static str] {
        &["suffix"]
    }

    fn propose(&self, parent: &Trial, context: &Context, rng: &mut Rng) -> Option<Trial> {
        // Tokens ranked for another prompt may do the same here.
        let own = context.suffixes.iter().find(|promising| promising.base == parent.base);
        let promising = own.or_else(|| pick(context.suffixes, rng))?;
        let length = rng.random_range(1..=promising.places.len().max(1));
        let position = parent.base.len();
        let token = |place: &Vec<u32>| Some(Edit::Insert { position, id: *pick(place, rng)? });
        let edits: Option<Vec<Edit>> = promising.places.iter().take(length).map(token).collect();
        extend(parent, edits.filter(|edits| !edits.is_empty())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::fake;

    #[test]
    fn a_suffix_is_of_what_is_promising_after_its_own_prompt() {
        let (config, vocabulary) = (fake::config(), fake::vocabulary());
        let suffixes = fake::suffixes();
        let context = Context { suffixes: &suffixes, ..fake::context(&config, &vocabulary) };
        let parent = Trial::new(suffixes[0].base.clone(), [4]);
        let mut rng = crate::rng::stream(3, "test");
        let mut lengths = std::collections::BTreeSet::new();
        for _ in 0..200 {
            let trial = Suffix.propose(&parent, &context, &mut rng).unwrap();
            lengths.insert(trial.edits.len());
            for (place, edit) in trial.edits.iter().enumerate() {
                let Edit::Insert { position, id } = *edit else { panic!("{edit:?}") };
                assert_eq!(position, parent.base.len());
                assert!(suffixes[0].places[place].contains(&id), "{id} at {place}");
            }
        }
        assert_eq!(
            lengths.into_iter().collect::<Vec<_>>(),
            (1..=suffixes[0].places.len()).collect::<Vec<_>>()
        );
        assert!(Suffix.propose(&Trial::new([9, 9], [4]), &context, &mut rng).is_some());
        assert_eq!(Suffix.propose(&parent, &Context { suffixes: &[], ..context }, &mut rng), None);
    }
}
