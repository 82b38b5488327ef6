//! Cases of one kind told apart by what they do, where that differs by more than chance: by the
//! deficits they cause, and by the blocks of the model that mediate them.
//!
//! A profile is what the edits change in what the model writes, in units of what a person would
//! notice, or the share of the effect that each block mediates, both in new prompts. Two cases are
//! of different species where their profiles are further apart than a finding's profile is from
//! itself in other prompts; that distance is measured on the model's own cases, half of their
//! prompts against the other half. Where such a distance does not tell unrelated findings apart
//! either, profiles decide nothing.

use std::collections::BTreeMap;

use kodama::{Method, linkage};

use super::descriptor::Descriptor;
use crate::case::Case;
use crate::deficits::{Deficit, Deficits, Measure, Measured};
use crate::edit::Component;
use crate::localize::{BlockEffect, Contrast, Role};
use crate::stats::{self, mean};

/// Largest value of one measure, in noticeable changes: larger ones do not make another kind.
const LARGEST: f64 = 3.0;
/// The share of findings that must not be told apart from themselves.
const SAME: f64 = 0.95;
/// The share of unrelated pairs that must be told apart for profiles to decide anything.
const TOLD_APART: f64 = 0.5;
/// Cases with profiles from which distances are calibrated.
const LEAST_CASES: usize = 8;
/// Prompts without which there is no profile.
const LEAST_PROMPTS: usize = 4;
/// The share of an effect from which a block counts as its mediator.
const MEDIATES: f64 = 0.5;
/// Cases that make a kind of their own by their profiles: what one case shows may be its prompts.
const LEAST_IN_PART: usize = 2;

/// One number for each measure, or for each block of the model.
#[derive(Debug, Clone, PartialEq)]
struct Profile<K>(BTreeMap<K, f64>);

impl<K: Ord + Copy> Profile<K> {
    /// Returns the root mean square difference over what both have; `None` if they have nothing in
    /// common.
    fn distance(&self, other: &Self) -> Option<f64> {
        let both = self.0.iter().filter_map(|(key, a)| Some(a - other.0.get(key)?));
        let squares: Vec<f64> = both.map(|difference| difference * difference).collect();
        (!squares.is_empty()).then(|| mean(&squares).sqrt())
    }
}

/// The content of profiles, and the names by which a person tells two clusters apart.
pub(super) trait Profiled {
    /// A profile has one number for each key.
    type Key: Ord + Copy;
    /// The name of a cluster.
    type Name: Ord;

    /// Returns the number of prompts of a case's profile; `None` if it has none.
    fn prompts(case: &Case) -> Option<usize>;

    /// Returns the means over the prompts that `of` picks.
    fn means(case: &Case, of: &dyn Fn(usize) -> bool) -> BTreeMap<Self::Key, f64>;

    /// Names a cluster of cases.
    fn name(cases: &[&Case]) -> Self::Name;
}

/// Profiles of [`Deficits`].
pub(super) struct ByDeficits;

impl Profiled for ByDeficits {
    type Key = Measure;
    type Name = Vec<Deficit>;

    fn prompts(case: &Case) -> Option<usize> {
        let deficits = case.deficits.as_ref().filter(|deficits| deficits.new_prompts)?;
        deficits.measures.iter().map(|measured| measured.baseline.len()).min()
    }

    fn means(case: &Case, of: &dyn Fn(usize) -> bool) -> BTreeMap<Measure, f64> {
        let change = |measured: &Measured| {
            let pairs = measured.edited.iter().zip(&measured.baseline).enumerate();
            let picked = pairs.filter(|(at, _)| of(*at));
            let changes: Vec<f64> = picked.map(|(_, (after, before))| after - before).collect();
            let noticeable = mean(&changes) / measured.measure.minimum();
            let noticeable = if noticeable.is_nan() { 0.0 } else { noticeable };
            (measured.measure, noticeable.clamp(-LARGEST, LARGEST))
        };
        let measures = |deficits: &Deficits| deficits.measures.iter().map(change).collect();
        case.deficits.as_ref().map(measures).unwrap_or_default()
    }

    fn name(cases: &[&Case]) -> Vec<Deficit> {
        common_deficits(cases)
    }
}

