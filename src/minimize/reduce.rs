//! Delta debugging: reduces a set to elements that a test cannot do without.
//!
//! Classic ddmin (Zeller and Hildebrandt 2002) removes ever smaller chunks of a fixed partition.
//! Probabilistic delta debugging (Wang et al. 2021) gives every element a probability of being
//! essential, removes the group with the largest expected gain (its size times the probability that
//! all of it is removable), and after a failed removal raises the probabilities of that group by
//! Bayes's rule, so that groups shrink where something essential hides and nowhere else. Here it
//! works in rounds: each round tests the removal of many disjoint groups in one batch, and combines
//! those that passed. At the end every remaining element is removed alone, all in one batch: the
//! certificate of 1-minimality.

use std::collections::BTreeMap;

use crate::error::{Error, Result};

/// The test: for each set of kept elements, true if it still holds.
pub type KeepTest<'a> = dyn FnMut(&[Vec<bool>]) -> Result<Vec<bool>> + 'a;

/// Options of [`reduce`].
#[derive(Debug, Clone, Copy)]
pub struct ReduceOptions {
    /// The number of sets that may be tested.
    pub max_calls: u64,
    /// The largest number of groups tested in one round.
    pub width: usize,
    /// Skips the groups and removes single elements only: for a set that was reduced before.
    pub singles_only: bool,
}

impl Default for ReduceOptions {
    fn default() -> Self {
        Self { max_calls: u64::MAX, width: 16, singles_only: false }
    }
}

/// The result of a reduction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reduction {
    /// True for every element that is left.
    pub kept: Vec<bool>,
    /// The number of sets tested; none is tested twice.
    pub calls: u64,
    /// The number of batches they came in.
    pub rounds: u64,
    /// Each remaining element was removed alone, and the test did not hold without it.
    pub one_minimal: bool,
}

/// Reduces a set of `n` elements. The whole set is assumed to pass the test.
///
/// # Errors
/// Errors of the test; [`Error::Internal`] if it does not give one answer for each set.
pub fn reduce(n: usize, keep_test: &mut KeepTest, options: &ReduceOptions) -> Result<Reduction> {
    let mut search = Search {
        kept: vec![true; n],
        tested: BTreeMap::new(),
        calls: 0,
        rounds: 0,
        keep_test,
        options,
    };
    if !options.singles_only && n > 1 {
        search.groups()?;
    }
    let one_minimal = search.singles()?;
    Ok(Reduction { kept: search.kept, calls: search.calls, rounds: search.rounds, one_minimal })
}

struct Search<'a, 'b> {
    kept: Vec<bool>,
    /// Answers so far. The test is a function of the set, so asking again would only cost.
    tested: BTreeMap<Vec<bool>, bool>,
    calls: u64,
    rounds: u64,
    keep_test: &'a mut KeepTest<'b>,
    options: &'a ReduceOptions,
}

impl Search<'_, '_> {
    /// Returns the kept set without some elements.
    fn without(&self, elements: &[usize]) -> Vec<bool> {
        let mut kept = self.kept.clone();
        for &element in elements {
            kept[element] = false;
        }
        kept
    }

    fn remaining(&self) -> Vec<usize> {
        (0..self.kept.len()).filter(|&element| self.kept[element]).collect()
    }

    /// Tests the removal of each of these groups; `None` where no calls were left.
    fn test(&mut self, groups: &[Vec<usize>]) -> Result<Vec<Option<bool>>> {
        let sets: Vec<Vec<bool>> = groups.iter().map(|group| self.without(group)).collect();
        let mut new: Vec<Vec<bool>> = Vec::new();
        for set in &sets {
            let left = self.options.max_calls.saturating_sub(self.calls + new.len() as u64);
            if left > 0 && !self.tested.contains_key(set) && !new.contains(set) {
                new.push(set.clone());
            }
        }
        if !new.is_empty() {
            let answers = (self.keep_test)(&new)?;
            if answers.len() != new.len() {
                return Err(Error::internal(format!(
                    "{} answers to {} candidates",
                    answers.len(),
                    new.len()
                )));
            }
            self.calls += new.len() as u64;
            self.rounds += 1;
            self.tested.extend(new.into_iter().zip(answers));
        }
        Ok(sets.iter().map(|set| self.tested.get(set).copied()).collect())
    }

    /// Removes groups that are removable one by one, as many of them together as the test allows;
    /// in doubt the first ones. Every step is one that was tested. Returns true if any group was
    /// removed.
    fn accept(&mut self, groups: &[Vec<usize>]) -> Result<bool> {
        let mut pending: Vec<Vec<usize>> = groups.to_vec();
        let mut any = false;
        while !pending.is_empty() {
            // Unions of the first 1, 2, 4, ... groups and of all. The first group alone has already
            // been tested if it comes from a round, so the first step always makes progress.
            let mut unions: Vec<Vec<usize>> = Vec::new();
            let mut size = pending.len();
            loop {
                unions.push(pending[..size].concat());
                if size == 1 {
                    break;
                }
                size = size.div_ceil(2);
            }
            // All together nearly always passes; the smaller unions are tested only if not.
            let mut answers = self.test(&unions[..1])?;
            if answers[0] != Some(true) {
                answers.extend(self.test(&unions[1..])?);
            }
            let Some(best) = answers.iter().position(|&answer| answer == Some(true)) else {
                // The first group is not removable (any more); the others may be.
                pending.remove(0);
                continue;
            };
            let removed = unions[best].clone();
            self.kept = self.without(&removed);
            any = true;
            pending.retain(|group| group.iter().any(|element| !removed.contains(element)));
        }
        Ok(any)
    }

