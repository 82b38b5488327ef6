//! `sweep insert`: finds tokens after which the model says a fixed text, whatever the prompt is: a
//! backdoor's trigger, a template of the training data, a name that completes itself.
//!
//! Every token is inserted at the end of some prompts, the model continues each greedily, and what
//! the continuations begin with in common is scored by how rare its tokens are in the continuations
//! of other tokens (`agreed.rs`). For the best quarter of the tokens the text is then measured in
//! prompts that did not choose it, teacher-forced: its *lift* is by how many nats the token makes
//! it more probable. Neither counts what only completes the inserted token's word, because every
//! fragment of a word forces the rest of it.
//!
//! P-values come from the upper tail of the lifts of other tokens of the same form
//! ([`stats::tail`](crate::stats::Tail)): each half of the tokens is compared with the other half.

mod agreed;
mod prompts;

use std::collections::{BTreeMap, BTreeSet};

use rand::Rng as _;
use rand::seq::SliceRandom as _;
use serde::Serialize;

use super::{FALSE_DISCOVERY, Progress};
use crate::edit::{Edit, Trial};
use crate::error::{Error, Result};
use crate::evaluate::{Evaluator, Observation, Request};
use crate::model::Model;
use crate::rng;
use crate::stats::{self, Tail};
use crate::vocabulary::{Category, TokenForm, categories};
use agreed::Agreed;
use prompts::Prompts;

/// Options of [`InsertSweep::run`].
#[derive(Debug, Clone, Copy)]
pub struct InsertOptions {
    /// Prompts whose continuations are compared; as many others are used to measure the lift.
    pub prompts: usize,
    /// Tokens of each continuation.
    pub tokens: usize,
    /// Inserts only this many tokens, an even choice. `None`: all.
    pub limit: Option<usize>,
    /// Tokens of the prompt that come after the inserted one.
    pub before_end: usize,
    /// Seed of the prompts, and of the halves of the tokens.
    pub seed: u64,
    /// Gives each token the continuations of other tokens, in each prompt those of another: then
    /// nothing is left that a token does in all prompts.
    pub null: bool,
}

impl Default for InsertOptions {
    fn default() -> Self {
        Self { prompts: 8, tokens: 8, limit: None, before_end: 0, seed: 1, null: false }
    }
}

/// Tokens that were inserted, and what the model says after them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct InsertRow {
    /// The inserted tokens.
    pub ids: Vec<u32>,
    /// The same as text.
    pub text: String,
    /// The form of the last of them; only tokens of one form are compared.
    pub form: TokenForm,
    /// The text that the continuations have in common, without an end that the insertion does not
    /// make more probable; empty if there is none.
    pub said: Vec<u32>,
    /// The same as text.
    pub said_text: String,
    /// The number of prompts that are continued by it, of those that chose it.
    pub agreeing: usize,
    /// Rarity of the text times the share of the prompts that are continued by it, nats.
    pub score: f64,
    /// By how much the insertion makes the text more probable in other prompts, nats, mean; what
    /// completes the word is left out. `None` below the best quarter of the scores.
    pub lift: Option<f64>,
    /// Which of these other prompts are continued by the text, ascending.
    pub says_in: Vec<usize>,
    /// Probability that another token of the form has such a lift; `None` if nothing was tested.
    pub p_value: Option<f64>,
    /// Benjamini-Hochberg q-value over all rows.
    pub q_value: Option<f64>,
}

impl InsertRow {
    /// Returns true if the false discovery rate allows to call it a discovery.
    pub fn is_flagged(&self) -> bool {
        self.q_value.is_some_and(|q| q <= FALSE_DISCOVERY)
    }

    /// Returns the row as a trial: the insertion in a prompt, and the text as the continuation.
    pub fn trial(&self, prompt: &[u32], before_end: usize) -> Trial {
        insertion(&Trial::new(prompt, &self.said[..]), &self.ids, before_end)
    }
}

/// A sweep over insertions.
#[derive(Debug)]
pub struct InsertSweep {
    /// The rows, those with the largest lift first, then the others by their scores.
    pub rows: Vec<InsertRow>,
    /// The prompts that the rows were chosen on.
    pub prompts: Vec<Vec<u32>>,
    /// Other prompts, in which the lift was measured.
    pub elsewhere: Vec<Vec<u32>>,
    /// False if it was ended early: then nothing is tested.
    pub complete: bool,
}

