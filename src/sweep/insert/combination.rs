//! Words in a row, and what the model says after them.

use super::disagreement::disagreements;
use crate::error::Result;
use crate::evaluate::{ModelEvaluator, TwoModels};

/// Improbability that counts no more, nats: a word that is not said is not said.
const LEAST_LOG_PROB: f32 = -8.0;
/// The pairs, and the triples, that are left of a screen.
pub const LEFT: usize = 64;
/// Combinations in one call.
pub const CHUNK: usize = 2048;

/// Words in a row, as indices into the words of the sweep, and how promising they are.
#[derive(Debug, Clone, PartialEq)]
pub struct Combination {
    pub members: Vec<usize>,
    /// The word that it makes more probable, as an index.
    pub says: usize,
    pub score: f32,
}

impl Combination {
    /// A combination that was not scored yet.
    pub fn unscored(members: Vec<usize>) -> Self {
        Self { says: members[0], members, score: f32::NEG_INFINITY }
    }

    /// Returns it without its first word.
    pub fn without_first(&self) -> Self {
        Self { members: self.members[1..].to_vec(), ..*self }
    }

    /// Returns the tokens.
    pub fn ids(&self, words: &[u32]) -> Vec<u32> {
        self.members.iter().map(|at| words[*at]).collect()
    }

    /// Says which word scores most in `row`, the log-probabilities of every word after the
    /// combination, nats; `more` is by how many nats an index has them from the combination alone.
    /// Its own words do not count.
    pub fn choose_said(&mut self, row: &[f32], more: impl Fn(usize, f32) -> f32) {
        let scores = row.iter().enumerate().filter(|(says, _)| !self.members.contains(says));
        let scores = scores.map(|(says, log_prob)| (score(more(says, *log_prob), *log_prob), says));
        if let Some((score, says)) = scores.max_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1))) {
            (self.score, self.says) = (score, says);
        }
    }
}

/// Returns the score of a word that is said with this log-probability, and by `more` nats from the
/// combination alone.
pub fn score(more: f32, log_prob: f32) -> f32 {
    more + log_prob.max(LEAST_LOG_PROB)
}

/// Returns the combinations with the largest scores, these first.
pub fn best(mut all: Vec<Combination>, count: usize) -> Vec<Combination> {
    all.sort_by(|a, b| b.score.total_cmp(&a.score).then_with(|| a.members.cmp(&b.members)));
    all.truncate(count);
    all
}

/// Returns the log-probabilities of every word after each combination in a prompt, nats,
/// `[combinations, words]`.
///
/// # Errors
/// Those of the forward passes.
pub fn log_probs(
    evaluator: &ModelEvaluator,
    words: &[u32],
    all: &[Combination],
    prompt: &[u32],
) -> Result<Vec<f32>> {
    let endings: Vec<Vec<u32>> = all.iter().map(|combination| combination.ids(words)).collect();
    Ok(evaluator.last_positions(prompt, &endings, words)?.log_probs)
}

/// Returns the log-probability of the word that each combination says, mean over the prompts, nats;
/// `None` if `stop` said so.
///
/// # Errors
/// Those of the forward passes.
pub fn mean_log_probs(
    evaluator: &ModelEvaluator,
    words: &[u32],
    all: &[Combination],
    prompts: &[Vec<u32>],
    stop: &dyn Fn() -> bool,
) -> Result<Option<Vec<f32>>> {
    let mut means = vec![0f32; all.len()];
    for prompt in prompts {
        if stop() {
            return Ok(None);
        }
        let rows = log_probs(evaluator, words, all, prompt)?;
        for ((mean, row), of) in means.iter_mut().zip(rows.chunks_exact(words.len())).zip(all) {
            *mean += row[of.says] / prompts.len() as f32;
        }
    }
    Ok(Some(means))
}

/// Returns how far two models disagree after each combination in a prompt, bits.
///
/// # Errors
/// Those of the forward passes.
pub fn bits(
    models: &TwoModels,
    words: &[u32],
    all: &[Combination],
    prompt: &[u32],
) -> Result<Vec<f64>> {
    let inserted: Vec<Vec<u32>> = all.iter().map(|combination| combination.ids(words)).collect();
    disagreements(models, prompt, &inserted, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_word_that_only_the_combination_says_is_chosen() {
        let mut pair = Combination::unscored(vec![0, 2]);
        // The first word is a member; the second is probable anyway; the last too improbable.
        let (row, usual) = ([-0.1, -0.5, -3.0, -2.0, -20.0], [-9.0, -0.6, -9.0, -6.0, -25.0]);
        pair.choose_said(&row, |says, log_prob| log_prob - usual[says]);
        assert_eq!((pair.says, pair.score), (3, 2.0));
        assert_eq!(pair.ids(&[7, 8, 9, 10, 11]), [7, 9]);
    }

    #[test]
    fn the_best_come_first_and_ties_are_settled() {
        let scored = |members: [usize; 2], score| Combination {
            score,
            ..Combination::unscored(members.to_vec())
        };
        let all = vec![scored([3, 1], 1.0), scored([1, 3], 1.0), scored([0, 1], 2.0)];
        let kept: Vec<Vec<usize>> = best(all, 2).into_iter().map(|pair| pair.members).collect();
        assert_eq!(kept, [[0, 1], [1, 3]]);
    }
}
