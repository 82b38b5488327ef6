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
//! activation can cost less than to put noise of that size beside it. The procedure of Benjamini
//! and Hochberg (1995) corrects for the number of components. [`LesionOptions::null`] puts one more
//! noise lesion in the place of each lesion, so that what is flagged then is flagged falsely.
//!
//! What stands out from its peers is another question, and has a score of its own (`outlier.rs`).

use std::collections::BTreeMap;
use std::sync::Arc;

use super::directions::Spread;
use super::groups::{HeadGroup, WrittenChannel, head_groups, written_channels};
use super::head_scores::head_scores;
use super::noise::noise_lesions;
use super::outlier::outlier_scores;
use super::row::{LEAST_TEXTS, LesionRow};
use super::targets::{components, propose_weights, refuse, spread};
use super::texts::{Text, trials};
use super::{LEAST_NATS, Progress, Target};
use crate::edit::{Action, Component, Edit, Trial};
use crate::error::{Error, Result};
use crate::evaluate::{Evaluator, ModelEvaluator, Observation, Request};
use crate::model::Distributions;
use crate::{rng, stats};

/// The largest number of lesions in one call, and of values of their patches (256 MB), which keeps
/// residual streams and patches small.
const CHUNK: usize = 256;
const CHUNK_VALUES: usize = 64 << 20;

/// The number of proposed weights that are lesioned where no limit is given.
const WEIGHTS: usize = 64;

/// The number of directions of noise that a lesion is compared with.
const DIRECTIONS: usize = 2;

/// Options of [`LesionSweep::run`].
#[derive(Debug, Clone, Copy)]
pub struct LesionOptions {
    /// The components that are swept.
    pub target: Target,
    /// Lesions only this many, an even choice (of weights, the most suspect). `None`: all (of
    /// weights, 64).
    pub limit: Option<usize>,
    /// The seed of the noise.
    pub seed: u64,
    /// Replaces each lesion by a noise lesion too, so that nothing is left to be found.
    pub null: bool,
}

impl LesionOptions {
    /// Sweeps all components of a kind.
    pub fn new(target: Target) -> Self {
        Self { target, limit: None, seed: 1, null: false }
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
}

/// What the lesions did, for each component one value a text.
struct Measured {
    losses: Vec<Vec<f64>>,
    bits: Vec<Vec<f64>>,
    /// The choices of each expert, and of all experts of its router.
    chosen: BTreeMap<Component, (usize, usize)>,
}

impl LesionSweep {
    /// Zeroes each component in turn and measures the loss on `texts`, token ids with BOS first
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
        let trials = trials(texts)?;
        let swept = Swept { evaluator, components: swept(evaluator, &trials, options)? };
        let everything: Vec<usize> = (0..swept.components.len()).collect();
        // In a null sweep, noise in one more direction stands for the lesion.
        let change = match options.null {
            true => Change::Noise { seed: options.seed, direction: DIRECTIONS },
            false => Change::Zero,
        };
        let total = (everything.len() * trials.len()) as u64;
        let done = |done: u64| progress(done, total);
        let (mut all, mut measured) = (Vec::new(), Measured::new(everything.len()));
        for trial in trials {
            let baseline =
                evaluator.observe(&[Request::new(trial.clone()).keeping_distributions()])?.pop();
            let baseline =
                baseline.ok_or_else(|| Error::internal("the baseline was not observed"))?;
            measured.count_routing(&baseline);
            let reference = baseline.distributions.clone();
            let text = Text { trial, loss: baseline.loss() };
            let observed = swept.observe(&text, &everything, change, reference.as_ref(), &done)?;
            for (component, o) in observed.iter().enumerate() {
                measured.losses[component].push(o.loss());
                measured.bits[component].push(o.mean_divergence_bits());
            }
            all.push(text);
        }
        let noise = match all.len() >= LEAST_TEXTS {
            true => swept.noise_effects(&all, &measured, options.seed, progress)?,
            false => BTreeMap::new(),
        };
        let mut sweep = Self::new(&swept, &all, &measured, &noise);
        if !options.null {
            sweep.describe(evaluator, &all, options)?;
        }
        Ok(sweep)
    }