/// Profiles of what each mixer and MLP mediates, without the relays of the case: these mediate
/// whatever is put in the place of its edits, and tell no kinds apart. A case that could not be
/// compared with controls has none: its relays are not known.
pub(super) struct ByBlocks;

impl ByBlocks {
    fn blocks(case: &Case) -> Vec<&BlockEffect> {
        let Some(found) = &case.localization else { return Vec::new() };
        let is_no_relay = |block: &&BlockEffect| {
            let of_block = |contrast: &&Contrast| contrast.component == block.component;
            found.contrasts.iter().find(of_block).is_some_and(|c| c.role != Role::Relay)
        };
        let blocks = found.generalization.iter().flat_map(|tried| &tried.blocks);
        blocks.filter(is_no_relay).collect()
    }
}

impl Profiled for ByBlocks {
    type Key = Component;
    type Name = Option<Component>;

    fn prompts(case: &Case) -> Option<usize> {
        Some(Self::blocks(case).first()?.necessity.len())
    }

    fn means(case: &Case, of: &dyn Fn(usize) -> bool) -> BTreeMap<Component, f64> {
        let picked = |block: &BlockEffect| {
            let shares = block.necessity.iter().enumerate().filter(|(at, _)| of(*at));
            let shares: Vec<f64> = shares.map(|(_, share)| *share).collect();
            (block.component, mean(&shares))
        };
        Self::blocks(case).into_iter().map(picked).collect()
    }

    fn name(cases: &[&Case]) -> Option<Component> {
        mediator(cases)
    }
}

/// Returns the block that mediates much of the effect in new prompts in more than half of the cases
/// with a profile: of several, the one that mediates most on average.
pub(super) fn mediator(cases: &[&Case]) -> Option<Component> {
    let profiles: Vec<_> = cases.iter().filter_map(|case| profile::<ByBlocks>(case)).collect();
    let mut shares: BTreeMap<Component, Vec<f64>> = BTreeMap::new();
    for (component, share) in profiles.iter().flat_map(|profile| &profile.0) {
        shares.entry(*component).or_default().push(*share);
    }
    let mediates_most = |shares: &[f64]| {
        2 * shares.iter().filter(|share| **share >= MEDIATES).count() > profiles.len()
    };
    let mediators = shares.into_iter().filter(|(_, shares)| mediates_most(shares));
    let means = mediators.map(|(component, shares)| (mean(&shares), component));
    let most = means.max_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1)));
    most.map(|(_, component)| component)
}

/// Returns the deficits that more than half of the measured cases show.
pub(super) fn common_deficits(members: &[&Case]) -> Vec<Deficit> {
    let measured: Vec<Vec<Deficit>> = (members.iter())
        .filter_map(|case| case.deficits.as_ref())
        .map(|found| found.shown().map(|(deficit, _)| deficit).collect())
        .collect();
    let shows = |deficit: &Deficit| {
        let showing = measured.iter().filter(|shown| shown.contains(deficit)).count();
        2 * showing > measured.len()
    };
    Deficit::ALL.into_iter().filter(shows).collect()
}

/// Returns the profile of a case that has one in enough new prompts.
fn profile<P: Profiled>(case: &Case) -> Option<Profile<P::Key>> {
    P::prompts(case).filter(|prompts| *prompts >= LEAST_PROMPTS)?;
    Some(Profile(P::means(case, &|_| true)))
}

/// Returns the distance above which the profiles of two cases of one model differ by more than that
/// of a finding from prompt to prompt; `None` where profiles decide nothing.
pub(super) fn calibrate<P: Profiled>(cases: &[(&Descriptor, &Case)]) -> Option<f64> {
    let measured: Vec<(&Descriptor, Profile<P::Key>, f64)> = (cases.iter())
        .filter_map(|(kind, case)| {
            let half = |half| Profile(P::means(case, &|at| at % 2 == half));
            Some((*kind, profile::<P>(case)?, half(0).distance(&half(1))?))
        })
        .collect();
    if measured.len() < LEAST_CASES {
        return None;
    }
    let same: Vec<f64> = measured.iter().map(|(_, _, distance)| *distance).collect();
    let threshold = stats::quantile(&same, SAME);
    let unrelated: Vec<f64> = (measured.iter().enumerate())
        .flat_map(|(at, (kind, a, _))| {
            let others = measured[at + 1..].iter().filter(move |(other, ..)| other != kind);
            others.filter_map(move |(_, b, _)| a.distance(b))
        })
        .collect();
    let apart = unrelated.iter().filter(|distance| **distance > threshold).count();
    (apart as f64 > TOLD_APART * unrelated.len() as f64).then_some(threshold)
}

