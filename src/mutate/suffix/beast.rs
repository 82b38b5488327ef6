//! Beam search for a suffix, without gradients (Sadasivan et al. 2024, "Fast Adversarial Attacks on
//! Language Models In One GPU Minute", algorithm 1): every beam is continued by tokens drawn from
//! the model's own predictions, so that suffixes read like text.

use rand::Rng as _;

use super::problem::{Problem, Scored};
use super::state::{ScoredSuffix, SearchState, Step, SuffixOptions};
use crate::edit::Trial;
use crate::error::{Error, Result};
use crate::evaluate::{Evaluator as _, Request};
use crate::rng::{self, Rng};

/// Takes one step: one more token.
///
/// # Errors
/// Those of the evaluator.
pub fn advance(
    state: &mut SearchState,
    problem: &Problem,
    options: &SuffixOptions,
) -> Result<Step> {
    // As many beams as continuations of each: their product is the width.
    let beams = (options.width as f64).sqrt().round().max(1.0) as usize;
    let mut rng = rng::stream(options.seed, &format!("beast step {}", state.step));
    let after = |entry: &ScoredSuffix| {
        Request::new(Trial::new([&problem.prompts[0].before[..], &entry.suffix].concat(), []))
            .keeping_distributions()
    };
    let next = problem.evaluator.observe(&state.buffer.iter().map(after).collect::<Vec<_>>())?;
    let mut scored: Vec<(Vec<u32>, Scored)> = Vec::new();
    let mut candidates = 0;
    for (entry, observed) in state.buffer.iter().zip(&next) {
        let distribution = observed
            .distributions
            .as_ref()
            .ok_or_else(|| Error::internal("distributions were not kept"))?;
        let mut log_probs = distribution.row(0).to_vec();
        log_probs
            .iter_mut()
            .enumerate()
            .filter(|(id, _)| !problem.tokens.allows(*id as u32))
            .for_each(|(_, p)| *p = f32::NEG_INFINITY);
        // A single beam gets all the continuations.
        let count = if state.buffer.len() == 1 { options.width } else { beams };
        let mut drawn = draw(&log_probs, count, &mut rng);
        let longer = |id: u32| [&entry.suffix[..], &[id]].concat();
        if options.text {
            drawn.retain(|id| problem.round_trips(state.prompts, &longer(*id)));
        }
        candidates += drawn.len();
        let Some(&first) = drawn.first() else { continue };
        // All but the last token of the suffix is one prefix of all of these.
        let replacements: Vec<Vec<(usize, u32)>> =
            drawn.iter().map(|id| vec![(entry.suffix.len(), *id)]).collect();
        let scores = problem.score(state.prompts, &longer(first), &replacements)?;
        scored.extend(drawn.iter().map(|id| longer(*id)).zip(scores));
    }
    let step = Step {
        candidates,
        exact: scored.len(),
        reached: scored.iter().filter(|(_, score)| score.reached).count(),
        prompts: state.prompts,
        loss: 0.0,
        best: 0.0,
    };
    state.record(scored, problem, step, |scored, buffer| {
        *buffer = scored.iter().take(beams).map(ScoredSuffix::new).collect()
    })
}

/// Draws different ids in proportion to their probabilities, without replacement: the largest of
/// `log p` plus Gumbel noise (Kool et al. 2019). Ids with probability 0 are never drawn.
fn draw(log_probs: &[f32], count: usize, rng: &mut Rng) -> Vec<u32> {
    let mut keys: Vec<(f64, u32)> = Vec::with_capacity(log_probs.len());
    for (id, p) in (0u32..).zip(log_probs) {
        let uniform: f64 = rng.random_range(f64::MIN_POSITIVE..1.0);
        if p.is_finite() {
            keys.push((f64::from(*p) - (-uniform.ln()).ln(), id));
        }
    }
    keys.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    keys.into_iter().take(count).map(|(_, id)| id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_different_likely_and_possible() {
        let log_probs = [0.7f32, 0.2, 0.1, 0.0].map(f32::ln);
        let mut first = [0usize; 4];
        for seed in 0..2000 {
            let drawn = draw(&log_probs, 3, &mut rng::stream(seed, "test"));
            let mut different = drawn.clone();
            different.sort_unstable();
            assert_eq!(different, [0, 1, 2], "what is impossible is not drawn, and nothing twice");
            first[drawn[0] as usize] += 1;
        }
        let share = |id: usize| first[id] as f64 / 2000.0;
        assert!((share(0) - 0.7).abs() < 0.04 && (share(1) - 0.2).abs() < 0.04, "{first:?}");
        assert_eq!(draw(&log_probs, 9, &mut rng::stream(1, "test")).len(), 3);
    }
}
