//! Tokens that a gradient ranks highest after a prompt, for the mutator of suffixes.

use std::sync::Arc;

use super::goal::{Goal, GoalKind, Mean};
use super::problem::{Problem, Prompt};
use super::tokens::Tokens;
use crate::edit::Trial;
use crate::error::Result;
use crate::evaluate::ModelEvaluator;

/// Tokens that the gradient ranks highest at each place of a suffix of one prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Promising {
    /// Ids of the prompt.
    pub base: Arc<[u32]>,
    /// Ids for each place, best first.
    pub places: Vec<Vec<u32>>,
}

/// Length of the suffix whose gradient is taken, and so the longest that is proposed.
const LENGTH: usize = 4;

/// Ids kept for each place.
const KEPT: usize = 64;

impl Promising {
    /// Ranks tokens of suffixes that raise the loss on what follows each of these trials' prompts.
    /// Prompts that fill the model's context are left out.
    ///
    /// # Errors
    /// Those of the evaluator, and of a model without any token for a suffix.
    pub fn after<'t>(
        evaluator: &ModelEvaluator,
        trials: impl Iterator<Item = &'t Trial>,
    ) -> Result<Vec<Self>> {
        let mut all = Vec::new();
        let (context_length, tokens) =
            (evaluator.model.config.max_position_embeddings, Tokens::new(evaluator.model, false)?);
        for trial in
            trials.filter(|t| t.len() + LENGTH <= context_length && !t.continuation.is_empty())
        {
            let prompt = Prompt { before: trial.base.to_vec(), after: Vec::new() };
            let goal = Goal {
                kind: GoalKind::Loss,
                continuation: trial.continuation.to_vec(),
                mean: Mean::Arithmetic,
            };
            let problem = Problem::new(evaluator, vec![prompt], goal, tokens.clone(), LENGTH)?;
            let neutral = problem.tokens.neutral;
            let gradient = problem.gradient(0, &[neutral; LENGTH], &[])?;
            let rows = gradient.tokens.chunks_exact(evaluator.model.config.vocab_size);
            let places = rows.map(|row| problem.tokens.best(row, neutral, KEPT)).collect();
            all.push(Self { base: trial.base.clone(), places });
        }
        Ok(all)
    }
}
