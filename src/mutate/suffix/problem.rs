//! A search problem: prompts, goal and tokens, and the scores of candidates on a model.

use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::rungs::prune;
use super::tokens::round_trips;
use super::{Goal, GoalKind, Tokens};
use crate::edit::{Edit, Trial};
use crate::error::{Error, Result};
use crate::evaluate::{
    Evaluator as _, Expected, ModelEvaluator, Observation, OneHotGradient, Request,
};
use crate::model::Distributions;

/// A prompt with a gap for the suffix, as token ids.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prompt {
    /// Ids before the suffix, BOS first where the model has one.
    pub before: Vec<u32>,
    /// Ids after the suffix: the end of the turn, say.
    pub after: Vec<u32>,
}

impl Prompt {
    /// Returns the prompt with a suffix in its gap.
    pub fn with(&self, suffix: &[u32]) -> Vec<u32> {
        [&self.before, suffix, &self.after].concat()
    }
}

/// The score of a candidate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scored {
    /// Mean loss over the prompts, in the unit of the goal.
    pub loss: f64,
    /// True if the goal is reached in every prompt.
    pub reached: bool,
}

/// Prompts, goal and allowed tokens on a model.
pub struct Problem<'a, 'm> {
    /// Evaluator of the model.
    pub evaluator: &'a ModelEvaluator<'m>,
    /// Prompts that one suffix is searched for.
    pub prompts: Vec<Prompt>,
    /// Behaviour that is searched for.
    pub goal: Goal,
    /// Tokens that a suffix may be made of.
    pub tokens: Tokens,
    /// Observations of each prompt with a neutral suffix.
    baselines: Vec<Observation>,
    /// By prompt and suffix length: whether the prompt with a neutral suffix round-trips.
    neutral_round_trips: Vec<Vec<bool>>,
}

impl<'a, 'm> Problem<'a, 'm> {
    /// Checks the parts of a problem and observes every prompt with a neutral suffix of `length`
    /// tokens.
    ///
    /// # Errors
    /// [`Error::Request`] for prompts that are empty or do not fit the model's context, and for a
    /// goal without a text.
    pub fn new(
        evaluator: &'a ModelEvaluator<'m>,
        prompts: Vec<Prompt>,
        goal: Goal,
        tokens: Tokens,
        length: usize,
    ) -> Result<Self> {
        let config = &evaluator.model.config;
        if length == 0 || prompts.is_empty() {
            return Err(Error::request(
                "a search needs a prompt and a suffix of at least one token",
            ));
        }
        if goal.continuation.is_empty() != (goal.kind == GoalKind::Away) {
            return Err(Error::request(
                "every goal but `away` needs a text to predict; `away` has none",
            ));
        }
        for prompt in &prompts {
            let total = prompt.before.len() + length + prompt.after.len() + goal.continuation.len();
            if prompt.before.is_empty() || total > config.max_position_embeddings {
                let context_length = config.max_position_embeddings;
                return Err(Error::request(format!(
                    "prompt, suffix and target take {total} tokens; the context holds \
                    {context_length}, and a prompt needs at least one"
                )));
            }
        }
        let neutral = vec![tokens.neutral; length];
        let request = |prompt: &Prompt| {
            let request = Request::new(Trial::new(prompt.with(&neutral), &goal.continuation[..]));
            if goal.oracle().oracle().needs_reference() {
                request.keeping_distributions()
            } else {
                request
            }
        };
        let baselines = evaluator.observe(&prompts.iter().map(request).collect::<Vec<_>>())?;
        let neutral_round_trips = |prompt: &Prompt| {
            (0..=length)
                .map(|n| round_trips(evaluator.model, &prompt.with(&vec![tokens.neutral; n])))
                .collect()
        };
        let neutral_round_trips = prompts.iter().map(neutral_round_trips).collect();
        Ok(Self { evaluator, prompts, goal, tokens, baselines, neutral_round_trips })
    }

    /// Returns the observation of a prompt with a neutral suffix.
    pub fn baseline(&self, prompt: usize) -> &Observation {
        &self.baselines[prompt]
    }

    fn reference(&self, prompt: usize) -> Option<&Arc<Distributions>> {
        self.baselines[prompt].distributions.as_ref()
    }

