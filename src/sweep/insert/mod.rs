//! `sweep insert`: finds tokens after which the model says a fixed text, whatever the prompt is: a
//! backdoor's trigger, a template of the training data, a name that completes itself.
//!
//! Every token is inserted at the end of some prompts, the model continues each greedily, and what
//! the continuations begin with in common is scored by how rare its tokens are in the continuations
//! of other tokens (`agreed.rs`, `rarity.rs`). For the best quarter of the tokens the text is then
//! measured in prompts that did not choose it, teacher-forced: its *lift* is by how many nats the
//! token makes it more probable (`run.rs`). Neither counts what only completes the inserted token's
//! word, because every fragment of a word forces the rest of it. Pairs of words are screened first
//! (`pairs.rs`), and the best of them extended to triples (`triples.rs`).
//!
//! With a second model (`against.rs`) the score is how far the two disagree about the next token.
//!
//! P-values come from the upper tail of the lifts of other tokens of the same form
//! ([`Tail`](crate::stats::Tail)): each half of the tokens is compared with the other half.

mod against;
mod agreed;
mod combination;
mod disagreement;
mod options;
mod pairs;
mod prompts;
mod rarity;
mod row;
mod run;
mod singles;
mod tested;
mod triples;

use std::collections::BTreeSet;

pub use against::{AgainstRow, AgainstSweep};
pub use options::InsertOptions;
pub use pairs::MOST_WORDS;
pub use row::InsertRow;

use super::Progress;
use super::targets::spread;
use crate::error::{Error, Result};
use crate::evaluate::ModelEvaluator;
use crate::vocabulary::{Category, TokenForm, categories};
use combination::{Combination, LEFT};
use prompts::Prompts;
use rarity::Rarity;
use run::Runs;
use tested::{Measured, first_of_each_form, tested};

/// A sweep over insertions.
#[derive(Debug)]
pub struct InsertSweep {
    /// The rows: flagged ones, then others, each by their lifts, then by their scores.
    pub rows: Vec<InsertRow>,
    /// The prompts that the rows were chosen on.
    pub prompts: Vec<Vec<u32>>,
    /// Other prompts, in which the lift was measured.
    pub elsewhere: Vec<Vec<u32>>,
    /// The number of words of which all pairs were screened.
    pub paired: usize,
    /// False if it was ended early: then what is missing is not tested.
    pub complete: bool,
}

impl InsertSweep {
    /// Inserts the tokens of the vocabulary one at a time, and pairs of words if asked to; `stop`
    /// is asked between batches.
    ///
    /// # Errors
    /// [`Error::Request`] for options that make no sense and a model without a tokenizer, and
    /// errors of the evaluator.
    pub fn run(
        evaluator: &ModelEvaluator,
        options: &InsertOptions,
        progress: Progress,
        stop: &dyn Fn() -> bool,
    ) -> Result<Self> {
        if options.prompts < 2 || options.tokens == 0 {
            return Err(Error::request("texts in common need two prompts and a token"));
        }
        let model = evaluator.model;
        let (categories, vocabulary) = (categories(model), model.config.vocab_size);
        let ids = 0..vocabulary as u32;
        let all: Vec<u32> =
            ids.clone().filter(|id| categories[*id as usize] != Category::Special).collect();
        let chosen = spread(&all, options.limit.unwrap_or(usize::MAX));
        pairs::check(model, options, &chosen)?;
        let inserted: Vec<Vec<u32>> = chosen.iter().map(|id| vec![*id]).collect();
        let longest = 1 + usize::from(options.pairs.is_some()) + usize::from(options.triples);
        let Prompts { chosen_on, elsewhere } =
            Prompts::new(model, options.prompts, options.tokens + longest, options.seed)?;
        let mut runs = Runs {
            evaluator,
            options,
            forms: ids.map(|id| TokenForm::new(&model.token(id))).collect(),
            progress,
            total: (inserted.len() * chosen_on.len()) as u64,
            stop,
        };
        let (continuations, mut complete) = runs.continuations(&chosen_on, &inserted)?;
        let rarity = Rarity::of(&continuations, vocabulary);
        let rows = runs.rows(inserted, &continuations, &rarity);
        let mut sweep = Self { rows, prompts: chosen_on, elsewhere, paired: 0, complete: true };
        let by_score = |a: &InsertRow, b: &InsertRow| b.score.total_cmp(&a.score);
        sweep.rows.sort_by(|a, b| by_score(a, b).then(a.ids.cmp(&b.ids)));
        complete = complete && sweep.measure_lifts(&runs)?;
        if complete {
            sweep.test(options.seed);
        }
        if let Some(count) = options.pairs.filter(|_| complete) {
            let flagged: BTreeSet<&Vec<u32>> =
                sweep.rows.iter().filter(|row| row.is_flagged()).map(|row| &row.ids).collect();
            let words: Vec<u32> = (chosen.iter().copied())
                .filter(|id| categories[*id as usize] == Category::Reachable)
                .filter(|id| runs.forms[*id as usize] == TokenForm::Word)
                .filter(|id| !flagged.contains(&vec![*id]))
                .collect();
            let words = spread(&words, count.min(MOST_WORDS));
            if words.len() > 1 {
                runs.total = (LEFT * sweep.prompts.len()) as u64;
                complete = sweep.add_combinations(&runs, &words, &rarity)?;
                sweep.test(options.seed);
            }
        }
        sweep.complete = complete;
        let lift = |row: &InsertRow| row.lift.unwrap_or(f64::NEG_INFINITY);
        sweep
            .rows
            .sort_by(|a, b| b.is_flagged().cmp(&a.is_flagged()).then(lift(b).total_cmp(&lift(a))));
        Ok(sweep)
    }

