//! `sweep blocks|heads|mlps|neurons|experts|routers|states|weights`: lesions (ablates) every
//! component of a kind and measures the loss on a text.
//!
//! Which lesions stand out is decided against an empirical null (Efron 2004): most lesions do
//! little, so median and MAD of the log divergences of one kind in one third of the layers describe
//! the ordinary ones. P-values under that null become q-values by the procedure of Benjamini and
//! Hochberg (1995): flagging `q <= 0.05` makes 5% of the flags false on average. Controls, given
//! noise of their own norm instead of a lesion, check it.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Progress;
use crate::edit::{Action, Component, Edit, Matrix, Trial};
use crate::error::{Error, Result};
use crate::evaluate::{Evaluator, ModelEvaluator, Observation, Request};
use crate::model::hooks::Site;
use crate::model::{Config, Model};
use crate::mutate::Layers;
use crate::stats;

/// The kind of component that is swept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The blocks of every layer: its mixer, and its MLP where it has one.
    Blocks,
    /// Heads of attention, Mamba-2 and RWKV.
    Heads,
    /// MLPs, mixtures of experts, and channel mixing.
    Mlps,
    /// MLP neurons.
    Neurons,
    /// Experts of mixtures.
    Experts,
    /// Routers of mixtures.
    Routers,
    /// Parts of recurrent states.
    States,
    /// Single weights that [`propose_weights`] suspects.
    Weights,
}

/// One lesion, measured.
#[derive(Debug, Clone, Serialize)]
pub struct LesionRow {
    /// The lesioned component.
    pub component: Component,
    /// Loss of the intact model, nats per token.
    pub baseline_loss: f64,
    /// Loss without the component, nats per token.
    pub loss: f64,
    /// `exp(loss - baseline_loss)`.
    pub perplexity_ratio: f64,
    /// Mean Jensen-Shannon divergence over the text, bits.
    pub divergence_bits: f64,
    /// Benjamini-Hochberg q-value under the empirical null of the same third of the layers.
    pub q_value: f64,
    /// For an expert, the share of its router's choices on the text that fell on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub routed_share: Option<f64>,
}

/// A sweep over single lesions.
pub struct LesionSweep {
    /// The lesions, largest loss first.
    pub rows: Vec<LesionRow>,
    /// Loss of the intact model, nats per token.
    pub baseline_loss: f64,
    /// The number of tokens of the text.
    pub tokens: usize,
    /// For experts, Spearman's correlation of how often each is chosen with the divergence that its
    /// lesion causes. (How often an expert is used says little about its effect.)
    pub routing_correlation: Option<f64>,
    /// The number of matched controls: components of the sweep given noise of the norm of their own
    /// output instead of being removed.
    pub controls: usize,
    /// The number of them that exceed the smallest divergence flagged at 5%.
    pub controls_flagged: usize,
}

/// The false discovery rate of a flag.
pub const FALSE_DISCOVERY: f64 = 0.05;
/// The number of lesions in one call, which keeps its residual streams within some tens of MB.
const CHUNK: usize = 256;

/// Returns every component of a kind, in model order; no weights, which are proposed from a text.
pub(super) fn components(model: &Model, target: Target) -> Vec<Component> {
    let c = &model.config;
    let like = match target {
        Target::Blocks => {
            return (0..c.num_hidden_layers)
                .flat_map(|l| std::iter::once(c.mixer(l)).chain(c.mlp(l)))
                .collect();
        }
        Target::Heads => Component::Head { layer: 0, head: 0 },
        Target::Mlps => return (0..c.num_hidden_layers).filter_map(|layer| c.mlp(layer)).collect(),
        Target::Neurons => Component::Neuron { layer: 0, neuron: 0 },
        Target::Experts => Component::Expert { layer: 0, expert: 0 },
        Target::Routers => Component::Router { layer: 0 },
        Target::States => Component::State { layer: 0, part: Some(0) },
        Target::Weights => return Vec::new(),
    };
    c.all_like(like).collect()
}

