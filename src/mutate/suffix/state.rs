//! The options of a search and its state after each step.

use serde::{Deserialize, Serialize};

use super::problem::{Problem, Scored};
use crate::error::Result;

/// A method of searching suffixes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Algorithm {
    /// Greedy coordinate gradient (Zou et al. 2023): by the gradient of the one-hot tokens.
    Gcg,
    /// Beam search (Sadasivan et al. 2024): token by token from the model's own predictions,
    /// without gradients.
    Beast,
    /// Soft prompt (Schwinn et al. 2024): embeddings by gradient descent, and the nearest tokens.
    Soft,
}

/// Options of a search. A state belongs to the options that it was made with: a search resumed with
/// others is refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SuffixOptions {
    /// Method.
    pub algorithm: Algorithm,
    /// Seed of all draws.
    pub seed: u64,
    /// Length of the suffix in tokens.
    pub length: usize,
    /// Number of steps; a beam search takes one per token of the suffix instead.
    pub steps: usize,
    /// Candidates of the first step.
    pub width: usize,
    /// Candidates of the last step; between the two the width changes evenly.
    pub last_width: usize,
    /// Tokens that the gradient ranks highest at each place, from which candidates are drawn.
    pub top_k: usize,
    /// Tokens that a candidate replaces at once.
    pub replace: usize,
    /// Number of best suffixes kept to continue from; 0 always continues from the latest.
    pub buffer: usize,
    /// Largest number of a step's best candidates that are also tried together; below 2: none.
    pub merge: usize,
    /// Lets some candidates copy runs of the target's own tokens.
    #[serde(default)]
    pub copies: bool,
    /// Only suffixes that round-trip through the tokenizer are candidates.
    pub text: bool,
    /// The rungs of successive halving, as (layers run so far, share of the candidates kept there).
    /// Empty: every candidate runs to the last layer.
    #[serde(rename = "stages")]
    pub rungs: Vec<(usize, f64)>,
}

/// A suffix and its loss, mean over the prompts it was measured on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScoredSuffix {
    /// Ids of the suffix.
    pub suffix: Vec<u32>,
    /// Loss, in the unit of the goal.
    pub loss: f64,
}

/// A suffix that reached the goal in every prompt of the search so far.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reached {
    /// Step that found it, from 1.
    pub step: usize,
    /// Number of prompts that it was measured on.
    pub prompts: usize,
    /// Ids of the suffix.
    pub suffix: Vec<u32>,
    /// Mean loss over these prompts.
    pub loss: f64,
    /// True if it round-trips: its text, in every prompt, encodes to the same tokens again.
    #[serde(rename = "survives")]
    pub round_trips: bool,
}

/// Figures of one step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Loss of the suffix that the step ended with.
    pub loss: f64,
    /// Smallest loss so far.
    pub best: f64,
    /// Candidates sampled.
    pub candidates: usize,
    /// Candidates run through the whole model, merged ones included.
    pub exact: usize,
    /// Candidates that reached the goal.
    pub reached: usize,
    /// Prompts of the search at this step.
    pub prompts: usize,
}

/// State of a descent in embedding space.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Descent {
    /// The soft suffix, `[length, d_model]`.
    pub embeddings: Vec<f32>,
    /// First and second moments of Adam, `[length, d_model]` each.
    pub moments: [Vec<f32>; 2],
    /// Smallest loss of embeddings so far.
    pub best: f64,
    /// First step whose embeddings made the model say the continuation, greedily, in all prompts.
    pub reached: Option<usize>,
}

impl Descent {
    /// Returns true if embeddings and moments have `values` values each.
    pub(super) fn fits(&self, values: usize) -> bool {
        self.moments.iter().chain([&self.embeddings]).all(|x| x.len() == values)
    }
}

/// State of a search after a step: all that the next step depends on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SearchState {
    /// Steps taken.
    pub step: usize,
    /// Suffixes to continue from, best first; never empty.
    pub buffer: Vec<ScoredSuffix>,
    /// Suffix of the smallest loss so far.
    pub best: ScoredSuffix,
    /// Suffixes that reached the goal, those in the most prompts first.
    pub reached: Vec<Reached>,
    /// Among suffixes that do not reach the goal in all prompts, the one of the smallest loss.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fails: Option<ScoredSuffix>,
    /// Prompts in the search so far: one more whenever the goal is reached in all of them.
    pub prompts: usize,
    /// Figures of every step.
    pub trace: Vec<Step>,
    /// Descent in embedding space, for [`Algorithm::Soft`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub soft: Option<Descent>,
}

