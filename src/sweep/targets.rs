//! What is swept: every component of a kind, or the single weights that a text proposes.

use std::collections::BTreeMap;

use crate::edit::{Component, Matrix, Trial};
use crate::error::{Error, Result};
use crate::evaluate::ModelEvaluator;
use crate::model::hooks::Site;
use crate::model::{Config, Model};
use crate::mutate::Layers;

/// The kind of component that is swept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The blocks of every layer: its mixer, and its MLP where it has one.
    Blocks,
    /// Heads of attention, Mamba-2 and RWKV.
    Heads,
    /// MLPs, mixtures of experts, and channel mixing.
    Mlps,
    /// MLP neurons.
    Neurons,
    /// Experts of mixtures.
    Experts,
    /// Routers of mixtures.
    Routers,
    /// Parts of recurrent states.
    States,
    /// Single weights that [`propose_weights`] suspects.
    Weights,
}

/// Returns every component of a kind, in model order; no weights, which are proposed from a text.
pub fn components(model: &Model, target: Target) -> Vec<Component> {
    let c = &model.config;
    let like = match target {
        Target::Blocks => {
            return (0..c.num_hidden_layers)
                .flat_map(|l| std::iter::once(c.mixer(l)).chain(c.mlp(l)))
                .collect();
        }
        Target::Heads => Component::Head { layer: 0, head: 0 },
        Target::Mlps => return (0..c.num_hidden_layers).filter_map(|layer| c.mlp(layer)).collect(),
        Target::Neurons => Component::Neuron { layer: 0, neuron: 0 },
        Target::Experts => Component::Expert { layer: 0, expert: 0 },
        Target::Routers => Component::Router { layer: 0 },
        Target::States => Component::State { layer: 0, part: Some(0) },
        Target::Weights => return Vec::new(),
    };
    c.all_like(like).collect()
}

/// How single weights are proposed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum WeightRank {
    /// By the product of the weight and the largest input that it meets on the texts: "super
    /// weights" are found so (Yu et al. 2024).
    #[default]
    Product,
    /// By the weight alone, which takes no data (Galil et al. 2025, "Deep Neural Lesion").
    Magnitude,
}

/// Proposes single weights that could matter, over the matrices that write to the residual stream:
/// those that rank highest. Returns the `limit` largest of these layers (`None`: of
/// all), most suspect first.
///
/// # Errors
/// Errors of the forward pass.
pub fn propose_weights(
    evaluator: &ModelEvaluator,
    texts: &[Trial],
    limit: usize,
    layers: Option<Layers>,
    rank: WeightRank,
) -> Result<Vec<Component>> {
    let model = evaluator.model;
    let mut largest: BTreeMap<(usize, Site), Vec<f32>> = BTreeMap::new();
    for text in texts {
        for ((layer, site), values) in evaluator.activations(text, &[])?.sites {
            let width = values.len() / text.len().max(1);
            let largest = largest.entry((layer, site)).or_insert_with(|| vec![0.0; width]);
            values
                .chunks_exact(width)
                .for_each(|x| largest.iter_mut().zip(x).for_each(|(m, x)| *m = m.max(x.abs())));
        }
    }
    let mut best: Vec<(f32, Component)> = Vec::new();
    let every = 0..model.config.num_hidden_layers;
    for layer in every.filter(|layer| layers.is_none_or(|range| range.contains(*layer))) {
        let writers = [
            (Matrix::Down, Site::Neurons),
            (Matrix::O, Site::Z),
            (Matrix::SsmOut, Site::Z),
            (Matrix::TimeOut, Site::Z),
            (Matrix::ChannelValue, Site::Neurons),
        ];
        for (matrix, site) in writers {
            let Some((rows, width)) = model.config.matrix_shape(layer, matrix) else { continue };
            let largest = largest
                .get(&(layer, site))
                .filter(|largest| largest.len() == width)
                .ok_or_else(|| Error::internal("the input of a matrix was not captured"))?;
            for out in 0..rows {
                for (input, (w, x)) in
                    model.weight_row(layer, matrix, out).iter().zip(largest).enumerate()
                {
                    let suspect = match rank {
                        WeightRank::Product => w * x,
                        WeightRank::Magnitude => *w,
                    };
                    best.push((suspect.abs(), Component::Weight { layer, matrix, out, input }));
                }
                // Trimmed as it grows: the whole list would be as long as the model has weights.
                if best.len() > 64 * limit.max(1024) {
                    keep(&mut best, limit);
                }
            }
        }
    }
    keep(&mut best, limit);
    Ok(best.into_iter().map(|(_, c)| c).collect())
}

/// Sorts the list, largest first, and trims it.
fn keep(best: &mut Vec<(f32, Component)>, limit: usize) {
    best.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    best.truncate(limit);
}

/// Returns the error for a sweep over components that the model does not have.
pub fn refuse(sweep: &str, target: Target, config: &Config) -> Error {
    let what = format!("{sweep} {target:?}").to_lowercase();
    Error::request(format!(
        "sweep {} has no meaning for {}: the model has none",
        what.trim_start(),
        config.model_type
    ))
}

/// Returns `n` members, evenly spread.
pub fn spread<T: Copy>(all: &[T], n: usize) -> Vec<T> {
    let n = n.min(all.len());
    (0..n).map(|i| all[i * all.len() / n]).collect()
}
