//! Contrast: which components are specific to a case, and which mediate whatever is put in its
//! place.
//!
//! Any replaced token acts through the components that read tokens, above all the first MLP, and
//! patching these back removes the effect of any. So what patching a component removes of a case is
//! compared with what it removes of controls, the same edits with ordinary content, each as a share
//! of its own effect.
//!
//! Every ordinary token has components that mediate more of its effect than of others', so a case
//! has to stand out as a whole. By how much a component's share in one run exceeds its mean share
//! in all of them is compared between the case and, over all components, each control: the largest
//! of a control counts (the maxT permutation test of Westfall and Young 1993). If the case
//! is one more ordinary token, some component is called specific with a probability of 5% at most,
//! whatever the shares' distribution. All mixers and MLPs are compared in all runs, since picking
//! some by what they do in the case would break the symmetry that this rests on.

use super::noise_controls::lesioned_blocks;
use super::runs::{Direction, comparable};
use super::set::{LocalizeOptions, SmallestSet};
use super::symptom::{LEAST_NECESSITY, Symptom, shares_of};
use super::symptoms::Symptoms;
use super::{Contrast, Role};
use crate::edit::{Component, Trial};
use crate::error::Result;

/// The number of blocks up to which each is patched.
const FEW_BLOCKS: usize = 24;

/// The number of blocks that are patched together first, and the share from which each of them is
/// patched.
const STRETCH: usize = 6;
const LEAST_OF_STRETCH: f64 = 0.1;

/// The number of controls that are measured together.
const TOGETHER: usize = 10;

/// The number of controls below which shares are not compared: nothing could be specific.
const LEAST_CONTROLS: usize = 19;

/// The number of controls after which the comparison ends if nothing can be specific any more.
const ENOUGH: usize = 9;

/// The number of controls whose runs are kept for further comparisons.
const KEPT: usize = 3;

/// The probability with which something is called specific to an ordinary case.
const LEVEL: f64 = 0.05;

/// Measures the necessity of each block in each run. In deep models stretches of blocks are patched
/// together first, and those of a stretch that removes nothing to speak of count as 0: what is
/// measured of a run depends on that run alone, so case and controls stay exchangeable.
fn screened(runs: &mut [&mut Symptom], blocks: &[Component]) -> Result<Vec<Vec<f64>>> {
    let all = |n: usize| (0..runs.len()).flat_map(move |run| (0..n).map(move |at| (run, at)));
    let places: Vec<(usize, usize)> = all(blocks.len()).collect();
    let open: Vec<bool> = if blocks.len() <= FEW_BLOCKS {
        vec![true; places.len()]
    } else {
        let stretches: Vec<&[Component]> = blocks.chunks(STRETCH).collect();
        let sets: Vec<(usize, &[Component])> =
            all(stretches.len()).map(|(run, at)| (run, stretches[at])).collect();
        let together = shares_of(runs, &sets, Direction::Necessity)?;
        let of = |(run, at): &(usize, usize)| together[run * stretches.len() + at / STRETCH];
        places.iter().map(|place| of(place) >= LEAST_OF_STRETCH).collect()
    };
    let single = places.iter().zip(&open).filter(|(_, open)| **open);
    let single: Vec<(usize, &[Component])> =
        single.map(|((run, at), _)| (*run, &blocks[*at..=*at])).collect();
    let mut measured = shares_of(runs, &single, Direction::Necessity)?.into_iter();
    let mut share = |open: &bool| if *open { measured.next().unwrap_or(0.0) } else { 0.0 };
    let shares: Vec<f64> = open.iter().map(&mut share).collect();
    Ok(shares.chunks(blocks.len().max(1)).map(<[f64]>::to_vec).collect())
}

impl Symptom<'_, '_> {
    /// Finds the shortest prefix of the specific components that takes away nearly as much as the
    /// best one.
    fn specific_set(
        &mut self,
        contrasts: &[Contrast],
        options: &LocalizeOptions,
    ) -> Result<SmallestSet> {
        let mut members = Vec::new();
        let specific = contrasts.iter().filter(|c| c.role == Role::Specific);
        for contrast in specific.take(options.set) {
            members.push(self.named_for(contrast.component, contrast.necessity)?);
        }
        let prefixes: Vec<&[Component]> = (1..=members.len()).map(|n| &members[..n]).collect();
        let necessity = self.shares(&prefixes, Direction::Necessity)?;
        let sufficiency = self.shares(&prefixes, Direction::Sufficiency)?;
        Ok(SmallestSet::of(&prefixes, &necessity, &sufficiency, options.share_of_best))
    }
}

