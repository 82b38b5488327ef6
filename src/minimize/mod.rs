//! Reduction of a failing trial to the smallest one that still fails in the same way.
//!
//! The algorithm is apart from what is reduced: [`reduce`] knows only a set and a test,
//! [`strength`] only a number and a test; `trial` says which sets and numbers a trial has. All of
//! them ask in rounds: the candidates of a round are independent, so a round is one batch of the
//! model.

pub mod reduce;
pub mod strength;
mod trial;

pub use trial::minimize;

use serde::{Deserialize, Serialize};

use crate::edit::Trial;
use crate::oracle::Verdict;

/// Whether a trial with this verdict fails in the same way as the original.
pub type Same<'a> = dyn Fn(&Trial, &Verdict) -> bool + 'a;

/// How a trial is reduced, and what still counts as the same failure.
#[derive(Clone, Copy)]
pub struct Options<'a> {
    /// Trials that may be judged; a reduction that runs out keeps the best so far, without
    /// certificate.
    pub max_calls: u64,
    /// Most trials in one call of the judge.
    pub batch: usize,
    /// Share of the original margin that a step must keep, so that small losses do not add up until
    /// a lesser failure is left.
    pub keep_share: f64,
    /// A margin more than this many times the original's is another failure, not the same one
    /// reduced.
    pub far: f64,
    /// Puts an ordinary token in the place of base tokens that do not matter; `None`: no
    /// replacement.
    pub neutral: Option<u32>,
    /// So many base tokens at the beginning (a BOS, say) and at the end are neither replaced nor
    /// deleted.
    pub keep_first: usize,
    pub keep_last: usize,
    /// Most other failures kept.
    pub max_others: usize,
    /// Strengths are found to within this share of themselves.
    pub strength_tolerance: f32,
    /// A further condition on what counts as the same failure.
    pub same: Option<&'a Same<'a>>,
    /// Asked before every batch: whether to end with what there is, as if the calls had run out.
    pub stop: Option<&'a dyn Fn() -> bool>,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Self {
            max_calls: 2000,
            batch: 32,
            keep_share: 0.5,
            far: 4.0,
            neutral: None,
            keep_first: 0,
            keep_last: 0,
            max_others: 8,
            strength_tolerance: 0.02,
            same: None,
            stop: None,
        }
    }
}

/// What a reduction did, as a case file keeps it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Minimization {
    /// Trials evaluated by the reduction.
    pub calls: u64,
    pub elements_before: usize,
    pub elements_after: usize,
    /// No single remaining element can go (each was tried, alone, at the end).
    pub one_minimal: bool,
}

/// A reduced trial.
#[derive(Debug, Clone, PartialEq)]
pub struct Minimized {
    pub trial: Trial,
    /// The judge's verdict on `trial`, made inside a batch: still to be confirmed alone.
    pub verdict: Verdict,
    pub minimization: Minimization,
    /// Trials met on the way that fail in another way, in the order they were met.
    pub others: Vec<Trial>,
}
