//! Mutations of embeddings: noise, a direction, a step towards another token.

use rand::Rng as _;

use super::{Context, Mutator, editable, extend};
use crate::edit::{Edit, EmbeddingChange, Trial};
use crate::rng::Rng;
use crate::rng::pick;

pub const ALL: [&dyn Mutator; 3] = [&Noise, &Direction, &Towards];

/// Noise at one position.
#[derive(Debug)]
pub struct Noise;
/// The difference of two tokens' embeddings, added.
#[derive(Debug)]
pub struct Direction;
/// Part of the way to another token.
#[derive(Debug)]
pub struct Towards;

impl Mutator for Noise {
    fn name(&self) -> &'static str {
        "embedding-noise"
    }

    fn propose(&self, parent: &Trial, context: &Context, rng: &mut Rng) -> Option<Trial> {
        let change = EmbeddingChange::Noise { seed: rng.random(), strength: strength(2.0, rng) };
        at_a_position(parent, change, context, rng)
    }
}

impl Mutator for Direction {
    fn name(&self) -> &'static str {
        "embedding-direction"
    }

    fn propose(&self, parent: &Trial, context: &Context, rng: &mut Rng) -> Option<Trial> {
        let (from, to) = (*pick(&context.vocabulary.ordinary, rng)?, target(context, rng)?);
        let change = EmbeddingChange::Direction { from, to, strength: strength(2.0, rng) };
        if from == to { None } else { at_a_position(parent, change, context, rng) }
    }
}

impl Mutator for Towards {
    fn name(&self) -> &'static str {
        "embedding-towards"
    }

    fn propose(&self, parent: &Trial, context: &Context, rng: &mut Rng) -> Option<Trial> {
        let change =
            EmbeddingChange::Towards { id: target(context, rng)?, strength: strength(1.0, rng) };
        at_a_position(parent, change, context, rng)
    }
}

/// Log-uniform from a twentieth of `most` to `most`: small strengths are as interesting as large
/// ones.
fn strength(most: f32, rng: &mut Rng) -> f32 {
    most * 0.05_f32.powf(rng.random::<f32>())
}

/// A suspect every other time, where there are any.
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
