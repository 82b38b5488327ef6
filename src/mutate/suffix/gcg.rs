//! Greedy coordinate gradient (Zou et al. 2023, "Universal and Transferable Adversarial Attacks on Aligned Language
//! Models", algorithm 2), with what has been found to help since: a buffer of candidates (Hayase et al. 2024), several
//! replacements at a time, merging the best single replacements (Jia et al. 2024, "Improved Techniques for
//! Optimization-Based Jailbreaking"), candidates that text can carry, and a race in place of full runs of all.

use std::collections::BTreeSet;

use rand::Rng as _;
use rand::seq::SliceRandom as _;

use super::problem::{Problem, Scored};
use super::state::{Entry, Options, State, Step};
use crate::error::Result;
use crate::evaluate::OneHotGradient;
use crate::rng;

/// Stages for a model of so many layers: none where there is little to save. On SmolLM2 (30 layers, 256 candidates) what
/// is expected after a third of the layers ranks candidates with a correlation of about 0.2, after half 0.4, after two
/// thirds 0.5. Of shares a little larger than these the best of those left was among the best ten of all in eleven
/// steps of twelve.
pub fn stages(layers: usize, recurrent: bool) -> Vec<(usize, f64)> {
    if recurrent || layers < 12 {
        return Vec::new();
    }
    vec![(3 * layers / 10, 0.3), (layers / 2, 0.5), (2 * layers / 3, 0.5)]
}

/// Draws for each candidate before a step goes on with fewer: text may be unable to carry most of them.
const DRAWS: usize = 8;

