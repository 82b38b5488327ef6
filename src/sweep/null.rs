//! The empirical null of a pair sweep: how large interactions ordinarily are.
//!
//! Most pairs do next to nothing together, so median and MAD of the log ratios of many pairs
//! describe the ordinary ones, and a pair is judged by how far it lies beyond them (Efron 2004,
//! "Large-Scale Simultaneous Hypothesis Testing: The Choice of a Null Hypothesis"). Ratios differ
//! with depth, so pairs are compared within the same thirds of the layers.

use std::collections::BTreeMap;

use rand::Rng as _;

use super::LEAST_NATS;
use super::sets::Effect;
use crate::edit::Component;
use crate::oracle::LEAST_CONTROLS;
use crate::{rng, stats};

/// The largest number of random pairs that the null of a screened sweep is measured on.
const NULL_PAIRS: usize = 256;
/// The number of pairs from which a null of their own thirds of the layers is used; with fewer, all
/// pairs are the null.
const LEAST_NULL: usize = 64;

/// Two indices into the list of components.
pub type Pair = (usize, usize);

/// Single effects and interaction of a pair, nats per token.
#[derive(Clone, Copy)]
pub struct Measured {
    /// The pair.
    pub pair: Pair,
    /// The effect of each member alone.
    pub alone: (f64, f64),
    /// The effect of both beyond the sum of the single effects.
    pub interaction: f64,
}

impl Measured {
    /// Takes the second difference of the loss: what both do together beyond what each does alone.
    pub fn new(pair: Pair, a: Effect, b: Effect, joint: Effect) -> Self {
        Self { pair, alone: (a.nats, b.nats), interaction: joint.nats - a.nats - b.nats }
    }

    /// Returns the size of the interaction in units of the larger single effect.
    pub fn ratio(&self) -> f64 {
        self.interaction.abs() / self.alone.0.abs().max(self.alone.1.abs()).max(LEAST_NATS)
    }
}

/// Returns the thirds of the layers that the members of a pair are in.
fn thirds(pair: Pair, all: &[Component], layers: usize) -> (usize, usize) {
    (third(&all[pair.0], layers), third(&all[pair.1], layers))
}

fn third(component: &Component, layers: usize) -> usize {
    3 * component.layer() / layers.max(1)
}

/// Draws random pairs in the same thirds of the layers as those that the screen chose, one for
/// each up to [`NULL_PAIRS`]. Chosen pairs may be among them: without those the rest would look
/// quieter than pairs are.
pub fn matched(
    chosen: &[Pair],
    every: &[Pair],
    all: &[Component],
    layers: usize,
    seed: u64,
) -> Vec<Pair> {
    let mut pools: BTreeMap<(usize, usize), Vec<Pair>> = BTreeMap::new();
    every.iter().for_each(|&pair| pools.entry(thirds(pair, all, layers)).or_default().push(pair));
    let mut rng = rng::stream(seed, "pairs of the null");
    let step = (chosen.len() / NULL_PAIRS).max(1);
    let mut drawn = Vec::new();
    for pair in chosen.iter().step_by(step).take(NULL_PAIRS) {
        if let Some(pool) =
            pools.get_mut(&thirds(*pair, all, layers)).filter(|pool| !pool.is_empty())
        {
            let at = rng.random_range(0..pool.len());
            drawn.push(pool.swap_remove(at));
        }
    }
    drawn
}

/// Median and MAD of the log ratios of ordinary pairs, for each pair of thirds of the layers.
pub struct Null {
    by_thirds: BTreeMap<(usize, usize), (f64, f64)>,
    all: Option<(f64, f64)>,
    thirds: Vec<usize>,
    /// Interactions not above this, in nats, count as none.
    floor: f64,
}

