//! A row of a sweep of lesions.

use serde::Serialize;

use super::FALSE_DISCOVERY;
use super::head_scores::HeadScores;
use crate::edit::Component;

/// The number of texts from which lesions are tested. Of six differences that are all positive, the
/// one-sided p-value is 1/64.
pub const LEAST_TEXTS: usize = 6;

/// One lesion, measured.
#[derive(Debug, Clone, Serialize)]
pub struct LesionRow {
    /// The lesioned component.
    pub component: Component,
    /// Loss of the intact model, nats per token, mean over the texts.
    pub baseline_loss: f64,
    /// Loss without the component, nats per token, mean over the texts.
    pub loss: f64,
    /// The effect: `loss - baseline_loss`, nats per token.
    pub effect: f64,
    /// 95% interval of the effect over texts like these (Student's t); `None` for a single text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub effect_interval: Option<(f64, f64)>,
    /// `exp(effect)`.
    pub perplexity_ratio: f64,
    /// Mean Jensen-Shannon divergence over the texts, bits.
    pub divergence_bits: f64,
    /// The effects of noise of the same norm in random directions, nats per token, means over some
    /// of the texts; `None` where they were not measured, because the lesion was not found to cost
    /// more than [`LEAST_NATS`](super::LEAST_NATS) or the texts are too few to test.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub noise_effects: Option<Vec<f64>>,
    /// The lesion's own effect on the texts of `noise_effects`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compared_effect: Option<f64>,
    /// P-value of costing more than [`LEAST_NATS`](super::LEAST_NATS) and not what noise of the
    /// same norm costs; `None` with fewer than [`LEAST_TEXTS`] texts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p_value: Option<f64>,
    /// Benjamini-Hochberg q-value over the components of the sweep.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub q_value: Option<f64>,
    /// Robust z-score of the log divergence among its peers; `None` with too few of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outlier_score: Option<f64>,
    /// For an expert, the share of its router's choices on the texts that fell on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub routed_share: Option<f64>,
    /// For a head of attention, how it attends and what it copies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head: Option<HeadScores>,
}

impl LesionRow {
    /// Returns whether the lesion costs more than noise of the same norm, on the same texts.
    pub fn is_above_noise(&self) -> bool {
        self.noise_effect().zip(self.compared_effect).is_some_and(|(noise, effect)| noise < effect)
    }

    /// Returns the mean effect of noise of the same norm, nats per token.
    pub fn noise_effect(&self) -> Option<f64> {
        let effects = self.noise_effects.as_ref()?;
        Some(effects.iter().sum::<f64>() / effects.len() as f64)
    }

    /// Returns whether the component costs something, and something else than noise of the same
    /// norm, at a false discovery rate of 5%.
    pub fn is_flagged(&self) -> bool {
        self.q_value.is_some_and(|q| q <= FALSE_DISCOVERY)
    }
}