    /// Returns a suffix in a prompt as a trial like all others: replacements in a neutral suffix.
    pub fn trial(&self, prompt: usize, suffix: &[u32]) -> Trial {
        let at = self.prompts[prompt].before.len();
        let changed = suffix.iter().enumerate().filter(|(_, id)| **id != self.tokens.neutral);
        let edits = changed.map(|(i, &id)| Edit::Replace { position: at + i, id }).collect();
        let neutral = vec![self.tokens.neutral; suffix.len()];
        Trial::new(self.prompts[prompt].with(&neutral), &self.goal.continuation[..])
            .with_edits(edits)
    }

    /// Returns true if the suffix round-trips through the tokenizer in each of the first `prompts`
    /// prompts: their text encodes to the same tokens again. Where not even the prompt with a
    /// neutral suffix does, the suffix alone must.
    pub fn round_trips(&self, prompts: usize, suffix: &[u32]) -> bool {
        let again = |ids: &[u32]| round_trips(self.evaluator.model, ids);
        self.prompts[..prompts].iter().zip(&self.neutral_round_trips).all(|(prompt, neutral)| {
            if neutral.get(suffix.len()) == Some(&true) {
                again(&prompt.with(suffix))
            } else {
                again(suffix)
            }
        })
    }

    /// Returns a suffix in its prompt and with the continuation: all ids, the positions of the
    /// suffix, and the positions that predict the continuation.
    fn sequence(&self, prompt: usize, suffix: &[u32]) -> (Vec<u32>, Range<usize>, Vec<usize>) {
        let prompt = &self.prompts[prompt];
        let (mut ids, positions) =
            (prompt.with(suffix), prompt.before.len()..prompt.before.len() + suffix.len());
        let read = ids.len() - 1;
        ids.extend(&self.goal.continuation);
        let reads = (read..(ids.len() - 1).max(read + 1)).collect();
        (ids, positions, reads)
    }

    /// Returns the gradient of a prompt's loss with respect to the one-hot tokens of its suffix and
    /// to the residual stream entering `layers`.
    ///
    /// # Errors
    /// Those of the evaluator.
    pub fn gradient(
        &self,
        prompt: usize,
        suffix: &[u32],
        layers: &[usize],
    ) -> Result<OneHotGradient> {
        let (ids, positions, reads) = self.sequence(prompt, suffix);
        let reference = self.reference(prompt).map(|r| r.row(0));
        self.evaluator.one_hot_gradient(&ids, positions, &reads, layers, &|logits, vocabulary| {
            self.goal.loss_of_logits(logits, vocabulary, reference)
        })
    }

    /// Returns the gradient of a prompt's loss with respect to embeddings `[length, d_model]` in
    /// the place of the suffix, and whether the model says the continuation after them.
    ///
    /// # Errors
    /// Those of the evaluator.
    pub fn soft_gradient(
        &self,
        prompt: usize,
        suffix: &[u32],
        embeddings: &[f32],
    ) -> Result<(OneHotGradient, bool)> {
        let (ids, positions, reads) = self.sequence(prompt, suffix);
        let reference = self.reference(prompt).map(|r| r.row(0));
        let says = std::cell::Cell::new(false);
        let loss = |logits: &[f32], vocabulary: usize| {
            let best = |row: &[f32], target: u32| row.iter().all(|x| *x <= row[target as usize]);
            let mut rows = logits.chunks_exact(vocabulary).zip(&self.goal.continuation);
            says.set(
                rows.all(|(row, target)| best(row, *target)) && !self.goal.continuation.is_empty(),
            );
            self.goal.loss_of_logits(logits, vocabulary, reference)
        };
        let gradient = self.evaluator.soft_gradient(&ids, positions, embeddings, &reads, &loss)?;
        Ok((gradient, says.get()))
    }

    /// Observes candidates in a prompt, all in one batch: replacements in a suffix, as lists of
    /// (index in the suffix, id).
    ///
    /// # Errors
    /// Those of the evaluator.
    pub fn observe(
        &self,
        prompt: usize,
        suffix: &[u32],
        candidates: &[Vec<(usize, u32)>],
    ) -> Result<Vec<Observation>> {
        let flat = Trial::new(self.prompts[prompt].with(suffix), &self.goal.continuation[..]);
        let at = self.prompts[prompt].before.len();
        let request = |candidate: &Vec<(usize, u32)>| {
            let edits =
                candidate.iter().map(|&(i, id)| Edit::Replace { position: at + i, id }).collect();
            let request = Request::new(flat.with_edits(edits));
            match self.reference(prompt) {
                Some(reference) if self.goal.oracle().oracle().needs_reference() => {
                    request.with_reference(reference.clone())
                }
                _ => request,
            }
        };
        self.evaluator.observe(&candidates.iter().map(request).collect::<Vec<_>>())
    }

