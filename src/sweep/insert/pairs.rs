//! The pairs of words that are worth running: those that an MLP reads as more than the sum of two.
//!
//! There are millions of pairs, and what a word of a trigger does alone shows nothing of what both
//! do. But a block that answers to both has to be non-linear in them. So the residual stream that
//! each MLP reads is measured after every word as the last of the prompt and as the last but one,
//! beside random words; the stream after a pair is predicted as the sum of both changes; and a pair
//! is ranked by the norm of the MLP's *interaction* there, the second difference of its output
//! `f(x + a + b) - f(x + a) - f(x + b) + f(x)`. What the best of each layer do is then measured:
//! the word that the pair makes more probable than either member does, first in one prompt, then
//! in more.
//!
//! The prediction is of MLPs and mixtures. What attention alone makes of a pair is not seen.

use rand::Rng as _;

use super::super::Progress;
use super::disagreement::disagreements;
use super::options::InsertOptions;
use crate::error::{Error, Result};
use crate::evaluate::{ModelEvaluator, TwoModels};
use crate::model::Model;
use crate::{rng, stats};

/// The prompts that single words are run in. One is not enough: the random word beside a word
/// matters.
const SINGLES: usize = 4;
/// The pairs of each layer that are run in one prompt.
const PER_LAYER: usize = 16_384;
/// The pairs that are run in more prompts.
const RUN_AGAIN: usize = 384;
/// The pairs that are left.
pub const LEFT: usize = 64;
/// The largest number of words that are paired.
pub const MOST_WORDS: usize = 2048;
/// Improbability that counts no more, nats: a word that is not said is not said.
const LEAST_LOG_PROB: f32 = -8.0;
/// Pairs in one call.
const CHUNK: usize = 2048;

/// The words and what each does alone.
struct Singles {
    words: Vec<u32>,
    /// The streams that the MLP of each layer reads after a word as the last, `[words, d_model]`.
    last: Vec<Vec<f32>>,
    /// The same after a word as the last but one.
    before: Vec<Vec<f32>>,
    /// Log-probabilities of every word after one as the last, nats, `[words, words]`, median.
    after_last: Vec<f32>,
    /// The same after one as the last but one.
    after_before: Vec<f32>,
    /// The mean over the words of `after_before`, `[words]`.
    usual: Vec<f32>,
}

/// A pair, as indices into the words, and what it makes more probable.
#[derive(Clone, Copy)]
struct Pair {
    first: usize,
    second: usize,
    /// The word that it makes more probable, as an index.
    says: usize,
    score: f32,
}

/// Checks, before anything is run, that pairs can be screened as asked for.
///
/// # Errors
/// [`Error::Request`] for a model without an MLP that works on each position by itself, and for
/// pairs that are not inserted at the end.
pub fn check(model: &Model, options: &InsertOptions, inserted: &[u32]) -> Result<()> {
    if options.pairs.is_none() {
        return Ok(());
    }
    if options.before_end > 0 {
        return Err(Error::request("pairs are screened at the end of a prompt, and not before it"));
    }
    if inserted.len() < 2 {
        return Err(Error::request("a pair takes two words"));
    }
    let nothing = vec![0.0; model.config.hidden_size];
    for layer in 0..model.config.num_hidden_layers {
        if model.mlp_output(layer, nothing.clone())?.is_some() {
            return Ok(());
        }
    }
    Err(Error::request(format!(
        "{} has no MLP that pairs could be screened by (channel mixing reads the token before)",
        model.name
    )))
}

/// Returns the ordered pairs of different words that look most as if they did together what neither
/// does alone; `None` if `stop` said so.
///
/// # Errors
/// Those of the forward passes.
pub fn shortlist(
    evaluator: &ModelEvaluator,
    words: &[u32],
    prompts: &[Vec<u32>],
    seed: u64,
    progress: Progress,
    stop: &dyn Fn() -> bool,
) -> Result<Option<Vec<(u32, u32)>>> {
    let singles = Singles::measure(evaluator, words, words, prompts, seed)?;
    let mlp = |layer, streams| {
        Ok(evaluator.model.mlp_output(layer, streams)?.map(|output| output.to_vec()))
    };
    let d = evaluator.model.config.hidden_size;
    let Some(chosen) = singles.interacting(d, &mlp, progress, stop)? else { return Ok(None) };
    let mut pairs = Vec::with_capacity(chosen.len());
    let first = &prompts[SINGLES % prompts.len()];
    for chunk in chosen.chunks(CHUNK) {
        if stop() {
            return Ok(None);
        }
        pairs.extend(singles.most_said(evaluator, chunk, first)?);
    }
    let mut pairs = best(pairs, RUN_AGAIN);
    singles.run_again(evaluator, &mut pairs, prompts)?;
    let pairs = best(pairs, LEFT);
    Ok(Some(pairs.iter().map(|p| (words[p.first], words[p.second])).collect()))
}

