//! Cases of one kind told apart by their deficits, where these differ by more than chance.
//!
//! A profile is what the edits change in what the model writes, in units of what a person would
//! notice. Two cases are of different species where their profiles are further apart than a
//! finding's profile is from itself in other prompts; that distance is measured on the model's own
//! cases, half of their prompts against the other half. Where such a distance does not tell
//! unrelated findings apart either, profiles decide nothing.

use std::collections::BTreeMap;

use kodama::{Method, linkage};

use super::descriptor::Descriptor;
use crate::case::Case;
use crate::deficits::{Deficit, Deficits, Measure, Measured};
use crate::stats::{self, mean};

/// Largest value of one measure, in noticeable changes: larger ones do not make another kind.
const LARGEST: f64 = 3.0;
/// The share of findings that must not be told apart from themselves.
const SAME: f64 = 0.95;
/// The share of unrelated pairs that must be told apart for profiles to decide anything.
const TOLD_APART: f64 = 0.5;
/// Cases with profiles from which distances are calibrated.
const LEAST_CASES: usize = 8;

/// What a finding changes in each measure.
#[derive(Debug, Clone, PartialEq)]
struct Profile(BTreeMap<Measure, f64>);

impl Profile {
    /// Takes the mean change over the prompts that `of` picks.
    fn new(deficits: &Deficits, of: impl Fn(usize) -> bool) -> Self {
        let change = |measured: &Measured| {
            let pairs = measured.edited.iter().zip(&measured.baseline).enumerate();
            let picked = pairs.filter(|(at, _)| of(*at));
            let changes: Vec<f64> = picked.map(|(_, (after, before))| after - before).collect();
            let noticeable = mean(&changes) / measured.measure.minimum();
            let noticeable = if noticeable.is_nan() { 0.0 } else { noticeable };
            (measured.measure, noticeable.clamp(-LARGEST, LARGEST))
        };
        Self(deficits.measures.iter().map(change).collect())
    }

    /// Returns the root mean square difference over the measures that both have.
    fn distance(&self, other: &Self) -> f64 {
        let both = self.0.iter().filter_map(|(measure, a)| Some(a - other.0.get(measure)?));
        let squares: Vec<f64> = both.map(|difference| difference * difference).collect();
        mean(&squares).sqrt()
    }
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

/// Returns the profile of a case that has one in new prompts.
fn profile(case: &Case) -> Option<Profile> {
    let deficits = case.deficits.as_ref().filter(|deficits| {
        let prompts = deficits.measures.iter().map(|measured| measured.baseline.len()).min();
        deficits.new_prompts && prompts.is_some_and(|prompts| prompts > 1)
    })?;
    Some(Profile::new(deficits, |_| true))
}

/// Returns the distance above which the profiles of two cases of one model differ by more than that
/// of a finding from prompt to prompt; `None` where profiles decide nothing.
pub(super) fn calibrate(cases: &[(&Descriptor, &Case)]) -> Option<f64> {
    let measured: Vec<(&Descriptor, Profile, f64)> = (cases.iter())
        .filter_map(|(kind, case)| {
            let deficits = case.deficits.as_ref()?;
            let halves = [0, 1].map(|half| Profile::new(deficits, |at| at % 2 == half));
            Some((*kind, profile(case)?, halves[0].distance(&halves[1])))
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
            others.map(move |(_, b, _)| a.distance(b))
        })
        .collect();
    let apart = unrelated.iter().filter(|distance| **distance > threshold).count();
    (apart as f64 > TOLD_APART * unrelated.len() as f64).then_some(threshold)
}

/// Divides the cases of one kind into clusters (average linkage) that are further apart than
/// `threshold` and whose cases mostly show other deficits. Cases without a profile go with the
/// first.
pub(super) fn divide(members: Vec<&Case>, threshold: Option<f64>) -> Vec<Vec<&Case>> {
    let profiles: Vec<(usize, Profile)> =
        members.iter().enumerate().filter_map(|(at, case)| Some((at, profile(case)?))).collect();
    let Some(threshold) = threshold.filter(|_| profiles.len() > 1) else { return vec![members] };
    let mut distances: Vec<f64> = (profiles.iter().enumerate())
        .flat_map(|(i, (_, a))| profiles[i + 1..].iter().map(move |(_, b)| a.distance(b)))
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
    // Clusters with the same deficits, or with none, are joined again.
    let mut by_deficits: BTreeMap<Vec<Deficit>, Vec<usize>> = BTreeMap::new();
    for cluster in clusters.into_iter().filter(|cluster| !cluster.is_empty()) {
        let places: Vec<usize> = cluster.into_iter().map(|at| profiles[at].0).collect();
        let cases: Vec<&Case> = places.iter().map(|at| members[*at]).collect();
        by_deficits.entry(common_deficits(&cases)).or_default().extend(places);
    }
    let mut divided: Vec<Vec<usize>> = by_deficits.into_values().collect();
    let measured: Vec<usize> = profiles.iter().map(|(at, _)| *at).collect();
    divided[0].extend((0..members.len()).filter(|at| !measured.contains(at)));
    for cluster in &mut divided {
        cluster.sort_unstable();
    }
    divided.sort();
    divided.into_iter().map(|of| of.into_iter().map(|at| members[at]).collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::tests::example;
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
        assert_eq!(calibrate(&cases[2..9]), None, "seven are too few");
        let threshold = calibrate(&cases);
        assert!(threshold.is_some_and(|threshold| threshold < 1.0), "{threshold:?}");
        let mixed: Vec<&Case> = loops.iter().chain(&copying).collect();
        let sizes: Vec<usize> = divide(mixed, threshold).iter().map(Vec::len).collect();
        assert_eq!(sizes, [5, 5]);
        assert_eq!(divide(loops.iter().collect(), threshold).len(), 1);
        // Neither loops nor fails to copy more than its controls do: no deficit to be told by.
        let loud = |mut case: Case| {
            for measured in case.deficits.iter_mut().flat_map(|found| &mut found.measures) {
                measured.controls = vec![0.5, -0.5, 0.5, -0.5, 0.5, -0.5, 0.5, -0.5];
            }
            case
        };
        let hidden: Vec<Case> = loops.iter().chain(&copying).cloned().map(loud).collect();
        assert_eq!(divide(hidden.iter().collect(), threshold).len(), 1);
        // Without a profile, or a threshold, nothing is divided.
        let mut bare = loops[0].clone();
        bare.deficits = None;
        assert_eq!(divide(vec![&bare, &copying[0], &copying[1]], threshold).len(), 1);
        assert_eq!(divide(loops.iter().chain(&copying).collect(), None).len(), 1);
    }

    #[test]
    fn profiles_that_change_from_prompt_to_prompt_decide_nothing() {
        let [one, other] = kinds();
        let noisy: Vec<Case> =
            (0..10).map(|id| case(id, [0.1 * f64::from(id % 2), 0.0], 0.9)).collect();
        let kind = |id: usize| if id.is_multiple_of(2) { &one } else { &other };
        let cases: Vec<(&Descriptor, &Case)> =
            noisy.iter().enumerate().map(|(id, case)| (kind(id), case)).collect();
        assert_eq!(calibrate(&cases), None);
    }
}