/// Largest number of suffixes kept that reached the goal.
const MAX_REACHED: usize = 64;

impl SearchState {
    /// Returns the state before the first step: a neutral suffix.
    ///
    /// # Errors
    /// Those of the evaluator.
    pub fn new(problem: &Problem, options: &SuffixOptions) -> Result<Self> {
        // A beam search begins with an empty suffix.
        let length = if options.algorithm == Algorithm::Beast { 0 } else { options.length };
        let suffix = vec![problem.tokens.neutral; length];
        let loss = problem.score(1, &suffix, &[vec![]])?[0].loss;
        let start = ScoredSuffix { suffix, loss };
        Ok(Self {
            step: 0,
            buffer: vec![start.clone()],
            best: start,
            reached: Vec::new(),
            fails: None,
            prompts: 1,
            trace: Vec::new(),
            soft: None,
        })
    }

    /// Returns the suffix that the next step changes.
    pub(super) fn current(&self) -> &ScoredSuffix {
        &self.buffer[0]
    }

    /// Returns true if no further step is due.
    pub fn ended(&self, options: &SuffixOptions) -> bool {
        self.step
            >= if options.algorithm == Algorithm::Beast { options.length } else { options.steps }
    }

    /// Records the measurements of a step. `update_buffer` gets all of them, best first, and sets
    /// the suffixes that the next step begins with.
    pub(super) fn record(
        &mut self,
        mut scored: Vec<(Vec<u32>, Scored)>,
        problem: &Problem,
        step: Step,
        update_buffer: impl FnOnce(&[(Vec<u32>, Scored)], &mut Vec<ScoredSuffix>),
    ) -> Result<Step> {
        self.step += 1;
        scored.sort_by(|a, b| a.1.loss.total_cmp(&b.1.loss).then(a.0.cmp(&b.0)));
        for (suffix, score) in scored.iter().filter(|(_, score)| score.reached) {
            if self
                .reached
                .iter()
                .all(|known| known.suffix != *suffix || known.prompts < self.prompts)
            {
                let round_trips = problem.round_trips(self.prompts, suffix);
                let (step, prompts, loss) = (self.step, self.prompts, score.loss);
                self.reached.push(Reached {
                    step,
                    prompts,
                    suffix: suffix.clone(),
                    loss,
                    round_trips,
                });
            }
        }
        self.reached.sort_by(|a, b| b.prompts.cmp(&a.prompts).then(a.loss.total_cmp(&b.loss)));
        self.reached.truncate(MAX_REACHED);
        let closest = scored.iter().find(|(_, score)| !score.reached).map(ScoredSuffix::new);
        self.fails =
            closest.into_iter().chain(self.fails.take()).min_by(|a, b| a.loss.total_cmp(&b.loss));
        // Without any candidate (none round-trips, say) the suffix stays.
        if let Some(best) = scored.first() {
            let (newest, reached) = (ScoredSuffix::new(best), best.1.reached);
            update_buffer(&scored, &mut self.buffer);
            if newest.loss < self.best.loss {
                self.best = newest.clone();
            }
            if reached && self.prompts < problem.prompts.len() {
                // Losses over one more prompt cannot be compared with those so far.
                self.prompts += 1;
                self.fails = None;
                let loss = problem.score(self.prompts, &newest.suffix, &[vec![]])?[0].loss;
                self.best = ScoredSuffix { loss, ..newest };
                self.buffer = vec![self.best.clone()];
            }
        }
        let step = Step { loss: self.current().loss, best: self.best.loss, ..step };
        self.trace.push(step);
        Ok(step)
    }
}

impl ScoredSuffix {
    /// Returns a measured suffix without the rest of its score.
    pub(super) fn new((suffix, score): &(Vec<u32>, Scored)) -> Self {
        Self { suffix: suffix.clone(), loss: score.loss }
    }
}