/// The largest share of a token in a lift, nats: a factor of 22,000. No single token that the model
/// would never say decides.
const MOST_PER_TOKEN: f64 = 10.0;
/// The share of the rows of each form, best scores first, whose lift is measured. It is more than
/// what the tail of the lifts begins at.
const MEASURED: f64 = 0.25;
/// The share of the lift that the text keeps when its end is cut off.
const KEPT: f64 = 0.9;
/// Requests in one call.
const CHUNK: usize = 1024;

impl InsertSweep {
    /// Inserts the tokens of the vocabulary, one at a time; `stop` is asked between batches.
    ///
    /// # Errors
    /// [`Error::Request`] for options that make no sense and a model without a tokenizer, and
    /// errors of the evaluator.
    pub fn run(
        model: &Model,
        evaluator: &dyn Evaluator,
        options: &InsertOptions,
        progress: Progress,
        stop: &dyn Fn() -> bool,
    ) -> Result<Self> {
        let categories = categories(model);
        let all: Vec<u32> = (0..categories.len() as u32)
            .filter(|id| categories[*id as usize] != Category::Special)
            .collect();
        let chosen = super::spread(&all, options.limit.unwrap_or(usize::MAX));
        let inserted = chosen.into_iter().map(|id| vec![id]).collect();
        Self::of(model, evaluator, inserted, options, progress, stop)
    }

