//! What a trial is reduced by: its edits, its prompt, its continuation, its strengths.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Minimization;
use super::{Minimized, Options, reduce, strength};
use crate::edit::{Edit, Trial};
use crate::error::{Error, Result};
use crate::oracle::Judge;
use crate::oracle::{OracleKind, Verdict};

/// Passes over all phases at most: each later one removes only what an earlier one made removable.
const MAX_PASSES: usize = 8;
/// The first pass spends no more than one in so many calls on neutral tokens: a short budget must
/// not be gone before anything is deleted, which also makes every later call cheaper.
const NEUTRAL_SHARE: u64 = 3;

/// Reduces `trial`, on which `original` was the verdict: edits first, then prompt tokens (replaced
/// by neutral ones, then deleted), then the continuation, at last strengths. Every step is one that
/// was judged to fail in the same way.
pub fn minimize(
    trial: &Trial,
    original: &Verdict,
    judge: &dyn Judge,
    options: &Options,
) -> Result<Minimized> {
    if !original.fails() {
        return Err(Error::request("there is nothing to minimize: the trial does not fail"));
    }
    let before = elements(trial);
    let mut run = Run {
        trial: trial.clone(),
        verdict: original.clone(),
        original,
        judge,
        options,
        judged: BTreeMap::new(),
        others: Vec::new(),
        calls: 0,
        skipped: false,
    };
    let mut one_minimal = false;
    let mut strengths_done = false;
    for pass in 0..MAX_PASSES {
        let start = run.trial.clone();
        // What the first pass left is nearly minimal: groups would be wasted on it.
        let certified = run.structure(pass > 0)?;
        if pass == 0 || !strengths_done {
            run.strengths()?;
            strengths_done = true;
        }
        // The first pass may have been cut short of its certificate by `NEUTRAL_SHARE` alone.
        if run.trial == start && (certified || pass > 0) {
            one_minimal = certified && !run.skipped;
            break;
        }
        if run.left() == 0 {
            break;
        }
    }
    let minimization = Minimization {
        calls: run.calls,
        elements_before: before,
        elements_after: elements(&run.trial),
        one_minimal,
    };
    Ok(Minimized { trial: run.trial, verdict: run.verdict, minimization, others: run.others })
}

/// What counts as one element: an edit, a prompt token, a token of the continuation.
fn elements(trial: &Trial) -> usize {
    trial.edits.len() + trial.len()
}

/// Which edits go or stay together: a group for each edit, numbered from 0.
///
/// An echo trial shows a token and asks for it. To keep the asking without the showing would be a
/// failure, but another one: nobody can repeat what was not said. So all places of a token are one
/// element.
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

struct Run<'a> {
    /// The smallest so far.
    trial: Trial,
    verdict: Verdict,
    original: &'a Verdict,
    judge: &'a dyn Judge,
    options: &'a Options<'a>,
    /// Every trial judged: its verdict if it fails in the same way. Phases meet the same
    /// candidates.
    judged: BTreeMap<String, Option<Verdict>>,
    others: Vec<Trial>,
    calls: u64,
    /// Whether a candidate was passed over because nothing was left to judge it with: then there is
    /// no certificate, for `reduce` takes the answer for a judgement.
    skipped: bool,
}

/// Identifies a trial: the debug form shows every field, floats to the last bit.
fn key(trial: &Trial) -> String {
    format!("{:?}|{:?}|{:?}", trial.base, trial.continuation, trial.edits)
}