/// A case compared with its controls.
#[derive(Default)]
pub struct Contrasted<'a, 'm> {
    /// All mixers and MLPs, largest necessity first; empty where the case or too many controls have
    /// no effect.
    pub contrasts: Vec<Contrast>,
    /// The set that is named: of what is specific.
    pub set: SmallestSet,
    /// The symptoms of the first [`KEPT`] controls.
    pub controls: Vec<Symptom<'a, 'm>>,
    /// Trials evaluated.
    pub calls: u64,
}

/// Compares what mixers and MLPs mediate of a case and of its controls.
///
/// # Errors
/// Errors of the evaluator.
pub fn contrasted<'a, 'm>(
    symptoms: &mut Symptoms<'a, 'm>,
    own: &mut Symptom,
    controls: &[Trial],
    options: &LocalizeOptions,
) -> Result<Contrasted<'a, 'm>> {
    let config = &own.runs.evaluator.model.config;
    // What a lesion is in is never patched: controls have their noise behind it.
    let lesioned = lesioned_blocks(&own.runs.corrupted.trial, config).unwrap_or_default();
    let blocks: Vec<Component> = (0..config.num_hidden_layers)
        .flat_map(|layer| std::iter::once(config.mixer(layer)).chain(config.mlp(layer)))
        .filter(|block| !lesioned.contains(block))
        .collect();
    // One row for the case, one for each control.
    let (mut shares, mut calls, mut kept) = (screened(&mut [own], &blocks)?, 0, Vec::new());
    let mut rest = controls.iter().filter(|control| comparable(control));
    let mut decided = false;
    while !decided {
        let wanted = (options.contrasted + 1).saturating_sub(shares.len()).min(TOGETHER);
        let few: Vec<&Trial> = rest.by_ref().take(wanted).collect();
        if few.is_empty() {
            break;
        }
        // A case in which a token is said is compared with controls in which one is said, and not
        // with those in which one is no longer said.
        let is_alike = |other: &Symptom| (other.effect > 0.0) == (own.effect > 0.0);
        let found = symptoms.find_all(&few)?.into_iter().flatten();
        let mut alike: Vec<Symptom> = found.filter(is_alike).collect();
        let mut runs: Vec<&mut Symptom> = alike.iter_mut().collect();
        shares.extend(screened(&mut runs, &blocks)?);
        calls += alike.iter().map(|other| other.calls).sum::<u64>();
        kept.extend(alike.into_iter().take(KEPT - kept.len()));
        decided = shares.len() > ENOUGH && nothing_stands_out(&compared(&blocks, &shares));
    }
    if shares.len() < 1 + LEAST_CONTROLS && !decided {
        let calls = calls + own.calls;
        return Ok(Contrasted { controls: kept, calls, ..Contrasted::default() });
    }
    let mut contrasts = compared(&blocks, &shares);
    contrasts
        .sort_by(|a, b| b.necessity.total_cmp(&a.necessity).then(a.component.cmp(&b.component)));
    let set = own.specific_set(&contrasts, options)?;
    Ok(Contrasted { contrasts, set, controls: kept, calls: calls + own.calls })
}

/// Compares the shares of the first run with those of the others, block by block.
fn compared(blocks: &[Component], shares: &[Vec<f64>]) -> Vec<Contrast> {
    let compare = |(at, (&component, p_value)): (usize, (&Component, f64))| {
        let mut controls: Vec<f64> = shares[1..].iter().map(|run| run[at]).collect();
        controls.sort_by(f64::total_cmp);
        let necessity = shares[0][at];
        let mut contrast =
            Contrast { component, necessity, controls, p_value, role: Role::Unclear };
        let of_controls = necessity - contrast.excess();
        if p_value <= LEVEL && contrast.excess() >= LEAST_NECESSITY {
            contrast.role = Role::Specific;
        } else if necessity >= LEAST_NECESSITY && of_controls >= 0.5 * necessity {
            contrast.role = Role::Relay;
        }
        contrast
    };
    blocks.iter().zip(adjusted_p_values(shares)).enumerate().map(compare).collect()
}

