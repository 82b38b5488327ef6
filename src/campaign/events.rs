//! What a campaign tells, and whom it asks to explain.

use super::finding::Finding;
use super::summary::MutatorYield;
use crate::case::{Case, Lineage};
use crate::edit::Trial;
use crate::error::Result;
use crate::oracle::Verdict;

/// Explains a finding (implication, texts) as a case.
pub trait Follow {
    /// The case, and how many trials it took. Without `implicate`, which costs most, when time is
    /// up.
    fn follow(&self, finding: &Finding, implicate: bool) -> Result<(Case, u64)>;
}

/// Where events go: progress, journal, files.
pub trait Sink {
    fn event(&mut self, event: Event) -> Result<()>;
}

/// What happens in a campaign, in order. No clocks: two runs with one seed give the same events.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A round of the loop is over.
    Round(Progress),
    /// A trial failed against its matched controls, inside a batch.
    Raw {
        trial: Trial,
        verdict: Verdict,
        lineage: Lineage,
    },
    /// It did so again alone (or did not).
    Confirmed {
        verdict: Verdict,
        holds: bool,
    },
    Minimized {
        finding: Box<Finding>,
    },
    Case(Box<Case>),
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Progress {
    pub evaluations: u64,
    pub follow_up_evaluations: u64,
    /// Tokens of the loop's trials.
    pub tokens: u64,
    pub queue: u64,
    pub behaviours: u64,
    pub raw: u64,
    pub confirmed: u64,
    pub minimized: u64,
    /// What each mutator found, the best yield of findings first, then of behaviours.
    pub yields: Vec<MutatorYield>,
}
