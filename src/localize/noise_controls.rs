//! Controls of a lesion: noise in its place.
//!
//! The control of a replaced token is another token in its place. A lesion of another component is
//! not what that is: it acts at another place of the stack, and what follows is another part of the
//! model. So a lesion is compared with other changes of what its block adds to the residual stream,
//! of the same norm at each position and with the same angles between positions: the lesion's own
//! change, rotated at random. What mediates more of a lesion's effect than of theirs is specific to
//! what the component does, and not to where it is.

use crate::edit::{
    Component, Edit, InLayer, ResidualSite, Steering, SteeringChange, SteeringVector, Trial,
};
use crate::error::Result;
use crate::evaluate::{At, ModelEvaluator, Variant, block_of, place};
use crate::model::{Config, Residual};
use crate::rng;
use crate::stats::Rotation;

/// Draws `count` trials with noise in the place of the lesions of `trial`; none if it has other
/// edits, or lesions that are in no block.
///
/// # Errors
/// Errors of the evaluator.
pub fn noise_controls(
    evaluator: &ModelEvaluator,
    trial: &Trial,
    count: usize,
    seed: u64,
) -> Result<Vec<Trial>> {
    let (config, d) = (&evaluator.model.config, evaluator.model.config.hidden_size);
    let Some(blocks) = lesioned_blocks(trial, config) else { return Ok(Vec::new()) };
    // For each block its place in the residual stream, and what its lesions change at each
    // position, `[d_model]` each.
    let mut changes: Vec<(ResidualSite, Vec<Vec<f32>>)> = Vec::new();
    for block in blocks {
        let Some((layer, site, columns)) = place(&block, config) else { return Ok(Vec::new()) };
        let lesions = |edit: &&Edit| {
            edit.component().and_then(|component| block_of(component, config)) == Some(block)
        };
        let lesions: Vec<Edit> = trial.edits.iter().filter(lesions).cloned().collect();
        let at: At = (layer, site, columns, 0..trial.len());
        let at = vec![(Variant::default(), at)];
        let intact = evaluator.capture(&trial.baseline(), at.clone())?.concat();
        let lesioned = evaluator.capture(&trial.with_edits(lesions), at)?.concat();
        let change: Vec<f32> = lesioned.iter().zip(&intact).map(|(l, i)| l - i).collect();
        if !change.iter().all(|x| x.is_finite()) {
            return Ok(Vec::new());
        }
        let change = change.chunks_exact(d).map(<[f32]>::to_vec).collect();
        changes.push((after(&block, config), change));
    }
    let mut rng = rng::stream(seed, "noise controls of a localization");
    let mut controls = Vec::with_capacity(count);
    for _ in 0..count {
        let mut edits = Vec::new();
        for (site, change) in &changes {
            let rotation = Rotation::new(d, &mut rng);
            for (position, values) in change.iter().enumerate() {
                if values.iter().all(|x| *x == 0.0) {
                    continue;
                }
                let mut values = values.clone();
                rotation.apply(&mut values);
                let (vector, change) =
                    (SteeringVector::Values { values }, SteeringChange::Add { strength: 1.0 });
                let steering = Steering { site: *site, vector, change };
                edits.push(Edit::Steering { steering, position: Some(position) });
            }
        }
        controls.push(trial.with_edits(edits));
    }
    Ok(controls)
}

/// Returns the blocks that the lesions and attention knockouts of a trial are in, in model order;
/// `None` if it has other edits, or lesions that are in no block.
pub fn lesioned_blocks(trial: &Trial, config: &Config) -> Option<Vec<Component>> {
    let block = |edit: &Edit| block_of(edit.lesioned()?, config);
    let mut blocks = trial.edits.iter().map(block).collect::<Option<Vec<Component>>>()?;
    let is_mlp = |block: &Component| config.mlp(block.layer()) == Some(*block);
    blocks.sort_by_key(|block| (block.layer(), is_mlp(block)));
    blocks.dedup();
    (!blocks.is_empty()).then_some(blocks)
}

/// Returns the place of the residual stream after a component's block.
pub fn after(component: &Component, config: &Config) -> ResidualSite {
    let layer = component.layer();
    let is_mlp = config.mlp(layer) == Some(*component);
    let at = match is_mlp || config.residual == Residual::Parallel {
        true => InLayer::Post,
        false => InLayer::Mid,
    };
    ResidualSite { layer, at }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edit::Action;
    use crate::model::Model;

    #[test]
    fn noise_changes_as_much_at_each_position_in_other_directions() {
        let model = Model::load("builtin:dense").unwrap();
        let evaluator = ModelEvaluator::new(&model);
        let d = model.config.hidden_size;
        let trial = Trial::new(model.encode("It was the best of times").unwrap(), []);
        let positions = 0..trial.len();
        let zero =
            |component, position| vec![Edit::Lesion { component, action: Action::Zero, position }];
        let (head, mlp) = (Component::Head { layer: 1, head: 2 }, Component::Mlp { layer: 2 });
        for (edits, block) in
            [(zero(head, None), Component::Attention { layer: 1 }), (zero(mlp, Some(3)), mlp)]
        {
            let site = after(&block, &model.config);
            let at: At = (site.layer, site.at.into(), 0..d, positions.clone());
            let stream = |trial: &Trial| {
                evaluator.capture(trial, vec![(Variant::default(), at.clone())]).unwrap().concat()
            };
            let clean = stream(&trial);
            let changed = |trial: &Trial| -> Vec<f32> {
                stream(trial).iter().zip(&clean).map(|(x, c)| x - c).collect()
            };
            let lesion = trial.with_edits(edits);
            let (change, controls) =
                (changed(&lesion), noise_controls(&evaluator, &lesion, 3, 1).unwrap());
            assert_eq!(controls.len(), 3);
            let others: Vec<Vec<f32>> = controls.iter().map(changed).collect();
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
            for position in positions.clone() {
                let at = |x: &[f32]| x[position * d..][..d].to_vec();
                let own = at(&change);
                let square = dot(&own, &own);
                for other in &others {
                    let other = at(other);
                    assert!((dot(&other, &other) - square).abs() <= 1e-3 * square + 1e-6);
                    // Far from parallel: 4.5 deviations of a random cosine.
                    assert!(dot(&own, &other).abs() <= 4.5 / (d as f32).sqrt() * square + 1e-6);
                }
            }
            assert!(dot(&change, &change) > 0.1, "a lesion of nothing");
            assert!(others[0] != others[1]);
        }
        // Other edits beside a lesion, and edits that are none.
        let mut edits = zero(mlp, None);
        edits.push(Edit::Replace { position: 1, id: 5 });
        for edits in [edits[1..].to_vec(), edits] {
            assert_eq!(noise_controls(&evaluator, &trial.with_edits(edits), 3, 1).unwrap(), []);
        }
    }
}
