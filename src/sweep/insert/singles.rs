//! The effects of each word by itself on the streams that MLPs read and on the next token, and the
//! pairs of words to which an MLP reacts more than to both separately.

use std::collections::BTreeSet;

use rand::Rng as _;

use super::super::Progress;
use crate::error::Result;
use crate::evaluate::ModelEvaluator;
use crate::{rng, stats};

/// The prompts that single words are run in. One is not enough: the random word beside a word
/// matters.
pub const SINGLES: usize = 4;
/// The pairs of each layer that are run in one prompt.
const PER_LAYER: usize = 16_384;

/// Pairs of one layer that stand out with the same first word, at most, and with the same last one:
/// what answers to one word with many others is no pair.
const OF_FIRST: usize = 1;
const OF_LAST: usize = 16;

/// Two words, as indices: the last but one, and the last.
pub type Pair = [usize; 2];

/// Pairs of words of which MLPs make more than the sum of two.
pub struct Interacting {
    /// Those with the largest interactions in each layer, each pair once, ascending.
    pub largest: Vec<Pair>,
    /// Those whose interactions are largest beside those of either word with other words, each
    /// layer in turn.
    pub standing_out: Vec<Pair>,
}

/// The words and what each does alone.
pub struct Singles {
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

impl Singles {
    /// Runs every word as the last and as the last but one, each time beside a random one, and
    /// keeps the log-probabilities of the tokens `next`: all words or none.
    ///
    /// # Errors
    /// Those of the forward passes.
    pub fn measure(
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
                // Each beside another one, they would differ by these more than by themselves.
                let other = words[rng.random_range(0..words.len())];
                let ending =
                    |&word: &u32| if place == 0 { vec![other, word] } else { vec![word, other] };
                let endings: Vec<Vec<u32>> = words.iter().map(ending).collect();
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

    /// Returns the pairs whose predicted interaction in `mlp` is largest, and `count` that stand
    /// out. `mlp` is what an MLP outputs for streams that it reads, `[streams, d_model]`; `None` in
    /// a layer without one. A layer where it is 0 is left out. `None` if `stop` said so.
    ///
    /// # Errors
    /// Those of `mlp`.
    pub fn interacting(
        &self,
        d: usize,
        mlp: &dyn Fn(usize, Vec<f32>) -> Result<Option<Vec<f32>>>,
        count: usize,
        progress: Progress,
        stop: &dyn Fn() -> bool,
    ) -> Result<Option<Interacting>> {
        let n = self.words.len();
        let total = (n * self.last.len()) as u64;
        let (mut largest, mut standing_out) = (Vec::new(), Vec::new());
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
            largest.extend(first_places(&norms, n, PER_LAYER));
            if count > 0 {
                standing_out.push(stand_out(norms, n, count));
            }
        }
        largest.sort_unstable();
        largest.dedup();
        Ok(Some(Interacting { largest, standing_out: in_turn(standing_out, count) }))
    }

