//! The map of behaviours seen: what counts as new.
//!
//! A campaign that only climbs scores finds one glitch many times. This map is to it what the
//! coverage bitmap is to a fuzzer of binaries, but of behaviour (what comes out), not of neurons: a
//! trial is new when no earlier one scored, changed its top tokens, spread its probability and
//! moved its residual stream in the same quantised way.

use std::collections::BTreeSet;

use crate::evaluate::Observation;

/// Bits of the residual sketch in a key: more, and every trial is new.
const SKETCH_BITS: u64 = 12;

/// A quantised behaviour, relative to the baseline's: the same glitch on two prompts is one
/// behaviour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Behaviour {
    /// Quarters of an octave of the score over its scale.
    score: i8,
    /// Which read positions (the first 16) have another top token than the baseline.
    changed: u16,
    /// Half nats of change of the mean entropy.
    entropy: i8,
    /// Which projections of the residual stream changed sign.
    sketch: u16,
    finite: bool,
}

impl Behaviour {
    /// `score` is the oracle's; `scale` what is ordinary for it (its threshold).
    pub fn new(trial: &Observation, baseline: &Observation, score: f64, scale: f64) -> Self {
        let top = |o: &Observation, i: usize| o.top.get(i).and_then(|t| t.first()).map(|t| t.0);
        let changed = (0..trial.top.len().min(16))
            .filter(|&i| top(trial, i) != top(baseline, i))
            .fold(0, |bits, i| bits | 1 << i);
        let entropy =
            |o: &Observation| o.entropy.iter().sum::<f32>() / o.entropy.len().max(1) as f32;
        Self {
            // A float to integer `as` saturates, and NaN becomes 0.
            score: ((score / scale).max(1e-3).log2() * 2.0).floor() as i8,
            changed,
            entropy: ((entropy(trial) - entropy(baseline)) * 2.0).round() as i8,
            sketch: ((trial.sketch ^ baseline.sketch) & ((1 << SKETCH_BITS) - 1)) as u16,
            finite: trial.finite,
        }
    }
}

/// The behaviours seen so far.
#[derive(Debug, Clone, Default)]
pub struct Map {
    seen: BTreeSet<Behaviour>,
    /// Layers and the two experts that some token is most routed to there: of all that are chosen,
    /// a mixture of many has too many sets for any to be seen twice.
    routes: BTreeSet<(usize, u32, u32)>,
}

impl Map {
    /// Whether the behaviour is new; it no longer is afterwards.
    pub fn insert(
        &mut self,
        trial: &Observation,
        baseline: &Observation,
        score: f64,
        scale: f64,
    ) -> bool {
        let mut new_route = false;
        for layer in &trial.routing {
            for chosen in layer.by_position(trial.entropy.len()) {
                let (first, second) = (chosen[0], chosen.get(1).copied().unwrap_or(chosen[0]));
                new_route |=
                    self.routes.insert((layer.layer, first.min(second), first.max(second)));
            }
        }
        self.seen.insert(Behaviour::new(trial, baseline, score, scale)) || new_route
    }

    pub fn len(&self) -> usize {
        self.seen.len()
    }

    pub fn is_empty(&self) -> bool {
        self.seen.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_moves_are_old_and_large_ones_new() {
        let observe = |top: u32, entropy: f32, sketch: u64| Observation {
            top: vec![vec![(top, -0.1)]],
            entropy: vec![entropy],
            sketch,
            finite: true,
            ..Default::default()
        };
        let baseline = observe(1, 1.0, 0);
        let mut map = Map::default();
        let mut check = |trial: Observation, score: f64, new: bool| {
            assert_eq!(map.insert(&trial, &baseline, score, 0.1), new, "{trial:?} {score}");
        };
        check(observe(1, 1.0, 0), 0.01, true);
        check(observe(1, 1.1, 1 << 40), 0.0101, false);
        check(observe(2, 1.0, 0), 0.01, true);
        check(observe(3, 1.0, 0), 0.01, false); // another token, the same pattern of change
        check(observe(1, 3.0, 0), 0.01, true);
        check(observe(1, 1.0, 3), 0.01, true);
        check(observe(1, 1.0, 0), 0.9, true);
        check(observe(1, f32::NAN, 0), f64::NAN, true);
        let routed = |chosen: [u32; 2]| {
            let routing = vec![crate::evaluate::LayerRouting {
                layer: 3,
                num_experts: 8,
                chosen: chosen.to_vec(),
            }];
            Observation { routing, ..observe(1, 1.0, 0) }
        };
        check(routed([2, 5]), 0.01, true);
        check(routed([5, 2]), 0.01, false);
        check(routed([5, 3]), 0.01, true);
    }
}
