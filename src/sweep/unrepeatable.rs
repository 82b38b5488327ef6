//! Why a token is not repeated: what it looks like, how it is read, and whether it can be spelled.

use serde::Serialize;

use crate::echo::EchoPrompt;
use crate::edit::{Edit, Trial};
use crate::error::Result;
use crate::evaluate::{Evaluator, Request};
use crate::model::Model;
use crate::stats;
use crate::vocabulary::Category;

/// The class of a token that is not repeated, the first that applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenClass {
    /// Its embedding looks as if it had never been trained.
    Untrained,
    /// A byte, or several, that are no text by themselves.
    Byte,
    /// White space alone.
    WhiteSpace,
    /// Part of a word: the model expects the word to go on, and finds what follows in the prompt
    /// ten times less probable than after an ordinary token.
    Fragment,
    /// None of these.
    Other,
}

impl TokenClass {
    /// Returns the name in tables and files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Untrained => "untrained",
            Self::Byte => "byte",
            Self::WhiteSpace => "white_space",
            Self::Fragment => "fragment",
            Self::Other => "other",
        }
    }
}

/// A token that follows the prompt with less than this share of the probability that it has after
/// an ordinary token is expected to be continued otherwise.
pub const LEAST_SHARE: f64 = 0.1;

/// What was measured on a token.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Unrepeatable {
    /// Its class.
    pub class: TokenClass,
    /// Probability that the prompt goes on after it as it does; `None` for a prompt that ends with
    /// the token.
    pub goes_on: Option<f64>,
    /// Geometric mean of the probabilities of its letters when the model is asked to spell it, over
    /// that of ordinary words; `None` for what is no word, and for a model that cannot spell.
    pub spelled: Option<f64>,
}

/// Words that the prompt for spelling shows.
const SPELLED: [&str; 4] = ["house", "water", "letter", "morning"];
/// Ordinary words that spelling is compared with.
const ORDINARY: usize = 64;
/// Geometric mean of the probabilities of the letters of ordinary words below which the test is not
/// used.
const LEAST_SPELLING: f64 = 0.5;
/// Requests in one call.
const CHUNK: usize = 256;

/// Measures tokens that are not repeated, in their order. `prompt` is the echo prompt, `ordinary`
/// are the tokens they are compared with, `untrained` says which look untrained.
///
/// # Errors
/// Those of the evaluator and the tokenizer.
pub fn unrepeatable(
    model: &Model,
    evaluator: &dyn Evaluator,
    prompt: &EchoPrompt,
    ids: &[u32],
    ordinary: &[u32],
    categories: &[Category],
    untrained: &dyn Fn(u32) -> bool,
) -> Result<Vec<Unrepeatable>> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let step = ordinary.len().div_ceil(ORDINARY).max(1);
    let ordinary: Vec<u32> = ordinary.iter().copied().step_by(step).collect();
    let usual = stats::median(&present(&goes_on(evaluator, prompt, &ordinary)?));
    let going_on = goes_on(evaluator, prompt, ids)?;
    let ordinary_spelling = stats::median(&present(&spelling(model, evaluator, &ordinary)?));
    let spelled = match ordinary_spelling >= LEAST_SPELLING {
        true => spelling(model, evaluator, ids)?,
        false => vec![None; ids.len()],
    };
    let class = |id: u32, goes_on: Option<f64>| {
        let text = model.token(id);
        if untrained(id) {
            TokenClass::Untrained
        } else if categories.get(id as usize) == Some(&Category::Undecodable) {
            TokenClass::Byte
        } else if text.trim().is_empty() {
            TokenClass::WhiteSpace
        } else if goes_on.is_some_and(|p| p < LEAST_SHARE * usual) {
            TokenClass::Fragment
        } else {
            TokenClass::Other
        }
    };
    Ok(ids
        .iter()
        .zip(going_on.into_iter().zip(spelled))
        .map(|(&id, (goes_on, spelled))| Unrepeatable {
            class: class(id, goes_on),
            goes_on,
            spelled: spelled.map(|p| p / ordinary_spelling),
        })
        .collect())
}

fn present(values: &[Option<f64>]) -> Vec<f64> {
    values.iter().flatten().copied().collect()
}

/// Returns the probability of what follows the token in the prompt.
fn goes_on(
    evaluator: &dyn Evaluator,
    prompt: &EchoPrompt,
    ids: &[u32],
) -> Result<Vec<Option<f64>>> {
    let Some((&slot, &next)) =
        prompt.slots.first().and_then(|slot| Some((slot, prompt.base.get(slot + 1)?)))
    else {
        return Ok(vec![None; ids.len()]);
    };
    let shown = Trial::new(&prompt.base[..=slot], [next]);
    let trials = ids
        .iter()
        .map(|&id| Some(shown.with_edits(vec![Edit::Replace { position: slot, id }])))
        .collect();
    probabilities(evaluator, trials)
}

/// Returns the geometric mean of the probabilities of the letters when a word is to be spelled.
fn spelling(model: &Model, evaluator: &dyn Evaluator, ids: &[u32]) -> Result<Vec<Option<f64>>> {
    let Some(tokenizer) = &model.tokenizer else { return Ok(vec![None; ids.len()]) };
    let letters = |word: &str| {
        word.chars().map(|c| format!(" {}", c.to_ascii_uppercase())).collect::<String>()
    };
    let mut shown = String::new();
    SPELLED
        .iter()
        .for_each(|word| shown += &format!("The word \" {word}\" is spelled:{}\n", letters(word)));
    let bos: Vec<u32> = model.config.bos_token_id.into_iter().collect();
    let open = [bos, tokenizer.encode(&format!("{shown}The word \""))?].concat();
    let close = tokenizer.encode("\" is spelled:")?;
    let trial = |&id: &u32| -> Result<Option<Trial>> {
        let text = model.token(id);
        let word = text.trim();
        if word.len() < 2 || !word.bytes().all(|byte| byte.is_ascii_alphabetic()) {
            return Ok(None);
        }
        let base = [&open[..], &[id], &close].concat();
        Ok(Some(Trial::new(base, tokenizer.encode(&letters(word))?)))
    };
    probabilities(evaluator, ids.iter().map(trial).collect::<Result<_>>()?)
}

fn probabilities(
    evaluator: &dyn Evaluator,
    trials: Vec<Option<Trial>>,
) -> Result<Vec<Option<f64>>> {
    let mut all = Vec::with_capacity(trials.len());
    for chunk in trials.chunks(CHUNK) {
        let requests: Vec<Request> = chunk.iter().flatten().cloned().map(Request::new).collect();
        let mut answers = evaluator.observe(&requests)?.into_iter();
        all.extend(chunk.iter().map(|trial| {
            trial.as_ref().and_then(|_| answers.next()).map(|answer| (-answer.loss()).exp())
        }));
    }
    Ok(all)
}