/// Proposes single weights that could matter: those with the largest product of the weight and the
/// largest input it meets on the text, over the matrices that write to the residual stream. "Super
/// weights" are found so (Yu et al. 2024). Returns the `limit` largest of these layers (`None`: of
/// all), most suspect first.
///
/// # Errors
/// Errors of the forward pass.
pub fn propose_weights(
    evaluator: &ModelEvaluator,
    trial: &Trial,
    limit: usize,
    layers: Option<Layers>,
) -> Result<Vec<Component>> {
    let model = evaluator.model;
    let run = evaluator.activations(trial, &[])?;
    let mut best: Vec<(f32, Component)> = Vec::new();
    let every = 0..model.config.num_hidden_layers;
    for layer in every.filter(|layer| layers.is_none_or(|range| range.contains(*layer))) {
        let writers = [
            (Matrix::Down, Site::Neurons),
            (Matrix::O, Site::Z),
            (Matrix::SsmOut, Site::Z),
            (Matrix::TimeOut, Site::Z),
            (Matrix::ChannelValue, Site::Neurons),
        ];
        for (matrix, site) in writers {
            let Some((rows, width)) = model.config.matrix_shape(layer, matrix) else { continue };
            let values = run
                .sites
                .get(&(layer, site))
                .ok_or_else(|| Error::internal("the input of a matrix was not captured"))?;
            let mut largest = vec![0f32; width];
            values
                .chunks_exact(width)
                .for_each(|x| largest.iter_mut().zip(x).for_each(|(m, x)| *m = m.max(x.abs())));
            for out in 0..rows {
                for (input, (w, x)) in
                    model.weight_row(layer, matrix, out).iter().zip(&largest).enumerate()
                {
                    best.push(((w * x).abs(), Component::Weight { layer, matrix, out, input }));
                }
                // Trimmed as it grows: the whole list would be as long as the model has weights.
                if best.len() > 64 * limit.max(1024) {
                    keep(&mut best, limit);
                }
            }
        }
    }
    keep(&mut best, limit);
    Ok(best.into_iter().map(|(_, c)| c).collect())
}

/// Sorts the list, largest first, and trims it.
fn keep(best: &mut Vec<(f32, Component)>, limit: usize) {
    best.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    best.truncate(limit);
}

/// Returns the error for a sweep over components that the model does not have.
pub(super) fn refuse(sweep: &str, target: Target, config: &Config) -> Error {
    let what = format!("{sweep} {target:?}").to_lowercase();
    Error::request(format!(
        "sweep {} has no meaning for {}: the model has none",
        what.trim_start(),
        config.model_type
    ))
}

impl LesionSweep {
    /// Runs [`LesionSweep::run`]; returns `None` for a model without such components.
    ///
    /// # Errors
    /// As `run`.
    pub fn if_any(
        evaluator: &ModelEvaluator,
        target: Target,
        text: &[u32],
        limit: Option<usize>,
        controls: usize,
        progress: Progress,
    ) -> Result<Option<Self>> {
        if target != Target::Weights && components(evaluator.model, target).is_empty() {
            return Ok(None);
        }
        Self::run(evaluator, target, text, limit, controls, progress).map(Some)
    }

    /// Zeroes each component in turn and measures the loss on `text`, token ids with BOS first
    /// where the model has one. With a `limit`, an even choice of that many components stands for
    /// all; `controls` is the number of matched controls.
    ///
    /// # Errors
    /// [`Error::Request`] for a text of fewer than two tokens, and for a model without such
    /// components.
    pub fn run(
        evaluator: &ModelEvaluator,
        target: Target,
        text: &[u32],
        limit: Option<usize>,
        controls: usize,
        progress: Progress,
    ) -> Result<Self> {
        let [first, rest @ ..] = text else { return Err(Error::request("the text has no tokens")) };
        if rest.is_empty() {
            return Err(Error::request("the text needs at least two tokens"));
        }
        let trial = Trial::new([*first], rest);
        let mut swept = match target {
            Target::Weights => propose_weights(evaluator, &trial, limit.unwrap_or(256), None)?,
            _ => components(evaluator.model, target),
        };
        if swept.is_empty() {
            return Err(refuse("", target, &evaluator.model.config));
        }
        // Proposed weights are in order of suspicion; other components are thinned out evenly.
        match limit {
            Some(limit) if target == Target::Weights => swept.truncate(limit),
            Some(limit) if limit < swept.len() => swept = spread(&swept, limit),
            _ => {}
        }
        let baseline =
            evaluator.observe(&[Request::new(trial.clone()).keeping_distributions()])?.pop();
        let baseline = baseline.ok_or_else(|| Error::internal("the baseline was not observed"))?;
        let reference = baseline
            .distributions
            .clone()
            .ok_or_else(|| Error::internal("the baseline's distributions were not kept"))?;
        let baseline_loss = baseline.loss();
        let control_components = spread(&swept, controls);
        let routed =
            if target == Target::Experts { routed_shares(&baseline) } else { BTreeMap::new() };
        let lesion = |component: &Component, action: Action| {
            let edit = Edit::lesion(*component, action);
            Request::new(trial.with_edits(vec![edit])).with_reference(reference.clone())
        };
        let removed = swept.iter().map(|c| lesion(c, Action::Zero));
        let noised = control_components
            .iter()
            .enumerate()
            .map(|(i, c)| lesion(c, Action::Noise { seed: i as u64, strength: 1.0 }));
        let requests: Vec<Request> = removed.chain(noised).collect();
        let mut observations = Vec::with_capacity(requests.len());
        for chunk in requests.chunks(CHUNK) {
            observations.extend(evaluator.observe(chunk)?);
            progress(chunk.len() as u64, requests.len() as u64);
        }
        let divergences: Vec<f64> = observations.iter().map(|o| o.mean_divergence_bits()).collect();
        let p = p_values(&swept, &divergences, evaluator.model.config.num_hidden_layers);
        let mut rows: Vec<LesionRow> = swept
            .iter()
            .zip(&observations)
            .zip(stats::q_values(&p))
            .map(|((component, observation), q_value)| LesionRow {
                component: *component,
                baseline_loss,
                loss: observation.loss(),
                perplexity_ratio: (observation.loss() - baseline_loss).exp(),
                divergence_bits: observation.mean_divergence_bits(),
                q_value,
                routed_share: routed.get(component).copied(),
            })
            .collect();
        let shares: Vec<f64> = rows.iter().filter_map(|row| row.routed_share).collect();
        let effects: Vec<f64> = rows
            .iter()
            .filter(|row| row.routed_share.is_some())
            .map(|row| row.divergence_bits)
            .collect();
        let routing_correlation = stats::spearman(&shares, &effects);
        let flagged = rows
            .iter()
            .filter(|r| r.q_value <= FALSE_DISCOVERY)
            .map(|r| r.divergence_bits)
            .fold(f64::INFINITY, f64::min);
        let controls_flagged = divergences[swept.len()..].iter().filter(|d| **d >= flagged).count();
        rows.sort_by(|a, b| b.loss.total_cmp(&a.loss).then(a.component.cmp(&b.component)));
        let tokens = text.len();
        Ok(Self {
            rows,
            baseline_loss,
            tokens,
            routing_correlation,
            controls: control_components.len(),
            controls_flagged,
        })
    }
}