/// Returns the ordered pairs of different words about which two models disagree most, and less
/// after the last word alone; `alone` are the bits of each as the last word. The interactions are
/// those of the difference of their MLPs; where only attention differs there are none.
///
/// # Errors
/// As [`shortlist`].
pub fn shortlist_between(
    models: &TwoModels,
    words: &[u32],
    alone: &dyn Fn(u32) -> f64,
    prompts: &[Vec<u32>],
    seed: u64,
    progress: Progress,
    stop: &dyn Fn() -> bool,
) -> Result<Option<Vec<(u32, u32)>>> {
    let (ours, theirs) = (models.evaluator.model, models.against.model);
    let mlp = |layer: usize, streams: Vec<f32>| -> Result<Option<Vec<f32>>> {
        let output = (ours.mlp_output(layer, streams.clone())?, theirs.mlp_output(layer, streams)?);
        let (Some(ours), Some(theirs)) = output else { return Ok(None) };
        Ok(Some(ours.iter().zip(theirs.iter()).map(|(a, b)| a - b).collect()))
    };
    let singles = Singles::measure(models.evaluator, words, &[], prompts, seed)?;
    let d = ours.config.hidden_size;
    let Some(chosen) = singles.interacting(d, &mlp, progress, stop)? else { return Ok(None) };
    let unscored =
        |&(first, second): &(usize, usize)| Pair { first, second, says: first, score: 0.0 };
    let mut pairs: Vec<Pair> = chosen.iter().map(unscored).collect();
    let all_prompts = [&prompts[SINGLES % prompts.len()..][..1], prompts];
    for (prompts, left) in all_prompts.into_iter().zip([RUN_AGAIN, LEFT]) {
        pairs.iter_mut().for_each(|pair| pair.score = -alone(words[pair.second]) as f32);
        for prompt in prompts {
            for chunk in pairs.chunks_mut(CHUNK) {
                if stop() {
                    return Ok(None);
                }
                let inserted: Vec<Vec<u32>> =
                    chunk.iter().map(|p| vec![words[p.first], words[p.second]]).collect();
                let bits = disagreements(models, prompt, &inserted, 0)?;
                for (pair, bits) in chunk.iter_mut().zip(bits) {
                    pair.score += bits as f32 / prompts.len() as f32;
                }
            }
        }
        pairs = best(pairs, left);
    }
    Ok(Some(pairs.iter().map(|p| (words[p.first], words[p.second])).collect()))
}

impl Singles {
    /// Runs every word as the last and as the last but one, each time beside a random one, and
    /// keeps the log-probabilities of the tokens `next`: all words or none.
    fn measure(
        evaluator: &ModelEvaluator,
        words: &[u32],
        next: &[u32],
        prompts: &[Vec<u32>],
        seed: u64,
    ) -> Result<Self> {
        let layers = evaluator.model.config.num_hidden_layers;
        let mut streams = [vec![Vec::new(); layers], vec![Vec::new(); layers]];
        let mut log_probs = [Vec::new(), Vec::new()];
        let mut rng = rng::stream(seed, "words beside words");
        for prompt in prompts.iter().take(SINGLES) {
            for (place, (streams, log_probs)) in streams.iter_mut().zip(&mut log_probs).enumerate()
            {
                let endings: Vec<Vec<u32>> = words
                    .iter()
                    .map(|&word| {
                        let other = words[rng.random_range(0..words.len())];
                        if place == 0 { vec![other, word] } else { vec![word, other] }
                    })
                    .collect();
                let run = evaluator.last_positions(prompt, &endings, next)?;
                for (sum, inputs) in streams.iter_mut().zip(run.mlp_inputs) {
                    sum.resize(inputs.len(), 0.0);
                    sum.iter_mut().zip(inputs).for_each(|(sum, x)| *sum += x);
                }
                log_probs.push(run.log_probs);
            }
        }
        let count = log_probs[0].len() as f32;
        streams.iter_mut().flatten().flatten().for_each(|x| *x /= count);
        let [last, before] = streams;
        let [after_last, after_before] = log_probs.map(|all| medians(&all));
        let mut usual = vec![0.0; words.len()];
        for row in after_before.chunks_exact(next.len().max(1)) {
            usual.iter_mut().zip(row).for_each(|(sum, x)| *sum += x / words.len() as f32);
        }
        Ok(Self { words: words.to_vec(), last, before, after_last, after_before, usual })
    }