/// Divides the cases of one kind into clusters (average linkage) that are further apart than
/// `threshold`, or have nothing in common, and have other names. A case that would be a cluster by
/// itself goes with the nearest, cases without a profile with the first.
pub(super) fn divide<P: Profiled>(members: Vec<&Case>, threshold: Option<f64>) -> Vec<Vec<&Case>> {
    let (places, profiles): (Vec<usize>, Vec<Profile<P::Key>>) = (members.iter().enumerate())
        .filter_map(|(place, case)| Some((place, profile::<P>(case)?)))
        .unzip();
    let Some(threshold) = threshold.filter(|_| profiles.len() > 1) else { return vec![members] };
    // Clusters that a person would call the same are joined again.
    let mut by_name: BTreeMap<P::Name, Vec<usize>> = BTreeMap::new();
    for cluster in linked(&profiles, threshold) {
        let cases: Vec<&Case> = cluster.iter().map(|at| members[places[*at]]).collect();
        by_name.entry(P::name(&cases)).or_default().extend(cluster);
    }
    let (clusters, alone): (Vec<Vec<usize>>, Vec<_>) =
        by_name.into_values().partition(|cluster| cluster.len() >= LEAST_IN_PART);
    if clusters.len() < 2 {
        return vec![members];
    }
    let mut divided = clusters.clone();
    for at in alone.into_iter().flatten() {
        divided[nearest(&profiles, &clusters, at)].push(at);
    }
    let to_places = |cluster: Vec<usize>| cluster.into_iter().map(|at| places[at]).collect();
    let mut divided: Vec<Vec<usize>> = divided.into_iter().map(to_places).collect();
    divided[0].extend((0..members.len()).filter(|place| !places.contains(place)));
    divided.iter_mut().for_each(|cluster| cluster.sort_unstable());
    divided.sort();
    divided.into_iter().map(|of| of.into_iter().map(|place| members[place]).collect()).collect()
}

/// Returns the distance of two profiles; infinite if they have nothing in common.
fn distance<K: Ord + Copy>(a: &Profile<K>, b: &Profile<K>) -> f64 {
    a.distance(b).unwrap_or(f64::INFINITY)
}

/// Clusters profiles by average linkage, up to `threshold`; returns their indices.
fn linked<K: Ord + Copy>(profiles: &[Profile<K>], threshold: f64) -> Vec<Vec<usize>> {
    let mut distances: Vec<f64> = (profiles.iter().enumerate())
        .flat_map(|(at, a)| profiles[at + 1..].iter().map(move |b| distance(a, b)))
        .collect();
    let merges = linkage(&mut distances, profiles.len(), Method::Average);
    // Clusters are numbered as kodama does: first the observations, then one a merge.
    let mut clusters: Vec<Vec<usize>> = (0..profiles.len()).map(|at| vec![at]).collect();
    for step in merges.steps() {
        let merged = match step.dissimilarity <= threshold {
            true => [step.cluster1, step.cluster2]
                .into_iter()
                .flat_map(|at| std::mem::take(&mut clusters[at]))
                .collect(),
            false => Vec::new(),
        };
        clusters.push(merged);
    }
    clusters.retain(|cluster| !cluster.is_empty());
    clusters
}

