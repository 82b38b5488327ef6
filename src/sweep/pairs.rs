//! `sweep pairs`: the interactions of lesions, what two do together beyond what each does alone.
//!
//! With `D(S)` the loss on a text without the components `S`, minus that of the intact model (nats
//! per token), the interaction of two components is the second difference
//!
//! `I(a, b) = D(ab) - D(a) - D(b)`.
//!
//! Geneticists call this epistasis on a log scale (log-probabilities that add up are probabilities
//! that multiply: Bliss independence); it is the pairwise term of a Shapley interaction index
//! (Grabisch and Roubens 1999) in the context of the intact model alone. The same difference of the
//! Jensen-Shannon divergence, in bits, is reported beside it. It is bounded, and near zero it grows
//! with the square of a change, so that two changes in one direction always look like more than
//! their sum; therefore the loss decides.
//!
//! - *Redundant*, `I > 0`: together worse than the sum. Each covers for the other, as backup heads
//!   do for name movers (Wang et al. 2022) and later layers for ablated ones (McGrath et al. 2023,
//!   the hydra effect).
//! - *Shared path*, `I < 0`: without one of them, the other has no input to work on, or nothing
//!   that uses its output.
//! - *Suppression*, `I < 0`, and together better than the worse of the two alone: the second lesion
//!   repairs what the first broke, as where a head writes against another (McDougall et al. 2023).
//!
//! Large effects interact more than small ones for no better reason than that loss and softmax are
//! curved. So a pair is judged by its *ratio*, the interaction in units of the larger of the two
//! single effects, against the ratios of other pairs (`null.rs`), at a false discovery rate of 5%
//! over all pairs (Benjamini and Hochberg 1995).

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::null::{Measured, Null, Pair, matched};
use super::screen;
use super::sets::{Baseline, Effect, set_of_lesions};
use super::targets::{components, refuse};
use super::{FALSE_DISCOVERY, Progress, Target};
use crate::edit::{Action, Component, Edit, Trial};
use crate::error::{Error, Result};
use crate::evaluate::ModelEvaluator;
use crate::stats;

/// The kind of an interaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PairKind {
    /// Together worse than the sum: each covers for the other.
    Redundant,
    /// Together less than the sum: both are on one path.
    SharedPath,
    /// Together better than the worse of the two alone: one repairs what the other breaks.
    Suppression,
}

impl PairKind {
    /// Classifies an interaction by the loss increases alone and together, nats per token.
    pub fn classify(alone_a: f64, alone_b: f64, joint: f64) -> Self {
        if joint >= alone_a + alone_b {
            Self::Redundant
        } else if joint < alone_a.max(alone_b) {
            Self::Suppression
        } else {
            Self::SharedPath
        }
    }

    /// Returns the name that is shown.
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
    /// The first component.
    pub a: Component,
    /// The second component.
    pub b: Component,
    /// Loss without `a`, minus the intact model's, nats per token.
    pub alone_a: f64,
    /// The same without `b`.
    pub alone_b: f64,
    /// The same without both.
    pub joint: f64,
    /// `joint - alone_a - alone_b`, nats per token.
    pub interaction: f64,
    /// Size of the interaction in units of the larger single effect; a single effect below
    /// [`LEAST_NATS`](super::LEAST_NATS) counts as that much.
    pub ratio: f64,
    /// The interaction of the mean Jensen-Shannon divergence, bits.
    pub interaction_bits: f64,
    /// The kind of the interaction.
    pub kind: PairKind,
    /// The screen's estimate of `interaction`, nats per token; `None` where every pair was
    /// measured.
    pub estimate: Option<f64>,
    /// Benjamini-Hochberg q-value over all pairs, where those not measured count with p = 1.
    pub q_value: f64,
}

/// Options of [`PairSweep::run`].
#[derive(Debug, Clone, Copy)]
pub struct PairOptions {
    /// The components that are paired.
    pub target: Target,
    /// The lesion.
    pub action: Action,
    /// The largest number of pairs measured; if there are more, a screen picks them.
    pub limit: usize,
    /// The number of matched controls: pairs whose members get noise of their own norm instead of
    /// the lesion.
    pub controls: usize,
    /// The seed of the random pairs from which a screened sweep takes its null.
    pub seed: u64,
}

impl Default for PairOptions {
    fn default() -> Self {
        Self { target: Target::Heads, action: Action::Zero, limit: 4096, controls: 16, seed: 1 }
    }
}

/// A sweep over pairs.
pub struct PairSweep {
    /// The measured pairs, by q-value, then largest interaction first.
    pub rows: Vec<PairRow>,
    /// Every component alone, in model order.
    pub singles: Vec<(Component, Effect)>,
    /// Loss of the intact model, nats per token.
    pub baseline_loss: f64,
    /// The number of tokens of the text.
    pub tokens: usize,
    /// The number of pairs, measured or not.
    pub pairs: usize,
    /// The number of pairs that the null was taken from: in a screened sweep random pairs of the
    /// same layers as those chosen, in an exact one all pairs.
    pub null_pairs: usize,
    /// The number of them that the flag's threshold flags.
    pub null_flagged: usize,
    /// The number of pairs that got noise.
    pub controls: usize,
    /// The number of them that the flag's threshold flags.
    pub controls_flagged: usize,
    /// The largest change of a loss when only the batch changes, nats.
    pub noise_floor: f64,
}

