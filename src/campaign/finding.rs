//! A finding on its way to becoming a case, and what makes two of them the same.

use std::collections::BTreeSet;

use crate::case::Lineage;
use crate::edit::Trial;
use crate::error::Result;
use crate::minimize;
use crate::minimize::Minimization;
use crate::oracle::{ModelJudge, Verdict};

/// A confirmed and minimized trial, for [`super::Follow`] to explain.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    /// The minimized trial.
    pub trial: Trial,
    /// Its verdict, made alone at the canonical shape.
    pub verdict: Verdict,
    pub control_seed: u64,
    pub minimization: Option<Minimization>,
    pub lineage: Lineage,
}

/// Reduces a trial that was confirmed alone. The reduction judges in batches, and what is reported
/// must hold alone: where it does not, the finding is kept as it was confirmed. Also the other
/// failures that were met on the way.
///
/// # Errors
/// What the judge and the reduction refuse.
pub fn reduced(
    trial: Trial,
    confirmed: Verdict,
    judge: &ModelJudge,
    options: &minimize::MinimizeOptions,
    lineage: Lineage,
) -> Result<(Finding, Vec<Trial>)> {
    let reduced = minimize::minimize(&trial, &confirmed, judge, options)?;
    let alone = judge.judge_alone(&reduced.trial)?;
    let (trial, verdict, minimization) = if alone.fails() {
        (reduced.trial, alone, Some(reduced.minimization))
    } else {
        (trial, confirmed, None)
    };
    Ok((
        Finding { trial, verdict, control_seed: judge.seed, minimization, lineage },
        reduced.others,
    ))
}

/// What the edits of a trial do, without where and how much: two trials with the same token in
/// different places show the same glitch.
pub fn signature(trial: &Trial) -> BTreeSet<String> {
    let at = |position: usize| match position.checked_sub(trial.base.len()) {
        None => trial.base.get(position).copied(),
        Some(rest) => trial.continuation.get(rest).copied(),
    };
    trial.edits.iter().map(|edit| edit.signature(&at)).collect()
}
