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
    /// Every component of the measured pairs alone, in model order.
    pub singles: Vec<(Component, Effect)>,
    /// The number of components that are paired.
    pub components: usize,
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
    /// Whether a screen chose the pairs; false where every pair is measured.
    pub screened: bool,
    /// Whether every chosen pair was measured; false for a sweep that was ended before.
    pub complete: bool,
}

/// The number of pairs that are measured between two calls of `each`.
const CHUNK: usize = 64;

/// The pairs that are measured.
struct Choice {
    /// All of them, in the order they are measured in.
    order: Vec<Pair>,
    /// Those that the null is taken from.
    null: BTreeSet<Pair>,
    /// The screen's estimates, nats per token; empty where every pair is measured.
    estimates: BTreeMap<Pair, f64>,
}

impl Choice {
    /// Takes every pair or, of more than the limit, those with the largest estimates, and random
    /// ones of the same layers between them.
    fn new(
        evaluator: &ModelEvaluator,
        baseline: &Baseline,
        all: &[Component],
        options: &PairOptions,
        progress: Progress,
    ) -> Result<Self> {
        let every: Vec<Pair> =
            (0..all.len()).flat_map(|a| (a + 1..all.len()).map(move |b| (a, b))).collect();
        if every.len() <= options.limit {
            // All pairs are the null: median and MAD are robust to the few that stand out.
            let null = every.iter().copied().collect();
            return Ok(Self { order: every, null, estimates: BTreeMap::new() });
        }
        let (text, limit) = (baseline.text(), options.limit);
        let screened = screen::screen(evaluator, text, all, options.action, limit, progress)?;
        let estimates: BTreeMap<Pair, f64> =
            every.iter().filter_map(|&pair| Some((pair, screened.estimate(pair)?))).collect();
        let mut chosen: Vec<Pair> = estimates.keys().copied().collect();
        chosen.sort_by(|x, y| estimates[y].abs().total_cmp(&estimates[x].abs()).then(x.cmp(y)));
        chosen.truncate(limit);
        let layers = evaluator.model.config.num_hidden_layers;
        let random = matched(&chosen, &every, all, layers, options.seed);
        let null: BTreeSet<Pair> = random.iter().copied().collect();
        // Taken in turn, so that a sweep that is ended has a null as well.
        let mut order: Vec<Pair> = Vec::new();
        let mut random = random.into_iter();
        let mut seen = BTreeSet::new();
        for pair in chosen {
            order.extend(
                [Some(pair), random.next()].into_iter().flatten().filter(|p| seen.insert(*p)),
            );
        }
        order.extend(random.filter(|p| seen.insert(*p)));
        Ok(Self { order, null, estimates })
    }
}

/// The measured pairs, and how they are judged.
struct Table<'a> {
    all: &'a [Component],
    layers: usize,
    choice: &'a Choice,
    singles: &'a BTreeMap<usize, Effect>,
    noise_floor: f64,
    measured: Vec<Measured>,
    joint: Vec<Effect>,
}

