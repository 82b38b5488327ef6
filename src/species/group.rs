//! Groups cases by kind.

use std::collections::{BTreeMap, BTreeSet};

use super::descriptor::{Descriptor, TokenClass};
use crate::case::Case;

/// The share of the strongest excess from which a case shows its kind as well as the strongest.
const NEARLY: f64 = 0.8;

/// The cases of one kind.
#[derive(Debug, Clone, PartialEq)]
pub struct Species<'a> {
    /// The kind.
    pub descriptor: Descriptor,
    /// The fingerprint of the model that it was found in.
    pub fingerprint: &'a str,
    /// The case that shows it best: among those that show it nearly as strongly as any, the one
    /// with the fewest edits and the shortest prompt.
    pub face: &'a Case,
    /// All of its cases, strongest first, the face among them.
    pub members: Vec<&'a Case>,
    /// The number of prompts that they are in.
    pub prompts: usize,
    /// The members that are consistent in new prompts.
    pub consistent: usize,
}

impl Descriptor {
    /// Describes a case. The classes of its tokens are known if it was localized.
    pub fn of_case(case: &Case) -> Self {
        let known = case.localization.as_ref().map(|found| &found.tokens[..]).unwrap_or_default();
        let class = |id: u32| {
            let token = known.iter().find(|token| token.id == id);
            token.map_or(TokenClass::Unknown, |token| token.class.into())
        };
        Self::new(&case.trial(), case.verdict.oracle, &class)
    }
}

fn excess(case: &Case) -> f64 {
    case.verdict.excess_ratio()
}

/// Groups cases by kind, those of each model by themselves: first what is consistent in new
/// prompts, then by the strongest excess.
pub fn group<'a>(cases: impl IntoIterator<Item = &'a Case>) -> Vec<Species<'a>> {
    let mut by_kind: BTreeMap<(&str, Descriptor), Vec<&Case>> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for case in cases {
        // The same case in two folders is one.
        if seen.insert(&case.id) {
            let kind = (&case.model.fingerprint[..], Descriptor::of_case(case));
            by_kind.entry(kind).or_default().push(case);
        }
    }
    let mut species: Vec<Species> = by_kind
        .into_iter()
        .filter_map(|((fingerprint, descriptor), mut members)| {
            members.sort_by(|a, b| excess(b).total_cmp(&excess(a)).then_with(|| a.id.cmp(&b.id)));
            let strongest = excess(members.first()?);
            let face = *(members.iter())
                .filter(|case| excess(case) >= NEARLY * strongest)
                .min_by_key(|case| (!is_consistent(case), case.edits.len(), case.base.len()))?;
            let prompts: BTreeSet<&[u32]> = members.iter().map(|case| &case.base[..]).collect();
            let consistent = members.iter().filter(|case| is_consistent(case)).count();
            let prompts = prompts.len();
            Some(Species { descriptor, fingerprint, face, prompts, members, consistent })
        })
        .collect();
    species.sort_by(|a, b| {
        ((b.consistent > 0).cmp(&(a.consistent > 0)))
            .then(excess(b.members[0]).total_cmp(&excess(a.members[0])))
            .then_with(|| a.descriptor.cmp(&b.descriptor))
    });
    species
}

fn is_consistent(case: &Case) -> bool {
    case.replication.as_ref().is_some_and(|found| found.consistent)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::tests::example;
    use crate::edit::Edit;

    fn case(id: u32, position: usize, score: f64) -> Case {
        let mut case = example();
        case.edits = vec![Edit::Replace { position, id }];
        case.verdict.score = score;
        case.id = case.compute_id();
        case
    }

    #[test]
    fn twins_are_one_species_and_its_face_is_the_simplest_of_the_strong() {
        let (weak, strong, strongest) = (case(5, 1, 2.0), case(6, 1, 9.0), case(7, 1, 10.0));
        let mut long = case(8, 1, 9.9);
        long.edits.push(Edit::Replace { position: 0, id: 8 });
        long.id = long.compute_id();
        let cases = [weak, strong.clone(), strongest, long, strong.clone()];
        let species = group(&cases);
        assert_eq!((species.len(), species[0].members.len(), species[0].prompts), (1, 4, 1));
        assert_eq!(species[0].members[0].verdict.score, 10.0);
        assert_eq!(species[0].face.edits.len(), 1);
        let mut other = strong;
        other.model.fingerprint = "of another model".into();
        other.id = other.compute_id();
        let two = [cases[0].clone(), other];
        assert_eq!(group(&two).len(), 2);
    }
}
