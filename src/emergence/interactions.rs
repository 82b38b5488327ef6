//! The strongest irreducible interactions: dividends of pairs and triples, measured on the sets
//! that they are made of, with intervals over texts.

use std::collections::BTreeMap;

use serde::Serialize;

use super::explained::Estimate;
use super::measure::Scale;
use super::regression::{Coefficients, Samples};
use super::sets::{PartSet, all_sets};
use super::walsh::dividend;
use crate::edit::Component;
use crate::stats;

/// The number of interactions that are kept of each scale.
const KEPT: usize = 12;
/// The pairs and triples of a fit that are candidates of each scale.
const CANDIDATES: [usize; 2] = [12, 6];
/// The parts of which all triples are looked at: those in the strongest pairs.
const PARTS_OF_TRIPLES: usize = 24;

/// What a set of lesions does beyond all its proper subsets.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Interaction {
    /// The parts.
    pub parts: Vec<Component>,
    /// Dividend of the loss, nats per token, with Student's interval over texts.
    pub loss: Estimate,
    /// Dividend of the right token's centred logit, nats.
    pub logit: Estimate,
}

/// Values of both scales for each text, by set.
pub type Known = BTreeMap<PartSet, [Vec<f64>; 2]>;

/// Returns the interactions of the candidates that are known on all their subsets, the strongest of
/// either scale; `alive` tells which sets the model survives.
pub fn strongest(
    candidates: &[PartSet],
    known: &Known,
    alive: &dyn Fn(&PartSet) -> bool,
    components: &[Component],
) -> Vec<Interaction> {
    let texts = known.values().next().map_or(0, |of| of[0].len());
    let of = |set: &PartSet, scale: Scale| -> Option<Estimate> {
        let of_text = |text: usize| {
            dividend(set, |subset| known.get(subset).map(|of| of[scale as usize][text]))
        };
        let values: Vec<f64> = (0..texts).map(of_text).collect::<Option<_>>()?;
        let value = values.iter().sum::<f64>() / values.len() as f64;
        let half = stats::t_half_width(&values);
        Some(Estimate { value, interval: (texts > 1).then_some((value - half, value + half)) })
    };
    let mut interactions: Vec<Interaction> = candidates
        .iter()
        .filter(|set| set.len() > 1 && alive(set))
        .filter_map(|set| {
            Some(Interaction {
                parts: set.parts().iter().map(|part| components[*part as usize]).collect(),
                loss: of(set, Scale::Loss)?,
                logit: of(set, Scale::Logit)?,
            })
        })
        .collect();
    let by_loss = |a: &Interaction, b: &Interaction| {
        b.loss.value.abs().total_cmp(&a.loss.value.abs()).then_with(|| a.parts.cmp(&b.parts))
    };
    interactions.sort_by(|a, b| {
        b.logit.value.abs().total_cmp(&a.logit.value.abs()).then_with(|| a.parts.cmp(&b.parts))
    });
    let mut rest = interactions.split_off(interactions.len().min(KEPT));
    rest.sort_by(by_loss);
    // Those of the largest loss among all: the ones kept already may be among them.
    let larger = |loss: f64| interactions.iter().filter(|i| i.loss.value.abs() >= loss).count();
    let more: Vec<Interaction> = rest
        .into_iter()
        .enumerate()
        .filter(|(rank, i)| rank + larger(i.loss.value.abs()) < KEPT)
        .map(|(_, i)| i)
        .collect();
    interactions.extend(more);
    interactions.sort_by(by_loss);
    interactions
}