/// Returns whether no block can be called specific any more, whatever further controls do: for
/// that it has to exceed all of them. To stop then leaves the probability of a false call as it is
/// (Besag and Clifford 1991, "Sequential Monte Carlo p-values").
fn nothing_stands_out(contrasts: &[Contrast]) -> bool {
    let exceeds_all = |contrast: &Contrast| {
        contrast.p_value <= 1.0 / (1 + contrast.controls.len()) as f64
            && contrast.excess() >= LEAST_NECESSITY
    };
    !contrasts.iter().any(exceeds_all)
}

/// Returns for each column the share of runs of which some column exceeds the mean of its column by
/// as much as the first run does in this one. The first run counts as one of them.
fn adjusted_p_values(runs: &[Vec<f64>]) -> Vec<f64> {
    let columns = runs.first().map_or(0, Vec::len);
    let n = runs.len() as f64;
    let means: Vec<f64> =
        (0..columns).map(|at| runs.iter().map(|run| run[at]).sum::<f64>() / n).collect();
    let excess = |run: &[f64], at: usize| run[at] - means[at];
    let largest: Vec<f64> = runs
        .iter()
        .map(|run| (0..columns).map(|at| excess(run, at)).fold(f64::NEG_INFINITY, f64::max))
        .collect();
    // Ties up to rounding count against the first run.
    let as_much = |least: f64| largest[1..].iter().filter(|most| **most >= least - 1e-9).count();
    (0..columns).map(|at| (1 + as_much(excess(&runs[0], at))) as f64 / n).collect()
}

#[cfg(test)]
mod tests {
    use rand::Rng as _;

    use super::*;
    use crate::rng;

    #[test]
    fn p_values_by_hand() {
        // Means 0.4, 0.2: excesses 0.5 and -0.2; -0.1 and 0.4; -0.4 and -0.2.
        let runs = [vec![0.9, 0.0], vec![0.3, 0.6], vec![0.0, 0.0]];
        assert_eq!(adjusted_p_values(&runs), [1.0 / 3.0, 1.0]);
        assert_eq!(adjusted_p_values(&[vec![0.5], vec![0.5]]), [1.0]);
        assert!(adjusted_p_values(&[]).is_empty());
    }

    /// Heavy tails, and components that only one token in twenty uses: the rate is kept, and what
    /// stands out from all is found.
    #[test]
    fn the_comparison_goes_on_while_something_can_be_specific() {
        let blocks = [Component::Mlp { layer: 0 }, Component::Mlp { layer: 1 }];
        let goes_on = |runs: &[Vec<f64>]| !nothing_stands_out(&compared(&blocks, runs));
        let controls = [vec![0.3, 0.6], vec![0.0, 0.1]];
        let with = |own: [f64; 2]| [&[own.to_vec()][..], &controls[..]].concat();
        assert!(goes_on(&with([0.9, 0.0])));
        // The second control's excess in the other column is larger; too little of an excess.
        assert!(!goes_on(&with([0.4, 0.0])));
        assert!(!goes_on(&[vec![0.05, 0.0], vec![0.0, 0.0], vec![0.0, 0.0]]));
    }

    #[test]
    fn an_ordinary_run_stands_out_as_often_as_stated() {
        let mut rng = rng::stream(1, "contrasts");
        let (mut called, mut found) = (0, 0);
        for _ in 0..2000 {
            let mut draw = |component: usize| match component {
                0 => 1.0 - 0.01 * rng.random_range(0.0..1.0f64),
                1..4 => rng.random_range(0.0..1.0f64).powi(6),
                _ => f64::from(u8::from(rng.random_bool(0.05))) * rng.random_range(0.1..0.6),
            };
            let mut runs: Vec<Vec<f64>> =
                (0..20).map(|_| (0..12).map(&mut draw).collect()).collect();
            let specific = |runs: &[Vec<f64>]| adjusted_p_values(runs).iter().any(|p| *p <= LEVEL);
            called += usize::from(specific(&runs));
            runs[0][7] = 1.0;
            found += usize::from(adjusted_p_values(&runs)[7] <= LEVEL);
        }
        assert!((60..=130).contains(&called), "{called}");
        assert!(found > 1000, "{found}");
    }
}