    /// Removes groups of elements, round by round, until every group has one element.
    fn groups(&mut self) -> Result<()> {
        let n = self.kept.len();
        // The prior expects two essential elements, clamped so that small sets are not searched one
        // by one.
        let mut essential = vec![(2.0 / n as f64).clamp(0.001, 0.3); n];
        loop {
            let mut order: Vec<usize> =
                self.remaining().into_iter().filter(|&e| essential[e] < 1.0).collect();
            // By probability, then by position: neighbours in a text belong together.
            order.sort_by(|&a, &b| essential[a].total_cmp(&essential[b]).then(a.cmp(&b)));
            let mut groups = Vec::new();
            let mut rest = order.as_slice();
            while !rest.is_empty() && groups.len() < self.options.width {
                let (group, others) = rest.split_at(best_size(rest, &essential));
                groups.push(group.to_vec());
                rest = others;
            }
            // Groups of one element are left to the certificate.
            if groups.iter().all(|group| group.len() <= 1) {
                return Ok(());
            }
            let answers = self.test(&groups)?;
            let mut passed = Vec::new();
            for (group, answer) in groups.into_iter().zip(answers) {
                match answer {
                    None => return self.accept(&passed).map(drop),
                    Some(true) => passed.push(group),
                    Some(false) => {
                        // P(essential | the group is not removable) = p / (1 - prod(1 - p)).
                        let all_removable: f64 =
                            group.iter().map(|&e| 1.0 - essential[e]).product();
                        for &e in &group {
                            essential[e] = match group.len() {
                                1 => 1.0,
                                _ => (essential[e] / (1.0 - all_removable)).min(0.999),
                            };
                        }
                    }
                }
            }
            self.accept(&passed)?;
            // Groups that passed alone but not together are left over. They must not form again, or
            // the loop would not end.
            for group in &passed {
                for &e in group {
                    essential[e] = (essential[e] * 2.0).clamp(0.3, 0.999);
                }
            }
        }
    }

    /// Removes single elements until none is removable; returns true if that was established.
    fn singles(&mut self) -> Result<bool> {
        loop {
            let remaining = self.remaining();
            // No more candidates than can be answered, as each is a set in memory.
            let affordable = self
                .options
                .max_calls
                .saturating_sub(self.calls)
                .saturating_add(self.tested.len() as u64);
            let alone: Vec<Vec<usize>> = remaining
                .iter()
                .take(usize::try_from(affordable).unwrap_or(usize::MAX))
                .map(|&element| vec![element])
                .collect();
            let complete = alone.len() == remaining.len();
            let answers = self.test(&alone)?;
            let removable: Vec<Vec<usize>> = alone
                .into_iter()
                .zip(&answers)
                .filter(|(_, answer)| **answer == Some(true))
                .map(|(group, _)| group)
                .collect();
            if removable.is_empty() {
                return Ok(complete && answers.iter().all(|answer| *answer == Some(false)));
            }
            self.accept(&removable)?;
        }
    }
}

