//! The prompts that findings are put into: passages of text, and echo prompts with other examples.

use std::sync::OnceLock;

use rand::Rng as _;
use rand::seq::SliceRandom as _;

use super::transplant::{echoed, transplant, transplant_echo};
use crate::echo::EchoPrompt;
use crate::edit::{Edit, Trial};
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
/// Echo prompts that are made; those under which the model repeats its ordinary token are used.
const ECHO_PROMPTS: usize = 48;
/// Probability with which that token must be repeated.
const LEAST_ECHO: f64 = 0.5;

/// Prompts that no search has used.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NewPrompts {
    /// Passages of text by name, BOS first where the model has one.
    pub passages: Vec<(String, Vec<u32>)>,
    /// Echo prompts. Whether the model repeats their ordinary token is asked when it matters.
    pub echo: Vec<NewEcho>,
}

/// An echo prompt that can be chosen if the model does in it what it is asked to.
#[derive(Debug, Clone, PartialEq)]
pub struct NewEcho {
    prompt: EchoPrompt,
    repeated: OnceLock<bool>,
}

impl NewEcho {
    /// Takes a prompt of which it isn't known yet whether the model repeats the token.
    pub fn new(prompt: EchoPrompt) -> Self {
        Self { prompt, repeated: OnceLock::new() }
    }
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
    /// Tokenizes the passages and makes echo prompts; `used` are those of the search, which are
    /// left out. A model without a tokenizer has neither.
    ///
    /// # Errors
    /// Those of the tokenizer.
    pub fn new(model: &Model, vocabulary: &Vocabulary, used: &[EchoPrompt]) -> Result<Self> {
        let mut new = Self::default();
        if model.tokenizer.is_none() {
            return Ok(new);
        }
        for (index, passage) in passages().enumerate() {
            new.passages.push((format!("passage {}", index + 1), in_context(model, passage)?));
        }
        let mut rng = rng::stream(0, "new echo prompts");
        let made = EchoPrompt::random(model, &vocabulary.ordinary, ECHO_PROMPTS, &mut rng)?;
        new.echo = made.into_iter().filter(|p| !used.contains(p)).map(NewEcho::new).collect();
        Ok(new)
    }

    /// Leaves out the passages that one of these prompts is a beginning of.
    #[must_use]
    pub fn without(mut self, used: &[Vec<u32>]) -> Self {
        self.passages.retain(|(_, ids)| used.iter().all(|prompt| !ids.starts_with(prompt)));
        self
    }

    /// Chooses up to `count` prompts by `rng` and puts the edits of `trial` into each. For an
    /// oracle about one given text that text stays the continuation, and there are prompts for
    /// insertions alone: a suffix replaces one that is part of its own prompt. Echo prompts are
    /// chosen among those in which `evaluator`'s model repeats the ordinary token.
    ///
    /// # Errors
    /// Those of the evaluator.
    pub fn choose(
        &self,
        evaluator: &dyn Evaluator,
        trial: &Trial,
        oracle: OracleKind,
        bos: Option<u32>,
        count: usize,
        rng: &mut Rng,
    ) -> Result<Vec<(String, Trial)>> {
        let keeps = oracle.oracle().keeps_continuation();
        if keeps && !trial.edits.iter().all(|edit| matches!(edit, Edit::Insert { .. })) {
            return Ok(Vec::new());
        }
        if is_echo(trial) {
            let mut all: Vec<&NewEcho> = self.echo.iter().collect();
            all.shuffle(rng);
            return choose_echo(evaluator, trial, &all, count);
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
            let continued = match keeps {
                true => trial.continuation.clone(),
                false => ids[at..at + continuation].into(),
            };
            let prompt = Trial::new(&ids[..at], continued);
            let first = prompt.first_editable(bos);
            chosen.extend(transplant(trial, &prompt, first).map(|put| (name.clone(), put)));
        }
        Ok(chosen)
    }
}