impl Null {
    /// Takes the null of `pairs`, leaving out interactions not above `floor` (nats).
    pub fn new<'a>(
        pairs: impl Iterator<Item = &'a Measured>,
        all: &[Component],
        layers: usize,
        floor: f64,
    ) -> Self {
        let thirds: Vec<usize> = all.iter().map(|c| third(c, layers)).collect();
        let mut groups: BTreeMap<(usize, usize), Vec<f64>> = BTreeMap::new();
        // A component that is inactive on this text says nothing about how the others interact.
        for m in pairs.filter(|m| m.interaction.abs() > floor && m.interaction.is_finite()) {
            groups.entry((thirds[m.pair.0], thirds[m.pair.1])).or_default().push(m.ratio().ln());
        }
        let spread = |sizes: &[f64]| {
            (stats::median(sizes), (stats::MAD_TO_DEVIATION * stats::mad(sizes)).max(1e-3))
        };
        let pooled: Vec<f64> = groups.values().flatten().copied().collect();
        Self {
            by_thirds: groups
                .iter()
                .filter(|(_, g)| g.len() >= LEAST_NULL)
                .map(|(k, g)| (*k, spread(g)))
                .collect(),
            // Too few pairs to say what is ordinary: nothing stands out.
            all: (pooled.len() >= LEAST_CONTROLS).then(|| spread(&pooled)),
            thirds,
            floor,
        }
    }

    /// Returns the upper-tail p-value of a pair's ratio; 1 for an interaction that is not above the
    /// noise floor, not of interest, or NaN (one member alone breaks the model), 0 for one that is
    /// infinite.
    pub fn p_value(&self, m: &Measured) -> f64 {
        let Some((centre, spread)) = self
            .by_thirds
            .get(&(self.thirds[m.pair.0], self.thirds[m.pair.1]))
            .or(self.all.as_ref())
        else {
            return 1.0;
        };
        let above_noise_floor =
            m.interaction.abs() > self.floor.max(LEAST_NATS) && !m.ratio().is_nan();
        if above_noise_floor { stats::upper_tail((m.ratio().ln() - centre) / spread) } else { 1.0 }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::sweep::FALSE_DISCOVERY;

    /// Pairs of 20 components in 4 layers that interact by a few per cent of what they do alone,
    /// one silent, and one pair of two that do nothing alone.
    #[test]
    fn the_pair_that_stands_out_gets_the_small_p() {
        let all: Vec<Component> =
            (0..20).map(|i| Component::Head { layer: i / 5, head: i % 5 }).collect();
        let alone = |i: usize| if i == 4 || i == 9 { 1e-4 } else { 0.05 * (1 + i % 4) as f64 };
        let measured: Vec<Measured> = (0..20)
            .flat_map(|a| (a + 1..20).map(move |b| (a, b)))
            .map(|(a, b)| {
                let usual = 0.02 * (1.0 + ((a * 7 + b * 3) % 5) as f64) * alone(a).max(alone(b));
                let interaction = if (a, b) == (4, 9) {
                    1.0
                } else if a == 0 {
                    0.0
                } else {
                    usual
                };
                Measured { pair: (a, b), alone: (alone(a), alone(b)), interaction }
            })
            .collect();
        let null = Null::new(measured.iter(), &all, 4, 1e-6);
        let q = stats::q_values(&measured.iter().map(|m| null.p_value(m)).collect::<Vec<_>>());
        for (m, q) in measured.iter().zip(q) {
            assert_eq!(q <= FALSE_DISCOVERY, m.pair == (4, 9), "{:?}: {q}", m.pair);
        }
        let odd = Measured { pair: (1, 2), alone: (0.1, f64::NAN), interaction: f64::NAN };
        assert_eq!(null.p_value(&odd), 1.0);
        let broken = Measured { pair: (1, 2), alone: (0.1, 0.1), interaction: f64::INFINITY };
        assert_eq!(null.p_value(&broken), 0.0);
    }

    #[test]
    fn the_null_is_drawn_from_the_same_layers() {
        let all: Vec<Component> =
            (0..24).map(|i| Component::Head { layer: i / 2, head: i % 2 }).collect();
        let every: Vec<Pair> = (0..24).flat_map(|a| (a + 1..24).map(move |b| (a, b))).collect();
        let chosen: Vec<Pair> =
            every.iter().copied().filter(|(a, b)| (a * 5 + b * 3) % 7 == 0).collect();
        let drawn = matched(&chosen, &every, &all, 12, 3);
        assert_eq!(
            (drawn.len(), drawn.clone()),
            (chosen.len(), matched(&chosen, &every, &all, 12, 3))
        );
        assert_eq!(drawn.iter().collect::<BTreeSet<_>>().len(), drawn.len());
        assert!(
            drawn.iter().any(|pair| chosen.contains(pair))
                && drawn.iter().any(|pair| !chosen.contains(pair))
        );
        let count = |pairs: &[Pair]| {
            let mut counts = BTreeMap::new();
            pairs.iter().for_each(|p| *counts.entry(thirds(*p, &all, 12)).or_insert(0) += 1);
            counts
        };
        assert_eq!(count(&drawn), count(&chosen));
    }
}