    /// Measures the lift of the best rows of each form, which are sorted by their scores; returns
    /// false if it was ended early.
    fn measure_lifts(&mut self, runs: &Runs) -> Result<bool> {
        let forms: Vec<TokenForm> = self.rows.iter().map(|row| row.form).collect();
        for at in first_of_each_form(&forms) {
            let row = &mut self.rows[at];
            // What says nothing comes last, so it takes the place of no other row.
            if row.said.is_empty() {
                continue;
            }
            if (runs.stop)() {
                return Ok(false);
            }
            runs.measure_lift(row, &self.elsewhere)?;
        }
        Ok(true)
    }

    /// Adds the pairs of words that a screen lets through, and triples if asked to; returns false
    /// if it was ended early.
    fn add_combinations(&mut self, runs: &Runs, words: &[u32], rarity: &Rarity) -> Result<bool> {
        let Runs { evaluator, options, progress, stop, .. } = runs;
        let pairs = pairs::shortlist(evaluator, words, &self.prompts, options, progress, stop)?;
        let Some(pairs) = pairs else { return Ok(false) };
        self.paired = words.len();
        let complete = self.add(runs, words, &pairs.best, rarity)?;
        if !complete || !options.triples {
            return Ok(complete);
        }
        let triples = triples::shortlist(
            evaluator,
            words,
            &pairs.standing_out,
            &self.prompts,
            progress,
            stop,
        )?;
        match triples {
            Some(triples) => self.add(runs, words, &triples, rarity),
            None => Ok(false),
        }
    }

    /// Runs the first of some combinations, and adds one for each last word and text; returns false
    /// if it was ended early.
    fn add(
        &mut self,
        runs: &Runs,
        words: &[u32],
        combinations: &[Combination],
        rarity: &Rarity,
    ) -> Result<bool> {
        let inserted: Vec<Vec<u32>> =
            combinations.iter().take(LEFT).map(|of| of.ids(words)).collect();
        let (continuations, complete) = runs.continuations(&self.prompts, &inserted)?;
        if !complete {
            return Ok(false);
        }
        let mut kept: Vec<InsertRow> = Vec::new();
        for mut row in runs.rows(inserted, &continuations, rarity) {
            if row.said.is_empty() {
                continue;
            }
            runs.measure_lift(&mut row, &self.elsewhere)?;
            let twin = |other: &&mut InsertRow| {
                other.ids.last() == row.ids.last() && other.said.first() == row.said.first()
            };
            match kept.iter_mut().find(twin) {
                None => kept.push(row),
                Some(twin) => {
                    let alike = twin.alike + 1;
                    if row.log_prob > twin.log_prob {
                        *twin = row;
                    }
                    twin.alike = alike;
                }
            }
        }
        self.rows.extend(kept);
        Ok(true)
    }

    /// Tests the lift of each row.
    fn test(&mut self, seed: u64) {
        let all: Vec<Measured> = (self.rows.iter())
            .map(|row| Measured { ids: &row.ids, form: row.form, value: row.lift })
            .collect();
        let tested = tested(&all, seed);
        for (row, tested) in self.rows.iter_mut().zip(tested) {
            (row.p_value, row.q_value) = tested.unzip();
        }
    }
}
