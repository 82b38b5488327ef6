//! What is asked of a trial and what was measured on it.

use std::sync::Arc;

use crate::edit::{Component, Trial};
use crate::model::{Distributions, Readout};

/// One trial and what to measure on it. Log-probabilities, entropies and the top tokens at the read
/// positions are always measured; the rest costs more and is asked for.
///
/// The *read positions* are those that predict the continuation: the last prompt token and every
/// continuation token but the last. An empty continuation reads the last prompt token alone.
#[derive(Debug, Clone)]
pub struct Request {
    pub trial: Trial,
    /// Distributions of the baseline at as many read positions; asks for the divergence from them.
    pub reference: Option<Arc<Distributions>>,
    /// Keep the full distributions (a reference for others).
    pub keep_distributions: bool,
    /// Greedily generate this many tokens after the prompt (0: none).
    pub generate: usize,
    /// Activations put in from another run, after the trial's own edits.
    pub patches: Vec<Patch>,
    /// Measure how much of the beginning is left in the recurrent state at the end.
    pub memory: bool,
}

/// The output of a component replaced by values from another run.
#[derive(Debug, Clone)]
pub struct Patch {
    pub component: Component,
    /// First position (of the edited sequence) that is replaced.
    pub first: usize,
    /// `[positions, width of the component]`, row-major.
    pub values: Arc<[f32]>,
}

impl Request {
    pub fn new(trial: Trial) -> Self {
        Self {
            trial,
            reference: None,
            keep_distributions: false,
            generate: 0,
            patches: Vec::new(),
            memory: false,
        }
    }

    pub fn with_reference(mut self, reference: Arc<Distributions>) -> Self {
        self.reference = Some(reference);
        self
    }

    pub fn keeping_distributions(mut self) -> Self {
        self.keep_distributions = true;
        self
    }

    pub fn patched(mut self, patches: Vec<Patch>) -> Self {
        self.patches = patches;
        self
    }

    pub fn generating(mut self, tokens: usize) -> Self {
        self.generate = tokens;
        self
    }
}

/// The choices of one router.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerRouting {
    pub layer: usize,
    pub num_experts: usize,
    /// `[read positions, num_experts_per_tok]`, the most weighted first.
    pub chosen: Vec<u32>,
}

impl LayerRouting {
    /// The experts of each of as many read positions.
    pub fn by_position(&self, positions: usize) -> impl Iterator<Item = &[u32]> {
        self.chosen.chunks((self.chosen.len() / positions.max(1)).max(1))
    }
}

/// What was measured on one trial.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Observation {
    /// Log-probability of each continuation token, nats, `[continuation]`.
    pub log_probs: Vec<f32>,
    /// Entropy of the distribution at each read position, nats.
    pub entropy: Vec<f32>,
    /// The most probable tokens at each read position with their log-probabilities (nats), best
    /// first, at most [`crate::model::readout::TOP_TOKENS`].
    pub top: Vec<Vec<(u32, f32)>>,
    /// Jensen-Shannon divergence from the reference at each read position, bits in `[0, 1]`; empty
    /// without a reference.
    pub divergence_bits: Vec<f32>,
    /// Whether every logit read was finite.
    pub finite: bool,
    /// Greedily generated ids (after the prompt, not the continuation), up to and including the end
    /// token.
    pub generated: Vec<u32>,
    /// A sketch of the residual stream at the last prompt token: signs of random projections of the
    /// final normalised residual, one bit each.
    pub sketch: u64,
    /// The experts that each read position is routed to, by the sparse layers that were computed
    /// for this row (a row that resumes above a layer is routed there as without its edits).
    pub routing: Vec<LayerRouting>,
    /// Natural logarithm of the norm of the recurrent state at the end, by the recurrent layers
    /// that were computed.
    pub state_norms: Vec<(usize, f32)>,
    /// How much of the beginning is left in the state at the end, when asked for: the distance
    /// between the states with the first half of the prompt as it is and backwards, over the norm,
    /// mean over the recurrent layers.
    pub memory: Option<f32>,
    /// Full distributions, when asked for.
    pub distributions: Option<Arc<Distributions>>,
}

impl Observation {
    /// What was read at the read positions, of which the last has no token of the continuation
    /// where that is empty.
    pub(super) fn from_readouts(readouts: Vec<Readout>, continuation: usize) -> Self {
        Self {
            log_probs: readouts.iter().take(continuation).map(|r| r.log_prob).collect(),
            entropy: readouts.iter().map(|r| r.entropy).collect(),
            divergence_bits: readouts.iter().filter_map(|r| r.divergence_bits).collect(),
            finite: readouts.iter().all(|r| r.finite),
            top: readouts.into_iter().map(|r| r.top).collect(),
            ..Self::default()
        }
    }

    /// Whether greedy generation would write the continuation: each of its tokens is the most
    /// probable one.
    pub fn says_continuation(&self) -> bool {
        let best = self.top.iter().map(|top| top.first().map_or(f32::INFINITY, |(_, p)| *p));
        self.finite
            && !self.log_probs.is_empty()
            && self.log_probs.iter().zip(best).all(|(p, best)| *p >= best)
    }

    /// Mean loss of the continuation, nats per token.
    pub fn loss(&self) -> f64 {
        -self.log_probs.iter().map(|&p| f64::from(p)).sum::<f64>()
            / self.log_probs.len().max(1) as f64
    }

    /// Mean Jensen-Shannon divergence over the read positions, bits.
    pub fn mean_divergence_bits(&self) -> f64 {
        self.divergence_bits.iter().map(|&d| f64::from(d)).sum::<f64>()
            / self.divergence_bits.len().max(1) as f64
    }
}