/// One step.
///
/// # Errors
/// What the evaluator refuses.
pub fn advance(state: &mut State, problem: &Problem, options: &Options) -> Result<Step> {
    let current = state.current().clone();
    let layers: Vec<usize> = options.stages.iter().map(|(layer, _)| *layer).collect();
    let gradients = (0..state.prompts).map(|prompt| problem.gradient(prompt, &current.suffix, &layers));
    let gradients = gradients.collect::<Result<Vec<OneHotGradient>>>()?;
    let candidates = candidates(state, problem, options, &current.suffix, &gradients);
    let mut scored: Vec<(Vec<u32>, Scored)> = Vec::new();
    let mut singles: Vec<(usize, f64)> = Vec::new();
    let scores = if options.stages.is_empty() {
        problem.score(state.prompts, &current.suffix, &candidates)?.into_iter().map(Some).collect()
    } else {
        problem.race(&current.suffix, &candidates, &gradients, &options.stages)?
    };
    let before = gradients.iter().map(|g| g.loss).sum::<f64>() / gradients.len().max(1) as f64;
    for (i, score) in scores.into_iter().enumerate().filter_map(|(i, score)| Some((i, score?))) {
        scored.push((changed(&current.suffix, &candidates[i]), score));
        if candidates[i].len() == 1 && score.loss < before {
            singles.push((i, score.loss));
        }
    }
    singles.sort_by(|a, b| a.1.total_cmp(&b.1).then(a.0.cmp(&b.0)));
    let singles: Vec<(usize, u32)> = singles.iter().map(|(i, _)| candidates[*i][0]).collect();
    let merged: Vec<Vec<(usize, u32)>> = merged(&singles, options.merge)
        .into_iter()
        .filter(|m| !options.text || problem.survives(state.prompts, &changed(&current.suffix, m)))
        .collect();
    for (candidate, score) in merged.iter().zip(problem.score(state.prompts, &current.suffix, &merged)?) {
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
    state.take(scored, problem, step, |scored, buffer| {
        let newest = Entry::of(&scored[0]);
        if options.buffer == 0 {
            *buffer = vec![newest];
        } else if buffer.iter().all(|entry| entry.suffix != newest.suffix) {
            buffer.push(newest);
            buffer.sort_by(|a, b| a.loss.total_cmp(&b.loss));
            buffer.truncate(options.buffer);
        }
    })
}

/// Different candidates of a step, as lists of (index in the suffix, id).
fn candidates(
    state: &State,
    problem: &Problem,
    options: &Options,
    suffix: &[u32],
    gradients: &[OneHotGradient],
) -> Vec<Vec<(usize, u32)>> {
    let mut sum = vec![0f32; gradients[0].tokens.len()];
    for gradient in gradients {
        // Each prompt has one vote: by size the hardest would have all of them (Zou et al., section 2.3).
        let norm = gradient.tokens.iter().map(|g| f64::from(g * g)).sum::<f64>().sqrt().max(1e-30) as f32;
        sum.iter_mut().zip(&gradient.tokens).for_each(|(sum, g)| *sum += g / norm);
    }
    let rows = sum.chunks_exact(sum.len() / suffix.len());
    let best: Vec<Vec<u32>> = rows.zip(suffix).map(|(row, id)| problem.tokens.best(row, *id, options.top_k)).collect();
    let mut rng = rng::stream(options.seed, &format!("gcg step {}", state.step));
    let places: Vec<usize> = (0..suffix.len()).filter(|place| !best[*place].is_empty()).collect();
    let width = width(options, state.step);
    let (mut seen, mut candidates) = (BTreeSet::new(), Vec::with_capacity(width));
    for _ in 0..DRAWS * width {
        if candidates.len() == width || places.is_empty() {
            break;
        }
        let mut at = places.clone();
        let (drawn, _) = at.partial_shuffle(&mut rng, options.replace.max(1));
        let mut candidate: Vec<(usize, u32)> =
            drawn.iter().map(|&place| (place, best[place][rng.random_range(0..best[place].len())])).collect();
        candidate.sort_unstable();
        if seen.insert(candidate.clone()) && (!options.text || problem.survives(state.prompts, &changed(suffix, &candidate))) {
            candidates.push(candidate);
        }
    }
    candidates
}

/// Candidates of a step: evenly from the first width to the last.
fn width(options: &Options, step: usize) -> usize {
    let share = step as f64 / options.steps.saturating_sub(1).max(1) as f64;
    let (first, last) = (options.width as f64, options.last_width as f64);
    ((first + (last - first) * share.min(1.0)).round() as usize).max(1)
}

fn changed(suffix: &[u32], candidate: &[(usize, u32)]) -> Vec<u32> {
    let mut changed = suffix.to_vec();
    candidate.iter().for_each(|&(at, id)| changed[at] = id);
    changed
}

/// The best two, three, ... up to `most` of single replacements (best first) at different places, together.
fn merged(singles: &[(usize, u32)], most: usize) -> Vec<Vec<(usize, u32)>> {
    let mut places = BTreeSet::new();
    let mut together: Vec<(usize, u32)> = singles.iter().copied().filter(|(place, _)| places.insert(*place)).collect();
    together.truncate(most);
    (2..=together.len()).map(|n| together[..n].to_vec()).collect()
}

#[cfg(test)]
mod tests {
    use super::super::state::Algorithm;
    use super::*;

    #[test]
    fn merges_take_one_replacement_a_place() {
        let singles = [(3, 7), (3, 8), (1, 9), (0, 2), (1, 4)];
        assert_eq!(merged(&singles, 8), vec![vec![(3, 7), (1, 9)], vec![(3, 7), (1, 9), (0, 2)]]);
        assert_eq!(merged(&singles, 2), vec![vec![(3, 7), (1, 9)]]);
        assert!(merged(&singles, 1).is_empty() && merged(&singles[..2], 8).is_empty());
    }

    #[test]
    fn widths_fall_evenly() {
        let options = Options {
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
            text: true,
            stages: vec![],
        };
        assert_eq!((0..6).map(|step| width(&options, step)).collect::<Vec<_>>(), [100, 80, 60, 40, 20, 20]);
    }
}
