//! The pairs of words that are worth running: those that an MLP reads as more than the sum of two.
//!
//! There are millions of pairs, and what a word of a trigger does alone shows nothing of what both
//! do. But a block that answers to both has to be non-linear in them. So the residual stream that
//! each MLP reads is measured after every word as the last of the prompt and as the last but one,
//! beside the same random words; the stream after a pair is predicted as the sum of both changes;
//! and a pair is ranked by the norm of the MLP's *interaction* there, the second difference of its
//! output `f(x + a + b) - f(x + a) - f(x + b) + f(x)` (`singles.rs`). What the best of each layer
//! do is then measured: the word that the pair makes more probable than either member does, first
//! in one prompt, then in more.
//!
//! The prediction is of MLPs and mixtures. What attention alone makes of a pair is not seen.

use super::super::Progress;
use super::combination::{CHUNK, Combination, best, bits, log_probs, mean_log_probs, score};
use super::options::InsertOptions;
use super::singles::{Interacting, Pair, SINGLES, Singles};
use crate::error::{Error, Result};
use crate::evaluate::{ModelEvaluator, TwoModels};
use crate::model::Model;

/// The pairs that are run in more prompts, and returned.
const RUN_AGAIN: usize = 384;
/// The pairs that are extended to triples.
const EXTENDED: usize = 256;
/// The largest number of words that are paired.
pub const MOST_WORDS: usize = 2560;

/// The pairs that a screen lets through.
pub struct Shortlist {
    /// Those that do most, these first.
    pub best: Vec<Combination>,
    /// Those from which triples are made, if these were asked for.
    pub standing_out: Vec<Pair>,
}

/// Checks, before anything is run, that pairs can be screened as asked for.
///
/// # Errors
/// [`Error::Request`] for a model without an MLP that works on each position by itself, and for
/// pairs that are not inserted at the end.
pub fn check(model: &Model, options: &InsertOptions, inserted: &[u32]) -> Result<()> {
    if options.pairs.is_none() {
        return match options.triples {
            true => Err(Error::request("triples are made of pairs: they need pairs")),
            false => Ok(()),
        };
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

/// Returns the number of pairs that are extended.
fn extended(options: &InsertOptions) -> usize {
    if options.triples { EXTENDED } else { 0 }
}

/// Returns the ordered pairs of different words that look most as if they did together what neither
/// does alone, these first; `None` if `stop` said so.
///
/// # Errors
/// Those of the forward passes.
pub fn shortlist(
    evaluator: &ModelEvaluator,
    words: &[u32],
    prompts: &[Vec<u32>],
    options: &InsertOptions,
    progress: Progress,
    stop: &dyn Fn() -> bool,
) -> Result<Option<Shortlist>> {
    let singles = Singles::measure(evaluator, words, words, prompts, options.seed)?;
    let mlp = |layer, streams| {
        Ok(evaluator.model.mlp_output(layer, streams)?.map(|output| output.to_vec()))
    };
    let d = evaluator.model.config.hidden_size;
    let interacting = singles.interacting(d, &mlp, extended(options), progress, stop)?;
    let Some(Interacting { largest, standing_out }) = interacting else { return Ok(None) };
    let mut pairs: Vec<Combination> =
        largest.iter().map(|pair| Combination::unscored(pair.to_vec())).collect();
    let first = &prompts[SINGLES % prompts.len()];
    for chunk in pairs.chunks_mut(CHUNK) {
        if stop() {
            return Ok(None);
        }
        let rows = log_probs(evaluator, words, chunk, first)?;
        for (pair, row) in chunk.iter_mut().zip(rows.chunks_exact(words.len())) {
            let (first, second) = (pair.members[0], pair.members[1]);
            pair.choose_said(row, |says, log_prob| {
                singles.beyond_members(first, second, says, log_prob)
            });
        }
    }
    let mut pairs = best(pairs, RUN_AGAIN);
    let Some(means) = mean_log_probs(evaluator, words, &pairs, prompts, stop)? else {
        return Ok(None);
    };
    for (pair, log_prob) in pairs.iter_mut().zip(means) {
        let (first, second) = (pair.members[0], pair.members[1]);
        pair.score = score(singles.beyond_members(first, second, pair.says, log_prob), log_prob);
    }
    Ok(Some(Shortlist { best: best(pairs, RUN_AGAIN), standing_out }))
}

/// Returns the ordered pairs of different words about which two models disagree most, and less
/// after the last word alone; `alone` are the bits of each as the last word. The score is the mean
/// excess over the latter, bits. The interactions are those of the difference of their MLPs; where
/// only attention differs there are none.
///
/// # Errors
/// As [`shortlist`].
pub fn shortlist_between(
    models: &TwoModels,
    words: &[u32],
    alone: &dyn Fn(u32) -> f64,
    prompts: &[Vec<u32>],
    options: &InsertOptions,
    progress: Progress,
    stop: &dyn Fn() -> bool,
) -> Result<Option<Shortlist>> {
    let (ours, theirs) = (models.evaluator.model, models.against.model);
    let mlp = |layer: usize, streams: Vec<f32>| -> Result<Option<Vec<f32>>> {
        let output = (ours.mlp_output(layer, streams.clone())?, theirs.mlp_output(layer, streams)?);
        let (Some(ours), Some(theirs)) = output else { return Ok(None) };
        Ok(Some(ours.iter().zip(theirs.iter()).map(|(a, b)| a - b).collect()))
    };
    let singles = Singles::measure(models.evaluator, words, &[], prompts, options.seed)?;
    let d = ours.config.hidden_size;
    let interacting = singles.interacting(d, &mlp, extended(options), progress, stop)?;
    let Some(Interacting { largest, standing_out }) = interacting else { return Ok(None) };
    let mut pairs: Vec<Combination> =
        largest.iter().map(|pair| Combination::unscored(pair.to_vec())).collect();
    for prompts in [&prompts[SINGLES % prompts.len()..][..1], prompts] {
        pairs.iter_mut().for_each(|pair| pair.score = -alone(words[pair.members[1]]) as f32);
        for prompt in prompts {
            for chunk in pairs.chunks_mut(CHUNK) {
                if stop() {
                    return Ok(None);
                }
                let bits = bits(models, words, chunk, prompt)?;
                for (pair, bits) in chunk.iter_mut().zip(bits) {
                    pair.score += bits as f32 / prompts.len() as f32;
                }
            }
        }
        pairs = best(pairs, RUN_AGAIN);
    }
    Ok(Some(Shortlist { best: pairs, standing_out }))
}