    /// Returns the pairs of each layer whose predicted interaction in `mlp` is largest, each pair
    /// once, ascending. `mlp` is what an MLP outputs for streams that it reads, `[streams,
    /// d_model]`; `None` in a layer without one. A layer where it is 0 is left out.
    fn interacting(
        &self,
        d: usize,
        mlp: &dyn Fn(usize, Vec<f32>) -> Result<Option<Vec<f32>>>,
        progress: Progress,
        stop: &dyn Fn() -> bool,
    ) -> Result<Option<Vec<(usize, usize)>>> {
        let n = self.words.len();
        let total = (n * self.last.len()) as u64;
        let mut chosen = Vec::new();
        for (layer, (last, before)) in self.last.iter().zip(&self.before).enumerate() {
            // Streams with the second word; the change that the first word makes to any.
            let (mean, usual) = (mean(last, d), mean(before, d));
            let change = |first: usize| -> Vec<f32> {
                before[first * d..][..d].iter().zip(&usual).map(|(x, mean)| x - mean).collect()
            };
            let Some(neither) = mlp(layer, mean.clone())? else {
                progress(n as u64, total);
                continue;
            };
            let firsts = (0..n).flat_map(|first| added(&mean, &change(first), d)).collect();
            let only_first = mlp(layer, firsts)?;
            let only_second = mlp(layer, last.clone())?;
            let (Some(only_first), Some(only_second)) = (only_first, only_second) else { continue };
            if only_second.iter().all(|x| *x == 0.0) {
                progress(n as u64, total);
                continue;
            }
            let mut norms = vec![0f32; n * n];
            for (first, norms) in norms.chunks_exact_mut(n).enumerate() {
                if stop() {
                    return Ok(None);
                }
                let both = mlp(layer, added(last, &change(first), d))?;
                let Some(both) = both else { continue };
                let only_first = &only_first[first * d..][..d];
                let rows = both.chunks_exact(d).zip(only_second.chunks_exact(d));
                for (second, ((both, only_second), norm)) in rows.zip(norms).enumerate() {
                    if first != second {
                        let terms = both.iter().zip(only_first).zip(only_second.iter());
                        *norm = terms
                            .zip(neither.iter())
                            .map(|(((both, a), b), neither)| (both - a - b + neither).powi(2))
                            .sum();
                    }
                }
                progress(1, total);
            }
            let mut order: Vec<usize> = (0..n * n).filter(|at| at / n != at % n).collect();
            let kept = PER_LAYER.min(order.len());
            let larger = |a: &usize, b: &usize| norms[*b].total_cmp(&norms[*a]).then(a.cmp(b));
            if kept < order.len() {
                order.select_nth_unstable_by(kept, larger);
            }
            chosen.extend(order[..kept].iter().map(|at| (at / n, at % n)));
        }
        chosen.sort_unstable();
        chosen.dedup();
        Ok(Some(chosen))
    }

    /// Returns how far a word is said after a pair and not after either of its members: the smaller
    /// of the two differences in its log-probability, and that itself.
    fn score(&self, (first, second): (usize, usize), says: usize, log_prob: f32) -> f32 {
        if says == first || says == second {
            return f32::NEG_INFINITY;
        }
        let n = self.words.len();
        let by_pair = log_prob - self.after_last[second * n + says];
        let by_first = self.after_before[first * n + says] - self.usual[says];
        by_pair.min(by_pair - by_first) + log_prob.max(LEAST_LOG_PROB)
    }

