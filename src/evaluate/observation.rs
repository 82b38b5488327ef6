//! The question that an evaluator answers, and its answer: a trial with what to measure on it, and
//! the measurements.

use std::sync::Arc;

use crate::edit::{Component, Trial};
use crate::model::{Distributions, Readout};

/// One trial and what to measure on it. Log-probabilities, entropies and the top tokens at the read
/// positions are always measured; the rest costs more and has to be asked for.
///
/// The *read positions* are those that predict the continuation: the last prompt token and every
/// continuation token but the last. An empty continuation reads the last prompt token alone.
#[derive(Debug, Clone)]
pub struct Request {
    /// The trial that is run.
    pub trial: Trial,
    /// The baseline's distributions at as many read positions; asks for the divergence from them.
    pub reference: Option<Arc<Distributions>>,
    /// Keeps the full distributions, as a reference for other requests.
    pub keep_distributions: bool,
    /// Asks for [`Observation::mean_log_probs`].
    pub centre: bool,
    /// The number of tokens to generate after the prompt.
    pub generate: usize,
    /// Seed with which they are sampled at temperature 1; `None`: greedily.
    pub sample: Option<u64>,
    /// Activations of another run that replace this one's, after the trial's own edits.
    pub patches: Vec<Patch>,
    /// Asks for [`Observation::memory`].
    pub memory: bool,
    /// The number of tokens to generate in other prompts: asks for [`Observation::elsewhere`].
    pub generate_elsewhere: usize,
    /// Asks for [`Observation::disagreement_bits`], which takes a second model.
    pub compare: bool,
}

/// The replacement of a component's output by values from another run.
#[derive(Debug, Clone)]
pub struct Patch {
    /// The component whose output is replaced.
    pub component: Component,
    /// The first replaced position, in the edited sequence.
    pub first: usize,
    /// `[positions, width of the component]`, row-major.
    pub values: Arc<[f32]>,
}

impl Request {
    /// Asks for what is always measured.
    pub fn new(trial: Trial) -> Self {
        Self {
            trial,
            reference: None,
            keep_distributions: false,
            centre: false,
            generate: 0,
            sample: None,
            patches: Vec::new(),
            memory: false,
            generate_elsewhere: 0,
            compare: false,
        }
    }

    /// Asks for the divergence from `reference` as well.
    pub fn with_reference(mut self, reference: Arc<Distributions>) -> Self {
        self.reference = Some(reference);
        self
    }

    /// Asks for the full distributions as well.
    pub fn keeping_distributions(mut self) -> Self {
        self.keep_distributions = true;
        self
    }

    /// Asks for the mean log-probabilities over the vocabulary as well.
    pub fn centred(mut self) -> Self {
        self.centre = true;
        self
    }

    /// Applies these patches after the trial's own edits.
    pub fn patched(mut self, patches: Vec<Patch>) -> Self {
        self.patches = patches;
        self
    }

    /// Asks for so many greedily generated tokens as well.
    pub fn generating(mut self, tokens: usize) -> Self {
        self.generate = tokens;
        self
    }

    /// Asks for so many tokens sampled at temperature 1 as well.
    pub fn sampling(mut self, tokens: usize, seed: u64) -> Self {
        (self.generate, self.sample) = (tokens, Some(seed));
        self
    }
}

/// The choices of one router at the read positions.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerRouting {
    /// The layer of the router.
    pub layer: usize,
    /// The number of experts it chooses from.
    pub num_experts: usize,
    /// The chosen experts, `[read positions, num_experts_per_tok]`, largest weight first.
    pub chosen: Vec<u32>,
}

impl LayerRouting {
    /// Returns the experts chosen at each of `positions` read positions.
    pub fn by_position(&self, positions: usize) -> impl Iterator<Item = &[u32]> {
        self.chosen.chunks((self.chosen.len() / positions.max(1)).max(1))
    }
}