/// Returns the cluster that is nearest to a profile on average.
fn nearest<K: Ord + Copy>(profiles: &[Profile<K>], clusters: &[Vec<usize>], of: usize) -> usize {
    let from = |cluster: &[usize]| {
        let each = cluster.iter().map(|at| distance(&profiles[of], &profiles[*at]));
        mean(&each.collect::<Vec<f64>>())
    };
    let far: Vec<f64> = clusters.iter().map(|cluster| from(cluster)).collect();
    (0..far.len()).min_by(|&a, &b| far[a].total_cmp(&far[b])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::tests::example;
    use crate::localize::{Generalization, Localization};
    use crate::oracle::OracleKind;

    /// A case whose repetition and copying change by so much, up to `noise` from prompt to prompt.
    fn case(id: u32, changes: [f64; 2], noise: f64) -> Case {
        let mut case = example();
        case.base[0] = id;
        case.id = case.compute_id();
        let wave = |at: usize| noise * (2.4 * (at as f64 + f64::from(id))).sin();
        let measures = [Measure::Repetition, Measure::Copying].into_iter().zip(changes);
        let measured = |(measure, change): (Measure, f64)| Measured {
            measure,
            baseline: vec![0.5; 6],
            edited: (0..6).map(|at| 0.5 + change + wave(at)).collect(),
            controls: vec![0.0; 8],
        };
        let measures = measures.map(measured).collect();
        case.deficits = Some(Deficits { new_prompts: true, generated: 32, measures });
        case
    }

    fn kinds() -> [Descriptor; 2] {
        [OracleKind::Divergence, OracleKind::Echo].map(|oracle| {
            Descriptor::new(&example().trial(), oracle, &|_| super::super::TokenClass::Ordinary)
        })
    }

    #[test]
    fn cases_of_one_kind_are_divided_where_their_profiles_differ() {
        let loops: Vec<Case> = (0..5).map(|id| case(id, [0.4, 0.0], 0.05)).collect();
        let copying: Vec<Case> = (5..10).map(|id| case(id, [0.0, -0.4], 0.05)).collect();
        let [one, other] = kinds();
        let cases: Vec<(&Descriptor, &Case)> = (loops.iter().map(|case| (&one, case)))
            .chain(copying.iter().map(|case| (&other, case)))
            .collect();
        assert_eq!(calibrate::<ByDeficits>(&cases[2..9]), None, "seven are too few");
        let threshold = calibrate::<ByDeficits>(&cases);
        assert!(threshold.is_some_and(|threshold| threshold < 1.0), "{threshold:?}");
        let mixed: Vec<&Case> = loops.iter().chain(&copying).collect();
        let sizes: Vec<usize> =
            divide::<ByDeficits>(mixed, threshold).iter().map(Vec::len).collect();
        assert_eq!(sizes, [5, 5]);
        assert_eq!(divide::<ByDeficits>(loops.iter().collect(), threshold).len(), 1);
        // Neither loops nor fails to copy more than its controls do: no deficit to be told by.
        let loud = |mut case: Case| {
            for measured in case.deficits.iter_mut().flat_map(|found| &mut found.measures) {
                measured.controls = vec![0.5, -0.5, 0.5, -0.5, 0.5, -0.5, 0.5, -0.5];
            }
            case
        };
        let hidden: Vec<Case> = loops.iter().chain(&copying).cloned().map(loud).collect();
        assert_eq!(divide::<ByDeficits>(hidden.iter().collect(), threshold).len(), 1);
        // Without a profile, or a threshold, nothing is divided.
        let mut bare = loops[0].clone();
        bare.deficits = None;
        assert_eq!(divide::<ByDeficits>(vec![&bare, &copying[0], &copying[1]], threshold).len(), 1);
        assert_eq!(divide::<ByDeficits>(loops.iter().chain(&copying).collect(), None).len(), 1);
    }

    #[test]
    fn profiles_that_change_from_prompt_to_prompt_decide_nothing() {
        let [one, other] = kinds();
        let noisy: Vec<Case> =
            (0..10).map(|id| case(id, [0.1 * f64::from(id % 2), 0.0], 0.9)).collect();
        let kind = |id: usize| if id.is_multiple_of(2) { &one } else { &other };
        let cases: Vec<(&Descriptor, &Case)> =
            noisy.iter().enumerate().map(|(id, case)| (kind(id), case)).collect();
        assert_eq!(calibrate::<ByDeficits>(&cases), None);
    }

    fn contrast(layer: usize, role: Role) -> Contrast {
        let component = Component::Mlp { layer };
        Contrast { component, necessity: 0.9, controls: vec![0.9; 9], p_value: 1.0, role }
    }

    /// A case whose effect MLPs mediate by these shares, up to `noise` from prompt to prompt.
    fn mediated(id: u32, shares: [f64; 3], noise: f64) -> Case {
        let mut case = case(id, [0.0, 0.0], 0.0);
        let wave = |at: usize| noise * (2.4 * (at as f64 + f64::from(id))).sin();
        let block = |(layer, share): (usize, f64)| BlockEffect {
            component: Component::Mlp { layer },
            necessity: (0..6).map(|at| (share + wave(at)).clamp(0.0, 1.0)).collect(),
        };
        let blocks = shares.into_iter().enumerate().map(block).collect();
        let tried =
            Generalization { prompts: 6, with_effect: 6, set: None, direction: None, blocks };
        let localization = case.localization.get_or_insert_default();
        localization.generalization = Some(tried);
        localization.contrasts = (0..3).map(|layer| contrast(layer, Role::Unclear)).collect();
        case
    }

    #[test]
    fn cases_of_one_kind_are_divided_where_other_blocks_mediate_them() {
        let ids = |first: u32| first..first + 5;
        let low: Vec<Case> = ids(0).map(|id| mediated(id, [0.9, 0.1, 0.1], 0.05)).collect();
        let high: Vec<Case> = ids(5).map(|id| mediated(id, [0.1, 0.9, 0.1], 0.05)).collect();
        let spread: Vec<Case> = ids(10).map(|id| mediated(id, [0.4, 0.0, 0.3], 0.05)).collect();
        let [one, other] = kinds();
        let cases: Vec<(&Descriptor, &Case)> = (low.iter().map(|case| (&one, case)))
            .chain(high.iter().map(|case| (&other, case)))
            .collect();
        let threshold = calibrate::<ByBlocks>(&cases);
        assert!(threshold.is_some_and(|threshold| threshold < 0.3), "{threshold:?}");
        let sizes = |cases: Vec<&Case>| {
            let parts = divide::<ByBlocks>(cases, threshold);
            parts.iter().map(Vec::len).collect::<Vec<_>>()
        };
        assert_eq!(sizes(low.iter().chain(&high).collect()), [5, 5]);
        assert_eq!(sizes(low.iter().chain(&low).collect()), [10]);
        // Far from one another, but no block mediates much of either.
        let thin: Vec<Case> = ids(20).map(|id| mediated(id, [0.0, 0.4, 0.0], 0.05)).collect();
        assert_eq!(sizes(spread.iter().chain(&thin).collect()), [10]);
        let names = [&low, &high, &spread].map(|cases| mediator(&cases.iter().collect::<Vec<_>>()));
        let mlp = |layer| Some(Component::Mlp { layer });
        assert_eq!(names, [mlp(0), mlp(1), None]);
        // What one case of two has is not what both have.
        assert_eq!(mediator(&[&low[0], &spread[0]]), None);
        assert_eq!(mediator(&[&low[0], &low[1], &spread[0]]), mlp(0));
        // What mediates anything put in its place tells nothing, nor what may do so, nor what was
        // seen in three prompts.
        let changed = |change: &dyn Fn(&mut Localization)| {
            let mut case = low[0].clone();
            change(case.localization.get_or_insert_default());
            case
        };
        let blocks = |found: &mut Localization, change: &dyn Fn(&mut Vec<BlockEffect>)| {
            found.generalization.iter_mut().for_each(|tried| change(&mut tried.blocks));
        };
        let relay = changed(&|found| found.contrasts[0] = contrast(0, Role::Relay));
        let unknown = changed(&|found| found.contrasts.clear());
        let short = changed(&|found| {
            blocks(found, &|all| all.iter_mut().for_each(|b| b.necessity.truncate(3)));
        });
        assert_eq!([&relay, &unknown, &short].map(|case| mediator(&[case])), [None; 3]);
        // Nothing in common is far from one another, if there are two of each.
        let only =
            |layer: usize| changed(&|found| blocks(found, &|all| *all = vec![all.remove(layer)]));
        assert_eq!(sizes(vec![&only(0), &only(0), &only(2), &only(2)]), [2, 2]);
        assert_eq!(sizes(vec![&only(0), &only(2)]), [2]);
        // What is alone goes with what is nearest.
        let near: Vec<&Case> = low.iter().chain(&high).chain(&spread[..1]).collect();
        assert_eq!(sizes(near), [6, 5]);
        // Profiles that are as far from themselves as from others decide nothing.
        let noisy: Vec<Case> = (0..10).map(|id| mediated(id, [0.5; 3], 0.5)).collect();
        let mixed: Vec<(&Descriptor, &Case)> = noisy
            .iter()
            .enumerate()
            .map(|(i, case)| (if i < 5 { &one } else { &other }, case))
            .collect();
        assert_eq!(calibrate::<ByBlocks>(&mixed), None);
    }
}
