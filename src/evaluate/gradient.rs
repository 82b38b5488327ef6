//! Attribution patching: the effect of ablating every component, estimated from one gradient.
//!
//! Ablating a component changes the loss by about minus the loss's gradient at the component's
//! output, times that output (Nanda 2023, "Attribution Patching"). One forward and one backward
//! pass give this estimate for all components at once, where measuring takes a forward for each.
//! Gradients are taken at variables of zeros that are added to the sites.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{Tensor, Var};

use super::activations::{place, width};
use super::engine::ModelEvaluator;
use super::lower::{Lowering, Place};
use crate::edit::{Action, Component, Trial};
use crate::error::{Error, Result};
use crate::model::batch::Row;
use crate::model::hooks::Site;
use crate::model::{Forward, Probes};

/// The number of tokens of one gradient forward, whose attention is dense over all of them.
const TOKENS_PER_GRADIENT: usize = 512;

/// A token whose log-probability a gradient is taken of.
pub(super) struct Target {
    /// The packed token that predicts it.
    pub token: u32,
    /// Its id.
    pub id: u32,
    /// Its weight in the sum.
    pub weight: f32,
}

impl ModelEvaluator<'_> {
    /// Estimates the change of each trial's loss (nats per token of the continuation) that ablating
    /// each component would make, to first order: minus the gradient times the component's output,
    /// summed over the positions. With `Action::Mean` the mean output over the reference text takes
    /// the place of zero. Returns `[trials][components]`.
    ///
    /// The trials must have no token edits; their lesions hold in the gradient as well.
    ///
    /// # Errors
    /// [`Error::Request`] for a component without an output (a weight, a state).
    pub fn first_order(
        &self,
        trials: &[Trial],
        components: &[Component],
        action: Action,
    ) -> Result<Vec<Vec<f64>>> {
        let length = trials.iter().map(Trial::len).max().unwrap_or(1);
        let mut all = Vec::with_capacity(trials.len());
        for chunk in trials.chunks((TOKENS_PER_GRADIENT / length.max(1)).max(1)) {
            all.extend(self.first_order_chunk(chunk, components, action)?);
        }
        Ok(all)
    }

    fn first_order_chunk(
        &self,
        trials: &[Trial],
        components: &[Component],
        action: Action,
    ) -> Result<Vec<Vec<f64>>> {
        let config = &self.model.config;
        let rows: Vec<Row> =
            trials.iter().map(|t| Row::new([&t.base[..], &t.continuation[..]].concat())).collect();
        let mut forward = Forward { rows, ..Forward::default() };
        let offsets = forward.offsets();
        for (i, trial) in trials.iter().enumerate() {
            let place = Place { tokens: offsets[i]..offsets[i + 1], position: 0, layer: 0 };
            Lowering {
                baselines: self,
                trial,
                layout: &trial.layout(),
                place,
                hooks: &mut forward.hooks,
            }
            .run(&[])?;
        }
        let start = self.model.embed_tensor(&forward)?;
        // The mixture's output is the sum of its experts' outputs, so its gradient is the gradient
        // at each of them.
        let probed = |component: &Component| match component {
            Component::Expert { layer, .. } => Some((*layer, Site::MlpOut)),
            _ => place(component, config).map(|(layer, site, _)| (layer, site)),
        };
        let sites: BTreeSet<(usize, Site)> = components.iter().filter_map(probed).collect();
        let targets: Vec<Target> = (trials.iter().zip(&offsets))
            .flat_map(|(trial, offset)| {
                let first = offset + trial.base.len() - 1;
                let weight = -1.0 / trial.continuation.len() as f32;
                (first..).zip(trial.continuation.iter()).map(move |(token, &id)| Target {
                    token: token as u32,
                    id,
                    weight,
                })
            })
            .collect();
        let by_site = self.gradients_at(&forward, &start, &sites, &targets)?;
        let means = if action == Action::Mean { Some(self.means()?) } else { None };
        let mut all = Vec::with_capacity(trials.len());
        for (i, trial) in trials.iter().enumerate() {
            let run = self.activations(trial, &[])?;
            let mut row = Vec::with_capacity(components.len());
            for component in components {
                let missing =
                    || Error::request(format!("{component} has no output to take a gradient of"));
                let key = probed(component).ok_or_else(missing)?;
                let output = run.output(component, 0..run.positions, config).ok_or_else(missing)?;
                let (_, site, columns) = place(component, config).ok_or_else(missing)?;
                let size = output.len() / run.positions.max(1);
                let first = if site == key.1 { columns.start } else { 0 };
                let gradient = &by_site[&key];
                let stride = width(key.0, key.1, config);
                let mean = means.as_ref().and_then(|m| m.output(component, config));
                let mut change = 0f64;
                for position in 0..run.positions {
                    let g = &gradient[(offsets[i] + position) * stride + first..][..size];
                    let x = &output[position * size..][..size];
                    let dot =
                        |y: &[f32]| g.iter().zip(y).map(|(g, y)| f64::from(g * y)).sum::<f64>();
                    change += mean.map_or(0.0, dot) - dot(x);
                }
                row.push(change);
            }
            all.push(row);
        }
        Ok(all)
    }

    /// Takes the gradient of a weighted sum of log-probabilities, nats, at the outputs of `sites`:
    /// `[tokens, width]` each. `embeddings` is what enters the first layer, `[tokens, d_model]`.
    pub(super) fn gradients_at(
        &self,
        forward: &Forward,
        embeddings: &Tensor,
        sites: &BTreeSet<(usize, Site)>,
        targets: &[Target],
    ) -> Result<BTreeMap<(usize, Site), Vec<f32>>> {
        let (config, tokens) = (&self.model.config, embeddings.dim(0)?);
        let mut variables: Vec<((usize, Site), Var)> = Vec::new();
        for &(layer, site) in sites {
            let shape = (tokens, width(layer, site, config));
            let zeros = Var::zeros(shape, embeddings.dtype(), embeddings.device())?;
            variables.push(((layer, site), zeros));
        }
        let probes: Probes =
            variables.iter().map(|(key, var)| (*key, var.as_tensor().clone())).collect();
        let reads: Vec<u32> = targets.iter().map(|target| target.token).collect();
        let logits = self.model.forward_gradient_at(forward, embeddings, probes, Some(&reads))?;
        let values: Vec<f32> = logits.flatten_all()?.to_vec1()?;
        // The gradient of a log-probability at the logits: 1 for its token, minus the
        // probabilities.
        let mut seed = vec![0f32; values.len()];
        let vocabulary = config.vocab_size;
        let rows = values.chunks_exact(vocabulary).zip(seed.chunks_exact_mut(vocabulary));
        for ((x, g), target) in rows.zip(targets) {
            let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f32 = x.iter().map(|x| (x - max).exp()).sum();
            g.iter_mut().zip(x).for_each(|(g, x)| *g = -target.weight * (x - max).exp() / sum);
            g[target.id as usize] += target.weight;
        }
        let seed = Tensor::from_vec(seed, logits.shape(), logits.device())?;
        let gradients = (logits * seed)?.sum_all()?.backward()?;
        let mut by_site = BTreeMap::new();
        for (key, var) in &variables {
            let gradient =
                gradients.get(var).ok_or_else(|| Error::internal("a site has no gradient"))?;
            by_site.insert(*key, gradient.flatten_all()?.to_vec1::<f32>()?);
        }
        Ok(by_site)
    }
}