    /// Returns by how many nats a word is said after a pair and not after either of its members,
    /// given its log-probability after the pair: the smaller of the two differences.
    pub fn beyond_members(&self, first: usize, second: usize, says: usize, log_prob: f32) -> f32 {
        let n = self.words.len();
        let by_pair = log_prob - self.after_last[second * n + says];
        let by_first = self.after_before[first * n + says] - self.usual[says];
        by_pair.min(by_pair - by_first)
    }
}

/// Returns the places of the largest of `values`, `[first, second]`, but those on the diagonal, in
/// no order.
fn first_places(values: &[f32], n: usize, count: usize) -> Vec<Pair> {
    let mut order: Vec<usize> = (0..n * n).filter(|at| at / n != at % n).collect();
    let larger = |a: &usize, b: &usize| values[*b].total_cmp(&values[*a]).then(a.cmp(b));
    if count < order.len() {
        order.select_nth_unstable_by(count, larger);
        order.truncate(count);
    }
    order.into_iter().map(|at| [at / n, at % n]).collect()
}

/// Returns the pairs that stand out by `norms`, `[first, second]`: those with the largest norm
/// beside the median over the seconds and that over the firsts (in logarithms), these first.
fn stand_out(norms: Vec<f32>, n: usize, count: usize) -> Vec<Pair> {
    let mut logs: Vec<f32> = norms.iter().map(|norm| norm.max(f32::MIN_POSITIVE).ln()).collect();
    let of_first: Vec<f32> = logs.chunks_exact(n).map(|row| median(row.to_vec())).collect();
    let column = |second: usize| (0..n).map(|first| logs[first * n + second]).collect();
    let of_second: Vec<f32> = (0..n).map(|second| median(column(second))).collect();
    for (row, of_first) in logs.chunks_exact_mut(n).zip(of_first) {
        row.iter_mut().zip(&of_second).for_each(|(log, of_second)| *log -= of_first + of_second);
    }
    let mut places = first_places(&logs, n, PER_LAYER);
    let log = |pair: &Pair| logs[pair[0] * n + pair[1]];
    places.sort_unstable_by(|a, b| log(b).total_cmp(&log(a)).then(a.cmp(b)));
    let mut taken = [vec![0; n], vec![0; n]];
    let mut has_room = |&[first, second]: &Pair| {
        let has_room = taken[0][first] < OF_FIRST && taken[1][second] < OF_LAST;
        taken[0][first] += usize::from(has_room);
        taken[1][second] += usize::from(has_room);
        has_room
    };
    places.into_iter().filter(|pair| has_room(pair)).take(count).collect()
}

/// Returns the first `count` of some lists, taken from each in turn, each once.
fn in_turn(lists: Vec<Vec<Pair>>, count: usize) -> Vec<Pair> {
    let longest = lists.iter().map(Vec::len).max().unwrap_or(0);
    let mut seen = BTreeSet::new();
    let all = (0..longest).flat_map(|at| lists.iter().filter_map(move |list| list.get(at)));
    all.copied().filter(|pair| seen.insert(*pair)).take(count).collect()
}

/// Returns the median (the larger of two).
fn median(mut values: Vec<f32>) -> f32 {
    let middle = values.len() / 2;
    *values.select_nth_unstable_by(middle, f32::total_cmp).1
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
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        let lists = vec![vec![[0, 1], [0, 2]], vec![[0, 1], [1, 2], [2, 0]]];
        assert_eq!(in_turn(lists, 3), [[0, 1], [0, 2], [1, 2]]);
        assert_eq!(first_places(&[9.0, 1.0, 2.0, 9.0], 2, 1), [[1, 0]]);
    }

    /// Words have large interactions with all others, and a pair of small ones more than they do.
    #[test]
    fn a_pair_that_stands_out_is_not_the_one_with_the_largest_interaction() {
        let n = 40;
        let mut rng = rng::stream(3, "interactions");
        let own: Vec<f32> = (0..2 * n).map(|_| rng.random_range(0.1..10.0)).collect();
        let mut norms: Vec<f32> = (0..n * n)
            .map(|at| own[at / n] * own[n + at % n] * rng.random_range(0.8..1.2))
            .collect();
        let small = |of: &[f32]| (0..n).min_by(|a, b| of[*a].total_cmp(&of[*b])).unwrap();
        let planted = [small(&own[..n]), small(&own[n..])];
        norms[planted[0] * n + planted[1]] *= 2.0;
        assert!(!first_places(&norms, n, n).contains(&planted));
        let found = stand_out(norms, n, n);
        assert_eq!(found[0], planted);
        // Each first word once, and no last word in more than 16.
        let firsts: BTreeSet<usize> = found.iter().map(|pair| pair[0]).collect();
        assert_eq!(firsts.len(), found.len());
        assert!((0..n).all(|last| found.iter().filter(|p| p[1] == last).count() <= OF_LAST));
    }
}