/// Returns the prefix length `s` of `order` with the largest expected gain `s * prod(1 - p)`.
fn best_size(order: &[usize], essential: &[f64]) -> usize {
    let (mut best, mut gain, mut all_removable) = (1, 0.0, 1.0);
    for (index, &element) in order.iter().enumerate() {
        all_removable *= 1.0 - essential[element];
        let expected = (index + 1) as f64 * all_removable;
        if expected > gain {
            (best, gain) = (index + 1, expected);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Predicate<'a> = &'a dyn Fn(&[bool]) -> bool;

    fn run(n: usize, predicate: Predicate, options: &ReduceOptions) -> Reduction {
        let mut counted = 0;
        let mut test = |sets: &[Vec<bool>]| {
            counted += sets.len() as u64;
            Ok(sets.iter().map(|set| predicate(set)).collect())
        };
        let reduction = reduce(n, &mut test, options).unwrap();
        assert_eq!(reduction.calls, counted);
        reduction
    }

    fn is_one_minimal(kept: &[bool], predicate: Predicate) -> bool {
        predicate(kept)
            && (0..kept.len()).filter(|&e| kept[e]).all(|e| {
                let mut without = kept.to_vec();
                without[e] = false;
                !predicate(&without)
            })
    }

    /// The textbook's ddmin (Zeller and Hildebrandt 2002), one call at a time.
    fn naive(n: usize, predicate: Predicate) -> (Vec<bool>, u64) {
        let mut calls = 0;
        let mut elements: Vec<usize> = (0..n).collect();
        let mask = |elements: &[usize]| {
            let mut mask = vec![false; n];
            elements.iter().for_each(|&e| mask[e] = true);
            mask
        };
        let mut test = |elements: &[usize]| {
            calls += 1;
            predicate(&mask(elements))
        };
        let mut parts = 2;
        'outer: while !elements.is_empty() {
            parts = parts.min(elements.len());
            let chunks: Vec<Vec<usize>> =
                elements.chunks(elements.len().div_ceil(parts)).map(<[usize]>::to_vec).collect();
            for chunk in &chunks {
                if chunks.len() > 2 && test(chunk) {
                    (elements, parts) = (chunk.clone(), 2);
                    continue 'outer;
                }
            }
            for chunk in &chunks {
                let rest: Vec<usize> =
                    elements.iter().copied().filter(|e| !chunk.contains(e)).collect();
                if test(&rest) {
                    (elements, parts) = (rest, parts.saturating_sub(1).max(2));
                    continue 'outer;
                }
            }
            if parts >= elements.len() {
                break;
            }
            parts *= 2;
        }
        (mask(&elements), calls)
    }

    #[test]
    fn sparse_sets_are_found_exactly_in_fewer_calls_than_ddmin() {
        for (n, needed) in [
            (1, vec![0]),
            (8, vec![3]),
            (16, vec![]),
            (64, vec![7]),
            (64, vec![7, 50]),
            (64, vec![0, 1, 2]),
            (100, vec![3, 33, 66, 99]),
            (512, vec![100, 300]),
        ] {
            let predicate = |set: &[bool]| needed.iter().all(|&e: &usize| set[e]);
            let found = run(n, &predicate, &ReduceOptions::default());
            let kept: Vec<usize> = (0..n).filter(|&e| found.kept[e]).collect();
            assert_eq!(kept, needed, "{n}");
            assert!(found.one_minimal);
            let (slow, calls) = naive(n, &predicate);
            assert!(is_one_minimal(&slow, &predicate));
            println!(
                "{n} {needed:?}: {} calls in {} rounds, ddmin {calls}",
                found.calls, found.rounds
            );
            assert!(
                found.calls <= 2 * calls + 2,
                "{n} {needed:?}: {} calls, ddmin {calls}",
                found.calls
            );
            // For a single essential element ddmin is a binary search, and nothing beats that.
            if n >= 64 && needed.len() > 1 {
                assert!(
                    found.calls < calls,
                    "{n} {needed:?}: {} calls, ddmin {calls}",
                    found.calls
                );
                assert!(found.rounds < 30, "{n} {needed:?}: {} rounds", found.rounds);
            }
        }
    }

    #[test]
    fn the_budget_holds_and_costs_the_certificate() {
        let predicate = |set: &[bool]| set[3] && set[40];
        let whole = run(64, &predicate, &ReduceOptions::default());
        for max_calls in 0..whole.calls + 2 {
            let cut = run(64, &predicate, &ReduceOptions { max_calls, ..ReduceOptions::default() });
            assert!(cut.calls <= max_calls);
            assert!(predicate(&cut.kept));
            assert_eq!(cut.one_minimal, max_calls >= whole.calls, "{max_calls} of {}", whole.calls);
        }
    }

    #[test]
    fn errors_pass_and_wrong_answers_are_errors() {
        let mut fails = |_: &[Vec<bool>]| Err(Error::Interrupted);
        assert!(matches!(
            reduce(4, &mut fails, &ReduceOptions::default()),
            Err(Error::Interrupted)
        ));
        let mut silent = |_: &[Vec<bool>]| Ok(vec![]);
        assert!(reduce(4, &mut silent, &ReduceOptions::default()).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: 200,
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        #[test]
        fn monotone_predicates_give_one_minimal_sets(
            n in 1usize..40,
            // Holds when all of one of these sets are there.
            ways in prop::collection::vec(prop::collection::vec(0usize..40, 0..5), 1..4),
            width in 1usize..9,
        ) {
            let predicate = |set: &[bool]| ways.iter().any(|way| way.iter().all(|&e| set[e % n]));
            let found = run(n, &predicate, &ReduceOptions { width, ..ReduceOptions::default() });
            prop_assert!(found.one_minimal && is_one_minimal(&found.kept, &predicate));
            prop_assert!(is_one_minimal(&naive(n, &predicate).0, &predicate));
        }

        #[test]
        fn so_do_arbitrary_ones(
            n in 1usize..30,
            salt in any::<u64>(),
            share in 0u64..100,
            singles_only in any::<bool>(),
        ) {
            let predicate = |set: &[bool]| {
                // A hash of the set: as far from monotone as can be.
                let mut hash = salt | 1;
                for &b in set {
                    hash = (hash ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3).rotate_left(7);
                }
                set.iter().all(|&b| b) || hash % 100 < share
            };
            let options = ReduceOptions { singles_only, ..ReduceOptions::default() };
            let found = run(n, &predicate, &options);
            prop_assert!(found.one_minimal && is_one_minimal(&found.kept, &predicate));
        }
    }
}
