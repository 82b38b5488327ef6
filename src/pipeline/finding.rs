//! A finding on its way to becoming a case, and what makes two of them the same.

use std::collections::BTreeSet;

use crate::case::Lineage;
use crate::edit::Trial;
use crate::minimize::Minimization;
use crate::oracle::Verdict;
use crate::replicate::Replication;

/// A confirmed and minimized trial, for an [`Explainer`](crate::pipeline::Explainer).
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    /// The minimized trial.
    pub trial: Trial,
    /// Its verdict, made alone at the canonical shape, with controls that nothing before has seen.
    pub verdict: Verdict,
    /// Seed from which the verdict's controls were drawn.
    pub control_seed: u64,
    /// The verdict by which the search found the raw trial, if one did.
    pub search: Option<Verdict>,
    /// `None` where no minimized trial was confirmed: then `trial` is the raw one.
    pub minimization: Option<Minimization>,
    /// The edits in prompts that the search never used, where they can be put there.
    pub replication: Option<Replication>,
    /// Where the raw finding came from.
    pub lineage: Lineage,
}

/// Returns the kinds of the trial's edits, without their positions and strengths: two trials with
/// the same token in different places show the same glitch.
pub fn signature(trial: &Trial) -> BTreeSet<String> {
    let at = |position: usize| match position.checked_sub(trial.base.len()) {
        None => trial.base.get(position).copied(),
        Some(rest) => trial.continuation.get(rest).copied(),
    };
    trial.edits.iter().map(|edit| edit.signature(&at)).collect()
}
