//! The novelty map: the behaviours seen so far.
//!
//! A campaign that only climbs scores finds one glitch many times. The novelty map does for it what
//! the coverage bitmap does for a fuzzer of binaries, but over behaviour (outputs), not over
//! neurons: a trial is new when no earlier one had the same score, changed top tokens, entropy and
//! residual stream, all quantised.

use std::collections::BTreeSet;

use crate::evaluate::Observation;

/// Bits of the residual sketch in a behaviour; with more of them every trial would be new.
const SKETCH_BITS: u64 = 12;

/// A quantised behaviour, relative to the baseline's, so that the same glitch on two prompts is one
/// behaviour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Behaviour {
    /// Logarithm of the score over its scale, in half octaves.
    score: i8,
    /// One bit for each of the first 16 read positions: set where the top token is not the
    /// baseline's.
    changed: u16,
    /// Change of the mean entropy in half nats.
    entropy: i8,
    /// One bit for each random projection of the residual stream: set where its sign changed.
    sketch: u16,
    /// True if all logits are finite.
    finite: bool,
}

impl Behaviour {
    /// Quantises an observation. `score` is the oracle's; `scale` is an ordinary one (its
    /// threshold).
    pub fn new(trial: &Observation, baseline: &Observation, score: f64, scale: f64) -> Self {
        let top = |o: &Observation, i: usize| o.top.get(i).and_then(|t| t.first()).map(|t| t.0);
        let changed = (0..trial.top.len().min(16))
            .filter(|&i| top(trial, i) != top(baseline, i))
            .fold(0, |bits, i| bits | 1 << i);
        Self {
            // A float to integer `as` saturates, and NaN becomes 0.
            score: ((score / scale).max(1e-3).log2() * 2.0).floor() as i8,
            changed,
            entropy: ((trial.mean_entropy() - baseline.mean_entropy()) * 2.0).round() as i8,
            sketch: ((trial.sketch ^ baseline.sketch) & ((1 << SKETCH_BITS) - 1)) as u16,
            finite: trial.finite,
        }
    }
}

/// The behaviours and routes seen so far.
#[derive(Debug, Clone, Default)]
pub struct NoveltyMap {
    seen: BTreeSet<Behaviour>,
    /// A layer and the two experts that some token is routed to with the largest weights there. (A
    /// mixture with many experts has too many full sets for any to be seen twice.)
    routes: BTreeSet<(usize, u32, u32)>,
}

impl NoveltyMap {
    /// Adds a behaviour and returns true if it is new.
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

    /// Returns the number of behaviours seen.
    pub fn len(&self) -> usize {
        self.seen.len()
    }

    /// Returns true if none was seen.
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
        let mut map = NoveltyMap::default();
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
