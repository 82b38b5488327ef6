//! Greedy coordinate gradient (Zou et al. 2023, "Universal and Transferable Adversarial Attacks on
//! Aligned Language Models", algorithm 2), with what has been found to help since: a buffer of
//! candidates (Hayase et al. 2024), several replacements at a time, merging the best single
//! replacements (Jia et al. 2024, "Improved Techniques for Optimization-Based Jailbreaking"),
//! candidates that round-trip through the tokenizer, and successive halving in place of full runs
//! of all.

use std::collections::BTreeSet;

use rand::Rng as _;
use rand::seq::SliceRandom as _;

use super::problem::{Problem, Scored};
use super::state::{ScoredSuffix, SearchState, Step, SuffixOptions};
use crate::error::Result;
use crate::evaluate::OneHotGradient;
use crate::rng::{self, Rng};

/// One draw in this many copies a run of the target.
const COPY_EVERY: usize = 16;

/// Longest run that is copied.
const MAX_RUN: usize = 4;

/// Draws for each candidate before a step goes on with fewer: most may not round-trip.
const DRAWS: usize = 8;

/// Takes one step: samples candidates by the gradient, scores them and merges the best.
///
/// # Errors
/// Those of the evaluator.
pub fn advance(
    state: &mut SearchState,
    problem: &Problem,
    options: &SuffixOptions,
) -> Result<Step> {
    let current = state.current().clone();
    let layers: Vec<usize> = options.rungs.iter().map(|(layer, _)| *layer).collect();
    let gradients =
        (0..state.prompts).map(|prompt| problem.gradient(prompt, &current.suffix, &layers));
    let gradients = gradients.collect::<Result<Vec<OneHotGradient>>>()?;
    let (candidates, copied) = candidates(state, problem, options, &current.suffix, &gradients);
    let mut scored: Vec<(Vec<u32>, Scored)> = Vec::new();
    let mut better: Vec<(usize, f64)> = Vec::new();
    let scores = if options.rungs.is_empty() {
        problem.score(state.prompts, &current.suffix, &candidates)?.into_iter().map(Some).collect()
    } else {
        // The gradient does not see what a copy does, so it must not prune copies either.
        problem.score_by_halving(
            &current.suffix,
            &candidates,
            &copied,
            &gradients,
            &options.rungs,
        )?
    };
    let before = gradients.iter().map(|g| g.loss).sum::<f64>() / gradients.len().max(1) as f64;
    for (i, score) in scores.into_iter().enumerate().filter_map(|(i, score)| Some((i, score?))) {
        scored.push((changed(&current.suffix, &candidates[i]), score));
        if score.loss < before {
            better.push((i, score.loss));
        }
    }
    better.sort_by(|a, b| a.1.total_cmp(&b.1).then(a.0.cmp(&b.0)));
    let better: Vec<&[(usize, u32)]> = better.iter().map(|(i, _)| &candidates[*i][..]).collect();
    let merged: Vec<Vec<(usize, u32)>> = merged(&better, options.merge)
        .into_iter()
        .filter(|m| {
            !options.text || problem.round_trips(state.prompts, &changed(&current.suffix, m))
        })
        .collect();
    for (candidate, score) in
        merged.iter().zip(problem.score(state.prompts, &current.suffix, &merged)?)
    {
        scored.push((changed(&current.suffix, candidate), score));
    }
    let step = Step {
        candidates: candidates.len(),
        exact: scored.len(),
        reached: scored.iter().filter(|(_, score)| score.reached).count(),
        prompts: state.prompts,
        loss: 0.0,
        best: 0.0,
    };
    state.record(scored, problem, step, |scored, buffer| {
        let newest = ScoredSuffix::new(&scored[0]);
        if options.buffer == 0 {
            *buffer = vec![newest];
        } else if buffer.iter().all(|entry| entry.suffix != newest.suffix) {
            buffer.push(newest);
            buffer.sort_by(|a, b| a.loss.total_cmp(&b.loss));
            buffer.truncate(options.buffer);
        }
    })
}

/// Draws the different candidates of a step, as lists of (index in the suffix, id), and marks those
/// that are copied.
fn candidates(
    state: &SearchState,
    problem: &Problem,
    options: &SuffixOptions,
    suffix: &[u32],
    gradients: &[OneHotGradient],
) -> (Vec<Vec<(usize, u32)>>, Vec<bool>) {
    let mut sum = vec![0f32; gradients[0].tokens.len()];
    for gradient in gradients {
        // Each prompt has one vote: by size the hardest would have all of them (Zou et al., section
        // 2.3).
        let norm =
            gradient.tokens.iter().map(|g| f64::from(g * g)).sum::<f64>().sqrt().max(1e-30) as f32;
        sum.iter_mut().zip(&gradient.tokens).for_each(|(sum, g)| *sum += g / norm);
    }
    let rows = sum.chunks_exact(sum.len() / suffix.len());
    let best: Vec<Vec<u32>> =
        rows.zip(suffix).map(|(row, id)| problem.tokens.best(row, *id, options.top_k)).collect();
    let mut rng = rng::stream(options.seed, &format!("gcg step {}", state.step));
    let places: Vec<usize> = (0..suffix.len()).filter(|place| !best[*place].is_empty()).collect();
    let width = width_at(options, state.step);
    let (mut seen, mut candidates, mut copies) =
        (BTreeSet::new(), Vec::with_capacity(width), Vec::with_capacity(width));
    for draw in 0..DRAWS * width {
        if candidates.len() == width || places.is_empty() {
            break;
        }
        let copied = (options.copies && draw % COPY_EVERY == 0)
            .then(|| copy(&problem.goal.continuation, suffix, &mut rng));
        let copied =
            copied.flatten().filter(|c| c.iter().all(|(_, id)| problem.tokens.allows(*id)));
        let is_copied = copied.is_some();
        let mut candidate = copied.unwrap_or_else(|| {
            let mut at = places.clone();
            let (drawn, _) = at.partial_shuffle(&mut rng, options.replace.max(1));
            drawn
                .iter()
                .map(|&place| (place, best[place][rng.random_range(0..best[place].len())]))
                .collect()
        });
        candidate.sort_unstable();
        if seen.insert(candidate.clone())
            && (!options.text || problem.round_trips(state.prompts, &changed(suffix, &candidate)))
        {
            candidates.push(candidate);
            copies.push(is_copied);
        }
    }
    (candidates, copies)
}

