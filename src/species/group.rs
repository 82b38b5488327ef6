//! Groups cases by kind.

use std::collections::{BTreeMap, BTreeSet};

use super::descriptor::{Descriptor, LesionClass, TokenClass};
use super::profile::{ByBlocks, ByDeficits, calibrate, common_deficits, divide, mediator};
use crate::case::Case;
use crate::deficits::Deficit;
use crate::edit::{Component, Edit, Matrix};

/// The share of the strongest excess from which a case shows its kind as well as the strongest.
const NEARLY: f64 = 0.8;

/// The cases of one kind.
#[derive(Debug, Clone, PartialEq)]
pub struct Species<'a> {
    /// The kind of its face.
    pub descriptor: Descriptor,
    /// The fingerprint of the model that it was found in.
    pub fingerprint: &'a str,
    /// The case that shows it best: among those that show it nearly as strongly as any (as any that
    /// is consistent in new prompts, if one is), the one with the fewest edits and the shortest
    /// prompt.
    pub face: &'a Case,
    /// All of its cases, strongest first, the face among them.
    pub members: Vec<&'a Case>,
    /// The number of prompts that they are in.
    pub prompts: usize,
    /// The members that are consistent in new prompts.
    pub consistent: usize,
    /// The deficits that more than half of the members show, of those in which they were measured.
    pub deficits: Vec<Deficit>,
    /// The mixer or MLP that mediates most of their effects in new prompts; `None` where none
    /// mediates half.
    pub mediator: Option<Component>,
}

impl Species<'_> {
    /// Returns the kind with its oracles, its deficits and what mediates it: "lesion of head in L2:
    /// divergence; loops; mediated by L3.mlp".
    pub fn title(&self) -> String {
        let kinds: Vec<Descriptor> =
            self.members.iter().map(|case| Descriptor::of_case(case)).collect();
        let mut shown = self.descriptor.clone();
        // The weights of one neuron are one kind, however they are changed.
        if shown.edits == BTreeSet::from(["weight"]) {
            let alike = kinds.iter().filter(|kind| kind.edits == shown.edits);
            shown.lesions = alike.flat_map(|kind| kind.lesions.iter().copied()).collect();
        }
        let mut title = shown.cause();
        // Loss blow-up counts as divergence.
        let labels: BTreeSet<&str> =
            kinds.iter().map(|kind| kind.oracle.oracle().label()).collect();
        title += &format!(": {}", labels.into_iter().collect::<Vec<&str>>().join(", "));
        if !self.deficits.is_empty() {
            let deficits: Vec<&str> = self.deficits.iter().map(|deficit| deficit.words()).collect();
            title += &format!("; {}", deficits.join(", "));
        }
        if let Some(mediator) = self.mediator {
            title += &format!("; mediated by {mediator}");
        }
        title
    }
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

/// Groups cases by kind, those of each model by themselves; divides a kind where its cases break
/// the model in different ways, and joins kinds in which the same components are lesioned, or
/// weights of the same neuron. A case that has all of another and more is counted with that one.
/// First comes what is consistent in new prompts, then the strongest excess.
pub fn group<'a>(cases: impl IntoIterator<Item = &'a Case>) -> Vec<Species<'a>> {
    // The same case in two folders is one.
    let mut seen = BTreeSet::new();
    let cases: Vec<&Case> = cases.into_iter().filter(|case| seen.insert(&case.id)).collect();
    let (by_kind, twins) = by_kind(&cases);
    let mut by_model: BTreeMap<Models, Vec<(&Descriptor, &Case)>> = BTreeMap::new();
    for ((models, kind), members) in &by_kind {
        let described = members.iter().map(|case| (kind, *case));
        by_model.entry(*models).or_default().extend(described);
    }
    let thresholds: BTreeMap<Models, [Option<f64>; 2]> = (by_model.iter())
        .map(|(models, cases)| {
            (*models, [calibrate::<ByDeficits>(cases), calibrate::<ByBlocks>(cases)])
        })
        .collect();
    let divided = by_kind.into_iter().flat_map(|((models, _), members)| {
        let [deficits, blocks] = thresholds.get(&models).copied().unwrap_or_default();
        let parts = divide::<ByDeficits>(members, deficits).into_iter();
        let parts = parts.flat_map(move |members| divide::<ByBlocks>(members, blocks));
        parts.map(move |members| (models, members))
    });
    let mut groups = merge_same_lesions(divided);
    for (core, twin) in twins {
        let with_core =
            groups.iter_mut().find(|(_, members)| members.iter().any(|c| c.id == core.id));
        if let Some((_, members)) = with_core {
            members.push(twin);
        }
    }
    let mut species: Vec<Species> = groups
        .into_iter()
        .filter_map(|((fingerprint, _), mut members)| {
            members.sort_by(|a, b| excess(b).total_cmp(&excess(a)).then_with(|| a.id.cmp(&b.id)));
            let face = face(&members)?;
            let prompts: BTreeSet<&[u32]> = members.iter().map(|case| &case.base[..]).collect();
            let consistent = members.iter().filter(|case| is_consistent(case)).count();
            let (prompts, deficits) = (prompts.len(), common_deficits(&members));
            let descriptor = Descriptor::of_case(face);
            let mediator = mediator(&members);
            Some(Species {
                descriptor,
                fingerprint,
                face,
                prompts,
                members,
                consistent,
                deficits,
                mediator,
            })
        })
        .collect();
    species.sort_by(|a, b| {
        ((b.consistent > 0).cmp(&(a.consistent > 0)))
            .then(excess(b.members[0]).total_cmp(&excess(a.members[0])))
            .then_with(|| a.descriptor.cmp(&b.descriptor))
            .then_with(|| a.face.id.cmp(&b.face.id))
    });
    species
}