    /// Returns the pairs with the word that has the largest score after them in a prompt.
    fn most_said(
        &self,
        evaluator: &ModelEvaluator,
        pairs: &[(usize, usize)],
        prompt: &[u32],
    ) -> Result<Vec<Pair>> {
        let run = self.run(evaluator, pairs, prompt)?;
        let rows = pairs.iter().zip(run.chunks_exact(self.words.len()));
        let best = rows.map(|(&pair, log_probs)| {
            let score = |(says, log_prob): (usize, &f32)| (self.score(pair, says, *log_prob), says);
            let scores = log_probs.iter().enumerate().map(score);
            let (score, says) = scores
                .max_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1)))
                .unwrap_or((f32::NEG_INFINITY, 0));
            Pair { first: pair.0, second: pair.1, says, score }
        });
        Ok(best.collect())
    }

    /// Scores pairs by the mean log-probability of their word over all prompts.
    fn run_again(
        &self,
        evaluator: &ModelEvaluator,
        pairs: &mut [Pair],
        prompts: &[Vec<u32>],
    ) -> Result<()> {
        let indices: Vec<(usize, usize)> = pairs.iter().map(|p| (p.first, p.second)).collect();
        let mut sums = vec![0f32; pairs.len()];
        for prompt in prompts {
            let run = self.run(evaluator, &indices, prompt)?;
            for ((sum, row), pair) in
                sums.iter_mut().zip(run.chunks_exact(self.words.len())).zip(pairs.iter())
            {
                *sum += row[pair.says] / prompts.len() as f32;
            }
        }
        for ((pair, indices), log_prob) in pairs.iter_mut().zip(indices).zip(sums) {
            pair.score = self.score(indices, pair.says, log_prob);
        }
        Ok(())
    }

    /// Returns the log-probabilities of every word after each pair, nats, `[pairs, words]`.
    fn run(
        &self,
        evaluator: &ModelEvaluator,
        pairs: &[(usize, usize)],
        prompt: &[u32],
    ) -> Result<Vec<f32>> {
        let ending = |&(a, b): &(usize, usize)| vec![self.words[a], self.words[b]];
        let endings: Vec<Vec<u32>> = pairs.iter().map(ending).collect();
        Ok(evaluator.last_positions(prompt, &endings, &self.words)?.log_probs)
    }
}

/// Returns the pairs with the largest scores.
fn best(mut pairs: Vec<Pair>, count: usize) -> Vec<Pair> {
    pairs.sort_by(|a, b| {
        b.score.total_cmp(&a.score).then((a.first, a.second).cmp(&(b.first, b.second)))
    });
    pairs.truncate(count);
    pairs
}

/// Returns rows `[rows, width]` with `change` added to each.
fn added(rows: &[f32], change: &[f32], width: usize) -> Vec<f32> {
    rows.chunks_exact(width)
        .flat_map(|row| row.iter().zip(change).map(|(x, change)| x + change))
        .collect()
}

/// Returns the mean of rows `[rows, width]`.
fn mean(rows: &[f32], width: usize) -> Vec<f32> {
    let mut mean = vec![0f32; width];
    for row in rows.chunks_exact(width) {
        mean.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
    }
    let count = (rows.len() / width).max(1) as f32;
    mean.iter_mut().for_each(|x| *x /= count);
    mean
}

/// Returns the median of each value over equally long lists.
fn medians(all: &[Vec<f32>]) -> Vec<f32> {
    let length = all.first().map_or(0, Vec::len);
    let at = |i: usize| {
        let values: Vec<f64> = all.iter().map(|list| f64::from(list[i])).collect();
        stats::median(&values) as f32
    };
    (0..length).map(at).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_sums_by_hand() {
        assert_eq!(added(&[1.0, 2.0, 3.0, 4.0], &[10.0, 20.0], 2), [11.0, 22.0, 13.0, 24.0]);
        assert_eq!(mean(&[1.0, 2.0, 3.0, 4.0], 2), [2.0, 3.0]);
        assert_eq!(medians(&[vec![1.0, 9.0], vec![2.0, 7.0], vec![9.0, 8.0]]), [2.0, 8.0]);
    }
}
