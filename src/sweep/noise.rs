//! Noise lesions: the control of a lesion in a sweep.
//!
//! A lesion changes what its block adds to the residual stream. Its noise lesion makes a change of
//! the same norm at each position, in a direction that has nothing to do with the component: the
//! change is rotated at random, in the same way at all positions of all texts. So everything about
//! it is kept but its direction. Where the lesion costs what this costs, the size of the
//! disturbance explains it, and not the loss of what the component does.

use crate::edit::{Component, Edit};
use crate::error::{Error, Result};
use crate::evaluate::{ModelEvaluator, Patch, block_of};
use crate::rng::Rng;
use crate::stats::Rotation;

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

#[cfg(test)]
mod tests {
    use rand::Rng as _;

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
        // A position that the lesion leaves alone is left alone.
        assert_eq!(with_noise(&intact, &intact, 16, &mut rng), intact);
    }
}