impl Run<'_> {
    fn left(&self) -> u64 {
        if self.options.stop.is_some_and(|stop| stop()) {
            0
        } else {
            self.options.max_calls.saturating_sub(self.calls)
        }
    }

    /// Whether each candidate fails in the same way as the original. A candidate for which no calls
    /// are left counts as one that does not, and is not remembered.
    fn hold(&mut self, candidates: &[Option<Trial>]) -> Result<Vec<bool>> {
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
            let most =
                self.options.batch.max(1).min(usize::try_from(self.left()).unwrap_or(usize::MAX));
            if most == 0 {
                self.skipped = true;
                break;
            }
            let (chunk, later) = rest.split_at(most.min(rest.len()));
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

    /// Whether a verdict is the original's failure. Another failure is put aside as a finding of
    /// its own.
    fn same(&mut self, trial: &Trial, verdict: &Verdict) -> bool {
        if !verdict.fails() {
            return false;
        }
        let original = self.original;
        let alike = verdict.oracle == original.oracle
            && verdict.margin <= original.margin * self.options.far
            && self.options.same.is_none_or(|same| same(trial, verdict));
        if !alike {
            if self.others.len() < self.options.max_others && !self.others.contains(trial) {
                self.others.push(trial.clone());
            }
            return false;
        }
        // A weaker form of the same failure is neither a step nor a finding.
        verdict.margin >= original.margin * self.options.keep_share
    }

    /// Goes over to a trial that was judged to hold.
    fn accept(&mut self, trial: Trial) {
        if let Some(Some(verdict)) = self.judged.get(&key(&trial)) {
            self.verdict = verdict.clone();
            self.trial = trial;
        }
    }

    /// Reduces a set of `n` elements; `without` makes the trial in which only the marked ones are
    /// kept.
    fn reduce(
        &mut self,
        n: usize,
        max_calls: u64,
        singles_only: bool,
        without: &dyn Fn(&[bool]) -> Option<Trial>,
    ) -> Result<bool> {
        if n == 0 {
            return Ok(true);
        }
        let options =
            reduce::Options { max_calls, width: self.options.batch.clamp(1, 16), singles_only };
        // Answers out of memory cost nothing, but `reduce` counts them: it may stop early, and then
        // gives no certificate it has not earned.
        let mut test = |sets: &[Vec<bool>]| {
            let candidates: Vec<Option<Trial>> = sets.iter().map(|set| without(set)).collect();
            self.hold(&candidates)
        };
        let found = reduce::reduce(n, &mut test, &options)?;
        if let Some(trial) = without(&found.kept) {
            self.accept(trial);
        }
        Ok(found.one_minimal)
    }

    /// All phases that remove something; whether each gave its certificate, on the trial it left.
    fn structure(&mut self, singles_only: bool) -> Result<bool> {
        let edits = self.edits(singles_only)?;
        let neutral = self.neutral(singles_only)?;
        let deletion = self.deletion(singles_only)?;
        let continuation = self.continuation()?;
        Ok(edits && neutral && deletion && continuation)
    }

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

    /// Base tokens that no edit is at, and that may be touched.
    fn free(&self) -> Vec<usize> {
        let mut taken = vec![false; self.trial.base.len()];
        for edit in &self.trial.edits {
            // An insert is in the gap before a token, not at it.
            if let (Some(position), false) = (edit.position(), matches!(edit, Edit::Insert { .. }))
                && position < taken.len()
            {
                taken[position] = true;
            }
        }
        let end = taken.len().saturating_sub(self.options.keep_last);
        (self.options.keep_first..end).filter(|&position| !taken[position]).collect()
    }

    fn neutral(&mut self, singles_only: bool) -> Result<bool> {
        let Some(neutral) = self.options.neutral else { return Ok(true) };
        let trial = self.trial.clone();
        let positions: Vec<usize> =
            self.free().into_iter().filter(|&p| trial.base[p] != neutral).collect();
        let most = if singles_only { self.left() } else { self.left() / NEUTRAL_SHARE };
        self.reduce(positions.len(), most, singles_only, &|kept| {
            let mut base = trial.base.to_vec();
            for (&position, _) in positions.iter().zip(kept).filter(|(_, kept)| !**kept) {
                base[position] = neutral;
            }
            Some(Trial { base: base.into(), ..trial.clone() })
        })
    }

    fn deletion(&mut self, singles_only: bool) -> Result<bool> {
        let trial = self.trial.clone();
        let positions = self.free();
        self.reduce(positions.len(), self.left(), singles_only, &|kept| {
            let mut keep = vec![true; trial.base.len()];
            for (&position, &kept) in positions.iter().zip(kept) {
                keep[position] = kept;
            }
            delete_base(&trial, &keep).and_then(usable)
        })
    }

    /// Cuts the continuation from its end: shortest that holds, by refining a grid of lengths.
    fn continuation(&mut self) -> Result<bool> {
        // What the model is to say is not for the reduction to choose.
        if self.original.oracle.oracle().keeps_continuation() {
            return Ok(true);
        }
        let trial = self.trial.clone();
        let prompt = trial.base.len();
        // One token at least stays: what the oracles read is its prediction.
        let edited = trial.edits.iter().filter_map(|edit| {
            let end = edit.position()? + usize::from(!matches!(edit, Edit::Insert { .. }));
            Some(end.saturating_sub(prompt))
        });
        let shortest = edited.max().unwrap_or(0).max(1);
        let (mut low, mut high) = (shortest, trial.continuation.len());
        let cut = |length: usize| Trial {
            continuation: trial.continuation[..length].into(),
            ..trial.clone()
        };
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
                self.hold(&lengths.iter().map(|&length| Some(cut(length))).collect::<Vec<_>>())?;
            match answers.iter().position(|&holds| holds) {
                Some(first) => {
                    high = lengths[first];
                    low = if first == 0 { low } else { lengths[first - 1] + 1 };
                    self.accept(cut(high));
                }
                None => low = lengths.last().map_or(high, |last| last + 1),
            }
        }
        Ok(true)
    }

    /// Makes every strength as small as it may be, one edit after the other.
    fn strengths(&mut self) -> Result<()> {
        for index in 0..self.trial.edits.len() {
            let Some(initial) = self.trial.edits[index].strength() else { continue };
            let trial = self.trial.clone();
            let at = |strength: f32| {
                let mut edits = trial.edits.clone();
                edits[index] = edits[index].with_strength(strength);
                trial.with_edits(edits)
            };
            let options = strength::Options {
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

/// Refuses a trial without any prompt token, edited or not: nothing could be predicted from it.
fn usable(trial: Trial) -> Option<Trial> {
    (!trial.base.is_empty() && trial.layout().prompt_len > 0).then_some(trial)
}

/// The trial with only the marked base tokens, the edits moved with the tokens they are at. `None`
/// if an edit loses its token.
fn delete_base(trial: &Trial, keep: &[bool]) -> Option<Trial> {
    // How many kept tokens are before each position, the end of the base included.
    let mut before = vec![0; keep.len() + 1];
    for (position, &kept) in keep.iter().enumerate() {
        before[position + 1] = before[position] + usize::from(kept);
    }
    let moved = |position: usize| match position.checked_sub(keep.len()) {
        None => before[position],
        Some(after) => before[keep.len()] + after,
    };
    let mut edits = trial.edits.clone();
    // Inserts that meet at one place keep the order of the places they come from, which the list's
    // order alone would not give: they are sorted among the slots that inserts have in the list.
    let slots: Vec<usize> =
        (0..edits.len()).filter(|&i| matches!(edits[i], Edit::Insert { .. })).collect();
    let mut inserts: Vec<Edit> = slots.iter().map(|&i| edits[i].clone()).collect();
    inserts.sort_by_key(Edit::position);
    for (slot, insert) in slots.into_iter().zip(inserts) {
        edits[slot] = insert;
    }
    for edit in &mut edits {
        let inserts = matches!(edit, Edit::Insert { .. });
        if let Some(position) = edit.position_mut() {
            if !inserts && keep.get(*position) == Some(&false) {
                return None;
            }
            *position = moved(*position);
        }
    }
    let base: Arc<[u32]> =
        trial.base.iter().zip(keep).filter(|(_, kept)| **kept).map(|(&id, _)| id).collect();
    Some(Trial { base, continuation: trial.continuation.clone(), edits })
}

#[cfg(test)]
mod tests;
