//! `sweep blocks|heads|mlps|neurons|experts|routers|states|weights`: lesions (ablates) every
//! component of a kind and measures what that costs, on many texts.
//!
//! A component's effect is the mean over the texts of how much the loss rises, with Student's
//! interval. It is flagged if two tests say so:
//!
//! 1. its lesion costs more than [`LEAST_NATS`] on texts like these (Wilcoxon's signed ranks);
//! 2. it costs more, or less, than noise lesions of the same norm (`noise.rs`), each of which has
//!    one direction for all texts, as the lesion has (`directions.rs`). Otherwise the cost says
//!    nothing of what the component does: a change in any direction has it.
//!
//! The second is two-sided because neither direction is the rule. To remove what writes a massive
//! activation can cost less than to put noise of that size beside it. It is also the expensive one,
//! and is left out where a flag is out of reach or unlikely. The procedure of Benjamini and
//! Hochberg (1995) corrects for the number of components. [`LesionOptions::null`] puts one more
//! noise lesion in the place of each lesion, so that what is flagged then is flagged falsely.
//!
//! What stands out from its peers is another question, and has a score of its own (`outlier.rs`).

use std::collections::BTreeMap;

use super::against_noise::{AgainstNoise, Compared, DIRECTIONS};
use super::groups::{HeadGroup, WrittenChannel, head_groups, written_channels};
use super::head_scores::head_scores;
use super::measure::{Change, Swept};
use super::outlier::outlier_scores;
use super::row::{LEAST_TEXTS, LesionRow};
use super::targets::{WeightRank, components, propose_weights, refuse, spread};
use super::texts::{Text, trials};
use super::{FALSE_DISCOVERY, LEAST_NATS, Progress, Target};
use crate::edit::{Action, Component, Trial};
use crate::error::{Error, Result};
use crate::evaluate::{Evaluator, ModelEvaluator, Observation, Request};
use crate::stats::{self, mean};

/// The number of proposed weights that are lesioned where no limit is given.
const WEIGHTS: usize = 64;

/// Options of [`LesionSweep::run`].
#[derive(Debug, Clone, Copy)]
pub struct LesionOptions {
    /// The components that are swept.
    pub target: Target,
    /// Lesions only this many, an even choice (of weights, the most suspect). `None`: all (of
    /// weights, 64).
    pub limit: Option<usize>,
    /// The lesion of each component.
    pub action: Action,
    /// How single weights are proposed.
    pub rank: WeightRank,
    /// The seed of the noise.
    pub seed: u64,
    /// Replaces each lesion by a noise lesion too, so that nothing is left to be found.
    pub null: bool,
}

impl LesionOptions {
    /// Zeroes all components of a kind.
    pub fn new(target: Target) -> Self {
        let (action, rank) = (Action::Zero, WeightRank::default());
        Self { target, limit: None, action, rank, seed: 1, null: false }
    }
}

/// A sweep over single lesions.
pub struct LesionSweep {
    /// The lesions, largest loss first.
    pub rows: Vec<LesionRow>,
    /// Loss of the intact model, nats per token, mean over the texts.
    pub baseline_loss: f64,
    /// The number of texts.
    pub texts: usize,
    /// The number of tokens of the texts together.
    pub tokens: usize,
    /// For experts, Spearman's correlation of how often each is chosen with the divergence that its
    /// lesion causes. (How often an expert is used says little about its effect.)
    pub routing_correlation: Option<f64>,
    /// The key/value groups with a flagged head.
    pub groups: Vec<HeadGroup>,
    /// The channels that flagged weights write to.
    pub channels: Vec<WrittenChannel>,
    /// False if it was ended early: the rows are of the texts until then, and nothing is tested.
    pub complete: bool,
}

/// What the lesions did, for each component one value a text.
struct Measured {
    losses: Vec<Vec<f64>>,
    bits: Vec<Vec<f64>>,
    /// The choices of each expert, and of all experts of its router.
    chosen: BTreeMap<Component, (usize, usize)>,
}

impl LesionSweep {
    /// Lesions each component in turn and measures the loss on `texts`, token ids with BOS first
    /// where the model has one.
    ///
    /// # Errors
    /// [`Error::Request`] for no text, for one of fewer than two tokens, and for a model without
    /// such components.
    pub fn run(
        evaluator: &ModelEvaluator,
        texts: &[Vec<u32>],
        options: &LesionOptions,
        progress: Progress,
    ) -> Result<Self> {
        Self::run_with(evaluator, texts, options, progress, &mut |_| Ok(true))
    }