/// Returns the case that shows a kind best, of its cases, strongest first.
fn face<'a>(members: &[&'a Case]) -> Option<&'a Case> {
    let any = members.iter().any(|case| is_consistent(case));
    let mut shown = members.iter().copied().filter(|case| !any || is_consistent(case)).peekable();
    let strongest = excess(shown.peek()?);
    (shown.filter(|case| excess(case) >= NEARLY * strongest))
        .min_by_key(|case| (case.edits.len(), case.base.len()))
}

/// What a case is made of, without positions and strengths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    /// A token put in.
    Token(u32),
    /// A token cut into others.
    Split(u32),
    /// A lesioned component. The state of a head is that head.
    Component(Component, LesionClass),
    /// A neuron by way of one of its weights, however that is changed.
    WeightOf(Component),
    /// A head or an attention block from which a key is kept.
    Knockout(Component),
}

/// Returns the tokens that a case puts in or splits and the components that it lesions or knocks
/// edges out of, if it does nothing else.
fn parts(case: &Case) -> Option<BTreeSet<Part>> {
    let part = |edit: &Edit| match edit {
        Edit::Lesion { component, action, .. } => {
            let unit = match *component {
                Component::State { layer, part: Some(head) } => Component::Head { layer, head },
                other => other,
            };
            Some(Part::Component(unit, LesionClass::of(action)))
        }
        Edit::Replace { id, .. } | Edit::Insert { id, .. } => Some(Part::Token(*id)),
        Edit::Retokenize { position, .. } => {
            let mut ids = case.base.iter().chain(&case.continuation);
            Some(Part::Split(*ids.nth(*position)?))
        }
        Edit::AttentionKnockout(knockout) => Some(Part::Knockout(knockout.component)),
        _ => None,
    };
    case.edits.iter().map(part).collect::<Option<BTreeSet<_>>>().filter(|all| !all.is_empty())
}

/// Returns the lesions of a case, if it has nothing else, with neurons in the place of their
/// weights: the weights of one neuron change one thing, more or less of it.
fn lesioned_units(case: &Case) -> Option<BTreeSet<Part>> {
    let unit = |part| match part {
        Part::Component(Component::Weight { layer, matrix, out, input }, _) => {
            let neuron = match matrix {
                Matrix::Gate | Matrix::Up | Matrix::ChannelKey => out,
                Matrix::Down | Matrix::ChannelValue => input,
                _ => return part,
            };
            Part::WeightOf(Component::Neuron { layer, neuron })
        }
        _ => part,
    };
    Some(lesioned(case)?.into_iter().map(unit).collect())
}

/// Returns the lesions of a case, if it has nothing else.
fn lesioned(case: &Case) -> Option<BTreeSet<Part>> {
    parts(case).filter(|parts| parts.iter().all(|part| matches!(part, Part::Component(..))))
}

/// The fingerprint of a case's model, and that of the model that it is compared with.
type Models<'a> = (&'a str, Option<&'a str>);

fn models(case: &Case) -> Models<'_> {
    let against = case.against.as_ref().map(|against| &against.model.fingerprint[..]);
    (&case.model.fingerprint, against)
}

type ByKind<'a> = BTreeMap<(Models<'a>, Descriptor), Vec<&'a Case>>;