/// Returns the share of its router's choices that fell on each expert.
fn routed_shares(baseline: &Observation) -> BTreeMap<Component, f64> {
    let mut shares = BTreeMap::new();
    for routing in &baseline.routing {
        let (layer, all) = (routing.layer, routing.chosen.len() as f64);
        for expert in 0..routing.num_experts {
            let chosen = routing.chosen.iter().filter(|e| **e as usize == expert).count();
            shares.insert(Component::Expert { layer, expert }, chosen as f64 / all);
        }
    }
    shares
}

/// Returns `n` members, evenly spread.
fn spread(all: &[Component], n: usize) -> Vec<Component> {
    let n = n.min(all.len());
    (0..n).map(|i| all[i * all.len() / n]).collect()
}

/// Returns upper-tail p-values under the empirical null of each third of the layers.
fn p_values(components: &[Component], divergences: &[f64], layers: usize) -> Vec<f64> {
    let third = |c: &Component| 3 * c.layer() / layers.max(1);
    let log = |d: f64| d.max(1e-9).ln();
    let null: Vec<(f64, f64)> = (0..3)
        .map(|t| {
            let all: Vec<f64> = components
                .iter()
                .zip(divergences)
                .filter(|(c, _)| third(c) == t)
                .map(|(_, d)| log(*d))
                .collect();
            (stats::median(&all), (stats::MAD_TO_DEVIATION * stats::mad(&all)).max(1e-3))
        })
        .collect();
    components
        .iter()
        .zip(divergences)
        .map(|(c, d)| upper_tail((log(*d) - null[third(c)].0) / null[third(c)].1))
        .collect()
}

/// Returns `P(Z >= z)` of a standard normal: Abramowitz and Stegun 7.1.26, absolute error below
/// 1.5e-7, and the asymptotic form in the far tail, where the value is smaller than that error.
pub(super) fn upper_tail(z: f64) -> f64 {
    if z > 4.0 {
        return (-0.5 * z * z).exp() / (z * (std::f64::consts::TAU).sqrt()) * (1.0 - 1.0 / (z * z));
    }
    if z < 0.0 {
        return 1.0 - upper_tail(-z);
    }
    let x = z / std::f64::consts::SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * x);
    let poly = t
        * (0.254_829_592
            + t * (-0.284_496_736
                + t * (1.421_413_741 + t * (-1.453_152_027 + t * 1.061_405_429))));
    0.5 * poly * (-x * x).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_normal_tail_is_right() {
        for (z, p) in [
            (0.0, 0.5),
            (1.0, 0.158_655_25),
            (1.96, 0.024_997_9),
            (-1.0, 0.841_344_75),
            (5.0, 2.866_5e-7),
        ] {
            assert!((upper_tail(z) / p - 1.0f64).abs() < 5e-3, "{z}: {} not {p}", upper_tail(z));
        }
    }

    #[test]
    fn the_one_lesion_that_stands_out_gets_the_small_p() {
        let heads: Vec<Component> =
            (0..30).map(|i| Component::Head { layer: i / 10, head: i % 10 }).collect();
        let mut divergences: Vec<f64> = (0..30).map(|i| 0.001 * (1.0 + f64::from(i % 7))).collect();
        divergences[13] = 0.9;
        let q = stats::q_values(&p_values(&heads, &divergences, 3));
        assert!(q[13] < 0.01 && q.iter().enumerate().all(|(i, q)| i == 13 || *q > 0.05), "{q:?}");
    }
}
