//! What attention heads do, by the names that the literature has for it.
//!
//! The scores are means of the attention pattern, on random tokens that are repeated once (Olsson
//! et al. 2022, "In-context Learning and Induction Heads"; the head detector of TransformerLens),
//! so that only position and repetition can guide a head. Whether a head also copies what it
//! attends to is a property of its values and its output matrix (Elhage et al. 2021).

use std::collections::BTreeMap;

use rand::seq::IndexedRandom as _;
use serde::Serialize;

use crate::edit::{Component, Matrix};
use crate::error::Result;
use crate::evaluate::{ModelEvaluator, Patterns};
use crate::rng;
use crate::vocabulary::Vocabulary;

/// Random tokens before they are repeated, and sequences.
const TOKENS: usize = 25;
const SEQUENCES: usize = 4;
/// The share of attention from which a head has a name.
const NAMED: f64 = 0.4;
/// The copying score from which a head that matches prefixes is an induction head: five times what
/// chance would give.
const COPIES: f64 = 5.0 / TOKENS as f64;

/// How a head attends, each as a mean share of its attention, and what it copies.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct HeadScores {
    /// To the preceding token, on random tokens.
    pub previous_token: f64,
    /// To the earlier occurrence of the token, on repeated random tokens.
    pub duplicate_token: f64,
    /// To the token after the earlier occurrence, on repeated random tokens (prefix matching).
    pub prefix_matching: f64,
    /// The share of what it raises among the logits of the random tokens that falls on the token
    /// attended to; 1 / 25 by chance.
    pub copying: f64,
    /// To the first token, on the texts of the sweep (attention sink).
    pub sink: f64,
}

impl HeadScores {
    /// Returns the name of the head, if it has one.
    pub fn name(&self) -> Option<&'static str> {
        match self {
            s if s.prefix_matching >= NAMED && s.copying >= COPIES => Some("induction"),
            s if s.prefix_matching >= NAMED => Some("prefix-match"),
            s if s.duplicate_token >= NAMED => Some("duplicate"),
            s if s.previous_token >= NAMED => Some("previous"),
            _ => None,
        }
    }
}

/// Returns the scores of every attention head; none for layers without attention, for a model with
/// too few ordinary tokens, and for one whose context is too short.
///
/// # Errors
/// Errors of the forward pass.
pub fn head_scores(
    evaluator: &ModelEvaluator,
    texts: &[Vec<u32>],
    seed: u64,
) -> Result<BTreeMap<Component, HeadScores>> {
    let (model, config) = (evaluator.model, &evaluator.model.config);
    let heads: Vec<(usize, usize)> = (0..config.num_hidden_layers)
        .filter(|&layer| config.mixer(layer) == Component::Attention { layer })
        .flat_map(|layer| (0..config.heads(layer)).map(move |head| (layer, head)))
        .collect();
    let bos: Vec<u32> = config.bos_token_id.into_iter().collect();
    if heads.is_empty() || bos.len() + 2 * TOKENS > config.max_position_embeddings {
        return Ok(BTreeMap::new());
    }
    let ordinary = Vocabulary::of(model).ordinary;
    if ordinary.len() < TOKENS {
        return Ok(BTreeMap::new());
    }
    let mut sums: BTreeMap<(usize, usize), HeadScores> = BTreeMap::new();
    let mut rng = rng::stream(seed, "tokens of head scores");
    for _ in 0..SEQUENCES {
        let tokens: Vec<u32> = ordinary.choose_multiple(&mut rng, TOKENS).copied().collect();
        let ids = [&bos[..], &tokens, &tokens].concat();
        let patterns = evaluator.patterns(&ids)?;
        for &(layer, head) in &heads {
            // From each position of the second half to one so many positions back.
            let back = |by: usize| {
                let queries = bos.len() + TOKENS..ids.len();
                mean(queries.map(|at| attention(&patterns, layer, head, at, at - by)))
            };
            let score = sums.entry((layer, head)).or_default();
            score.previous_token += back(1);
            score.duplicate_token += back(TOKENS);
            score.prefix_matching += back(TOKENS - 1);
        }
        for (layer, copying) in copying(evaluator, &patterns, bos.len(), &tokens) {
            for (head, copying) in copying.into_iter().enumerate() {
                sums.entry((layer, head)).or_default().copying += copying;
            }
        }
    }
    for score in sums.values_mut() {
        let n = SEQUENCES as f64;
        score.previous_token /= n;
        score.duplicate_token /= n;
        score.prefix_matching /= n;
        score.copying /= n;
    }
    for text in texts {
        let patterns = evaluator.patterns(text)?;
        for (&(layer, head), score) in &mut sums {
            let sink = (1..text.len()).map(|at| attention(&patterns, layer, head, at, 0));
            score.sink += mean(sink) / texts.len() as f64;
        }
    }
    let component = |((layer, head), score)| (Component::Head { layer, head }, score);
    Ok(sums.into_iter().map(component).collect())
}

fn attention(patterns: &Patterns, layer: usize, head: usize, query: usize, key: usize) -> f64 {
    patterns.row(layer, head, query).map_or(0.0, |row| f64::from(row[key]))
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let n = values.len().max(1) as f64;
    values.sum::<f64>() / n
}

/// Returns the copying score of each head of each layer with attention. The value of each of the
/// `tokens`, which start at position `first`, is multiplied by the head's output matrix and read as
/// logits of all of them; of what is above their mean, the share on the token itself counts.
fn copying(
    evaluator: &ModelEvaluator,
    patterns: &Patterns,
    first: usize,
    tokens: &[u32],
) -> BTreeMap<usize, Vec<f64>> {
    let (model, config) = (evaluator.model, &evaluator.model.config);
    let (d, dim) = (config.hidden_size, config.v_head_dim());
    let mut scores = BTreeMap::new();
    for layer in 0..config.num_hidden_layers {
        if config.mixer(layer) != (Component::Attention { layer }) {
            continue;
        }
        let o: Vec<Vec<f32>> = (0..d).map(|out| model.weight_row(layer, Matrix::O, out)).collect();
        let of_head = |head: usize| {
            let outputs: Vec<f32> = (first..first + tokens.len())
                .flat_map(|at| {
                    let value = patterns.value(layer, head, at, config);
                    o.iter().map(move |row| -> f32 {
                        row[head * dim..][..dim].iter().zip(value).map(|(w, v)| w * v).sum()
                    })
                })
                .collect();
            let logits = model.direct_logits(&outputs, tokens);
            let shares = logits.chunks_exact(tokens.len()).enumerate().map(|(own, logits)| {
                let mean = logits.iter().sum::<f32>() / logits.len() as f32;
                let raised: f32 = logits.iter().map(|l| (l - mean).max(0.0)).sum();
                let share = (logits[own] - mean).max(0.0) / raised.max(f32::MIN_POSITIVE);
                f64::from(share)
            });
            mean(shares)
        };
        scores.insert(layer, (0..config.heads(layer)).map(of_head).collect());
    }
    scores
}
