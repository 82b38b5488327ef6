//! Mutations of embeddings: noise, a direction, a step towards another token.

use rand::Rng as _;

use super::mutator::{Context, Mutator, editable, extend, mutators};
use crate::edit::{Edit, EmbeddingChange, Trial};
use crate::rng::Rng;
use crate::rng::pick;

mutators! {
    /// Adds noise to one embedding.
    Noise;
    /// Adds the difference of two tokens' embeddings to one.
    Direction;
    /// Moves one embedding part of the way to another token's.
    Towards;
}

impl Mutator for Noise {
    fn name(&self) -> &'static str {
        "embedding-noise"
    }

    fn groups(&self) -> &'static [&'static str] {
        &["embeddings"]
    }

    fn propose(&self, parent: &Trial, context: &Context, rng: &mut Rng) -> Option<Trial> {
        let change =
            EmbeddingChange::Noise { seed: rng.random(), strength: strength(MAX_ADDED, rng) };
        at_a_position(parent, change, context, rng)
    }
}

impl Mutator for Direction {
    fn name(&self) -> &'static str {
        "embedding-direction"
    }

    fn groups(&self) -> &'static [&'static str] {
        &["embeddings"]
    }

    fn propose(&self, parent: &Trial, context: &Context, rng: &mut Rng) -> Option<Trial> {
        let (from, to) = (*pick(&context.vocabulary.ordinary, rng)?, target(context, rng)?);
        let change = EmbeddingChange::Direction { from, to, strength: strength(MAX_ADDED, rng) };
        if from == to { None } else { at_a_position(parent, change, context, rng) }
    }
}

impl Mutator for Towards {
    fn name(&self) -> &'static str {
        "embedding-towards"
    }

    fn groups(&self) -> &'static [&'static str] {
        &["embeddings"]
    }

    fn propose(&self, parent: &Trial, context: &Context, rng: &mut Rng) -> Option<Trial> {
        let change = EmbeddingChange::Towards {
            id: target(context, rng)?,
            strength: strength(MAX_STEP, rng),
        };
        at_a_position(parent, change, context, rng)
    }
}

/// Largest length of an added vector, in lengths of the embedding it is added to.
const MAX_ADDED: f32 = 2.0;

/// Largest step towards another token: all the way.
const MAX_STEP: f32 = 1.0;

/// Ratio of the smallest strength to the largest.
const STRENGTH_RANGE: f32 = 0.05;

/// Draws a strength log-uniformly up to `largest`: small strengths are as interesting as large
/// ones.
fn strength(largest: f32, rng: &mut Rng) -> f32 {
    largest * STRENGTH_RANGE.powf(rng.random::<f32>())
}

/// Draws a suspect every other time, where there are any, and else an ordinary token.
fn target(context: &Context, rng: &mut Rng) -> Option<u32> {
    let suspects = rng.random_bool(0.5) && !context.vocabulary.anomalous.is_empty();
    pick(if suspects { &context.vocabulary.anomalous } else { &context.vocabulary.ordinary }, rng)
        .copied()
}

fn at_a_position(
    parent: &Trial,
    change: EmbeddingChange,
    context: &Context,
    rng: &mut Rng,
) -> Option<Trial> {
    let range = editable(parent, context.config);
    if range.is_empty() {
        return None;
    }
    extend(parent, vec![Edit::Embedding { position: rng.random_range(range), change }])
}