    /// Inserts these tokens, one entry at a time.
    fn of(
        model: &Model,
        evaluator: &dyn Evaluator,
        inserted: Vec<Vec<u32>>,
        options: &InsertOptions,
        progress: Progress,
        stop: &dyn Fn() -> bool,
    ) -> Result<Self> {
        if options.prompts < 2 || options.tokens == 0 {
            return Err(Error::request("texts in common need two prompts and a token"));
        }
        let added = options.tokens + inserted.iter().map(Vec::len).max().unwrap_or(0);
        let Prompts { chosen_on, elsewhere } =
            Prompts::new(model, options.prompts, added, options.seed)?;
        let forms: Vec<TokenForm> = (0..model.config.vocab_size as u32)
            .map(|id| TokenForm::new(&model.token(id)))
            .collect();
        let mut sweep = Self { rows: vec![], prompts: chosen_on, elsewhere, complete: true };
        // Half of the work is the continuations; the lifts are a quarter of the tokens, each run
        // with the insertion and without it.
        let total = (inserted.len() * sweep.prompts.len()) as u64;
        let mut continuations: Vec<Vec<Vec<u32>>> = vec![Vec::new(); inserted.len()];
        'prompts: for prompt in &sweep.prompts {
            let base = Trial::new(&prompt[..], []);
            let mut said = Vec::with_capacity(inserted.len());
            for chunk in inserted.chunks(CHUNK) {
                if stop() {
                    sweep.complete = false;
                    break 'prompts;
                }
                let request = |ids: &Vec<u32>| {
                    Request::new(insertion(&base, ids, options.before_end))
                        .generating(options.tokens)
                };
                let requests: Vec<Request> = chunk.iter().map(request).collect();
                said.extend(evaluator.observe(&requests)?.into_iter().map(|o| o.generated));
                progress(chunk.len() as u64, total);
            }
            if options.null {
                let purpose = format!("null continuations of {prompt:?}");
                said.shuffle(&mut rng::stream(options.seed, &purpose));
            }
            continuations.iter_mut().zip(said).for_each(|(all, said)| all.push(said));
        }
        let rarity = Rarity::of(&continuations, model.config.vocab_size);
        for (ids, said) in inserted.into_iter().zip(&continuations) {
            let own = Rarity::of(std::slice::from_ref(said), 0);
            let agreed = Agreed::of(said, |said, at| match completes_word(&said[..=at], &forms) {
                true => 0.0,
                false => rarity.nats(said[at], &own),
            });
            let form = ids.last().map_or(TokenForm::Other, |id| forms[*id as usize]);
            sweep.rows.push(InsertRow {
                text: model.decode(&ids),
                ids,
                form,
                said_text: model.decode(&agreed.ids),
                agreeing: agreed.followers.last().copied().unwrap_or(0),
                said: agreed.ids,
                score: agreed.score,
                lift: None,
                says_in: Vec::new(),
                p_value: None,
                q_value: None,
            });
        }
        sweep.rows.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.ids.cmp(&b.ids)));
        if sweep.complete {
            sweep.measure_lifts(model, evaluator, &forms, options, stop)?;
        }
        if sweep.complete {
            sweep.test(options.seed);
        }
        let key = |row: &InsertRow| row.lift.unwrap_or(f64::NEG_INFINITY);
        sweep.rows.sort_by(|a, b| key(b).total_cmp(&key(a)));
        Ok(sweep)
    }

    /// Measures the lift of the best rows of each form, which are sorted by their scores, and cuts
    /// off the end of their texts that the insertion does not make more probable.
    fn measure_lifts(
        &mut self,
        model: &Model,
        evaluator: &dyn Evaluator,
        forms: &[TokenForm],
        options: &InsertOptions,
        stop: &dyn Fn() -> bool,
    ) -> Result<()> {
        let mut left: BTreeMap<TokenForm, usize> = BTreeMap::new();
        self.rows.iter().for_each(|row| *left.entry(row.form).or_default() += 1);
        left.values_mut().for_each(|count| *count = (*count as f64 * MEASURED).ceil() as usize);
        for row in &mut self.rows {
            let left = left.entry(row.form).or_default();
            if *left == 0 || row.said.is_empty() {
                continue;
            }
            *left -= 1;
            if stop() {
                self.complete = false;
                return Ok(());
            }
            let with = self.elsewhere.iter().map(|p| row.trial(p, options.before_end));
            let trials: Vec<Trial> = with.flat_map(|with| [with.baseline(), with]).collect();
            let requests: Vec<Request> = trials.into_iter().map(Request::new).collect();
            let observed = evaluator.observe(&requests)?;
            let mut lifts = vec![0.0; row.said.len()];
            for pair in observed.chunks(2) {
                for (at, lift) in lifts.iter_mut().enumerate() {
                    if !completes_word(&row.said[..=at], forms) {
                        let nats = f64::from(pair[1].log_probs[at] - pair[0].log_probs[at]);
                        *lift += nats.clamp(-MOST_PER_TOKEN, MOST_PER_TOKEN);
                    }
                }
            }
            lifts.iter_mut().for_each(|lift| *lift /= self.elsewhere.len() as f64);
            let kept = shortest(&lifts);
            row.lift = Some(lifts[..kept].iter().sum());
            row.said.truncate(kept);
            row.said_text = model.decode(&row.said);
            let says = |observed: &Observation| {
                (0..kept).all(|at| {
                    let best = observed.top[at].first().map_or(f32::INFINITY, |(_, p)| *p);
                    observed.log_probs[at] >= best
                })
            };
            let of = |pair: &[Observation]| pair.get(1).is_some_and(&says);
            row.says_in =
                observed.chunks(2).enumerate().filter(|(_, p)| of(p)).map(|(i, _)| i).collect();
        }
        Ok(())
    }

    /// Tests each row against the tail of the lifts of those rows of its form that are in the other
    /// half; of all forms, where a form has too few.
    fn test(&mut self, seed: u64) {
        // What was not measured is below the tail.
        let lift = |row: &InsertRow| row.lift.unwrap_or(f64::NEG_INFINITY);
        let half =
            |row: &InsertRow| rng::stream(seed, &format!("half of {:?}", row.ids)).random::<bool>();
        let halves: Vec<bool> = self.rows.iter().map(half).collect();
        let of = |form: Option<TokenForm>, other: bool| -> Vec<f64> {
            (self.rows.iter().zip(&halves))
                .filter(|(row, half)| **half == other && form.is_none_or(|f| f == row.form))
                .map(|(row, _)| lift(row))
                .collect()
        };
        let forms: BTreeSet<TokenForm> = self.rows.iter().map(|row| row.form).collect();
        let mut p_values = vec![None; self.rows.len()];
        for other in [false, true] {
            let pool = of(None, other);
            for form in &forms {
                let own = of(Some(*form), other);
                let Some(tail) = Tail::fit(&own).or_else(|| Tail::fit(&pool)) else { continue };
                for (at, row) in self.rows.iter().enumerate() {
                    if row.form == *form && halves[at] != other {
                        p_values[at] = Some(tail.p_value(lift(row)));
                    }
                }
            }
        }
        let tested: Vec<usize> = (0..p_values.len()).filter(|at| p_values[*at].is_some()).collect();
        let p: Vec<f64> = tested.iter().filter_map(|at| p_values[*at]).collect();
        for ((at, p), q) in tested.into_iter().zip(&p).zip(stats::q_values(&p)) {
            (self.rows[at].p_value, self.rows[at].q_value) = (Some(*p), Some(q));
        }
    }
}