/// The measurements of one trial.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Observation {
    /// Log-probability of each continuation token, nats, `[continuation]`.
    pub log_probs: Vec<f32>,
    /// Entropy of the distribution at each read position, nats, `[read positions]`.
    pub entropy: Vec<f32>,
    /// The most probable tokens at each read position with their log-probabilities (nats), best
    /// first, at most [`crate::model::readout::TOP_TOKENS`].
    pub top: Vec<Vec<(u32, f32)>>,
    /// Jensen-Shannon divergence from the reference at each read position, bits in `[0, 1]`; empty
    /// without a reference.
    pub divergence_bits: Vec<f32>,
    /// Jensen-Shannon divergence from a second model on the same trial at each read position, bits
    /// in `[0, 1]`; empty unless asked for, and of an evaluator with one model.
    pub disagreement_bits: Vec<f32>,
    /// Mean of the log-probabilities of all tokens at each read position, nats; empty unless asked
    /// for. What it is subtracted from is a centred logit.
    pub mean_log_probs: Vec<f32>,
    /// True if every logit that was read is finite.
    pub finite: bool,
    /// Greedily generated ids, after the prompt (not after the continuation), up to and including
    /// an end token.
    pub generated: Vec<u32>,
    /// Entropy of the distribution that each of them was chosen from, nats, `[generated]`.
    pub generated_entropy: Vec<f32>,
    /// A sketch of the residual stream at the last prompt token: the signs of 64 random projections
    /// of the final residual, one bit each.
    pub sketch: u64,
    /// The routing at the read positions, for the sparse layers that were computed for this row. (A
    /// row that resumes above a layer is routed there as without its edits.)
    pub routing: Vec<LayerRouting>,
    /// The recurrent layers that were computed, with the natural logarithm of the norm of their
    /// state at the end.
    pub state_norms: Vec<(usize, f32)>,
    /// The effect of the prompt's beginning on the final state, if asked for: the distance between
    /// the states with the first half of the prompt as it is and reversed, over the norm, mean over
    /// the recurrent layers.
    pub memory: Option<f32>,
    /// The ids generated greedily, with the same edits, after other prompts of the same length,
    /// `[prompts, generated]`, if asked for.
    pub elsewhere: Vec<Vec<u32>>,
    /// The full distributions at the read positions, if asked for.
    pub distributions: Option<Arc<Distributions>>,
}

impl Observation {
    /// Collects the readouts of the read positions. With an empty continuation there is one readout
    /// and no log-probability.
    pub(super) fn from_readouts(readouts: Vec<Readout>, continuation: usize) -> Self {
        Self {
            log_probs: readouts.iter().take(continuation).map(|r| r.log_prob).collect(),
            entropy: readouts.iter().map(|r| r.entropy).collect(),
            divergence_bits: readouts.iter().filter_map(|r| r.divergence_bits).collect(),
            mean_log_probs: readouts.iter().filter_map(|r| r.mean_log_prob).collect(),
            finite: readouts.iter().all(|r| r.finite),
            top: readouts.into_iter().map(|r| r.top).collect(),
            ..Self::default()
        }
    }

    /// Returns true if greedy generation would write the continuation: each of its tokens is the
    /// most probable one.
    pub fn says_continuation(&self) -> bool {
        let best = self.top.iter().map(|top| top.first().map_or(f32::INFINITY, |(_, p)| *p));
        self.finite
            && !self.log_probs.is_empty()
            && self.log_probs.iter().zip(best).all(|(p, best)| *p >= best)
    }

    /// Returns the mean entropy over the read positions, nats; 0 without any.
    pub fn mean_entropy(&self) -> f32 {
        self.entropy.iter().sum::<f32>() / self.entropy.len().max(1) as f32
    }

    /// Returns the mean loss of the continuation, nats per token; 0 without a continuation.
    pub fn loss(&self) -> f64 {
        -self.log_probs.iter().map(|&p| f64::from(p)).sum::<f64>()
            / self.log_probs.len().max(1) as f64
    }

    /// Returns the mean Jensen-Shannon divergence over the read positions, bits; 0 without a
    /// reference.
    pub fn mean_divergence_bits(&self) -> f64 {
        self.divergence_bits.iter().map(|&d| f64::from(d)).sum::<f64>()
            / self.divergence_bits.len().max(1) as f64
    }
}