/// Returns the pairs and triples with the largest coefficients of a fit.
pub fn candidates(samples: &Samples, coefficients: &Coefficients) -> Vec<PartSet> {
    let pairs = all_sets(samples.parts, 2).into_iter().filter(|set| set.len() == 2);
    let pairs = ranked(samples, coefficients, pairs.collect());
    let mut parts: Vec<u32> = Vec::new();
    for part in pairs.iter().flat_map(PartSet::parts) {
        if parts.len() < PARTS_OF_TRIPLES && !parts.contains(part) {
            parts.push(*part);
        }
    }
    let triples = all_sets(parts.len(), 3)
        .into_iter()
        .filter(|set| set.len() == 3)
        .map(|set| PartSet::new(set.parts().iter().map(|at| parts[*at as usize]).collect()));
    let triples = ranked(samples, coefficients, triples.collect());
    let [most_pairs, most_triples] = CANDIDATES;
    pairs.into_iter().take(most_pairs).chain(triples.into_iter().take(most_triples)).collect()
}

/// Sorts sets by the size of their coefficients, largest first.
fn ranked(samples: &Samples, coefficients: &Coefficients, sets: Vec<PartSet>) -> Vec<PartSet> {
    let size = |set: PartSet| (samples.coefficient(coefficients, &set).abs(), set);
    let mut sized: Vec<(f64, PartSet)> = sets.into_iter().map(size).collect();
    sized.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    sized.into_iter().map(|(_, set)| set).collect()
}

/// Returns how many of the planted terms are among the strongest sets of their size, as many as
/// there are terms; `strengths` are those of all sets that were looked at.
pub fn named(terms: &[PartSet], strengths: &[(PartSet, f64)]) -> usize {
    let Some(size) = terms.first().map(PartSet::len) else { return 0 };
    let mut of_size: Vec<&(PartSet, f64)> =
        strengths.iter().filter(|(set, _)| set.len() == size).collect();
    of_size.sort_by(|a, b| b.1.abs().total_cmp(&a.1.abs()).then_with(|| a.0.cmp(&b.0)));
    of_size.iter().take(terms.len()).filter(|(set, _)| terms.contains(set)).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(parts: &[u32]) -> PartSet {
        PartSet::new(parts.to_vec())
    }

    #[test]
    fn dividends_of_a_planted_pair_have_intervals() {
        let components: Vec<Component> =
            (0..3).map(|head| Component::Head { layer: 0, head }).collect();
        let known: Known = all_sets(3, 3)
            .into_iter()
            .map(|set| {
                let pair = f64::from(u8::from(set.contains(0) && set.contains(2)));
                let of = |text: f64| set.len() as f64 + (2.0 + text) * pair;
                let loss: Vec<f64> = [0.0, 1.0, 2.0].map(of).to_vec();
                let logit = loss.iter().map(|x| -x).collect();
                (set, [loss, logit])
            })
            .collect();
        let candidates: Vec<PartSet> = known.keys().cloned().collect();
        let found = strongest(&candidates, &known, &|_| true, &components);
        assert_eq!(found.len(), 4);
        assert_eq!(found[0].parts, [components[0], components[2]]);
        assert!((found[0].loss.value - 3.0).abs() < 1e-12);
        assert!((found[0].logit.value + 3.0).abs() < 1e-12);
        // Student's t with two degrees of freedom: 4.303 / sqrt(3).
        let (low, high) = found[0].loss.interval.unwrap();
        assert!((high - low - 2.0 * 4.303 / 3f64.sqrt()).abs() < 1e-9, "{low} {high}");
        assert!(found[1..].iter().all(|i| i.loss.value.abs() < 1e-12));
        let found = strongest(&candidates, &known, &|set| !set.contains(0), &components);
        assert_eq!(found.len(), 1);
    }

    #[test]
    fn planted_terms_are_named_if_nothing_is_stronger() {
        let terms = [set(&[0, 1]), set(&[2, 3])];
        let strengths = |third: f64| {
            [(set(&[0, 1]), -2.0), (set(&[1, 2]), third), (set(&[2, 3]), 1.0), (set(&[0]), 9.0)]
        };
        assert_eq!(named(&terms, &strengths(0.5)), 2);
        assert_eq!(named(&terms, &strengths(-1.5)), 1);
    }
}
