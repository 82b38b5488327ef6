//! Echo prompts, which ask a model to repeat a token (Rumbelow and Watkins 2023,
//! "SolidGoldMagikarp"). They are built from ids, never from text: text would be tokenised again,
//! and the tokens of interest are those that no text encodes to.

use std::sync::Arc;

use rand::Rng as _;
use rand::seq::index;

use crate::edit::{Edit, Trial};
use crate::error::{Error, Result};
use crate::evaluate::{Evaluator, Request};
use crate::model::{Model, Tokenizer};
use crate::rng::Rng;

/// A few-shot prompt that shows how a token is repeated and asks for it once more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EchoPrompt {
    /// Name of the template.
    pub name: String,
    /// Ids of the prompt, with [`EchoPrompt::token`] in the slots.
    pub base: Arc<[u32]>,
    /// Positions of the token in `base`.
    pub slots: Vec<usize>,
    /// The ordinary token of the unedited prompt; the continuation is this token again.
    pub token: u32,
}

/// Words for the examples; those that are a single token in a vocabulary are used.
const WORDS: [&str; 24] = [
    " house", " water", " letter", " river", " seven", " morning", " people", " window", " answer",
    " country", " great", " mother", " night", " found", " under", " public", " money", " light",
    " horse", " church", " world", " king", " sea", " child",
];

/// Templates: name, text before the token, text between its two places, text after.
const TEMPLATES: [(&str, &str, &str, &str); 3] = [
    ("say", "Say \"", "\": \"", "\".\n"),
    ("input-output", "Input: \"", "\" Output: \"", "\"\n"),
    ("repeat", "Repeat:", "", "\n"),
];

/// Examples in a prompt.
const SHOTS: usize = 8;

impl EchoPrompt {
    /// Returns every template that this model's vocabulary can fill.
    ///
    /// # Errors
    /// Those of the tokenizer.
    pub fn candidates(model: &Model) -> Result<Vec<Self>> {
        let bos: Vec<u32> = model.config.bos_token_id.into_iter().collect();
        let Some(tokenizer) = &model.tokenizer else { return Ok(Self::by_ids(model, bos)) };
        let single =
            |word: &str| tokenizer.encode(word).ok().filter(|ids| ids.len() == 1).map(|ids| ids[0]);
        let words: Vec<u32> = WORDS.into_iter().filter_map(single).take(SHOTS + 1).collect();
        let Some((&stand_in, examples)) = words.split_last().filter(|(_, rest)| rest.len() >= 2)
        else {
            return Ok(Self::by_ids(model, bos));
        };
        TEMPLATES
            .into_iter()
            .map(|template| Self::filled(tokenizer, template, &bos, examples, stand_in))
            .collect()
    }

    /// Returns `count` prompts whose template, examples and token are drawn from ordinary words of
    /// the vocabulary; none for a model without a tokenizer, or without such words.
    ///
    /// # Errors
    /// Those of the tokenizer.
    pub fn random(
        model: &Model,
        ordinary: &[u32],
        count: usize,
        rng: &mut Rng,
    ) -> Result<Vec<Self>> {
        let bos: Vec<u32> = model.config.bos_token_id.into_iter().collect();
        let Some(tokenizer) = &model.tokenizer else { return Ok(Vec::new()) };
        let is_word = |id: &u32| {
            let text = model.token(*id);
            let word = text.strip_prefix(' ').unwrap_or_default();
            word.len() >= 3 && word.bytes().all(|byte| byte.is_ascii_alphabetic())
        };
        let words: Vec<u32> = ordinary.iter().copied().filter(is_word).collect();
        if words.len() <= SHOTS {
            return Ok(Vec::new());
        }
        (0..count)
            .map(|_| {
                let drawn: Vec<u32> =
                    index::sample(rng, words.len(), SHOTS + 1).iter().map(|i| words[i]).collect();
                let template = TEMPLATES[rng.random_range(0..TEMPLATES.len())];
                Self::filled(tokenizer, template, &bos, &drawn[..SHOTS], drawn[SHOTS])
            })
            .collect()
    }

