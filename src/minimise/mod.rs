//! (declared for the campaign to compile against; helper A writes the real one)

use crate::case::Minimisation;
use crate::edit::Trial;
use crate::error::Result;
use crate::oracle::Verdict;

/// Says of trials whether they fail, and how badly.
pub trait Judge {
    fn judge(&self, trials: &[Trial]) -> Result<Vec<Verdict>>;
}

#[derive(Clone, Copy, Default)]
pub struct Options<'a> {
    pub max_calls: u64,
    pub batch: usize,
    pub neutral: Option<u32>,
    pub keep_first: bool,
    pub same: Option<&'a dyn Fn(&Trial, &Verdict) -> bool>,
}

#[derive(Debug, Clone)]
pub struct Minimised {
    pub trial: Trial,
    pub verdict: Verdict,
    pub minimisation: Minimisation,
    pub others: Vec<Trial>,
}

/// Removes edits one at a time while the trial fails.
pub fn minimise(trial: &Trial, verdict: &Verdict, judge: &dyn Judge, _options: &Options) -> Result<Minimised> {
    let (mut best, mut verdict, mut calls) = (trial.clone(), verdict.clone(), 0);
    loop {
        let without = |i: usize| {
            let mut edits = best.edits.clone();
            edits.remove(i);
            best.with_edits(edits)
        };
        let candidates: Vec<Trial> = (0..best.edits.len()).map(without).collect();
        calls += candidates.len() as u64;
        let verdicts = judge.judge(&candidates)?;
        match candidates.into_iter().zip(verdicts).find(|(_, v)| v.fails()) {
            Some((t, v)) => (best, verdict) = (t, v),
            None => break,
        }
    }
    let minimisation =
        Minimisation { calls, elements_before: trial.edits.len(), elements_after: best.edits.len(), one_minimal: true };
    Ok(Minimised { trial: best, verdict, minimisation, others: Vec::new() })
}
