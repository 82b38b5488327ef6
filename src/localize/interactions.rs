//! How the strongest components of a case work together, on an additive scale: the symptom's
//! centred logit, its logit minus the mean over the vocabulary, in nats. What two components add to
//! it independently sums up there, which it would not in a divergence or a probability.
//!
//! All subsets of the members are patched in both directions. Into the clean run, the Harsanyi
//! dividends (Harsanyi 1963) of a subset are what it does beyond all its smaller subsets; their
//! absolute values by the size of the subset show how much of the case is in single components and
//! how much only in several together. One direction cannot tell what a pair is: a chain and an OR
//! both look redundant from the clean side, a chain and an AND both look needed from the corrupted
//! one. So pairs are told apart by necessity, sufficiency and the effect of the first one with the
//! second held clean.

use serde::{Deserialize, Serialize};

use super::Effect;
use super::components::{overlap, strength};
use super::runs::Direction;
use super::symptom::{LEAST_NATS, LEAST_NECESSITY, Symptom, last};
use crate::edit::Component;
use crate::error::Result;
use crate::evaluate::{Evaluator as _, Observation, Request};

/// The relation of two components.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PairKind {
    /// Their effects add up.
    Additive,
    /// Only both together have the effect.
    And,
    /// Either alone has the effect.
    Or,
    /// The first one acts through the second.
    Chain,
    /// None of these, or something between them.
    Mixed,
}

impl PairKind {
    /// Returns the name in tables and files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Additive => "additive",
            Self::And => "and",
            Self::Or => "or",
            Self::Chain => "chain",
            Self::Mixed => "mixed",
        }
    }
}

/// Two components, and what they do alone and together, as shares of the case's effect.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pair {
    /// The two, in the order in which they are computed.
    pub components: [Component; 2],
    /// Their relation.
    pub kind: PairKind,
    /// Share that is removed by patching the first, the second, both clean.
    pub necessity: [f64; 3],
    /// Share that is made by patching the first, the second, both corrupted.
    pub sufficiency: [f64; 3],
    /// Share that the first makes while the second is held clean.
    pub direct: f64,
}

/// The strongest components of a case and how they work together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interactions {
    /// The components, strongest first.
    pub members: Vec<Component>,
    /// By how much the edits raise the symptom's centred logit, nats.
    pub effect: f64,
    /// Share of the members' absolute dividends that single members have, pairs, triples, ...,
    /// patched corrupted into the clean run.
    pub sufficient: Vec<f64>,
    /// The same for what patching them clean removes from the corrupted run.
    pub necessary: Vec<f64>,
    /// The first of [`sufficient`](Self::sufficient) in up to three controls, of the same members:
    /// what single members have where they mediate other content; ascending.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub controls: Vec<f64>,
    /// All pairs that do something together, strongest first.
    pub pairs: Vec<Pair>,
}

/// The share of a pair's joint effect below which a member alone does nearly nothing.
const NEARLY_NONE: f64 = 0.25;

/// The share of a pair's joint effect from which a member alone does nearly all.
const NEARLY_ALL: f64 = 0.75;

