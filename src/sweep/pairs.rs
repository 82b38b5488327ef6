//! `sweep pairs`: what two lesions do together beyond what each does alone.
//!
//! With `D(S)` the loss on a text without the components `S`, over that of the intact model (nats
//! per token):
//!
//! `I(a, b) = D(ab) - D(a) - D(b)`
//!
//! the second difference of the loss at the intact model. It is what geneticists call epistasis on
//! a log scale (log-probabilities that add up are probabilities that multiply: Bliss independence),
//! and the pairwise term of a Shapley interaction index (Grabisch and Roubens 1999) in the context
//! of the intact model alone. The same in bits of Jensen-Shannon divergence is given beside it; it
//! is bounded, and near nothing it grows with the square of a change, so a sum of two changes in
//! one direction looks like more than both. Therefore the loss decides.
//!
//! - *Redundant*, `I > 0`: together worse than the sum. Each covers for the other, as backup heads
//!   do for name movers (Wang et al. 2022) and later layers for ablated ones (McGrath et al. 2023,
//!   the hydra effect).
//! - *Shared path*, `I < 0`: without one of them the other has nothing to work on, or nobody to
//!   work for.
//! - *Suppression*, `I < 0`, and together better than the worse of the two alone: the second lesion
//!   repairs what the first broke, as where a head writes against another (McDougall et al. 2023).
//!
//! Large effects interact more than small ones, for no better reason than that loss and softmax are
//! curved. So what stands out is read off the *ratio*, the interaction in units of the larger of
//! the two single effects, against those of other pairs.

use std::collections::{BTreeMap, BTreeSet};

use rand::Rng as _;
use serde::{Deserialize, Serialize};

use super::lesions::{components, refuse, upper_tail};
use super::screen;
use super::sets::{Effect, Intact, lesions};
use super::{FALSE_DISCOVERY, Progress, Target};
use crate::edit::{Action, Component, Edit, Trial};
use crate::error::{Error, Result};
use crate::evaluate::ModelEvaluator;
use crate::oracle::LEAST_CONTROLS;
use crate::{rng, stats};

/// What an interaction is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Together worse than the sum: each covers for the other.
    Redundant,
    /// Together less than the sum: one path takes both.
    SharedPath,
    /// Together better than the worse of the two alone: one repairs what the other breaks.
    Suppression,
}

impl Kind {
    /// Of the loss increases alone and together, nats.
    pub fn of(alone_a: f64, alone_b: f64, joint: f64) -> Self {
        if joint >= alone_a + alone_b {
            Self::Redundant
        } else if joint < alone_a.max(alone_b) {
            Self::Suppression
        } else {
            Self::SharedPath
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Redundant => "redundant",
            Self::SharedPath => "shared path",
            Self::Suppression => "suppression",
        }
    }
}

/// One pair, measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PairRow {
    pub a: Component,
    pub b: Component,
    /// Loss over the intact model's without `a`, nats per token.
    pub alone_a: f64,
    pub alone_b: f64,
    /// Without both.
    pub joint: f64,
    /// `joint - alone_a - alone_b`.
    pub interaction: f64,
    /// How many times the larger of the two single effects that is, either way; a single effect
    /// below [`LEAST_NATS`] counts as that much.
    pub ratio: f64,
    /// The interaction in mean Jensen-Shannon divergence, bits.
    pub interaction_bits: f64,
    pub kind: Kind,
    /// What the screen expected of `interaction`; none where every pair was measured.
    pub estimate: Option<f64>,
    /// Benjamini-Hochberg over all pairs there are: those that were not measured count with p = 1.
    pub q_value: f64,
}

/// How pairs are swept.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    pub of: Target,
    pub action: Action,
    /// Most pairs measured; where there are more, a screen picks them.
    pub limit: usize,
    /// Matched controls: pairs whose members get noise of their own norm instead of being removed.
    pub controls: usize,
    /// Of the random pairs that a screened sweep takes its null from.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { of: Target::Heads, action: Action::Zero, limit: 4096, controls: 16, seed: 1 }
    }
}

/// The whole sweep.
pub struct PairSweep {
    /// By q-value, then by how large the interaction is.
    pub rows: Vec<PairRow>,
    /// Every component alone, in model order.
    pub singles: Vec<(Component, Effect)>,
    pub baseline_loss: f64,
    pub tokens: usize,
    /// Pairs there are.
    pub pairs: usize,
    /// Random pairs of the layers of those chosen, measured for the null (in an exact sweep: all
    /// pairs), and how many of them are as far out as the least of those flagged.
    pub null_pairs: usize,
    pub null_flagged: usize,
    /// Pairs given noise, and how many of them are as far out.
    pub controls: usize,
    pub controls_flagged: usize,
    /// What moves when nothing changes but the batch, nats.
    pub noise_floor: f64,
}

/// An interaction smaller than this is of no interest however quiet its members are: a perplexity
/// changed by a thousandth. Nats per token.
pub const LEAST_NATS: f64 = 1e-3;
/// Random pairs that the null of a screened sweep is measured on, at most.
const NULL_PAIRS: usize = 256;
/// Pairs that a null of their own layers takes; where there are fewer, all pairs are the null.
const LEAST_NULL: usize = 64;

