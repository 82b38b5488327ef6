//! `sweep insert --against`: tokens after which two models of one vocabulary predict different
//! things, in any prompt: what a fine-tune, a quantization or a download has changed.
//!
//! The score of an insertion is the Jensen-Shannon divergence of their distributions of the next
//! token, mean over the prompts. How far two models disagree ordinarily is told by the other
//! tokens: an insertion is tested against the tail of their scores, in prompts that did not choose
//! it.

use std::collections::BTreeMap;

use serde::Serialize;

use super::super::targets::spread;
use super::super::{FALSE_DISCOVERY, Progress};
use super::combination::LEFT;
use super::disagreement::disagreements;
use super::options::InsertOptions;
use super::pairs::{self, MOST_WORDS};
use super::prompts::Prompts;
use super::row::insertion;
use super::tested::{Measured, first_of_each_form, tested};
use super::triples;
use crate::edit::Trial;
use crate::error::{Error, Result};
use crate::evaluate::{Evaluator as _, ModelEvaluator, Request, TwoModels};
use crate::oracle::OracleKind;
use crate::vocabulary::{Category, TokenForm, categories};

/// Tokens that were inserted, and how far the two models disagree after them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AgainstRow {
    /// The inserted tokens.
    pub ids: Vec<u32>,
    /// The same as text.
    pub text: String,
    /// The form of the last of them; only tokens of one form are compared.
    pub form: TokenForm,
    /// Divergence in the prompts that it was chosen on, bits, mean.
    pub bits: f64,
    /// Divergence in other prompts, bits, mean. `None` for a single token that is not among the
    /// quarter of its form with the largest.
    pub bits_elsewhere: Option<f64>,
    /// The token that the model under test says next, in most of these prompts.
    pub says: String,
    /// The token that the other one says next.
    pub other_says: String,
    /// Pairs and triples with the same last token after which the model says the same, left out in
    /// favour of this one.
    pub alike: usize,
    /// Probability that a single token of the form has such a divergence; `None` if nothing was
    /// tested.
    pub p_value: Option<f64>,
    /// Benjamini-Hochberg q-value over all rows.
    pub q_value: Option<f64>,
}

impl AgainstRow {
    /// Returns true if the false discovery rate allows to call it a discovery, and the divergence
    /// is of interest.
    pub fn is_flagged(&self) -> bool {
        let least = OracleKind::Disagreement.oracle().minimum();
        self.q_value.is_some_and(|q| q <= FALSE_DISCOVERY)
            && self.bits_elsewhere.is_some_and(|bits| bits >= least)
    }

    /// Returns the row as a trial: the insertion in a prompt.
    pub fn trial(&self, prompt: &[u32], before_end: usize) -> Trial {
        insertion(&Trial::new(prompt, []), &self.ids, before_end)
    }
}

/// A sweep over insertions, with two models.
#[derive(Debug)]
pub struct AgainstSweep {
    /// The rows: flagged ones, then others, each by their divergence.
    pub rows: Vec<AgainstRow>,
    /// The prompts that the rows were chosen on.
    pub prompts: Vec<Vec<u32>>,
    /// Other prompts, in which they were tested.
    pub elsewhere: Vec<Vec<u32>>,
    /// The number of words of which all pairs were screened.
    pub paired: usize,
    /// False if it was ended early: then what is missing is not tested.
    pub complete: bool,
}

/// Insertions in one call.
const CHUNK: usize = 1024;

