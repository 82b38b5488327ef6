//! A goal as it is asked for, and the goal of a model that comes of it.

use super::goal::{Goal, GoalKind, Mean};
use super::problem::Prompt;
use crate::edit::Trial;
use crate::error::{Error, Result};
use crate::evaluate::{Evaluator as _, ModelEvaluator, Request};
use crate::model::Model;

/// Tokens that a model caught in a loop repeats.
const LOOP: usize = 8;

/// The goal of a search as the user states it, before it is put into tokens of a model.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Kind of goal.
    pub kind: GoalKind,
    /// The text to say or to find improbable ([`GoalKind::Target`], [`GoalKind::Loss`]).
    pub text: &'a str,
    /// Sharpness of mellowmax over the text's tokens; `None`: their mean.
    pub mellowmax: Option<f64>,
    /// Tokens of the suffix.
    pub length: usize,
}

impl Wanted<'_> {
    /// Returns the goal on a model. `neutral` is the token of a suffix that says nothing: what the
    /// model predicts after `prompt` with such a suffix is what it is to repeat in a loop.
    ///
    /// # Errors
    /// [`Error::Request`] for a goal without a text, a text of no tokens, a sharpness that is not a
    /// positive number, or a model without a token that ends texts; what the evaluator refuses.
    pub fn goal(&self, evaluator: &ModelEvaluator, prompt: &Prompt, neutral: u32) -> Result<Goal> {
        let model = evaluator.model;
        let continuation = match self.kind {
            GoalKind::Target | GoalKind::Loss => encode_continuation(model, self.text)?,
            GoalKind::Away => Vec::new(),
            GoalKind::End => {
                let end = model.config.eos_token_ids.first().or(model.config.bos_token_id.as_ref());
                vec![*end.ok_or_else(|| {
                    Error::request(format!("{} has no token that ends a text", model.name))
                })?]
            }
            // Of the token that the model would say first anyway.
            GoalKind::Loop => {
                let trial = Trial::new(prompt.with(&vec![neutral; self.length]), []);
                let observed = evaluator.observe(&[Request::new(trial)])?;
                let first = observed.first().and_then(|o| o.top.first()?.first().copied());
                vec![first.ok_or_else(|| Error::internal("the model predicts nothing"))?.0; LOOP]
            }
        };
        if continuation.is_empty() && self.kind != GoalKind::Away {
            return Err(Error::request("target: no text"));
        }
        let mean = match self.mellowmax {
            None => Mean::Arithmetic,
            Some(alpha) if alpha.is_finite() && alpha > 0.0 => Mean::Mellowmax { alpha },
            Some(alpha) => {
                return Err(Error::request(format!(
                    "mellowmax {alpha}: expected a number above 0"
                )));
            }
        };
        Ok(Goal { kind: self.kind, continuation, mean })
    }
}

/// Encodes text that something stands before: without a BOS.
///
/// # Errors
/// [`Error::Request`] for a model without a tokenizer.
pub fn encode_continuation(model: &Model, text: &str) -> Result<Vec<u32>> {
    match &model.tokenizer {
        Some(tokenizer) => tokenizer.encode(text),
        None => model.encode(text),
    }
}
