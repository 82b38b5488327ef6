//! Minimization: reduces a failing trial to the smallest one that still fails in the same way.
//!
//! The algorithms are separate from what is reduced: [`reduce`] knows only a set and a test,
//! [`strength`] only a number and a test; `trial.rs` says which sets and numbers a trial has. All
//! of them test in rounds: the candidates of a round do not depend on each other, so a round is one
//! batch of the model.

mod prompt;
pub mod reduce;
pub mod strength;
mod trial;

pub use trial::{elements, minimize};

use serde::{Deserialize, Serialize};

use crate::edit::Trial;
use crate::oracle::Verdict;

/// A condition that decides if a trial with this verdict fails in the same way as the original.
pub type SameFailure<'a> = dyn Fn(&Trial, &Verdict) -> bool + 'a;

/// The units by which a prompt is shortened.
#[derive(Clone, Copy)]
pub enum PromptReduction<'a> {
    /// By single tokens, wherever they are: for prompts that are no text anyway.
    Tokens {
        /// The ordinary token that replaces those that do not matter; `None` to replace none.
        neutral: Option<u32>,
    },
    /// By sentences and lines, and from the beginning word by word, so that what is left is text:
    /// a model that is shown scraps behaves oddly without any edit.
    Text {
        /// Returns the text of a token.
        token: &'a dyn Fn(u32) -> String,
    },
}

/// Options of [`minimize`]: its budget, and the condition for the same failure.
#[derive(Clone, Copy)]
pub struct MinimizeOptions<'a> {
    /// The number of trials that may be judged. A reduction that runs out of calls keeps the
    /// smallest trial so far, without a certificate.
    pub max_calls: u64,
    /// The largest number of trials in one call of the judge.
    pub batch: usize,
    /// The share of the original margin that every step must keep, so that small losses do not add
    /// up to a lesser failure.
    pub keep_share: f64,
    /// A margin of more than this many times the original's counts as another failure.
    pub max_margin_ratio: f64,
    /// The units by which the prompt is shortened.
    pub prompt: PromptReduction<'a>,
    /// The number of base tokens at the beginning (a BOS, say) that are neither replaced nor
    /// deleted.
    pub keep_first: usize,
    /// The number of such base tokens at the end.
    pub keep_last: usize,
    /// The largest number of other failures that are kept.
    pub max_others: usize,
    /// Strengths are found to within this share of themselves.
    pub strength_tolerance: f32,
    /// A further condition on what counts as the same failure.
    pub same: Option<&'a SameFailure<'a>>,
    /// Called before every batch; true ends the reduction as if the calls had run out.
    pub stop: Option<&'a dyn Fn() -> bool>,
}

impl Default for MinimizeOptions<'_> {
    fn default() -> Self {
        Self {
            max_calls: 2000,
            batch: 32,
            keep_share: 0.5,
            max_margin_ratio: 4.0,
            prompt: PromptReduction::Tokens { neutral: None },
            keep_first: 0,
            keep_last: 0,
            max_others: 8,
            strength_tolerance: 0.02,
            same: None,
            stop: None,
        }
    }
}

/// The record of a reduction, as a case file keeps it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Minimization {
    /// The number of trials judged.
    pub calls: u64,
    /// The number of edits, prompt tokens and continuation tokens of the original trial.
    pub elements_before: usize,
    /// The same of the reduced trial.
    pub elements_after: usize,
    /// The certificate of 1-minimality: at the end every remaining element (an edit; a sentence of
    /// the prompt, and its first words) was removed alone, and the trial no longer failed in the
    /// same way.
    pub one_minimal: bool,
}

impl Minimization {
    /// Counts what an earlier reduction did as well, if this one began where that ended: the whole
    /// then goes back to the raw finding.
    pub fn after(self, earlier: Option<&Self>) -> Self {
        match earlier.filter(|earlier| earlier.elements_after == self.elements_before) {
            Some(earlier) => Self {
                calls: self.calls.saturating_add(earlier.calls),
                elements_before: earlier.elements_before,
                ..self
            },
            None => self,
        }
    }
}

/// A reduced trial.
#[derive(Debug, Clone, PartialEq)]
pub struct Minimized {
    /// The smallest trial found.
    pub trial: Trial,
    /// The judge's verdict on `trial`, made inside a batch: still to be confirmed alone.
    pub verdict: Verdict,
    /// Cost and certificate of the reduction.
    pub minimization: Minimization,
    /// Trials met on the way that fail in another way, in the order they were met.
    pub others: Vec<Trial>,
    /// The trials that the reduction went through, from the first step to `trial`.
    pub steps: Vec<Trial>,
}
