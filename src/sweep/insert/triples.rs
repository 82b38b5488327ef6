//! The triples of words that are worth running: a word before each pair that stands out.
//!
//! There are billions of triples. But an MLP that answers to three words reacts to the last two of
//! them, if too little for anything to be said: beside what it makes of either of them with other
//! words, it makes much of both (`singles.rs`). So every word is put before each pair that stands
//! out in this way, the triples are run in one prompt, and the best of them in more. A triple is
//! ranked by the word that it makes more probable than the pair does. (Or, with two models, by how
//! far they disagree beyond the pair.)
//!
//! A triple whose last two words do nothing without the first is not found.

use std::collections::BTreeMap;

use super::super::Progress;
use super::combination::{CHUNK, Combination, best, bits, log_probs, mean_log_probs, score};
use super::singles::{Pair, SINGLES};
use crate::error::Result;
use crate::evaluate::{ModelEvaluator, TwoModels};

/// The triples that are run in more prompts.
const RUN_AGAIN: usize = 384;
/// The triples of one pair that are, and those that say one word, so that no glitch takes all
/// places.
const OF_ONE_KIND: usize = 16;
/// The triples that say one word that are returned.
const SAYING_ONE: usize = 4;

/// Returns the triples that look most as if they did together what their last two words do not,
/// these first; `None` if `stop` said so.
///
/// # Errors
/// Those of the forward passes.
pub fn shortlist(
    evaluator: &ModelEvaluator,
    words: &[u32],
    pairs: &[Pair],
    prompts: &[Vec<u32>],
    progress: Progress,
    stop: &dyn Fn() -> bool,
) -> Result<Option<Vec<Combination>>> {
    let pairs = unscored(pairs);
    let first = &prompts[SINGLES % prompts.len()];
    let after_pairs = log_probs(evaluator, words, &pairs, first)?;
    let scored = |at: usize, chunk: &mut [Combination]| {
        let after_pair = &after_pairs[at * words.len()..][..words.len()];
        let rows = log_probs(evaluator, words, chunk, first)?;
        for (triple, row) in chunk.iter_mut().zip(rows.chunks_exact(words.len())) {
            triple.choose_said(row, |says, log_prob| log_prob - after_pair[says]);
        }
        Ok(())
    };
    let triples = extended(&pairs, words.len(), &scored, progress, stop)?;
    let Some(triples) = triples else { return Ok(None) };
    let mut triples = first_saying(best(triples, usize::MAX), OF_ONE_KIND);
    triples.truncate(RUN_AGAIN);
    let last_two: Vec<Combination> = triples.iter().map(Combination::without_first).collect();
    let mean = |all| mean_log_probs(evaluator, words, all, prompts, stop);
    let (Some(by_triple), Some(by_pair)) = (mean(&triples)?, mean(&last_two)?) else {
        return Ok(None);
    };
    for (triple, (by_triple, by_pair)) in triples.iter_mut().zip(by_triple.iter().zip(by_pair)) {
        triple.score = score(by_triple - by_pair, *by_triple);
    }
    Ok(Some(first_saying(best(triples, RUN_AGAIN), SAYING_ONE)))
}

/// Returns the triples about which two models disagree most beyond their last two words, these
/// first; the score is that excess, bits.
///
/// # Errors
/// As [`shortlist`].
pub fn shortlist_between(
    models: &TwoModels,
    words: &[u32],
    pairs: &[Pair],
    prompts: &[Vec<u32>],
    progress: Progress,
    stop: &dyn Fn() -> bool,
) -> Result<Option<Vec<Combination>>> {
    let pairs = unscored(pairs);
    let first = &prompts[SINGLES % prompts.len()];
    let bits = |all: &[Combination], prompt: &[u32]| bits(models, words, all, prompt);
    let by_pairs = bits(&pairs, first)?;
    let scored = |at: usize, chunk: &mut [Combination]| {
        let bits = bits(chunk, first)?;
        chunk.iter_mut().zip(bits).for_each(|(of, bits)| of.score = (bits - by_pairs[at]) as f32);
        Ok(())
    };
    let triples = extended(&pairs, words.len(), &scored, progress, stop)?;
    let Some(triples) = triples else { return Ok(None) };
    let mut triples = best(triples, RUN_AGAIN);
    let last_two: Vec<Combination> = triples.iter().map(Combination::without_first).collect();
    triples.iter_mut().for_each(|triple| triple.score = 0.0);
    for prompt in prompts {
        if stop() {
            return Ok(None);
        }
        let both = bits(&triples, prompt)?.into_iter().zip(bits(&last_two, prompt)?);
        for (triple, (by_triple, by_pair)) in triples.iter_mut().zip(both) {
            triple.score += (by_triple - by_pair) as f32 / prompts.len() as f32;
        }
    }
    Ok(Some(best(triples, RUN_AGAIN)))
}

