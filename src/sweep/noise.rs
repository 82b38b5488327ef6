//! Noise lesions: the control of a lesion in a sweep.
//!
//! A lesion changes what its block adds to the residual stream. Its noise lesion makes a change of
//! the same norm at each position, in a direction that has nothing to do with the component: the
//! change is rotated at random, in the same way at all positions of all texts. So everything about
//! it is kept but its direction. Where the lesion costs what this costs, the size of the
//! disturbance explains it, and not the loss of what the component does.

use rand::Rng as _;
use rand::seq::SliceRandom as _;

use crate::edit::{Component, Edit};
use crate::error::{Error, Result};
use crate::evaluate::{ModelEvaluator, Patch, block_of};
use crate::rng::Rng;
use crate::stats::walsh_hadamard;

/// Returns noise lesions on the tokens `ids`, as patches of the lesions' blocks: for each of these
/// lesions one with every generator that `rngs` returns for its index.
///
/// # Errors
/// Those of [`ModelEvaluator::block_outputs`].
pub fn noise_lesions(
    evaluator: &ModelEvaluator,
    ids: &[u32],
    lesions: &[(Component, Edit)],
    rngs: &dyn Fn(usize) -> Vec<Rng>,
) -> Result<Vec<Patch>> {
    let d = evaluator.model.config.hidden_size;
    let block = |component: &Component| {
        block_of(component, &evaluator.model.config)
            .ok_or_else(|| Error::internal("a component that is in no block"))
    };
    let mut patches = Vec::new();
    let mut first = 0;
    while let Some((component, _)) = lesions.get(first) {
        let component = block(component)?;
        let rest = &lesions[first..];
        let same = rest.iter().take_while(|(c, _)| block(c).ok() == Some(component)).count();
        let edits: Vec<Edit> = rest[..same].iter().map(|(_, edit)| edit.clone()).collect();
        let outputs = evaluator.block_outputs(ids, component, &edits)?;
        for (i, lesioned) in outputs.lesioned.iter().enumerate() {
            patches.extend(rngs(first + i).iter_mut().map(|rng| {
                let values = with_noise(&outputs.intact, lesioned, d, rng);
                Patch { component, first: 0, values: values.into() }
            }));
        }
        first += same;
    }
    Ok(patches)
}

/// Returns `intact` plus the change to `lesioned`, rotated at random; all `[positions, d_model]`.
fn with_noise(intact: &[f32], lesioned: &[f32], d_model: usize, rng: &mut Rng) -> Vec<f32> {
    let rotation = Rotation::new(d_model, rng);
    let mut values = intact.to_vec();
    for (at, out) in values.chunks_exact_mut(d_model).enumerate() {
        let position = at * d_model..(at + 1) * d_model;
        let mut change: Vec<f32> =
            lesioned[position.clone()].iter().zip(&intact[position]).map(|(l, i)| l - i).collect();
        rotation.apply(&mut change);
        out.iter_mut().zip(change).for_each(|(value, change)| *value += change);
    }
    values
}

/// Rounds of a rotation: after three, a vector along one channel lies along all of them.
const ROUNDS: usize = 3;

/// A random rotation that takes `d log d` steps: rounds of permuted channels, random signs, and a
/// Walsh-Hadamard transform of as many channels as a power of two has room for.
struct Rotation(Vec<Vec<(usize, f32)>>);

impl Rotation {
    fn new(d: usize, rng: &mut Rng) -> Self {
        let round = |rng: &mut Rng| {
            let mut from: Vec<usize> = (0..d).collect();
            from.shuffle(rng);
            from.into_iter().map(|from| (from, if rng.random() { 1.0 } else { -1.0 })).collect()
        };
        Self((0..ROUNDS).map(|_| round(rng)).collect())
    }

    fn apply(&self, x: &mut Vec<f32>) {
        for round in &self.0 {
            *x = round.iter().map(|(from, sign)| sign * x[*from]).collect();
            let width = 1usize << x.len().max(1).ilog2();
            hadamard(&mut x[..width]);
        }
    }
}

/// Applies the Walsh-Hadamard transform, scaled so that it keeps the norm, to `x`, whose length is
/// a power of two.
fn hadamard(x: &mut [f32]) {
    walsh_hadamard(x);
    let scale = (x.len() as f32).sqrt().recip();
    x.iter_mut().for_each(|x| *x *= scale);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng;

    #[test]
    fn the_norm_at_each_position_and_the_angles_between_them_are_kept() {
        let mut rng = rng::stream(1, "test");
        let draw = |rng: &mut Rng| (0..48).map(|_| rng.random_range(-1.0..1.0)).collect();
        let (intact, lesioned): (Vec<f32>, Vec<f32>) = (draw(&mut rng), draw(&mut rng));
        let noised = with_noise(&intact, &lesioned, 16, &mut rng);
        let change = |x: &[f32]| x.iter().zip(&intact).map(|(a, b)| a - b).collect::<Vec<f32>>();
        let dot = |x: &[f32], a: usize, b: usize| -> f32 {
            x[a * 16..][..16].iter().zip(&x[b * 16..][..16]).map(|(a, b)| a * b).sum()
        };
        let (lesion, noise) = (change(&lesioned), change(&noised));
        for (a, b) in [(0, 0), (1, 1), (2, 2), (0, 1), (1, 2)] {
            assert!((dot(&lesion, a, b) - dot(&noise, a, b)).abs() < 1e-4);
        }
        assert!(lesion.iter().zip(&noise).any(|(a, b)| (a - b).abs() > 0.1));
        // A change in one channel spreads over all of them.
        for d in [16, 24, 576] {
            let mut one = vec![0.0; d];
            one[d / 3] = 1.0;
            Rotation::new(d, &mut rng).apply(&mut one);
            let (norm, largest) =
                one.iter().fold((0.0f32, 0.0f32), |(n, m), x| (n + x * x, m.max(x.abs())));
            assert!((norm - 1.0).abs() < 1e-5, "{d}: {norm}");
            assert!(largest < 4.5 / (d as f32).sqrt(), "{d}: {largest}");
        }
        // A position that the lesion leaves alone is left alone.
        assert_eq!(with_noise(&intact, &intact, 16, &mut rng), intact);
    }
}