/// Groups cases by model and kind. A case whose parts strictly contain another's is its twin: these
/// are returned by themselves, each with its core, the smallest such case that is no twin. Tokens
/// must fail the same oracle as their core; a lesion is the same one under any.
fn by_kind<'a>(cases: &[&'a Case]) -> (ByKind<'a>, Vec<(&'a Case, &'a Case)>) {
    let described: Vec<(Descriptor, Option<BTreeSet<Part>>, bool)> = (cases.iter())
        .map(|case| (Descriptor::of_case(case), parts(case), lesioned(case).is_some()))
        .collect();
    let core_of = |at: usize| {
        let (case, (kind, parts, is_lesion)) = (cases[at], &described[at]);
        let is_core = |other: &usize| {
            let (of_other, less, _) = &described[*other];
            let (Some(all), Some(less)) = (parts, less) else { return false };
            models(case) == models(cases[*other])
                && (*is_lesion || kind.oracle == of_other.oracle)
                && less.len() < all.len()
                && less.is_subset(all)
        };
        (0..cases.len()).filter(is_core).min_by(|&a, &b| {
            let size = |at: usize| described[at].1.as_ref().map_or(0, BTreeSet::len);
            (size(a).cmp(&size(b)))
                .then(excess(cases[b]).total_cmp(&excess(cases[a])))
                .then_with(|| cases[a].id.cmp(&cases[b].id))
        })
    };
    let cores: Vec<Option<usize>> = (0..cases.len()).map(core_of).collect();
    let (mut by_kind, mut twins) = (ByKind::new(), Vec::new());
    for (at, &case) in cases.iter().enumerate() {
        // The core of a core has fewer parts still, so this ends.
        let mut root = at;
        while let Some(core) = cores[root] {
            root = core;
        }
        match root == at {
            true => {
                let kind = (models(case), described[at].0.clone());
                by_kind.entry(kind).or_default().push(case);
            }
            false => twins.push((cases[root], case)),
        }
    }
    (by_kind, twins)
}

/// Puts together groups of one model that have a lesion of the same components in common, or of
/// weights of the same neurons: a lesion is one glitch, whichever oracles see it and however strong
/// it is.
fn merge_same_lesions<'a>(
    groups: impl Iterator<Item = (Models<'a>, Vec<&'a Case>)>,
) -> Vec<(Models<'a>, Vec<&'a Case>)> {
    /// A group: its models, its lesions, its cases.
    type Group<'a> = (Models<'a>, BTreeSet<BTreeSet<Part>>, Vec<&'a Case>);
    let mut merged: Vec<Group> = Vec::new();
    for (models, members) in groups {
        let lesions: BTreeSet<_> = members.iter().filter_map(|case| lesioned_units(case)).collect();
        let mut joined = (models, lesions, members);
        let is_apart = |other: &Group| other.0 != models || other.1.is_disjoint(&joined.1);
        let (apart, same): (Vec<_>, Vec<_>) = merged.into_iter().partition(is_apart);
        for (_, lesions, members) in same {
            joined.1.extend(lesions);
            joined.2.extend(members);
        }
        merged = apart;
        merged.push(joined);
    }
    merged.into_iter().map(|(models, _, members)| (models, members)).collect()
}