    /// Runs [`LesionSweep::run`] and calls `each` after every text, with what was measured so far
    /// and nothing tested; `false` ends the sweep with that.
    ///
    /// # Errors
    /// As `run`, and those of `each`.
    pub fn run_with(
        evaluator: &ModelEvaluator,
        texts: &[Vec<u32>],
        options: &LesionOptions,
        progress: Progress,
        each: &mut dyn FnMut(&Self) -> Result<bool>,
    ) -> Result<Self> {
        let trials = trials(texts)?;
        let components = swept(evaluator, &trials, options)?;
        let swept = Swept { evaluator, components, action: options.action };
        let everything: Vec<usize> = (0..swept.components.len()).collect();
        // In a null sweep, noise in one more direction stands for the lesion.
        let change = match options.null {
            true => Change::Noise { seed: options.seed, directions: DIRECTIONS..DIRECTIONS + 1 },
            false => Change::Lesion,
        };
        let total = (everything.len() * trials.len()) as u64;
        let done = |done: u64| progress(done, total);
        let (mut all, mut measured) = (Vec::new(), Measured::new(everything.len()));
        let untested =
            |texts: &[Text], measured: &Measured| Self::new(&swept, texts, measured, None);
        for trial in trials {
            let baseline =
                evaluator.observe(&[Request::new(trial.clone()).keeping_distributions()])?.pop();
            let baseline =
                baseline.ok_or_else(|| Error::internal("the baseline was not observed"))?;
            measured.count_routing(&baseline);
            let reference = baseline.distributions.clone();
            let text = Text { trial, loss: baseline.loss() };
            let observed = swept.observe(&text, &everything, &change, reference.as_ref(), &done)?;
            for (component, o) in observed.iter().enumerate() {
                measured.losses[component].push(o.loss());
                measured.bits[component].push(o.mean_divergence_bits());
            }
            all.push(text);
            let so_far = untested(&all, &measured);
            if !each(&so_far)? {
                return Ok(Self { complete: false, ..so_far });
            }
        }
        if all.len() < LEAST_TEXTS {
            let mut sweep = untested(&all, &measured);
            sweep.describe(evaluator, &all, options)?;
            return Ok(sweep);
        }
        let intact: Vec<f64> = all.iter().map(|text| text.loss).collect();
        let costs: Vec<f64> =
            measured.losses.iter().map(|lesioned| cost_p_value(&intact, lesioned)).collect();
        // What is not found to cost anything cannot be flagged, whatever noise costs.
        let chosen = (0..costs.len()).filter(|&i| costs[i] <= FALSE_DISCOVERY).collect();
        let noise = AgainstNoise {
            swept: &swept,
            texts: &all,
            losses: &measured.losses,
            seed: options.seed,
            progress,
        };
        let so_far = untested(&all, &measured);
        let Some(compared) = noise.compare(chosen, &mut || each(&so_far))? else {
            return Ok(Self { complete: false, ..so_far });
        };
        let mut sweep = Self::new(&swept, &all, &measured, Some((&costs, &compared)));
        sweep.describe(evaluator, &all, options)?;
        Ok(sweep)
    }

    /// Adds what is known of heads and of the groups that flagged components form.
    fn describe(
        &mut self,
        evaluator: &ModelEvaluator,
        texts: &[Text],
        options: &LesionOptions,
    ) -> Result<()> {
        if options.null {
            return Ok(());
        }
        if options.target == Target::Heads {
            let ids: Vec<Vec<u32>> = texts.iter().map(Text::ids).collect();
            let scores = head_scores(evaluator, &ids, options.seed)?;
            self.rows.iter_mut().for_each(|row| row.head = scores.get(&row.component).copied());
        }
        self.groups = head_groups(evaluator, texts, &self.rows, options.action)?;
        self.channels = written_channels(evaluator, texts, &self.rows, options.action)?;
        Ok(())
    }

    /// Runs [`LesionSweep::run`]; returns `None` for a model without such components.
    ///
    /// # Errors
    /// As `run`.
    pub fn if_any(
        evaluator: &ModelEvaluator,
        texts: &[Vec<u32>],
        options: &LesionOptions,
        progress: Progress,
    ) -> Result<Option<Self>> {
        let target = options.target;
        if target != Target::Weights && components(evaluator.model, target).is_empty() {
            return Ok(None);
        }
        Self::run(evaluator, texts, options, progress).map(Some)
    }