    /// Adds what is known of heads and of the groups that flagged components form.
    fn describe(
        &mut self,
        evaluator: &ModelEvaluator,
        texts: &[Text],
        options: &LesionOptions,
    ) -> Result<()> {
        if options.target == Target::Heads {
            let ids: Vec<Vec<u32>> = texts.iter().map(Text::ids).collect();
            let scores = head_scores(evaluator, &ids, options.seed)?;
            self.rows.iter_mut().for_each(|row| row.head = scores.get(&row.component).copied());
        }
        self.groups = head_groups(evaluator, texts, &self.rows)?;
        self.channels = written_channels(evaluator, texts, &self.rows)?;
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

    fn new(
        swept: &Swept,
        texts: &[Text],
        measured: &Measured,
        noise: &BTreeMap<usize, Vec<f64>>,
    ) -> Self {
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len().max(1) as f64;
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
        let spread = Spread::new(noise.values().map(Vec::as_slice));
        // Both null hypotheses have to be rejected (an intersection-union test, Berger 1982). A
        // lesion that costs nothing of interest was not compared with noise, and has p = 1.
        let p: Vec<f64> = (0..swept.len())
            .map(|i| match (noise.get(&i), &spread) {
                (Some(noise), Some(spread)) => {
                    let cost = cost_p_value(&intact, &measured.losses[i]);
                    cost.max(spread.p_value(mean(&effects[i]), noise))
                }
                _ => 1.0,
            })
            .collect();
        let q = stats::q_values(&p);
        let tested = texts.len() >= LEAST_TEXTS;
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
                    noise_effects: noise.get(&i).cloned(),
                    p_value: tested.then_some(p[i]),
                    q_value: tested.then_some(q[i]),
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
        return propose_weights(evaluator, trials, options.limit.unwrap_or(WEIGHTS), None);
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

/// What is done to a component.
#[derive(Clone, Copy)]
enum Change {
    /// It is set to zero.
    Zero,
    /// It gets noise of the lesion's norm in one direction, the same for all texts.
    Noise {
        /// The seed of the sweep.
        seed: u64,
        /// Which of the directions.
        direction: usize,
    },
}

/// The components of a sweep and the model they are in.
struct Swept<'a> {
    evaluator: &'a ModelEvaluator<'a>,
    components: Vec<Component>,
}

impl Swept<'_> {
    /// Observes the `chosen` components, by index, on a text, changed in this way. `done` is told
    /// how many more there are.
    fn observe(
        &self,
        text: &Text,
        chosen: &[usize],
        change: Change,
        reference: Option<&Arc<Distributions>>,
        done: &dyn Fn(u64),
    ) -> Result<Vec<Observation>> {
        let values = text.trial.len() * self.evaluator.model.config.hidden_size;
        let ids = text.ids();
        let mut observations = Vec::with_capacity(chosen.len());
        for chunk in chosen.chunks((CHUNK_VALUES / values.max(1)).clamp(1, CHUNK)) {
            let lesions = chunk.iter().map(|&i| {
                let component = self.components[i];
                (component, Edit::lesion(component, Action::Zero))
            });
            let requests: Vec<Request> = match change {
                Change::Zero => lesions
                    .map(|(_, edit)| Request::new(text.trial.with_edits(vec![edit])))
                    .collect(),
                Change::Noise { seed, direction } => {
                    let stream = |i: &usize| {
                        rng::stream(seed, &format!("noise {direction} {}", self.components[*i]))
                    };
                    let mut rngs: Vec<rng::Rng> = chunk.iter().map(stream).collect();
                    let lesions: Vec<_> = lesions.collect();
                    noise_lesions(self.evaluator, &ids, &lesions, &mut rngs)?
                        .into_iter()
                        .map(|patch| Request::new(text.trial.clone()).patched(vec![patch]))
                        .collect()
                }
            };
            let requests: Vec<Request> = match reference {
                None => requests,
                Some(reference) => {
                    requests.into_iter().map(|r| r.with_reference(reference.clone())).collect()
                }
            };
            observations.extend(self.evaluator.observe(&requests)?);
            done(chunk.len() as u64);
        }
        Ok(observations)
    }

    /// Returns the effects of noise of the lesion's norm, nats per token, one in each direction, of
    /// the components whose lesions cost more than [`LEAST_NATS`], by index.
    fn noise_effects(
        &self,
        texts: &[Text],
        measured: &Measured,
        seed: u64,
        progress: Progress,
    ) -> Result<BTreeMap<usize, Vec<f64>>> {
        let costs = |i: &usize| {
            let total: f64 =
                measured.losses[*i].iter().zip(texts).map(|(loss, text)| loss - text.loss).sum();
            total.is_nan() || total > LEAST_NATS * texts.len() as f64
        };
        let chosen: Vec<usize> = (0..self.components.len()).filter(costs).collect();
        let total = ((self.components.len() + DIRECTIONS * chosen.len()) * texts.len()) as u64;
        let done = |done: u64| progress(done, total);
        let mut effects: BTreeMap<usize, Vec<f64>> =
            chosen.iter().map(|&i| (i, vec![0.0; DIRECTIONS])).collect();
        for text in texts {
            for direction in 0..DIRECTIONS {
                let change = Change::Noise { seed, direction };
                let observed = self.observe(text, &chosen, change, None, &done)?;
                for (effects, o) in effects.values_mut().zip(observed) {
                    effects[direction] += (o.loss() - text.loss) / texts.len() as f64;
                }
            }
        }
        Ok(effects)
    }
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