impl Table<'_> {
    fn add(&mut self, pairs: &[Pair], joint: &[Effect]) {
        self.measured.extend(pairs.iter().zip(joint).map(|(&pair, &joint)| {
            Measured::new(pair, self.singles[&pair.0], self.singles[&pair.1], joint)
        }));
        self.joint.extend(joint);
    }

    /// Judges the pairs measured so far. Returns the null and the largest p-value that is flagged
    /// under it.
    fn judge(&self, sweep: &mut PairSweep) -> (Null, f64) {
        let random = |m: &Measured| self.choice.null.contains(&m.pair);
        let of_null = self.measured.iter().filter(|m| random(m));
        let null = Null::new(of_null, self.all, self.layers, 4.0 * self.noise_floor);
        let p: Vec<f64> = self.measured.iter().map(|m| null.p_value(m)).collect();
        // Pairs that were not measured count too, because the screen looked at them.
        let rest = std::iter::repeat_n(1.0, sweep.pairs - p.len());
        let q = stats::q_values(&p.iter().copied().chain(rest).collect::<Vec<_>>());
        let flagged = p.iter().zip(&q).filter(|(_, q)| **q <= FALSE_DISCOVERY);
        let threshold = flagged.map(|(p, _)| *p).fold(-1.0, f64::max);
        sweep.null_pairs = self.measured.iter().filter(|m| random(m)).count();
        sweep.null_flagged =
            self.measured.iter().zip(&p).filter(|(m, p)| random(m) && **p <= threshold).count();
        let row = |((m, joint), &q_value): ((&Measured, &Effect), &f64)| {
            let (a, b) = m.pair;
            PairRow {
                a: self.all[a],
                b: self.all[b],
                alone_a: m.alone.0,
                alone_b: m.alone.1,
                joint: joint.nats,
                interaction: m.interaction,
                ratio: m.ratio(),
                interaction_bits: joint.bits - self.singles[&a].bits - self.singles[&b].bits,
                kind: PairKind::classify(m.alone.0, m.alone.1, joint.nats),
                estimate: self.choice.estimates.get(&m.pair).copied(),
                q_value,
            }
        };
        sweep.rows = self.measured.iter().zip(&self.joint).zip(&q).map(row).collect();
        let larger = |x: &PairRow, y: &PairRow| y.interaction.abs().total_cmp(&x.interaction.abs());
        sweep.rows.sort_by(|x, y| {
            x.q_value.total_cmp(&y.q_value).then(larger(x, y)).then((x.a, x.b).cmp(&(y.a, y.b)))
        });
        (null, threshold)
    }
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
        Self::run_with(evaluator, trial, options, progress, &mut |_| Ok(true))
    }

    /// Runs [`PairSweep::run`] and calls `each` with the sweep so far whenever more pairs are
    /// measured; ends with that where `each` returns false.
    ///
    /// # Errors
    /// As `run`, and those of `each`.
    pub fn run_with(
        evaluator: &ModelEvaluator,
        trial: &Trial,
        options: &PairOptions,
        progress: Progress,
        each: &mut dyn FnMut(&Self) -> Result<bool>,
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
        let choice = Choice::new(evaluator, &baseline, &all, options, progress)?;
        let mut members: Vec<usize> = choice.order.iter().flat_map(|&(a, b)| [a, b]).collect();
        members.sort_unstable();
        members.dedup();
        let alone: Vec<Vec<Edit>> =
            members.iter().map(|&c| set_of_lesions(&[all[c]], options.action)).collect();
        let singles: BTreeMap<usize, Effect> =
            members.iter().copied().zip(baseline.effects(&alone, progress)?).collect();
        let mut table = Table {
            all: &all,
            layers: config.num_hidden_layers,
            choice: &choice,
            singles: &singles,
            noise_floor,
            measured: Vec::new(),
            joint: Vec::new(),
        };
        let mut sweep = Self {
            rows: Vec::new(),
            singles: singles.iter().map(|(&c, &effect)| (all[c], effect)).collect(),
            components: all.len(),
            baseline_loss: baseline.loss,
            tokens: trial.len(),
            pairs: all.len() * (all.len() - 1) / 2,
            null_pairs: 0,
            null_flagged: 0,
            controls: 0,
            controls_flagged: 0,
            noise_floor,
            screened: !choice.estimates.is_empty(),
            complete: choice.order.is_empty(),
        };
        let total = choice.order.len();
        let (mut null, mut threshold) = table.judge(&mut sweep);
        for chunk in choice.order.chunks(CHUNK) {
            // Neighbours share their first member, and so the forward below the second.
            let mut chunk = chunk.to_vec();
            chunk.sort_unstable();
            let sets: Vec<Vec<Edit>> = chunk
                .iter()
                .map(|&(a, b)| set_of_lesions(&[all[a], all[b]], options.action))
                .collect();
            let joint = baseline.effects(&sets, &|_, _| {})?;
            table.add(&chunk, &joint);
            progress(chunk.len() as u64, total as u64);
            (null, threshold) = table.judge(&mut sweep);
            sweep.complete = table.measured.len() == total;
            if !each(&sweep)? {
                return Ok(sweep);
            }
        }
        let noised = noised(&baseline, &table.measured, &all, options.controls, progress)?;
        sweep.controls = noised.len();
        sweep.controls_flagged = noised.iter().filter(|m| null.p_value(m) <= threshold).count();
        Ok(sweep)
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