fn is_consistent(case: &Case) -> bool {
    case.replication.as_ref().is_some_and(|found| found.consistent)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::tests::example;
    use crate::edit::{Action, AttentionKnockout};
    use crate::oracle::OracleKind;

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

    #[test]
    fn a_case_that_holds_in_new_prompts_shows_its_kind() {
        let (mut weak, mut strong) = (case(5, 1, 3.0), case(6, 1, 9.0));
        let consistent = |case: &mut Case, consistent| {
            let mut replication = example().replication.unwrap();
            replication.consistent = consistent;
            case.replication = Some(replication);
        };
        consistent(&mut weak, true);
        consistent(&mut strong, false);
        assert_eq!(group([&strong, &weak])[0].face.id, weak.id);
        consistent(&mut weak, false);
        assert_eq!(group([&strong, &weak])[0].face.id, strong.id);
    }

    #[test]
    fn a_set_of_tokens_is_a_twin_of_the_token_that_fails_alone() {
        let alone = case(5, 1, 9.0);
        let mut both = case(5, 1, 9.5);
        both.edits.push(Edit::Replace { position: 0, id: 6 });
        let mut other = case(7, 1, 8.0);
        other.edits.push(Edit::Replace { position: 0, id: 6 });
        (other.verdict.oracle, other.replication) = (OracleKind::Collapse, None);
        for case in [&mut both, &mut other] {
            case.id = case.compute_id();
        }
        let cases = [both.clone(), other.clone(), alone.clone()];
        let species = group(&cases);
        let sizes: Vec<usize> = species.iter().map(|species| species.members.len()).collect();
        assert_eq!(sizes, [2, 1]);
        // So is a set of knockouts.
        let knockout = |head, key| {
            let component = Component::Head { layer: 2, head };
            Edit::AttentionKnockout(AttentionKnockout { component, position: None, key })
        };
        let cut = |edits: &[Edit]| {
            let mut case = alone.clone();
            case.edits = edits.to_vec();
            case.id = case.compute_id();
            case
        };
        let one = cut(&[knockout(0, 1)]);
        assert_eq!(group(&[one.clone(), cut(&[knockout(1, 1), knockout(0, 2)])]).len(), 1);
        let retokenize = Edit::Retokenize { position: 1, pieces: vec![3, 4] };
        assert_eq!(group(&[one, cut(&[retokenize, knockout(0, 2)])]).len(), 1);
        // Under another oracle it is no twin.
        both.verdict.oracle = OracleKind::Collapse;
        both.id = both.compute_id();
        assert_eq!(group(&[both, alone]).len(), 2);
    }

    /// Which of its weights is changed, and how, is no other kind.
    #[test]
    fn weights_of_one_neuron_are_one_kind() {
        let weight = |matrix, out, input, action, oracle| {
            let mut case = case(5, 1, 9.0);
            let component = Component::Weight { layer: 1, matrix, out, input };
            case.edits = vec![Edit::lesion(component, action)];
            case.verdict.oracle = oracle;
            case.id = case.compute_id();
            case
        };
        let (flip, double) = (Action::Flip { bit: 30 }, Action::Scale { factor: 9.0 });
        let (collapse, divergence) = (OracleKind::Collapse, OracleKind::Divergence);
        let flipped = weight(Matrix::Down, 126, 182, flip, collapse);
        let doubled = weight(Matrix::Down, 114, 182, double, divergence);
        let into = weight(Matrix::Up, 182, 3, Action::Zero, collapse);
        let same = group([&flipped, &doubled, &into]);
        assert_eq!(same.len(), 1);
        let title = same[0].title();
        let expected = "lesion, amplification and bit flip of weight in L1: collapse, divergence";
        assert!(title.starts_with(expected), "{title}");
        let other = weight(Matrix::Down, 114, 3, double, divergence);
        assert_eq!(group([&flipped, &other, &into]).len(), 2);
    }

    #[test]
    fn every_case_is_in_one_species_in_any_order() {
        let zero = |head| Edit::lesion(Component::Head { layer: 2, head }, Action::Zero);
        let made = |edits: Vec<Edit>, oracle| {
            let mut case = case(5, 1, 9.0);
            (case.edits, case.verdict.oracle) = (edits, oracle);
            case.id = case.compute_id();
            case
        };
        // The core of the first is the second, whose core is the third: under another oracle, which
        // a token must not be and a lesion may.
        let token = Edit::Replace { position: 1, id: 5 };
        let divergence = OracleKind::Divergence;
        let cases = [
            made(vec![token, zero(0), zero(1)], divergence),
            made(vec![zero(0), zero(1)], divergence),
            made(vec![zero(0)], OracleKind::Collapse),
        ];
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let species = group(order.map(|at| &cases[at]));
            let members: Vec<usize> = species.iter().map(|s| s.members.len()).collect();
            assert_eq!(members, [3], "{order:?}");
        }
    }

    #[test]
    fn a_lesion_is_one_glitch_whichever_oracle_sees_it() {
        let lesion = |heads: &[usize], oracle, score| {
            let mut case = case(5, 1, score);
            let edit = |head: &usize| {
                Edit::lesion(Component::Head { layer: 2, head: *head }, Action::Zero)
            };
            case.edits = heads.iter().map(edit).collect();
            case.verdict.oracle = oracle;
            case.id = case.compute_id();
            case
        };
        let (divergence, routing) = (OracleKind::Divergence, OracleKind::RoutingCollapse);
        let cases = [
            lesion(&[0], divergence, 9.0),
            lesion(&[1], routing, 8.0),
            lesion(&[0], routing, 7.0),
            lesion(&[0, 1], OracleKind::Collapse, 2.0),
        ];
        // Head 0 joins the two oracles, and the set of both heads has it.
        let species = group(&cases);
        let sizes: Vec<usize> = species.iter().map(|species| species.members.len()).collect();
        assert_eq!(sizes, [4]);
        let title = species[0].title();
        assert!(title.starts_with("lesion of head in L2: collapse, divergence, "), "{title}");
        assert_eq!(group(&cases[..2]).len(), 2);
        let apart = [cases[1].clone(), lesion(&[0, 2], divergence, 2.0)];
        assert_eq!(group(&apart).len(), 2);
    }
}
