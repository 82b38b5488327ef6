//! The events of a campaign while it runs.

use super::summary::MutatorYield;
use crate::case::{Case, Lineage};
use crate::edit::Trial;
use crate::error::Result;
use crate::oracle::Verdict;
use crate::pipeline::Finding;

/// Takes the events: to a progress line, a journal, files.
pub trait Sink {
    /// Takes one event.
    ///
    /// # Errors
    /// Whatever ends the campaign, such as a journal that cannot be written.
    fn event(&mut self, event: Event) -> Result<()>;
}

/// An event of a campaign. It has no clock in it: two runs with one seed give the same events.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A round of the loop is over.
    Round(Progress),
    /// A trial failed against its matched controls, inside a batch.
    Raw {
        /// The trial.
        trial: Trial,
        /// Its verdict inside the batch.
        verdict: Verdict,
        /// Where it came from.
        lineage: Lineage,
    },
    /// A raw finding was judged again, alone.
    Confirmed {
        /// The verdict alone.
        verdict: Verdict,
        /// True if it fails alone.
        holds: bool,
    },
    /// A confirmed finding was minimized.
    Minimized {
        /// The minimized finding.
        finding: Box<Finding>,
    },
    /// A finding became a case.
    Case(Box<Case>),
}

/// Counts after a round.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Progress {
    /// Trials of the loop.
    pub evaluations: u64,
    /// Trials of follow-ups, controls and baselines.
    pub follow_up_evaluations: u64,
    /// Tokens of the loop's trials.
    pub tokens: u64,
    /// Trials that may be mutated.
    pub queue: u64,
    /// Behaviours in the novelty map.
    pub behaviours: u64,
    /// Findings inside a batch.
    pub raw: u64,
    /// Raw findings that failed again alone.
    pub confirmed: u64,
    /// Confirmed findings whose minimized trial still fails.
    pub minimized: u64,
    /// Kinds of raw findings.
    pub kinds: u64,
    /// Probability that the next [`NEXT_EVALUATIONS`](super::NEXT_EVALUATIONS) evaluations show a
    /// new kind.
    pub chance_of_new: f64,
    /// Yields of the mutators, the most findings first, then the most behaviours.
    pub yields: Vec<MutatorYield>,
}