/// Inserts tokens into the prompt of a trial so that `before_end` tokens of it come after them.
fn insertion(base: &Trial, ids: &[u32], before_end: usize) -> Trial {
    let position = base.base.len().saturating_sub(before_end);
    base.with_edits(ids.iter().map(|&id| Edit::Insert { position, id }).collect())
}

/// Returns true if all tokens that were said are letters without a space: they end the word that
/// the inserted token began.
fn completes_word(said: &[u32], forms: &[TokenForm]) -> bool {
    let fragment = |id: &u32| {
        matches!(forms.get(*id as usize), Some(TokenForm::Fragment | TokenForm::Other) | None)
    };
    said.iter().all(fragment)
}

/// Returns the length of the shortest beginning that has most of the largest sum of a beginning.
fn shortest(lifts: &[f64]) -> usize {
    let sums: Vec<f64> = lifts
        .iter()
        .scan(0.0, |sum, lift| {
            *sum += lift;
            Some(*sum)
        })
        .collect();
    let most = sums.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let enough = |sum: &f64| *sum >= if most > 0.0 { KEPT * most } else { most };
    sums.iter().position(enough).map_or(0, |at| at + 1)
}

/// How often each token occurs in continuations.
struct Rarity {
    counts: BTreeMap<u32, usize>,
    total: usize,
    vocabulary: usize,
}

impl Rarity {
    fn of(continuations: &[Vec<Vec<u32>>], vocabulary: usize) -> Self {
        let mut rarity = Self { counts: BTreeMap::new(), total: 0, vocabulary };
        for id in continuations.iter().flatten().flatten() {
            *rarity.counts.entry(*id).or_default() += 1;
            rarity.total += 1;
        }
        rarity
    }

    /// Returns the negative logarithm of a token's frequency in the continuations that are not
    /// `own`, one added to every count.
    fn nats(&self, id: u32, own: &Self) -> f64 {
        let count = |of: &Self| of.counts.get(&id).copied().unwrap_or(0);
        let (others, total) = (count(self) - count(own), self.total - own.total);
        -((others as f64 + 1.0) / (total + self.vocabulary) as f64).ln()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_that_adds_little_is_cut_off() {
        assert_eq!(shortest(&[8.0, 9.0, 8.0, 0.5, 0.2, -3.0]), 3);
        assert_eq!(shortest(&[0.0, 10.0]), 2);
        assert_eq!(shortest(&[-1.0, -2.0]), 1);
        assert_eq!(shortest(&[]), 0);
    }

    #[test]
    fn a_token_is_rare_if_others_do_not_say_it() {
        let continuations = vec![vec![vec![7, 7, 7]], vec![vec![1, 2, 1]], vec![vec![1]]];
        let all = Rarity::of(&continuations, 10);
        let own = Rarity::of(&continuations[..1], 0);
        assert_eq!(all.nats(7, &own), -(1.0f64 / 14.0).ln());
        assert_eq!(all.nats(1, &own), -(4.0f64 / 14.0).ln());
    }

    #[test]
    fn what_completes_the_word_does_not_count() {
        use TokenForm::*;
        let forms = [Fragment, Word, Punctuation];
        let completes = |said: &[u32]| completes_word(said, &forms);
        assert!(completes(&[0]) && completes(&[0, 0]));
        assert!(!completes(&[1]) && !completes(&[0, 2]) && !completes(&[0, 1, 0]));
    }
}
