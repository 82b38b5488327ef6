//! How a search goes, and how far it is.

use serde::{Deserialize, Serialize};

use super::problem::{Problem, Scored};
use crate::error::Result;

/// How suffixes are searched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Algorithm {
    /// By the gradient of the one-hot tokens.
    Gcg,
    /// Token by token, out of what the model itself would say next: no gradient.
    Beast,
    /// Embeddings by gradient descent, and the tokens nearest to them.
    Soft,
}

/// How the search goes. Every field is part of what is searched: a state belongs to its options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    pub algorithm: Algorithm,
    pub seed: u64,
    /// Tokens of the suffix.
    pub length: usize,
    pub steps: usize,
    /// Candidates of the first step and of the last; between them the width falls evenly.
    pub width: usize,
    pub last_width: usize,
    /// Tokens that the gradient expects most of, at each place, from which candidates draw.
    pub top_k: usize,
    /// Tokens that a candidate replaces at once.
    pub replace: usize,
    /// The best suffixes kept to go on from; 0: always from the newest, better or not.
    pub buffer: usize,
    /// At most so many of the best single replacements are tried together; below 2: none.
    pub merge: usize,
    /// Whether runs of the target's own tokens are among the candidates.
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
pub struct Entry {
    pub suffix: Vec<u32>,
    pub loss: f64,
}

/// A suffix that reached the goal, in every prompt there was by then.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reached {
    pub step: usize,
    pub prompts: usize,
    pub suffix: Vec<u32>,
    pub loss: f64,
    /// Whether it round-trips: its text, in every prompt, encodes to the same tokens again.
    #[serde(rename = "survives")]
    pub round_trips: bool,
}

/// One step, for those who watch.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Of the suffix that the step ended with.
    pub loss: f64,
    pub best: f64,
    /// Candidates sampled, and those run to the end (merged ones among them).
    pub candidates: usize,
    pub exact: usize,
    pub reached: usize,
    pub prompts: usize,
}

/// How far a descent in embedding space has come.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Descent {
    /// `[length, d_model]`.
    pub embeddings: Vec<f32>,
    /// Of Adam.
    pub moments: [Vec<f32>; 2],
    /// The least loss of embeddings so far.
    pub best: f64,
    /// Whether some embeddings made the model say the continuation, greedily, in all prompts, and
    /// the first step that did.
    pub reached: Option<usize>,
}

impl Descent {
    /// Whether there are so many embedding values, and moments of each.
    pub(super) fn fits(&self, values: usize) -> bool {
        self.moments.iter().chain([&self.embeddings]).all(|x| x.len() == values)
    }
}

/// The search so far: all there is to go on from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    pub step: usize,
    /// Best first; never empty.
    pub buffer: Vec<Entry>,
    pub best: Entry,
    pub reached: Vec<Reached>,
    /// Of the suffixes that do not reach the goal in all prompts the one of the least loss.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fails: Option<Entry>,
    /// Prompts searched on so far: one more whenever all of them are reached.
    pub prompts: usize,
    pub trace: Vec<Step>,
    /// Of a search in embedding space.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub soft: Option<Descent>,
}

/// Suffixes kept of those that reached the goal.
const REACHED: usize = 64;

impl State {
    pub fn new(problem: &Problem, options: &Options) -> Result<Self> {
        // A beam search begins with nothing at all.
        let length = if options.algorithm == Algorithm::Beast { 0 } else { options.length };
        let suffix = vec![problem.tokens.neutral; length];
        let loss = problem.score(1, &suffix, &[vec![]])?[0].loss;
        let start = Entry { suffix, loss };
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

    /// The suffix that the next step changes.
    pub(super) fn current(&self) -> &Entry {
        &self.buffer[0]
    }

    /// Whether there is no further step.
    pub fn ended(&self, options: &Options) -> bool {
        self.step
            >= if options.algorithm == Algorithm::Beast { options.length } else { options.steps }
    }

    /// Takes what a step measured into the state. `goes_on` says, of all that was measured, best
    /// first, with which suffixes the next step begins.
    pub(super) fn take(
        &mut self,
        mut scored: Vec<(Vec<u32>, Scored)>,
        problem: &Problem,
        step: Step,
        goes_on: impl FnOnce(&[(Vec<u32>, Scored)], &mut Vec<Entry>),
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
        self.reached.truncate(REACHED);
        let closest = scored.iter().find(|(_, score)| !score.reached).map(Entry::of);
        self.fails =
            closest.into_iter().chain(self.fails.take()).min_by(|a, b| a.loss.total_cmp(&b.loss));
        // Without any candidate (none round-trips, say) the suffix stays.
        if let Some(best) = scored.first() {
            let (newest, reached) = (Entry::of(best), best.1.reached);
            goes_on(&scored, &mut self.buffer);
            if newest.loss < self.best.loss {
                self.best = newest.clone();
            }
            if reached && self.prompts < problem.prompts.len() {
                // With one prompt more the losses so far are of another kind.
                self.prompts += 1;
                self.fails = None;
                let loss = problem.score(self.prompts, &newest.suffix, &[vec![]])?[0].loss;
                self.best = Entry { loss, ..newest };
                self.buffer = vec![self.best.clone()];
            }
        }
        let step = Step { loss: self.current().loss, best: self.best.loss, ..step };
        self.trace.push(step);
        Ok(step)
    }
}

impl Entry {
    pub(super) fn of((suffix, score): &(Vec<u32>, Scored)) -> Self {
        Self { suffix: suffix.clone(), loss: score.loss }
    }
}