impl PairSweep {
    /// Lesions every component of a kind alone and every pair of them, or the `limit` pairs with
    /// the largest estimates of the screen, and measures the loss on the continuation of `trial`.
    ///
    /// # Errors
    /// [`Error::Request`] for a model with fewer than two such components, for a trial without a
    /// continuation, and for more pairs of states than the limit.
    pub fn run(
        evaluator: &ModelEvaluator,
        trial: &Trial,
        options: &PairOptions,
        progress: Progress,
    ) -> Result<Self> {
        let config = &evaluator.model.config;
        let all = components(evaluator.model, options.target);
        if all.is_empty() {
            return Err(refuse("pairs", options.target, config));
        }
        if all.len() < 2 {
            return Err(Error::request(format!(
                "{} has one of these, and a pair takes two",
                evaluator.model.name
            )));
        }
        let pairs = all.len() * (all.len() - 1) / 2;
        if pairs > options.limit && options.target == Target::States {
            return Err(Error::request(format!(
                "{pairs} pairs of states are more than the limit of {}, and states have no \
                gradient to pick some by",
                options.limit
            )));
        }
        let noise_floor = evaluator.score_noise_floor()?;
        let baseline = Baseline::new(evaluator, trial)?;
        let singles = baseline.effects(
            &all.iter().map(|&c| set_of_lesions(&[c], options.action)).collect::<Vec<_>>(),
            progress,
        )?;
        let every: Vec<Pair> =
            (0..all.len()).flat_map(|a| (a + 1..all.len()).map(move |b| (a, b))).collect();
        let mut estimates: BTreeMap<Pair, f64> = BTreeMap::new();
        let (chosen, random) = if pairs <= options.limit {
            (every, Vec::new())
        } else {
            let screened =
                screen::screen(evaluator, baseline.text(), &all, options.action, progress)?;
            estimates.extend(every.iter().map(|&pair| (pair, screened.estimate(pair))));
            let mut order = every.clone();
            order.sort_by(|x, y| {
                screened.estimate(*y).abs().total_cmp(&screened.estimate(*x).abs()).then(x.cmp(y))
            });
            order.truncate(options.limit);
            let random = matched(&order, &every, &all, config.num_hidden_layers, options.seed);
            (order, random)
        };
        let mut pairs_measured: Vec<Pair> = chosen.iter().chain(&random).copied().collect();
        // Neighbours share their first member, and so the forward below the second.
        pairs_measured.sort_unstable();
        pairs_measured.dedup();
        let sets: Vec<Vec<Edit>> = pairs_measured
            .iter()
            .map(|&(a, b)| set_of_lesions(&[all[a], all[b]], options.action))
            .collect();
        let joint = baseline.effects(&sets, progress)?;
        let measured: Vec<Measured> = pairs_measured
            .iter()
            .zip(&joint)
            .map(|(&pair, &joint)| Measured::new(pair, singles[pair.0], singles[pair.1], joint))
            .collect();
        // In an exact sweep all pairs are the null: median and MAD are robust to the few that stand
        // out.
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
        // Pairs that were not measured count too, because the screen looked at them.
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
        let noised = noised(&baseline, &measured, &all, options.controls, progress)?;
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
                    kind: PairKind::classify(m.alone.0, m.alone.1, joint.nats),
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
            baseline_loss: baseline.loss,
            tokens: trial.len(),
            pairs,
            null_pairs: random.len(),
            null_flagged,
            controls: noised.len(),
            controls_flagged,
            noise_floor,
        })
    }

    /// Returns the pairs that stand out at a false discovery rate of 5%.
    pub fn flagged(&self) -> impl Iterator<Item = &PairRow> {
        self.rows.iter().filter(|row| row.q_value <= FALSE_DISCOVERY)
    }
}

/// Measures the controls: `n` pairs, evenly spread over those measured, whose members get noise of
/// the norm of their own output instead of the lesion.
fn noised(
    baseline: &Baseline,
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
    let effects = baseline.effects(&sets, progress)?;
    Ok(pairs
        .into_iter()
        .zip(effects.chunks(3))
        .map(|(pair, e)| Measured::new(pair, e[0], e[1], e[2]))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_by_hand() {
        for (a, b, joint, kind) in [
            (0.1, 0.1, 2.0, PairKind::Redundant),
            (-0.1, 0.0, 0.3, PairKind::Redundant),
            (1.0, 0.8, 1.1, PairKind::SharedPath),
            (1.0, 0.1, 0.2, PairKind::Suppression),
        ] {
            assert_eq!(PairKind::classify(a, b, joint), kind, "{a} {b} {joint}");
        }
    }
}