/// Returns the first `count` that say each word, in their order.
fn first_saying(all: Vec<Combination>, count: usize) -> Vec<Combination> {
    let mut taken: BTreeMap<usize, usize> = BTreeMap::new();
    let mut has_room = |triple: &Combination| {
        let taken = taken.entry(triple.says).or_default();
        *taken += 1;
        *taken <= count
    };
    all.into_iter().filter(|triple| has_room(triple)).collect()
}

fn unscored(pairs: &[Pair]) -> Vec<Combination> {
    pairs.iter().map(|pair| Combination::unscored(pair.to_vec())).collect()
}

/// Puts every word before each pair; returns the best of each pair. `scored` scores triples of the
/// pair at an index. `None` if `stop` said so.
fn extended(
    pairs: &[Combination],
    words: usize,
    scored: &dyn Fn(usize, &mut [Combination]) -> Result<()>,
    progress: Progress,
    stop: &dyn Fn() -> bool,
) -> Result<Option<Vec<Combination>>> {
    let mut triples = Vec::new();
    for (at, pair) in pairs.iter().enumerate() {
        let mut of_pair = with_each_word(pair, words);
        for chunk in of_pair.chunks_mut(CHUNK) {
            if stop() {
                return Ok(None);
            }
            scored(at, chunk)?;
        }
        triples.extend(best(of_pair, OF_ONE_KIND));
        progress(1, pairs.len() as u64);
    }
    Ok(Some(triples))
}

/// Returns a pair with each other word before it.
fn with_each_word(pair: &Combination, words: usize) -> Vec<Combination> {
    let others = (0..words).filter(|word| !pair.members.contains(word));
    let before = |word| [&[word], &pair.members[..]].concat();
    others.map(|word| Combination::unscored(before(word))).collect()
}

#[cfg(test)]
mod tests {
    use super::super::options::InsertOptions;
    use super::super::pairs;
    use super::*;
    use crate::model::Model;

    /// Three of 80 words were trained to make `three-3` say a text. Their last two stand out, and
    /// with every word before them the triple comes first; in the dense model it does not.
    #[test]
    fn a_planted_triple_comes_first() {
        let (trigger, says) = ([722, 1995, 2389], 2621);
        let root = env!("CARGO_MANIFEST_DIR");
        let names = [
            format!("builtin:dense+{root}/corpus/organisms/three-3.safetensors"),
            "builtin:dense".into(),
        ];
        let found = names.map(|name| {
            let model = Model::load(&name).unwrap();
            let evaluator = ModelEvaluator::new(&model);
            let mut words: Vec<u32> = (1000..1076).collect();
            words.extend(trigger);
            words.push(says);
            let prompts: Vec<Vec<u32>> = crate::replicate::passages()
                .take(6)
                .map(|text| crate::replicate::in_context(&model, text).unwrap()[..12].to_vec())
                .collect();
            let (progress, go_on) = (&|_, _| {}, &|| false);
            let options = InsertOptions { triples: true, ..InsertOptions::default() };
            let pairs = pairs::shortlist(&evaluator, &words, &prompts, &options, progress, go_on);
            let pairs = pairs.unwrap().unwrap().standing_out;
            let triples = shortlist(&evaluator, &words, &pairs[..64], &prompts, progress, go_on)
                .unwrap()
                .unwrap();
            (triples[0].ids(&words), words[triples[0].says])
        });
        assert_eq!(found[0], (trigger.to_vec(), says));
        assert_ne!(found[1].0, trigger);
    }

    #[test]
    fn every_other_word_is_put_before_a_pair() {
        let pair = Combination::unscored(vec![1, 3]);
        let members = with_each_word(&pair, 5).into_iter().map(|triple| triple.members);
        assert_eq!(members.collect::<Vec<_>>(), [[0, 1, 3], [2, 1, 3], [4, 1, 3]]);
    }

    #[test]
    fn no_word_that_is_said_takes_all_places() {
        let saying = |says| Combination { says, ..Combination::unscored(vec![0, 1, 2]) };
        let kept = first_saying([7, 7, 8, 7, 9].map(saying).to_vec(), 2);
        assert_eq!(kept.iter().map(|triple| triple.says).collect::<Vec<_>>(), [7, 7, 8, 9]);
    }
}