/// Measures how the `limit` strongest of these components work together; `None` if there are fewer
/// than two, or the symptom's centred logit hardly changes. Returns also the number of trials
/// evaluated. `controls` have symptoms of their own.
///
/// # Errors
/// Errors of the evaluator.
pub fn interactions(
    symptom: &Symptom,
    effects: &[Effect],
    controls: &[Symptom],
    limit: usize,
) -> Result<(Option<Interactions>, u64)> {
    let members = strongest(effects, limit);
    if members.len() < 2 {
        return Ok((None, 0));
    }
    let n = members.len();
    let mut ordered = members.clone();
    ordered.sort_by_key(|c| (c.layer(), !is_mixer_part(c), *c));
    let sets: Vec<Vec<Component>> = (0..1usize << n)
        .map(|mask| (0..n).filter(|i| mask >> i & 1 == 1).map(|i| ordered[i]).collect())
        .collect();
    let patched = |symptom: &Symptom, direction| {
        let sets: Vec<(&[Component], &[Component])> =
            sets.iter().map(|set| (&set[..], &[][..])).collect();
        centred_logits(symptom, &sets, direction)
    };
    let sufficient = patched(symptom, Direction::Sufficiency)?;
    let necessary = patched(symptom, Direction::Necessity)?;
    let effect = necessary[0] - sufficient[0];
    let mut calls = 2 * sets.len() as u64;
    let finite = sufficient.iter().chain(&necessary).all(|value| value.is_finite());
    if !finite || effect.abs() < LEAST_NATS {
        return Ok((None, calls));
    }
    // Shares of the effect: made in the clean run, removed from the corrupted one.
    let made: Vec<f64> = sufficient.iter().map(|v| (v - sufficient[0]) / effect).collect();
    let removed: Vec<f64> = necessary.iter().map(|v| (necessary[0] - v) / effect).collect();
    let pairs: Vec<(usize, usize)> =
        (0..n).flat_map(|first| (first + 1..n).map(move |second| (first, second))).collect();
    let held: Vec<(&[Component], &[Component])> = pairs
        .iter()
        .map(|&(first, second)| (&ordered[first..=first], &ordered[second..=second]))
        .collect();
    let direct = centred_logits(symptom, &held, Direction::Sufficiency)?;
    let direct = direct.into_iter().map(|said| (said - sufficient[0]) / effect);
    let direct = direct.map(|share| if share.is_finite() { share } else { 0.0 });
    calls += pairs.len() as u64;
    let mut pairs: Vec<Pair> = pairs
        .into_iter()
        .zip(direct)
        .map(|((first, second), direct)| {
            let of = |shares: &[f64]| {
                [1 << first, 1 << second, 1 << first | 1 << second].map(|mask: usize| shares[mask])
            };
            let (necessity, sufficiency) = (of(&removed), of(&made));
            Pair {
                components: [ordered[first], ordered[second]],
                kind: kind(necessity, sufficiency, direct),
                necessity,
                sufficiency,
                direct,
            }
        })
        .filter(|pair| joint(pair) >= LEAST_NECESSITY)
        .collect();
    pairs.sort_by(|a, b| joint(b).total_cmp(&joint(a)).then(a.components.cmp(&b.components)));
    let mut of_controls = Vec::new();
    for control in controls {
        let values = patched(control, Direction::Sufficiency)?;
        calls += sets.len() as u64;
        let made: Vec<f64> = values.iter().map(|v| v - values[0]).collect();
        // Where the members do nothing to speak of, shares of it say nothing.
        let together = made.last().copied().unwrap_or(0.0);
        if made.iter().all(|v| v.is_finite()) && together.abs() >= LEAST_NATS {
            of_controls.push(mass_by_order(&made)[0]);
        }
    }
    of_controls.sort_by(f64::total_cmp);
    let found = Interactions {
        controls: of_controls,
        members,
        effect,
        sufficient: mass_by_order(&made),
        necessary: mass_by_order(&removed),
        pairs,
    };
    Ok((Some(found), calls))
}

/// Returns the larger of a pair's joint necessity and sufficiency.
fn joint(pair: &Pair) -> f64 {
    pair.necessity[2].max(pair.sufficiency[2])
}

/// Names the relation of two components, by the shares that the first, the second and both have,
/// and by what the first makes while the second is held clean.
fn kind(necessity: [f64; 3], sufficiency: [f64; 3], direct: f64) -> PairKind {
    let none = |shares: [f64; 3]| shares[..2].iter().all(|s| *s <= NEARLY_NONE * shares[2]);
    let all = |shares: [f64; 3]| shares[..2].iter().all(|s| *s >= NEARLY_ALL * shares[2]);
    let sum = |shares: [f64; 3]| {
        (shares[0] + shares[1] - shares[2]).abs() <= NEARLY_NONE * shares[2].abs()
    };
    let some = |shares: [f64; 3]| shares[2] >= LEAST_NECESSITY;
    // The first one matters, and does not with the second held clean.
    let through = direct <= NEARLY_NONE * sufficiency[0] && sufficiency[0] >= LEAST_NECESSITY;
    match () {
        () if through && all(sufficiency) && all(necessity) => PairKind::Chain,
        () if some(necessity) && some(sufficiency) && none(sufficiency) && all(necessity) => {
            PairKind::And
        }
        () if some(necessity) && some(sufficiency) && none(necessity) && all(sufficiency) => {
            PairKind::Or
        }
        () if sum(necessity) && sum(sufficiency) => PairKind::Additive,
        () => PairKind::Mixed,
    }
}

/// Chooses the strongest components by what they are necessary or sufficient for, alone. In an OR
/// none is necessary, in an AND none sufficient.
fn strongest(effects: &[Effect], limit: usize) -> Vec<Component> {
    let mut order: Vec<(f64, Component)> = effects
        .iter()
        .map(|e| (e.necessity.max(e.sufficiency).min(1.0), e))
        .filter(|(most, _)| *most >= LEAST_NECESSITY)
        .map(|(most, e)| (most + 1e-3 * strength(e), e.component))
        .collect();
    order.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let mut members: Vec<Component> = Vec::new();
    for (_, component) in order {
        if !members.iter().any(|member| overlap(member, &component)) {
            members.push(component);
        }
        if members.len() == limit {
            break;
        }
    }
    members
}

