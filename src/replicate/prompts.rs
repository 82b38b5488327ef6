//! The prompts that findings are put into: passages of text, and echo prompts with other examples.

use rand::Rng as _;
use rand::seq::SliceRandom as _;

use super::transplant::{echoed, transplant, transplant_echo};
use crate::echo::EchoPrompt;
use crate::edit::Trial;
use crate::error::Result;
use crate::evaluate::{Evaluator, Request};
use crate::model::Model;
use crate::oracle::OracleKind;
use crate::rng::{self, Rng};
use crate::vocabulary::Vocabulary;

/// The bundled passages, one a paragraph. No campaign starts from them.
const PASSAGES: &str = include_str!("../../corpus/passages/passages.txt");

/// Tokens of a passage before the continuation, at least and at most.
const PROMPT_TOKENS: std::ops::Range<usize> = 12..40;
/// Echo prompts that are made; those under which the model repeats its ordinary token are kept.
const ECHO_PROMPTS: usize = 48;
/// Probability with which that token must be repeated.
const LEAST_ECHO: f64 = 0.5;

/// Prompts that no search has used.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NewPrompts {
    /// Passages of text by name, BOS first where the model has one.
    pub passages: Vec<(String, Vec<u32>)>,
    /// Echo prompts under which the model repeats an ordinary token.
    pub echo: Vec<EchoPrompt>,
}

/// Returns the bundled passages, about 60 words each.
pub fn passages() -> impl Iterator<Item = &'static str> {
    PASSAGES.split("\n\n").map(str::trim).filter(|passage| !passage.is_empty())
}

/// Returns a text as token ids, cut off where the model's context ends.
///
/// # Errors
/// Those of the tokenizer.
pub fn in_context(model: &Model, text: &str) -> Result<Vec<u32>> {
    let mut ids = model.encode(text)?;
    ids.truncate(model.config.max_position_embeddings);
    Ok(ids)
}

/// Returns the first `count` bundled passages as token ids, each cut off where the model's context
/// ends.
///
/// # Errors
/// Those of the tokenizer.
pub fn encoded_passages(model: &Model, count: usize) -> Result<Vec<Vec<u32>>> {
    passages().take(count).map(|passage| in_context(model, passage)).collect()
}

impl NewPrompts {
    /// Tokenizes the passages. A model without a tokenizer has none.
    ///
    /// # Errors
    /// Those of the tokenizer.
    fn of_passages(model: &Model) -> Result<Self> {
        let mut new = Self::default();
        if model.tokenizer.is_none() {
            return Ok(new);
        }
        for (index, passage) in passages().enumerate() {
            new.passages.push((format!("passage {}", index + 1), in_context(model, passage)?));
        }
        Ok(new)
    }

    /// Makes the prompts that one trial can be put into. Only those of an echo trial have to be run
    /// first.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn for_trial(
        model: &Model,
        evaluator: &dyn Evaluator,
        vocabulary: &Vocabulary,
        trial: &Trial,
    ) -> Result<Self> {
        match is_echo(trial) {
            true => Self::new(model, evaluator, vocabulary, &[]),
            false => Self::of_passages(model),
        }
    }

    /// Tokenizes the passages and makes echo prompts; `used` are those of the search, which are
    /// left out. A model without a tokenizer has neither.
    ///
    /// # Errors
    /// Those of the tokenizer and the evaluator.
    pub fn new(
        model: &Model,
        evaluator: &dyn Evaluator,
        vocabulary: &Vocabulary,
        used: &[EchoPrompt],
    ) -> Result<Self> {
        let new = Self::of_passages(model)?;
        if model.tokenizer.is_none() {
            return Ok(new);
        }
        let mut rng = rng::stream(0, "new echo prompts");
        let made = EchoPrompt::random(model, &vocabulary.ordinary, ECHO_PROMPTS, &mut rng)?;
        let requests: Vec<Request> =
            made.iter().map(|prompt| Request::new(prompt.baseline())).collect();
        let echo = made
            .into_iter()
            .zip(evaluator.observe(&requests)?)
            .filter(|(prompt, observation)| {
                (-observation.loss()).exp() >= LEAST_ECHO && !used.contains(prompt)
            })
            .map(|(prompt, _)| prompt)
            .collect();
        Ok(Self { echo, ..new })
    }

    /// Chooses up to `count` prompts by `rng` and puts the edits of `trial` into each; none for an
    /// oracle about one given text.
    pub fn choose(
        &self,
        trial: &Trial,
        oracle: OracleKind,
        bos: Option<u32>,
        count: usize,
        rng: &mut Rng,
    ) -> Vec<(String, Trial)> {
        if oracle.oracle().keeps_continuation() {
            return Vec::new();
        }
        if is_echo(trial) {
            let mut all: Vec<&EchoPrompt> = self.echo.iter().collect();
            all.shuffle(rng);
            let put =
                |prompt: &EchoPrompt| Some((prompt.name.clone(), transplant_echo(trial, prompt)?));
            return all.into_iter().filter_map(put).take(count).collect();
        }
        let mut all: Vec<&(String, Vec<u32>)> = self.passages.iter().collect();
        all.shuffle(rng);
        let continuation = trial.continuation.len();
        let mut chosen = Vec::new();
        for (name, ids) in all {
            let room = ids.len().saturating_sub(continuation).min(PROMPT_TOKENS.end);
            if room <= PROMPT_TOKENS.start || chosen.len() == count {
                continue;
            }
            let at = rng.random_range(PROMPT_TOKENS.start..room);
            let prompt = Trial::new(&ids[..at], &ids[at..at + continuation]);
            let first = prompt.first_editable(bos);
            chosen.extend(transplant(trial, &prompt, first).map(|put| (name.clone(), put)));
        }
        chosen
    }
}

/// Returns true if a trial asks for the token that it shows; in any other the continuation is text.
fn is_echo(trial: &Trial) -> bool {
    echoed(trial).is_some()
        && trial.edits.iter().any(|edit| edit.position() >= Some(trial.base.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_passages_are_no_seeds() {
        let all: Vec<&str> = passages().collect();
        assert_eq!(all.len(), 32);
        assert!(all.iter().all(|passage| (240..400).contains(&passage.len())));
        let seeds = std::fs::read_dir("corpus/seeds").unwrap();
        for seed in seeds {
            let text = std::fs::read_to_string(seed.unwrap().path()).unwrap();
            assert!(all.iter().all(|passage| !text.contains(&passage[..40])));
        }
    }
}