type Pair = (usize, usize);

/// Single effects and interaction of a pair, nats per token.
#[derive(Clone, Copy)]
struct Measured {
    pair: Pair,
    alone: (f64, f64),
    interaction: f64,
}

impl Measured {
    fn new(pair: Pair, a: Effect, b: Effect, joint: Effect) -> Self {
        Self { pair, alone: (a.nats, b.nats), interaction: joint.nats - a.nats - b.nats }
    }

    fn ratio(&self) -> f64 {
        self.interaction.abs() / self.alone.0.abs().max(self.alone.1.abs()).max(LEAST_NATS)
    }
}

impl PairSweep {
    /// Lesions every component of a kind alone and every pair of them, or the `limit` pairs that a
    /// screen expects most of, on the continuation of `trial`.
    pub fn run(
        evaluator: &ModelEvaluator,
        trial: &Trial,
        options: &Options,
        progress: Progress,
    ) -> Result<Self> {
        let config = &evaluator.model.config;
        let all = components(evaluator.model, options.of);
        if all.is_empty() {
            return Err(refuse("pairs", options.of, config));
        }
        if all.len() < 2 {
            return Err(Error::request(format!(
                "{} has one of these, and a pair takes two",
                evaluator.model.name
            )));
        }
        let pairs = all.len() * (all.len() - 1) / 2;
        if pairs > options.limit && options.of == Target::States {
            return Err(Error::request(format!(
                "{pairs} pairs of states are more than the limit of {}, and states have no \
                gradient to pick some by",
                options.limit
            )));
        }
        let noise_floor = evaluator.noise_floor()?.max(1e-6);
        let intact = Intact::new(evaluator, trial)?;
        let singles = intact.effects(
            &all.iter().map(|&c| lesions(&[c], options.action)).collect::<Vec<_>>(),
            progress,
        )?;
        let every: Vec<Pair> =
            (0..all.len()).flat_map(|a| (a + 1..all.len()).map(move |b| (a, b))).collect();
        let mut estimates: BTreeMap<Pair, f64> = BTreeMap::new();
        let (chosen, random) = if pairs <= options.limit {
            (every, Vec::new())
        } else {
            let screened =
                screen::screen(evaluator, intact.text(), &all, options.action, progress)?;
            estimates.extend(every.iter().map(|&pair| (pair, screened.of(pair))));
            let mut order = every.clone();
            order.sort_by(|x, y| {
                screened.of(*y).abs().total_cmp(&screened.of(*x).abs()).then(x.cmp(y))
            });
            order.truncate(options.limit);
            let random = matched(&order, &every, &all, config.num_hidden_layers, options.seed);
            (order, random)
        };
        let mut pairs_measured: Vec<Pair> = chosen.iter().chain(&random).copied().collect();
        // Neighbours share their first member, and so what is computed below the second.
        pairs_measured.sort_unstable();
        pairs_measured.dedup();
        let sets: Vec<Vec<Edit>> = pairs_measured
            .iter()
            .map(|&(a, b)| lesions(&[all[a], all[b]], options.action))
            .collect();
        let joint = intact.effects(&sets, progress)?;
        let of = |(&pair, &joint): (&Pair, &Effect)| {
            Measured::new(pair, singles[pair.0], singles[pair.1], joint)
        };
        let measured: Vec<Measured> = pairs_measured.iter().zip(&joint).map(of).collect();
        // In an exact sweep all pairs are the null: few stand out, and median and MAD do not see
        // them.
        let random: BTreeSet<Pair> = if random.is_empty() {
            pairs_measured.into_iter().collect()
        } else {
            random.into_iter().collect()
        };
        let null = Null::new(
            measured.iter().filter(|m| random.contains(&m.pair)),
            &all,
            config.num_hidden_layers,
            4.0 * noise_floor,
        );
        let p: Vec<f64> = measured.iter().map(|m| null.p_value(m)).collect();
        // Pairs that were never measured count too: the screen looked at them.
        let q = stats::q_values(
            &p.iter().copied().chain(std::iter::repeat_n(1.0, pairs - p.len())).collect::<Vec<_>>(),
        );
        let threshold = p
            .iter()
            .zip(&q)
            .filter(|(_, q)| **q <= FALSE_DISCOVERY)
            .map(|(p, _)| *p)
            .fold(-1.0, f64::max);
        let null_flagged = measured
            .iter()
            .zip(&p)
            .filter(|(m, p)| random.contains(&m.pair) && **p <= threshold)
            .count();
        let noised = noised(&intact, &measured, &all, options.controls, progress)?;
        let controls_flagged = noised.iter().filter(|m| null.p_value(m) <= threshold).count();
        let mut rows: Vec<PairRow> = measured
            .iter()
            .zip(&joint)
            .zip(&q)
            .map(|((m, joint), &q_value)| {
                let (a, b) = m.pair;
                PairRow {
                    a: all[a],
                    b: all[b],
                    alone_a: m.alone.0,
                    alone_b: m.alone.1,
                    joint: joint.nats,
                    interaction: m.interaction,
                    ratio: m.ratio(),
                    interaction_bits: joint.bits - singles[a].bits - singles[b].bits,
                    kind: Kind::of(m.alone.0, m.alone.1, joint.nats),
                    estimate: estimates.get(&m.pair).copied(),
                    q_value,
                }
            })
            .collect();
        let larger = |x: &PairRow, y: &PairRow| y.interaction.abs().total_cmp(&x.interaction.abs());
        rows.sort_by(|x, y| {
            x.q_value.total_cmp(&y.q_value).then(larger(x, y)).then((x.a, x.b).cmp(&(y.a, y.b)))
        });
        Ok(Self {
            rows,
            singles: all.into_iter().zip(singles).collect(),
            baseline_loss: intact.loss,
            tokens: trial.len(),
            pairs,
            null_pairs: random.len(),
            null_flagged,
            controls: noised.len(),
            controls_flagged,
            noise_floor,
        })
    }