impl AgainstSweep {
    /// Inserts the tokens of the vocabulary one at a time, and pairs of words if asked to; `stop`
    /// is asked between batches.
    ///
    /// # Errors
    /// [`Error::Request`] for a model without a tokenizer and too many
    /// prompts, and errors of the evaluators.
    pub fn run(
        models: &TwoModels,
        options: &InsertOptions,
        progress: Progress,
        stop: &dyn Fn() -> bool,
    ) -> Result<Self> {
        let model = models.evaluator.model;
        let categories = categories(model);
        let all: Vec<u32> = (0..model.config.vocab_size as u32)
            .filter(|id| categories[*id as usize] != Category::Special)
            .collect();
        let chosen = spread(&all, options.limit.unwrap_or(usize::MAX));
        pairs::check(model, options, &chosen)?;
        if options.pairs.is_some() && !models.are_alike() {
            return Err(Error::request("pairs need two models that are built alike"));
        }
        let inserted: Vec<Vec<u32>> = chosen.iter().map(|id| vec![*id]).collect();
        let Prompts { chosen_on, elsewhere } =
            Prompts::new(model, options.prompts, 4, options.seed)?;
        let mut sweep =
            Self { rows: Vec::new(), prompts: chosen_on, elsewhere, paired: 0, complete: false };
        let total = (inserted.len() * sweep.prompts.len()) as u64;
        let told = |count: usize| progress(count as u64, total);
        let Some(bits) = mean_bits(models, &sweep.prompts, &inserted, options, &told, stop)? else {
            return Ok(sweep);
        };
        sweep.rows = rows(models.evaluator, inserted, &bits);
        let forms: Vec<TokenForm> = sweep.rows.iter().map(|row| row.form).collect();
        let measured = first_of_each_form(&forms);
        if !sweep.measure_elsewhere(models, &measured, options, stop)? {
            return Ok(sweep);
        }
        sweep.test(options.seed);
        if let Some(count) = options.pairs {
            let words: Vec<u32> = (chosen.into_iter())
                .filter(|id| categories[*id as usize] == Category::Reachable)
                .filter(|id| TokenForm::new(&model.token(*id)) == TokenForm::Word)
                .collect();
            let words = spread(&words, count.min(MOST_WORDS));
            if words.len() > 1
                && !sweep.add_combinations(models, &words, options, progress, stop)?
            {
                return Ok(sweep);
            }
            sweep.test(options.seed);
        }
        let flagged: Vec<usize> =
            (0..sweep.rows.len()).filter(|at| sweep.rows[*at].is_flagged()).collect();
        for at in flagged {
            sweep.what_is_said(models, at, options)?;
        }
        let twins = |kept: &mut Vec<AgainstRow>, row: AgainstRow| {
            let twin = kept.iter_mut().find(|twin| {
                twin.ids.len() > 1
                    && row.ids.len() > 1
                    && twin.ids.last() == row.ids.last()
                    && twin.says == row.says
                    && !twin.says.is_empty()
            });
            match twin {
                Some(twin) => twin.alike += 1,
                None => kept.push(row),
            }
        };
        let key = |row: &AgainstRow| row.bits_elsewhere.unwrap_or(f64::NEG_INFINITY);
        sweep.rows.sort_by(|a, b| {
            (b.is_flagged().cmp(&a.is_flagged()))
                .then(key(b).total_cmp(&key(a)))
                .then(b.bits.total_cmp(&a.bits))
        });
        let mut kept = Vec::with_capacity(sweep.rows.len());
        std::mem::take(&mut sweep.rows).into_iter().for_each(|row| twins(&mut kept, row));
        sweep.rows = kept;
        sweep.complete = true;
        Ok(sweep)
    }

    /// Measures rows in the other prompts; returns false if it was ended early.
    fn measure_elsewhere(
        &mut self,
        models: &TwoModels,
        rows: &[usize],
        options: &InsertOptions,
        stop: &dyn Fn() -> bool,
    ) -> Result<bool> {
        let inserted: Vec<Vec<u32>> = rows.iter().map(|at| self.rows[*at].ids.clone()).collect();
        let bits = mean_bits(models, &self.elsewhere, &inserted, options, &|_| {}, stop)?;
        let Some(bits) = bits else { return Ok(false) };
        for (at, bits) in rows.iter().zip(bits) {
            self.rows[*at].bits_elsewhere = Some(bits);
        }
        Ok(true)
    }