/// Copies a run of the target's own tokens to a random place of the suffix and returns the changed
/// tokens; `None` where nothing changes. A fuzzer does the same to get past comparisons (AFL++'s
/// input-to-state replacement, after Aschermann et al. 2019, "REDQUEEN"). A model that has seen a
/// run tends to continue it, which the gradient does not show: attention would have to move first.
fn copy(target: &[u32], suffix: &[u32], rng: &mut Rng) -> Option<Vec<(usize, u32)>> {
    let longest = MAX_RUN.min(target.len()).min(suffix.len());
    let run = rng.random_range(1..=longest.max(1));
    let (last, last_place) = (target.len().checked_sub(run)?, suffix.len().checked_sub(run)?);
    let (from, place) = (rng.random_range(0..=last), rng.random_range(0..=last_place));
    let run = target[from..from + run].iter().enumerate().map(|(i, id)| (place + i, *id));
    let candidate: Vec<(usize, u32)> = run.filter(|&(at, id)| suffix[at] != id).collect();
    (!candidate.is_empty()).then_some(candidate)
}

/// Returns the number of candidates of a step, interpolated from the first width to the last.
fn width_at(options: &SuffixOptions, step: usize) -> usize {
    let share = step as f64 / options.steps.saturating_sub(1).max(1) as f64;
    let (first, last) = (options.width as f64, options.last_width as f64);
    ((first + (last - first) * share.min(1.0)).round() as usize).max(1)
}

/// Returns the suffix with a candidate's replacements.
fn changed(suffix: &[u32], candidate: &[(usize, u32)]) -> Vec<u32> {
    let mut changed = suffix.to_vec();
    candidate.iter().for_each(|&(at, id)| changed[at] = id);
    changed
}

/// Merges the best two, three, ... up to `limit` of the candidates (best first) that replace
/// different places.
fn merged(better: &[&[(usize, u32)]], limit: usize) -> Vec<Vec<(usize, u32)>> {
    let (mut places, mut together, mut all) = (BTreeSet::new(), Vec::new(), Vec::new());
    let mut count = 0;
    for candidate in better {
        if count == limit || candidate.iter().any(|(place, _)| places.contains(place)) {
            continue;
        }
        places.extend(candidate.iter().map(|(place, _)| *place));
        together.extend_from_slice(candidate);
        count += 1;
        if count > 1 {
            all.push(together.clone());
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::super::state::Algorithm;
    use super::*;

    #[test]
    fn merges_take_one_token_a_place() {
        let all = [(3, 7), (3, 8), (1, 9), (0, 2), (1, 4)];
        let singles: Vec<&[(usize, u32)]> = all.iter().map(std::slice::from_ref).collect();
        assert_eq!(merged(&singles, 8), [vec![(3, 7), (1, 9)], vec![(3, 7), (1, 9), (0, 2)]]);
        assert_eq!(merged(&singles, 2), [vec![(3, 7), (1, 9)]]);
        assert!(merged(&singles, 1).is_empty() && merged(&singles[..2], 8).is_empty());
        // Of several tokens at once: all of them find room, or none.
        let pairs: [&[(usize, u32)]; 3] = [&[(2, 7), (3, 8)], &[(3, 1), (4, 2)], &[(4, 5)]];
        assert_eq!(merged(&pairs, 8), [vec![(2, 7), (3, 8), (4, 5)]]);
    }

    #[test]
    fn copies_are_runs_of_the_target() {
        let (target, mut rng, mut runs) =
            ([5, 6, 7, 8, 9, 10], rng::stream(1, "test"), BTreeSet::new());
        for _ in 0..300 {
            let copied = changed(&[0; 5], &copy(&target, &[0; 5], &mut rng).unwrap());
            let run: Vec<u32> = copied.iter().copied().filter(|id| *id != 0).collect();
            assert!(target.windows(run.len()).any(|window| window == run), "{copied:?}");
            let first = copied.iter().position(|id| *id != 0).unwrap();
            assert_eq!(copied[first..first + run.len()], run, "side by side");
            runs.insert(run.len());
        }
        assert_eq!(runs.into_iter().collect::<Vec<_>>(), [1, 2, 3, MAX_RUN]);
        assert_eq!(copy(&[], &[0; 5], &mut rng), None, "nothing to copy");
        assert_eq!(copy(&[3], &[], &mut rng), None, "no room");
        assert_eq!(copy(&[3], &[3], &mut rng), None, "it is there");
    }

    #[test]
    fn widths_fall_evenly() {
        let options = SuffixOptions {
            algorithm: Algorithm::Gcg,
            seed: 1,
            length: 4,
            steps: 5,
            width: 100,
            last_width: 20,
            top_k: 8,
            replace: 1,
            buffer: 0,
            merge: 8,
            copies: false,
            text: true,
            rungs: vec![],
        };
        assert_eq!(
            (0..6).map(|step| width_at(&options, step)).collect::<Vec<_>>(),
            [100, 80, 60, 40, 20, 20]
        );
    }
}
