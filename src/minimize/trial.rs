//! The phases of reducing a trial: its edits, its prompt, its continuation, its strengths.
//!
//! Edits are removed first, then the prompt is shortened (`prompt.rs`), then the continuation is
//! cut, then strengths are lowered; the phases repeat until none finds anything. Every step is a
//! trial that was judged to fail in the same way: under the same oracle, with at least a share of
//! the original margin, so that the failure cannot drift into a lesser one, and with a baseline
//! that still does at least half as well what it is compared for.

use std::collections::BTreeMap;

use super::{Minimization, MinimizeOptions, Minimized, reduce, strength};
use crate::edit::{Edit, Trial};
use crate::error::{Error, Result};
use crate::oracle::{Judge, OracleKind, Verdict};

/// The largest number of passes over all phases: a later pass removes only what an earlier one made
/// removable.
const MAX_PASSES: usize = 8;
/// The share of its baseline's quality that a reduction keeps.
const BASELINE_SHARE: f64 = 0.5;

/// Reduces `trial`, on which `original` was the verdict, to the smallest trial found that fails in
/// the same way.
///
/// # Errors
/// [`Error::Request`] if the verdict is not a failure; errors of the judge.
pub fn minimize(
    trial: &Trial,
    original: &Verdict,
    judge: &dyn Judge,
    options: &MinimizeOptions,
) -> Result<Minimized> {
    if !original.fails() {
        return Err(Error::request("there is nothing to minimize: the trial does not fail"));
    }
    let before = elements(trial);
    let mut minimizer = Minimizer {
        trial: trial.clone(),
        verdict: original.clone(),
        original,
        judge,
        options,
        judged: BTreeMap::new(),
        others: Vec::new(),
        steps: Vec::new(),
        calls: 0,
        skipped: false,
    };
    let mut one_minimal = false;
    let mut strengths_done = false;
    for pass in 0..MAX_PASSES {
        let start = minimizer.trial.clone();
        // The first pass leaves a nearly minimal trial, on which groups would be wasted.
        let certified = minimizer.structure(pass > 0)?;
        if pass == 0 || !strengths_done {
            minimizer.strengths()?;
            strengths_done = true;
        }
        // The first pass may have been cut short of its certificate by its share of the calls.
        if minimizer.trial == start && (certified || pass > 0) {
            one_minimal = certified && !minimizer.skipped;
            break;
        }
        if minimizer.left() == 0 {
            break;
        }
    }
    let minimization = Minimization {
        calls: minimizer.calls,
        elements_before: before,
        elements_after: elements(&minimizer.trial),
        one_minimal,
    };
    let Minimizer { trial, verdict, others, steps, .. } = minimizer;
    Ok(Minimized { trial, verdict, minimization, others, steps })
}

/// Counts the elements of a trial: edits, prompt tokens and continuation tokens.
pub fn elements(trial: &Trial) -> usize {
    trial.edits.len() + trial.len()
}

/// Returns the group of each edit, numbered from 0; the edits of a group are kept or removed
/// together.
///
/// An echo trial shows a token and asks for it. Asking without showing would be a failure, but
/// another one: no model can repeat what it was not shown. So all edits that place the same token
/// are one element.
fn inseparable(edits: &[Edit], oracle: OracleKind) -> Vec<usize> {
    let token = |edit: &Edit| match edit {
        Edit::Replace { id, .. } | Edit::Insert { id, .. } if oracle.oracle().edits_one_token() => {
            Some(*id)
        }
        _ => None,
    };
    let mut groups: Vec<Option<u32>> = Vec::new();
    let group_of = |edit: &Edit| {
        let token = token(edit);
        let known = groups.iter().position(|group| token.is_some() && *group == token);
        known.unwrap_or_else(|| {
            groups.push(token);
            groups.len() - 1
        })
    };
    edits.iter().map(group_of).collect()
}

/// A reduction under way.
pub(super) struct Minimizer<'a> {
    /// The smallest trial so far.
    pub(super) trial: Trial,
    verdict: Verdict,
    original: &'a Verdict,
    judge: &'a dyn Judge,
    pub(super) options: &'a MinimizeOptions<'a>,
    /// Every trial judged, with its verdict if it fails in the same way. Different phases propose
    /// the same candidates.
    judged: BTreeMap<String, Option<Verdict>>,
    others: Vec<Trial>,
    /// Every trial that was continued from, the last one included.
    steps: Vec<Trial>,
    calls: u64,
    /// True if a candidate was not judged because no calls were left. Then there is no certificate:
    /// `reduce` takes the answer for a judgement.
    skipped: bool,
}