    /// Makes the rows; `tested` are the p-values of costing nothing and the comparisons with noise.
    fn new(
        swept: &Swept,
        texts: &[Text],
        measured: &Measured,
        tested: Option<(&[f64], &BTreeMap<usize, Compared>)>,
    ) -> Self {
        let intact: Vec<f64> = texts.iter().map(|text| text.loss).collect();
        let baseline_loss = mean(&intact);
        let over = |losses: &[f64]| -> Vec<f64> {
            losses.iter().zip(&intact).map(|(loss, intact)| loss - intact).collect()
        };
        let divergences: Vec<f64> = measured.bits.iter().map(|bits| mean(bits)).collect();
        let layers = swept.evaluator.model.config.num_hidden_layers;
        let swept = &swept.components;
        let outliers = outlier_scores(swept, &divergences, layers);
        let effects: Vec<Vec<f64>> = measured.losses.iter().map(|losses| over(losses)).collect();
        // Both null hypotheses have to be rejected (an intersection-union test, Berger 1982). A
        // lesion that was not compared with noise has p = 1.
        let p: Option<Vec<f64>> = tested.map(|(costs, compared)| {
            let p = |i| compared.get(&i).map_or(1.0, |c: &Compared| costs[i].max(c.p_value));
            (0..swept.len()).map(p).collect()
        });
        let q = p.as_deref().map(stats::q_values);
        let compared = |i: usize| tested.and_then(|(_, compared)| compared.get(&i));
        let mut rows: Vec<LesionRow> = (0..swept.len())
            .map(|i| {
                let (effect, half) = (mean(&effects[i]), stats::t_half_width(&effects[i]));
                LesionRow {
                    component: swept[i],
                    baseline_loss,
                    loss: mean(&measured.losses[i]),
                    effect,
                    effect_interval: (texts.len() > 1).then_some((effect - half, effect + half)),
                    perplexity_ratio: effect.exp(),
                    divergence_bits: divergences[i],
                    noise_effects: compared(i).map(|c| c.noise.clone()),
                    compared_effect: compared(i).map(|c| c.effect),
                    p_value: p.as_ref().map(|p| p[i]),
                    q_value: q.as_ref().map(|q| q[i]),
                    outlier_score: outliers[i],
                    routed_share: measured.routed_share(&swept[i]),
                    head: None,
                }
            })
            .collect();
        let (shares, bits): (Vec<f64>, Vec<f64>) =
            rows.iter().filter_map(|row| Some((row.routed_share?, row.divergence_bits))).unzip();
        rows.sort_by(|a, b| b.loss.total_cmp(&a.loss).then(a.component.cmp(&b.component)));
        Self {
            rows,
            baseline_loss,
            texts: texts.len(),
            tokens: texts.iter().map(|text| text.trial.len()).sum(),
            routing_correlation: stats::spearman(&shares, &bits),
            groups: Vec::new(),
            channels: Vec::new(),
            complete: true,
        }
    }
}

impl Measured {
    fn new(components: usize) -> Self {
        let empty = vec![Vec::new(); components];
        Self { losses: empty.clone(), bits: empty, chosen: BTreeMap::new() }
    }

    /// Adds the choices of the intact model's routers on a text.
    fn count_routing(&mut self, baseline: &Observation) {
        for routing in &baseline.routing {
            for expert in 0..routing.num_experts {
                let component = Component::Expert { layer: routing.layer, expert };
                let chosen = routing.chosen.iter().filter(|e| **e as usize == expert).count();
                let (of_expert, all) = self.chosen.entry(component).or_default();
                (*of_expert, *all) = (*of_expert + chosen, *all + routing.chosen.len());
            }
        }
    }

    fn routed_share(&self, component: &Component) -> Option<f64> {
        self.chosen.get(component).map(|(chosen, all)| *chosen as f64 / *all as f64)
    }
}

/// Returns the components that are swept.
fn swept(
    evaluator: &ModelEvaluator,
    trials: &[Trial],
    options: &LesionOptions,
) -> Result<Vec<Component>> {
    if options.target == Target::Weights {
        let limit = options.limit.unwrap_or(WEIGHTS);
        return propose_weights(evaluator, trials, limit, None, options.rank);
    }
    let all = components(evaluator.model, options.target);
    if all.is_empty() {
        return Err(refuse("", options.target, &evaluator.model.config));
    }
    Ok(match options.limit {
        Some(limit) if limit < all.len() => spread(&all, limit),
        _ => all,
    })
}

/// Returns the p-value of costing more than [`LEAST_NATS`], from the losses on each text.
fn cost_p_value(intact: &[f64], lesioned: &[f64]) -> f64 {
    // A loss that is not finite is worse than any other.
    let cost = |lesioned: f64, intact: f64| match lesioned.is_finite() {
        true => lesioned - intact - LEAST_NATS,
        false => f64::INFINITY,
    };
    let costs: Vec<f64> = lesioned.iter().zip(intact).map(|(l, i)| cost(*l, *i)).collect();
    stats::signed_rank_p_value(&costs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cost_has_to_be_of_interest_and_on_most_texts() {
        let p = |lesioned: [f64; 6]| cost_p_value(&[3.0; 6], &lesioned);
        assert_eq!(p([4.0, 4.1, 4.2, 4.3, 4.4, 4.5]), 1.0 / 64.0);
        assert_eq!(p([f64::NAN, f64::INFINITY, 5.0, 5.0, 5.0, 5.0]), 1.0 / 64.0);
        assert!(p([2.0, 4.1, 1.0, 4.3, 2.5, 4.5]) > 0.2);
        // Less than a thousandth of a nat is none.
        assert_eq!(p([3.0005; 6]), 1.0);
    }
}
