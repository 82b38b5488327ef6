//! The run: parts, sets and texts are chosen, measured text by text, and analysed.

use super::analysis::{Run, analyse};
use super::figures::Emergence;
use super::measure::{Replacement, Subject, stride};
use super::measured::{Measured, SetRow};
use super::regression::MOST_ORDERS;
use super::sets::{Design, Measure, PartSet};
use super::surrogate::{Scales, plant};
use super::unigram::unigram_loss;
use crate::edit::Component;
use crate::error::{Error, Result};
use crate::evaluate::ModelEvaluator;
use crate::sweep::{Progress, Target, components, spread};

/// The most sets that are all run where no number of sets is given.
const EXACT_SETS: usize = 4096;
/// The number of sets that are drawn where no number is given.
const DRAWN_SETS: usize = 1024;
/// The size of the largest sets where none is given.
const SETS_OF: usize = 4;
/// The fewest parts: with two, order 2 fits everything.
pub const LEAST_PARTS: usize = 3;

/// Options of [`Emergence::run`].
#[derive(Debug, Clone, Copy)]
pub struct EmergenceOptions {
    /// The kind of the parts.
    pub of: Target,
    /// Takes only this many parts, evenly spread.
    pub limit: Option<usize>,
    /// The lesion of a part.
    pub replacement: Replacement,
    /// The largest order that is fitted, 1 to 5.
    pub order: usize,
    /// The size of the largest sets; the number of parts or more: all subsets, each as likely.
    /// `None`: 4.
    pub sets_of: Option<usize>,
    /// The number of sets: all are run where there are no more, else this many are drawn. `None`:
    /// up to 4,096 are all run, else 1,024 are drawn.
    pub sets: Option<usize>,
    /// The seed of drawn sets, planted terms and bootstraps.
    pub seed: u64,
}

impl EmergenceOptions {
    /// Zeroes parts of this kind in sets of up to four.
    pub fn new(of: Target) -> Self {
        Self {
            of,
            limit: None,
            replacement: Replacement::Zero,
            order: 3,
            sets_of: None,
            sets: None,
            seed: 1,
        }
    }

    /// Returns whether all sets of so many parts are run, and none are drawn.
    pub fn runs_all(&self, parts: usize) -> bool {
        let parts = self.limit.map_or(parts, |limit| limit.min(parts));
        let largest = Measure::new(parts, self.sets_of.unwrap_or(SETS_OF)).largest(parts);
        Design::all_run(parts, largest, self.sets.unwrap_or(EXACT_SETS))
    }
}

impl Emergence {
    /// Runs the model under sets of lesions on `texts`, token ids with BOS first where the model
    /// has one, and explains the results. `more_text` is counted for the unigram model. `each` is
    /// called after every text with what was measured so far; `go_on` is asked now and then, and
    /// `false` ends the run with the texts that are complete.
    ///
    /// # Errors
    /// [`Error::Request`] for no text, for one of fewer than two tokens, for fewer than three parts
    /// and for sets of fewer than two; [`Error::Interrupted`] if it is ended before the first text
    /// is complete; errors of the evaluator and of `each`.
    pub fn run(
        evaluator: &ModelEvaluator,
        texts: &[Vec<u32>],
        more_text: &[Vec<u32>],
        options: &EmergenceOptions,
        progress: Progress,
        go_on: &dyn Fn() -> bool,
        each: &mut dyn FnMut(&[SetRow]) -> Result<()>,
    ) -> Result<Self> {
        if texts.is_empty() {
            return Err(Error::request("emergence needs a text"));
        }
        if texts.iter().any(|text| text.len() < 2) {
            return Err(Error::request("a text needs at least two tokens"));
        }
        let parts = parts(evaluator, options)?;
        let sets_of = options.sets_of.unwrap_or(SETS_OF);
        if sets_of < 2 {
            return Err(Error::request("sets of one lesion have nothing that could interact"));
        }
        if !(1..=MOST_ORDERS).contains(&options.order) {
            return Err(Error::request(format!(
                "order {}: orders 1 to {MOST_ORDERS} can be fitted",
                options.order
            )));
        }
        let design = Design::new(
            parts.len(),
            Measure::new(parts.len(), sets_of),
            options.sets.unwrap_or(EXACT_SETS),
            options.sets.unwrap_or(DRAWN_SETS),
            options.seed,
        );
        let vocabulary = evaluator.model.config.vocab_size;
        let subject = Subject {
            evaluator,
            parts: &parts,
            replacement: options.replacement,
            texts,
            stride: stride(parts.len(), texts, vocabulary),
        };
        let planted = plant(parts.len(), options.seed);
        let unigram_loss = unigram_loss(texts, more_text, vocabulary);
        let mut measured = Measured {
            components: parts.clone(),
            design,
            planted,
            unigram_loss,
            texts: Vec::new(),
            complete: true,
        };
        let total = (measured.design.sets.len() * texts.len()) as u64;
        let done = |more| progress(more, total);
        for text in 0..texts.len() {
            let sets = &measured.design.sets;
            match subject.measure(text, sets, &measured.planted, &done, go_on)? {
                Some(values) => measured.texts.push(values),
                None => {
                    measured.complete = false;
                    break;
                }
            }
            each(&measured.rows())?;
        }
        if measured.texts.is_empty() {
            return Err(Error::Interrupted);
        }
        let extra = |sets: &[PartSet]| -> Result<Option<Vec<Vec<Scales>>>> {
            let of = |text| subject.model(text, sets, &|_| (), go_on);
            (0..measured.texts.len()).map(of).collect()
        };
        let tokens: usize = texts[..measured.texts.len()]
            .iter()
            .map(|text| (text.len() - 1).div_ceil(subject.stride))
            .sum();
        let run = Run {
            replacement: options.replacement,
            stride: subject.stride,
            tokens,
            orders: options.order,
            seed: options.seed,
        };
        analyse(&measured, &run, &extra)
    }
}

/// Returns the parts: components of the kind, all or some.
fn parts(evaluator: &ModelEvaluator, options: &EmergenceOptions) -> Result<Vec<Component>> {
    let all = components(evaluator.model, options.of);
    let parts = match options.limit {
        Some(limit) => spread(&all, limit),
        None => all,
    };
    match parts.len() {
        0 => Err(Error::request(format!(
            "emergence --of {} has no meaning for {}: the model has none",
            format!("{:?}", options.of).to_lowercase(),
            evaluator.model.config.model_type
        ))),
        n if n < LEAST_PARTS => Err(Error::request(format!(
            "emergence needs at least {LEAST_PARTS} parts, and there are {n}"
        ))),
        _ => Ok(parts),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_drawn_where_there_are_too_many() {
        let options = EmergenceOptions::new(Target::Blocks);
        // 4,048 sets of up to four of 18 parts, and 5,036 of 19.
        assert!(options.runs_all(18) && !options.runs_all(19));
        assert!(EmergenceOptions { limit: Some(12), ..options }.runs_all(60));
        assert!(!EmergenceOptions { sets: Some(100), ..options }.runs_all(8));
        assert!(!EmergenceOptions { sets_of: Some(18), ..options }.runs_all(18));
    }
}