/// Returns whether the model still does without the edits what the trial is compared with.
fn keeps_baseline(original: &Verdict, verdict: &Verdict) -> bool {
    match (original.baseline, verdict.baseline) {
        (Some(before), Some(now)) => now >= BASELINE_SHARE * before,
        _ => true,
    }
}

/// Returns a text that identifies a trial: the debug form shows every field, floats to the last
/// bit.
fn key(trial: &Trial) -> String {
    format!("{:?}|{:?}|{:?}", trial.base, trial.continuation, trial.edits)
}

impl Minimizer<'_> {
    /// Returns the number of calls that are left; 0 once the caller wants to stop.
    pub(super) fn left(&self) -> u64 {
        if self.options.stop.is_some_and(|stop| stop()) {
            0
        } else {
            self.options.max_calls.saturating_sub(self.calls)
        }
    }

    /// Judges which candidates fail in the same way as the original. A candidate for which no calls
    /// are left counts as one that does not, and is not remembered.
    pub(super) fn hold(&mut self, candidates: &[Option<Trial>]) -> Result<Vec<bool>> {
        let keys: Vec<Option<String>> =
            candidates.iter().map(|candidate| candidate.as_ref().map(key)).collect();
        let mut new: Vec<(&str, &Trial)> = Vec::new();
        for (key, candidate) in keys.iter().zip(candidates) {
            if let (Some(key), Some(candidate)) = (key, candidate)
                && !self.judged.contains_key(key)
                && !new.iter().any(|(other, _)| other == key)
            {
                new.push((key, candidate));
            }
        }
        let mut rest = &new[..];
        while !rest.is_empty() {
            let affordable =
                self.options.batch.max(1).min(usize::try_from(self.left()).unwrap_or(usize::MAX));
            if affordable == 0 {
                self.skipped = true;
                break;
            }
            let (chunk, later) = rest.split_at(affordable.min(rest.len()));
            rest = later;
            let trials: Vec<Trial> = chunk.iter().map(|(_, trial)| (*trial).clone()).collect();
            let verdicts = self.judge.judge(&trials)?;
            if verdicts.len() != trials.len() {
                return Err(Error::internal(format!(
                    "{} verdicts on {} trials",
                    verdicts.len(),
                    trials.len()
                )));
            }
            self.calls += trials.len() as u64;
            for ((key, _), (trial, verdict)) in chunk.iter().zip(trials.into_iter().zip(verdicts)) {
                let same = self.same(&trial, &verdict);
                self.judged.insert((*key).to_string(), same.then_some(verdict));
            }
        }
        Ok(keys
            .iter()
            .map(|key| {
                key.as_ref().is_some_and(|key| matches!(self.judged.get(key), Some(Some(_))))
            })
            .collect())
    }

    /// Returns true if a verdict is the original's failure. Another failure is kept as a finding of
    /// its own.
    fn same(&mut self, trial: &Trial, verdict: &Verdict) -> bool {
        if !verdict.fails() {
            return false;
        }
        let original = self.original;
        let alike = verdict.oracle == original.oracle
            && verdict.margin <= original.margin * self.options.max_margin_ratio
            && self.options.same.is_none_or(|same| same(trial, verdict));
        if !alike {
            if self.others.len() < self.options.max_others && !self.others.contains(trial) {
                self.others.push(trial.clone());
            }
            return false;
        }
        // A weaker form of the same failure is neither a step nor a finding.
        verdict.margin >= original.margin * self.options.keep_share
            && keeps_baseline(original, verdict)
    }

    /// Continues from a candidate that was judged to fail in the same way.
    pub(super) fn accept(&mut self, trial: Trial) {
        if let Some(Some(verdict)) = self.judged.get(&key(&trial)) {
            self.verdict = verdict.clone();
            if self.trial != trial {
                self.steps.push(trial.clone());
            }
            self.trial = trial;
        }
    }

    /// Reduces a set of `n` elements; `keeping` builds the trial with only the marked ones. Returns
    /// true if the result is certified as 1-minimal.
    pub(super) fn reduce(
        &mut self,
        n: usize,
        max_calls: u64,
        singles_only: bool,
        keeping: &dyn Fn(&[bool]) -> Option<Trial>,
    ) -> Result<bool> {
        if n == 0 {
            return Ok(true);
        }
        let options = reduce::ReduceOptions {
            max_calls,
            width: self.options.batch.clamp(1, 16),
            singles_only,
        };
        // Remembered answers cost nothing, but `reduce` counts them: it may stop early, and then
        // gives no certificate.
        let mut test = |sets: &[Vec<bool>]| {
            let candidates: Vec<Option<Trial>> = sets.iter().map(|set| keeping(set)).collect();
            self.hold(&candidates)
        };
        let found = reduce::reduce(n, &mut test, &options)?;
        if let Some(trial) = keeping(&found.kept) {
            self.accept(trial);
        }
        Ok(found.one_minimal)
    }

    /// Runs all phases that remove something; returns true if each certified the trial it left.
    fn structure(&mut self, singles_only: bool) -> Result<bool> {
        let edits = self.edits(singles_only)?;
        let prompt = self.prompt(singles_only)?;
        let continuation = self.continuation()?;
        Ok(edits && prompt && continuation)
    }

    /// Removes edits.
    fn edits(&mut self, singles_only: bool) -> Result<bool> {
        let trial = self.trial.clone();
        let groups = inseparable(&trial.edits, self.original.oracle);
        let n = groups.iter().max().map_or(0, |last| last + 1);
        self.reduce(n, self.left(), singles_only, &|kept| {
            let edits = trial
                .edits
                .iter()
                .zip(&groups)
                .filter(|(_, group)| kept[**group])
                .map(|(edit, _)| edit.clone());
            usable(trial.with_edits(edits.collect()))
        })
    }

    /// Cuts the continuation from its end, to the shortest that still fails.
    fn continuation(&mut self) -> Result<bool> {
        // With this oracle the continuation is the goal, which the reduction must not change.
        if self.original.oracle.oracle().keeps_continuation() {
            return Ok(true);
        }
        let trial = self.trial.clone();
        let prompt = trial.base.len();
        // At least one token stays, because the oracles read its prediction.
        let edited = trial.edits.iter().map(Edit::least_length).max().unwrap_or(0);
        let shortest = edited.saturating_sub(prompt).max(1);
        self.shortest(shortest, trial.continuation.len(), &|length| {
            Some(Trial { continuation: trial.continuation[..length].into(), ..trial.clone() })
        })
    }

    /// Finds the shortest length from `low` on, below `high`, of which `cut` makes a trial that
    /// still fails, by refining a grid; returns false if the calls ran out.
    pub(super) fn shortest(
        &mut self,
        mut low: usize,
        mut high: usize,
        cut: &dyn Fn(usize) -> Option<Trial>,
    ) -> Result<bool> {
        while low < high {
            if self.left() == 0 {
                return Ok(false);
            }
            // Lengths from `low` to below `high`; with `high - low` small, all of them.
            let points =
                (high - low).min(self.options.batch.clamp(1, 16)).min(self.left() as usize);
            let lengths: Vec<usize> =
                (1..=points).map(|i| low + (high - low) * i / (points + 1)).collect();
            let lengths = match high - low <= points {
                true => (low..high).collect(),
                false => lengths,
            };
            let answers =
                self.hold(&lengths.iter().map(|&length| cut(length)).collect::<Vec<_>>())?;
            match answers.iter().position(|&holds| holds) {
                Some(first) => {
                    high = lengths[first];
                    low = if first == 0 { low } else { lengths[first - 1] + 1 };
                    if let Some(trial) = cut(high) {
                        self.accept(trial);
                    }
                }
                None => low = lengths.last().map_or(high, |last| last + 1),
            }
        }
        Ok(true)
    }

    /// Lowers every strength as far as possible, one edit after the other.
    fn strengths(&mut self) -> Result<()> {
        for index in 0..self.trial.edits.len() {
            let Some(initial) = self.trial.edits[index].strength() else { continue };
            let trial = self.trial.clone();
            let at = |strength: f32| {
                let mut edits = trial.edits.clone();
                edits[index] = edits[index].with_strength(strength);
                trial.with_edits(edits)
            };
            let options = strength::StrengthOptions {
                points: 8,
                tolerance: self.options.strength_tolerance.max(1e-6),
                max_calls: self.left(),
            };
            let mut test = |points: &[f32]| {
                self.hold(&points.iter().map(|&point| Some(at(point))).collect::<Vec<_>>())
            };
            let found = strength::smallest(initial, &mut test, &options)?;
            if found.strength != initial {
                self.accept(at(found.strength));
            }
        }
        Ok(())
    }
}

/// Returns the trial if it has a prompt token both with and without its edits; nothing can be
/// predicted from an empty prompt.
pub(super) fn usable(trial: Trial) -> Option<Trial> {
    (!trial.base.is_empty() && trial.layout().prompt_len > 0).then_some(trial)
}

#[cfg(test)]
mod tests;