fn is_mixer_part(component: &Component) -> bool {
    matches!(
        component,
        Component::Head { .. }
            | Component::Attention { .. }
            | Component::Ssm { .. }
            | Component::TimeMix { .. }
            | Component::Channel { .. }
            | Component::State { .. }
    )
}

/// Returns the symptom's centred logit with each set patched, nats. Beside each set is what is held
/// as it is in the run that is patched into.
fn centred_logits(
    symptom: &Symptom,
    sets: &[(&[Component], &[Component])],
    direction: Direction,
) -> Result<Vec<f64>> {
    let runs = &symptom.runs;
    let (own, positions) = match direction {
        Direction::Necessity => (&runs.corrupted, 1),
        Direction::Sufficiency => (&runs.clean, 0),
    };
    let request = |(set, held): &(&[Component], &[Component])| -> Result<Request> {
        let mut request = runs.request(set, &runs.aligned, direction)?;
        for component in *held {
            for &(clean, corrupted, len) in &runs.aligned {
                let at = [clean, corrupted][positions];
                request.patches.push(runs.patch(component, at, &own.activations, at, len)?);
            }
        }
        Ok(request.centred())
    };
    let centred = |observation: &Observation| {
        let mean = observation.mean_log_probs.last().copied();
        mean.map_or(f64::NAN, |mean| last(observation) - f64::from(mean))
    };
    let members = sets.iter().map(|(set, held)| set.len() + held.len()).max().unwrap_or(1);
    let mut values = Vec::with_capacity(sets.len());
    for chunk in sets.chunks(runs.sets_per_call(members)) {
        let requests: Vec<Request> = chunk.iter().map(request).collect::<Result<_>>()?;
        values.extend(runs.evaluator.observe(&requests)?.iter().map(centred));
    }
    Ok(values)
}

/// Returns the shares that subsets of each size have of the absolute Harsanyi dividends of a set
/// function, given by its values for all masks; for a function that is zero, zeros.
fn mass_by_order(values: &[f64]) -> Vec<f64> {
    let members = values.len().trailing_zeros() as usize;
    let mut dividends = values.to_vec();
    for member in 0..members {
        for mask in 0..values.len() {
            if mask >> member & 1 == 1 {
                dividends[mask] -= dividends[mask ^ 1 << member];
            }
        }
    }
    let mut mass = vec![0.0; members];
    for (mask, dividend) in dividends.iter().enumerate().skip(1) {
        mass[mask.count_ones() as usize - 1] += dividend.abs();
    }
    let total: f64 = mass.iter().sum();
    if total > 0.0 {
        mass.iter_mut().for_each(|m| *m /= total);
    }
    mass
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dividends_by_hand() {
        // Sets in the order of their masks: none, a, b, ab.
        assert_eq!(mass_by_order(&[0.0, 0.25, 0.75, 1.0]), [1.0, 0.0]);
        assert_eq!(mass_by_order(&[0.0, 0.0, 0.0, 1.0]), [0.0, 1.0]);
        // An OR: 1 + 1 - 1.
        assert_eq!(mass_by_order(&[0.0, 1.0, 1.0, 1.0]), [2.0 / 3.0, 1.0 / 3.0]);
        assert_eq!(mass_by_order(&[0.0; 4]), [0.0, 0.0]);
        // Only all three.
        assert_eq!(mass_by_order(&[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]), [0.0, 0.0, 1.0]);
    }

    #[test]
    fn relations_by_hand() {
        let (one, none, both) = ([1.0, 1.0, 1.0], [0.0, 0.0, 1.0], [0.5, 0.5, 1.0]);
        assert_eq!(kind(one, none, 0.0), PairKind::And);
        assert_eq!(kind(none, one, 1.0), PairKind::Or);
        assert_eq!(kind(one, one, 0.0), PairKind::Chain);
        assert_eq!(kind(both, both, 0.5), PairKind::Additive);
        // One of two does all.
        assert_eq!(kind([1.0, 0.0, 1.0], [1.0, 0.0, 1.0], 1.0), PairKind::Additive);
        // The first needs the second, which does all alone.
        assert_eq!(kind(one, [0.0, 1.0, 1.0], 0.0), PairKind::Mixed);
        assert_eq!(kind([f64::NAN; 3], [f64::NAN; 3], f64::NAN), PairKind::Mixed);
    }
}