    /// Fills a template with examples and asks for `token`.
    fn filled(
        tokenizer: &Tokenizer,
        (name, open, between, close): (&str, &str, &str, &str),
        bos: &[u32],
        examples: &[u32],
        token: u32,
    ) -> Result<Self> {
        let (open, between, close) =
            (tokenizer.encode(open)?, tokenizer.encode(between)?, tokenizer.encode(close)?);
        let mut before = bos.to_vec();
        for word in examples {
            before.extend(open.iter().chain([word]).chain(&between).chain([word]).chain(&close));
        }
        before.extend(&open);
        Ok(Self::with_slot(name, before, &between, token))
    }

    /// Returns a prompt without text: pairs of arbitrary ids, `a a b b c c x`.
    fn by_ids(model: &Model, bos: Vec<u32>) -> Vec<Self> {
        // A prime step spreads the ids over the vocabulary and makes them different.
        let id = |i: usize| (i * 7919 % model.config.vocab_size) as u32;
        let before: Vec<u32> =
            bos.into_iter().chain((1..=SHOTS).flat_map(|i| [id(i), id(i)])).collect();
        vec![Self::with_slot("pairs", before, &[], id(SHOTS + 1))]
    }

    /// Joins `before`, a slot with `token` in it, and `between`.
    fn with_slot(name: &str, before: Vec<u32>, between: &[u32], token: u32) -> Self {
        let slots = vec![before.len()];
        let base = before.into_iter().chain([token]).chain(between.iter().copied()).collect();
        Self { name: name.to_owned(), base, slots, token }
    }

    /// Returns the unedited trial: the ordinary token is shown and asked for.
    pub fn baseline(&self) -> Trial {
        Trial::new(self.base.clone(), [self.token])
    }

    /// Returns every position of the token, including the one in the continuation.
    pub fn positions(&self) -> impl Iterator<Item = usize> {
        self.slots.iter().copied().chain([self.base.len()])
    }

    /// Returns the trial in which `id` is shown and asked for instead.
    pub fn with_token(&self, id: u32) -> Trial {
        self.baseline()
            .with_edits(self.positions().map(|position| Edit::Replace { position, id }).collect())
    }

    /// Returns the probability of each of `ids` being repeated when shown.
    ///
    /// # Errors
    /// Those of the evaluator.
    pub fn probabilities(&self, evaluator: &dyn Evaluator, ids: &[u32]) -> Result<Vec<f64>> {
        let requests: Vec<Request> =
            ids.iter().map(|id| Request::new(self.with_token(*id))).collect();
        let observations = evaluator.observe(&requests)?;
        Ok(observations
            .iter()
            .map(|o| f64::from(o.log_probs.first().copied().unwrap_or(f32::NEG_INFINITY)).exp())
            .collect())
    }

    /// Ranks the candidates by their median probability on (at most 64) ordinary tokens, the best
    /// first; at least one.
    ///
    /// # Errors
    /// Those of the evaluator, and [`Error::Request`] where no ordinary token is given.
    pub fn ranked(
        model: &Model,
        evaluator: &dyn Evaluator,
        ordinary: &[u32],
    ) -> Result<Vec<(Self, f64)>> {
        let step = ordinary.len().div_ceil(64).max(1);
        let sample: Vec<u32> = ordinary.iter().copied().step_by(step).collect();
        let mut ranked = Vec::new();
        for prompt in Self::candidates(model)? {
            let median = crate::stats::median(&prompt.probabilities(evaluator, &sample)?);
            if median.is_finite() {
                ranked.push((prompt, median));
            }
        }
        if ranked.is_empty() {
            return Err(Error::request("no ordinary token to test the echo prompt on"));
        }
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
        Ok(ranked)
    }
}