/// Puts the edits of `trial` into the first `count` of `prompts` in which the model repeats the
/// ordinary token. No more are run than it takes to find these.
fn choose_echo(
    evaluator: &dyn Evaluator,
    trial: &Trial,
    prompts: &[&NewEcho],
    count: usize,
) -> Result<Vec<(String, Trial)>> {
    let all: Vec<(&NewEcho, Trial)> = (prompts.iter())
        .filter_map(|&new| Some((new, transplant_echo(trial, &new.prompt)?)))
        .collect();
    let (mut chosen, mut rest) = (Vec::new(), &all[..]);
    while chosen.len() < count && !rest.is_empty() {
        let (few, after) = rest.split_at(rest.len().min(count - chosen.len()));
        rest = after;
        let unknown: Vec<&NewEcho> =
            few.iter().map(|(new, _)| *new).filter(|new| new.repeated.get().is_none()).collect();
        let requests: Vec<Request> =
            unknown.iter().map(|new| Request::new(new.prompt.baseline())).collect();
        for (new, observed) in unknown.iter().zip(evaluator.observe(&requests)?) {
            new.repeated.get_or_init(|| (-observed.loss()).exp() >= LEAST_ECHO);
        }
        let repeated = few.iter().filter(|(new, _)| new.repeated.get() == Some(&true));
        chosen.extend(repeated.map(|(new, there)| (new.prompt.name.clone(), there.clone())));
    }
    Ok(chosen)
}

/// Returns true if a trial asks for the token that it shows; in any other the continuation is text.
pub fn is_echo(trial: &Trial) -> bool {
    echoed(trial).is_some()
        && trial.edits.iter().any(|edit| edit.position() >= Some(trial.base.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::Observation;
    use crate::testing::fake::FakeEvaluator;

    /// Counts what it is asked.
    #[derive(Default)]
    struct Counting(std::sync::Mutex<usize>);

    impl Evaluator for Counting {
        fn observe(&self, requests: &[Request]) -> Result<Vec<Observation>> {
            *self.0.lock().unwrap() += requests.len();
            FakeEvaluator.observe(requests)
        }

        fn observe_alone(&self, request: &Request) -> Result<Observation> {
            FakeEvaluator.observe_alone(request)
        }
    }

    #[test]
    fn echo_prompts_are_run_until_enough_are_repeated() {
        // The fake model repeats no token where 666 is in the prompt: here in every other one.
        let prompt = |i: u32| {
            let base = [if i.is_multiple_of(2) { 666 } else { 9 }, 80 + i, 6, 80 + i, 7];
            let (name, slots, token) = (i.to_string(), vec![1, 3], 80 + i);
            EchoPrompt { name, base: base.into(), slots, token }
        };
        let made: Vec<NewEcho> = (0..20).map(prompt).map(NewEcho::new).collect();
        let new = NewPrompts { echo: made, ..NewPrompts::default() };
        let (trial, evaluator) = (prompt(1).with_token(70), Counting::default());
        let choose = |count, seed| {
            let mut rng = rng::stream(seed, "test");
            let oracle = OracleKind::Echo;
            let chosen = new.choose(&evaluator, &trial, oracle, None, count, &mut rng).unwrap();
            let names: Vec<u32> = chosen.iter().map(|(name, _)| name.parse().unwrap()).collect();
            assert!(names.iter().all(|i| i % 2 == 1), "{names:?}");
            let asked = std::mem::take(&mut *evaluator.0.lock().unwrap());
            (names, asked)
        };
        let (three, asked) = choose(3, 1);
        assert!(three.len() == 3 && (3..12).contains(&asked), "{three:?} {asked}");
        assert_eq!(choose(3, 1), (three.clone(), 0), "what is known is not asked again");
        // The first are the same ones, whatever is known already.
        let (all, asked_then) = choose(20, 1);
        assert_eq!((all.len(), &all[..3], asked + asked_then), (10, &three[..], 20));
        assert_eq!(choose(20, 2).1, 0);
    }

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