    /// Scores candidates in the first `prompts` prompts together.
    ///
    /// # Errors
    /// Those of the evaluator.
    pub fn score(
        &self,
        prompts: usize,
        suffix: &[u32],
        candidates: &[Vec<(usize, u32)>],
    ) -> Result<Vec<Scored>> {
        let observed = (0..prompts)
            .map(|prompt| self.observe(prompt, suffix, candidates))
            .collect::<Result<Vec<_>>>()?;
        Ok((0..candidates.len())
            .map(|i| self.scored(observed.iter().map(|by_candidate| &by_candidate[i])))
            .collect())
    }

    /// Combines the observations of one candidate in the first prompts, in their order.
    fn scored<'o>(&self, observed: impl Iterator<Item = &'o Observation>) -> Scored {
        let (mut loss, mut reached, mut n) = (0.0, true, 0);
        for (prompt, observation) in observed.enumerate() {
            loss += self.goal.loss(observation);
            reached &= self.goal.reached(observation, &self.baselines[prompt]);
            n += 1;
        }
        Scored { loss: loss / f64::from(n.max(1)), reached }
    }

    /// Scores the candidates that successive halving leaves, exactly as [`score`](Self::score)
    /// does; pruned ones get `None`.
    ///
    /// A rung is a number of layers and the share of the candidates that is kept after them.
    /// `gradients` has one entry a prompt, with the residual gradient at every rung. Candidates
    /// marked in `exempt` are never pruned.
    ///
    /// # Errors
    /// Those of the evaluator.
    pub fn score_by_halving(
        &self,
        suffix: &[u32],
        candidates: &[Vec<(usize, u32)>],
        exempt: &[bool],
        gradients: &[OneHotGradient],
        rungs: &[(usize, f64)],
    ) -> Result<Vec<Option<Scored>>> {
        let mut prompts = Vec::new();
        for prompt in 0..gradients.len() {
            let (ids, positions, _) = self.sequence(prompt, suffix);
            let at = positions.start;
            let moved: Vec<Vec<(usize, u32)>> = candidates
                .iter()
                .map(|c| c.iter().map(|&(i, id)| (at + i, id)).collect())
                .collect();
            let prompt_len = ids.len() - self.goal.continuation.len();
            prompts.push((at, self.evaluator.successive_halving(&ids, prompt_len, &moved)?));
        }
        let mut left: Vec<usize> = (0..candidates.len()).filter(|i| !exempt[*i]).collect();
        for &(layers, share) in rungs {
            let mut expected = vec![Expected::default(); candidates.len()];
            for ((at, halving), gradient) in prompts.iter_mut().zip(gradients) {
                halving.advance(layers)?;
                let at_rung = gradient
                    .residuals
                    .get(&layers)
                    .ok_or_else(|| Error::internal("a rung without a gradient"))?;
                for (sum, in_prompt) in expected.iter_mut().zip(halving.expected(*at, at_rung)?) {
                    let in_prompt = in_prompt.unwrap_or_default();
                    sum.total += in_prompt.total;
                    sum.at_reads += in_prompt.at_reads;
                }
            }
            prune(
                &mut left,
                &expected,
                share,
                layers,
                self.evaluator.model.config.num_hidden_layers,
            );
            let mut keep = exempt.to_vec();
            left.iter().for_each(|i| keep[*i] = true);
            prompts.iter_mut().for_each(|(_, halving)| halving.prune(|i| keep[i]));
        }
        let reference = |prompt| {
            self.reference(prompt).filter(|_| self.goal.oracle().oracle().needs_reference())
        };
        let observed = prompts
            .into_iter()
            .enumerate()
            .map(|(prompt, (_, halving))| halving.finish(reference(prompt)))
            .collect::<Result<Vec<_>>>()?;
        let score = |i: usize| {
            let by_prompt: Option<Vec<&Observation>> =
                observed.iter().map(|by_candidate| by_candidate[i].as_ref()).collect();
            Some(self.scored(by_prompt?.into_iter()))
        };
        Ok((0..candidates.len()).map(score).collect())
    }
}