    /// Adds the pairs of words that a screen lets through, and triples if asked to; returns false
    /// if it was ended early.
    fn add_combinations(
        &mut self,
        models: &TwoModels,
        words: &[u32],
        options: &InsertOptions,
        progress: Progress,
        stop: &dyn Fn() -> bool,
    ) -> Result<bool> {
        let alone: BTreeMap<u32, f64> =
            self.rows.iter().map(|row| (row.ids[0], row.bits)).collect();
        let alone = |id: u32| alone.get(&id).copied().unwrap_or(0.0);
        let prompts = &self.prompts;
        let pairs =
            pairs::shortlist_between(models, words, &alone, prompts, options, progress, stop)?;
        let Some(pairs) = pairs else { return Ok(false) };
        self.paired = words.len();
        let mut all = pairs.best;
        all.truncate(LEFT);
        if options.triples {
            let triples = triples::shortlist_between(
                models,
                words,
                &pairs.standing_out,
                prompts,
                progress,
                stop,
            )?;
            let Some(triples) = triples else { return Ok(false) };
            all.extend(triples.into_iter().take(LEFT));
        }
        // Of what does little more than its last words, these are what is found.
        let least = OracleKind::Disagreement.oracle().minimum() as f32;
        let inserted: Vec<Vec<u32>> =
            all.iter().filter(|of| of.score >= least).map(|of| of.ids(words)).collect();
        let bits = mean_bits(models, &self.prompts, &inserted, options, &|_| {}, stop)?;
        let Some(bits) = bits else { return Ok(false) };
        let from = self.rows.len();
        self.rows.extend(rows(models.evaluator, inserted, &bits));
        let added: Vec<usize> = (from..self.rows.len()).collect();
        self.measure_elsewhere(models, &added, options, stop)
    }

    /// Writes down what the models say next after a row, in most of the other prompts.
    fn what_is_said(
        &mut self,
        models: &TwoModels,
        at: usize,
        options: &InsertOptions,
    ) -> Result<()> {
        let requests: Vec<Request> = (self.elsewhere.iter())
            .map(|prompt| Request::new(self.rows[at].trial(prompt, options.before_end)))
            .collect();
        let commonest = |evaluator: &ModelEvaluator| -> Result<String> {
            let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
            for observation in evaluator.observe(&requests)? {
                if let Some((id, _)) = observation.top.first().and_then(|top| top.first()) {
                    *counts.entry(*id).or_default() += 1;
                }
            }
            let most = counts.iter().max_by_key(|(id, count)| (**count, std::cmp::Reverse(**id)));
            Ok(most.map(|(id, _)| evaluator.model.token(*id)).unwrap_or_default())
        };
        let said = (commonest(models.evaluator)?, commonest(models.against)?);
        (self.rows[at].says, self.rows[at].other_says) = said;
        Ok(())
    }

    fn test(&mut self, seed: u64) {
        let all: Vec<Measured> = (self.rows.iter())
            .map(|row| Measured { ids: &row.ids, form: row.form, value: row.bits_elsewhere })
            .collect();
        let tested = tested(&all, seed);
        for (row, tested) in self.rows.iter_mut().zip(tested) {
            (row.p_value, row.q_value) = tested.unzip();
        }
    }
}

/// Returns the mean over the prompts of the divergence after each insertion, bits; `None` if it was
/// ended early.
fn mean_bits(
    models: &TwoModels,
    prompts: &[Vec<u32>],
    inserted: &[Vec<u32>],
    options: &InsertOptions,
    told: &dyn Fn(usize),
    stop: &dyn Fn() -> bool,
) -> Result<Option<Vec<f64>>> {
    let mut sums = vec![0.0; inserted.len()];
    for prompt in prompts {
        for (sums, chunk) in sums.chunks_mut(CHUNK).zip(inserted.chunks(CHUNK)) {
            if stop() {
                return Ok(None);
            }
            let bits = disagreements(models, prompt, chunk, options.before_end)?;
            sums.iter_mut().zip(bits).for_each(|(sum, bits)| *sum += bits / prompts.len() as f64);
            told(chunk.len());
        }
    }
    Ok(Some(sums))
}

/// Makes the rows of insertions, largest divergence first.
fn rows(evaluator: &ModelEvaluator, inserted: Vec<Vec<u32>>, bits: &[f64]) -> Vec<AgainstRow> {
    let model = evaluator.model;
    let row = |(ids, bits): (Vec<u32>, &f64)| AgainstRow {
        text: model.decode(&ids),
        form: ids.last().map_or(TokenForm::Other, |id| TokenForm::new(&model.token(*id))),
        ids,
        bits: *bits,
        bits_elsewhere: None,
        says: String::new(),
        other_says: String::new(),
        alike: 0,
        p_value: None,
        q_value: None,
    };
    let mut rows: Vec<AgainstRow> = inserted.into_iter().zip(bits).map(row).collect();
    rows.sort_by(|a, b| b.bits.total_cmp(&a.bits).then(a.ids.cmp(&b.ids)));
    rows
}