    /// Pairs that stand out at a false discovery rate of 5%.
    pub fn flagged(&self) -> impl Iterator<Item = &PairRow> {
        self.rows.iter().filter(|row| row.q_value <= FALSE_DISCOVERY)
    }
}

/// The thirds of the layers that a pair is in.
fn thirds(pair: Pair, all: &[Component], layers: usize) -> (usize, usize) {
    (third(&all[pair.0], layers), third(&all[pair.1], layers))
}

/// Random pairs of all there are, one for each that the screen chose up to [`NULL_PAIRS`], in the
/// same thirds of the layers. Those it chose may be among them: without them what is left would
/// look quieter than pairs are.
fn matched(
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

/// Pairs whose members get noise of the norm of their own output instead of being removed.
fn noised(
    intact: &Intact,
    measured: &[Measured],
    all: &[Component],
    n: usize,
    progress: Progress,
) -> Result<Vec<Measured>> {
    let step = (measured.len() / n.max(1)).max(1);
    let pairs: Vec<Pair> = measured.iter().map(|m| m.pair).step_by(step).take(n).collect();
    let noise = |component: usize, seed: u64| {
        Edit::lesion(all[component], Action::Noise { seed, strength: 1.0 })
    };
    let sets: Vec<Vec<Edit>> = (0u64..)
        .zip(&pairs)
        .flat_map(|(i, &(a, b))| {
            let (a, b) = (noise(a, 2 * i), noise(b, 2 * i + 1));
            [vec![a.clone()], vec![b.clone()], vec![a, b]]
        })
        .collect();
    let effects = intact.effects(&sets, progress)?;
    Ok(pairs
        .into_iter()
        .zip(effects.chunks(3))
        .map(|(pair, e)| Measured::new(pair, e[0], e[1], e[2]))
        .collect())
}

/// The empirical null (Efron 2004): the logarithm of the ratios, by median and MAD, of the pairs of
/// the same thirds of the layers, or of all where those are few. Most pairs do next to nothing
/// together.
struct Null {
    by_thirds: BTreeMap<(usize, usize), (f64, f64)>,
    all: Option<(f64, f64)>,
    thirds: Vec<usize>,
    /// An interaction that is not above this is none, nats.
    floor: f64,
}

impl Null {
    fn new<'a>(
        pairs: impl Iterator<Item = &'a Measured>,
        all: &[Component],
        layers: usize,
        floor: f64,
    ) -> Self {
        let thirds: Vec<usize> = all.iter().map(|c| third(c, layers)).collect();
        let mut groups: BTreeMap<(usize, usize), Vec<f64>> = BTreeMap::new();
        // A component that is silent on this text says nothing of how the others interact.
        for m in pairs.filter(|m| m.interaction.abs() > floor) {
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
            // Too few to say what is ordinary: nothing stands out.
            all: (pooled.len() >= LEAST_CONTROLS).then(|| spread(&pooled)),
            thirds,
            floor,
        }
    }

    /// Upper tail.
    fn p_value(&self, m: &Measured) -> f64 {
        let Some((centre, spread)) = self
            .by_thirds
            .get(&(self.thirds[m.pair.0], self.thirds[m.pair.1]))
            .or(self.all.as_ref())
        else {
            return 1.0;
        };
        let heard = m.interaction.abs() > self.floor.max(LEAST_NATS) && m.ratio().is_finite();
        if heard { upper_tail((m.ratio().ln() - centre) / spread) } else { 1.0 }
    }
}

fn third(component: &Component, layers: usize) -> usize {
    3 * component.layer() / layers.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_by_hand() {
        for (a, b, joint, kind) in [
            (0.1, 0.1, 2.0, Kind::Redundant),
            (-0.1, 0.0, 0.3, Kind::Redundant),
            (1.0, 0.8, 1.1, Kind::SharedPath),
            (1.0, 0.1, 0.2, Kind::Suppression),
        ] {
            assert_eq!(Kind::of(a, b, joint), kind, "{a} {b} {joint}");
        }
    }

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
