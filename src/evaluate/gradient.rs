//! What the loss would gain, to first order, from switching components off.

use candle_core::{Tensor, Var};

use super::activations::{place, width};
use super::engine::ModelEvaluator;
use super::lower::{Lowering, Place};
use crate::edit::{Action, Component, Trial};
use crate::error::{Error, Result};
use crate::model::batch::Row;
use crate::model::hooks::Site;
use crate::model::{Forward, Probes};

/// Tokens of one gradient forward: its attention is dense over all of them.
const TOKENS: usize = 512;

impl ModelEvaluator<'_> {
    /// For each trial, the change of its loss (nats per token of the continuation) that zeroing
    /// each component would make, to first order in the component's output: minus its gradient
    /// times itself, summed over the positions (attribution patching, Nanda 2023). `Action::Mean`
    /// puts the mean over plain English in the place of zero. `[trials, components]`.
    ///
    /// The trials must have no token edits; their lesions hold in the gradient as well.
    pub fn first_order(
        &self,
        trials: &[Trial],
        components: &[Component],
        action: Action,
    ) -> Result<Vec<Vec<f64>>> {
        let length = trials.iter().map(Trial::len).max().unwrap_or(1);
        let mut all = Vec::with_capacity(trials.len());
        for chunk in trials.chunks((TOKENS / length.max(1)).max(1)) {
            all.extend(self.first_order_of(chunk, components, action)?);
        }
        Ok(all)
    }

    fn first_order_of(
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
        let tokens = offsets[trials.len()];
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
        // What experts add up to is the mixture's output, whose gradient is therefore that of each
        // of them.
        let probed = |component: &Component| match component {
            Component::Expert { layer, .. } => Some((*layer, Site::MlpOut)),
            _ => place(component, config).map(|(layer, site, _)| (layer, site)),
        };
        let mut variables: Vec<((usize, Site), Var)> = Vec::new();
        for key in components.iter().filter_map(probed) {
            if !variables.iter().any(|(known, _)| *known == key) {
                let zeros = Tensor::zeros(
                    (tokens, width(key.0, key.1, config)),
                    start.dtype(),
                    start.device(),
                )?;
                variables.push((key, Var::from_tensor(&zeros)?));
            }
        }
        let probes: Probes =
            variables.iter().map(|(key, var)| (*key, var.as_tensor().clone())).collect();
        let logits = self.model.forward_gradient_at(&forward, &start, probes, None)?;
        let vocabulary = config.vocab_size;
        let values: Vec<f32> = logits.flatten_all()?.to_vec1()?;
        // The gradient of the loss at the logits: probabilities less one for the token that came,
        // per token read.
        let mut seed = vec![0f32; values.len()];
        for (i, trial) in trials.iter().enumerate() {
            for (n, &target) in trial.continuation.iter().enumerate() {
                let at = (offsets[i] + trial.base.len() - 1 + n) * vocabulary;
                let (x, g) = (&values[at..at + vocabulary], &mut seed[at..at + vocabulary]);
                let most = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let sum: f32 = x.iter().map(|x| (x - most).exp()).sum();
                let share = 1.0 / trial.continuation.len() as f32;
                g.iter_mut().zip(x).for_each(|(g, x)| *g = share * (x - most).exp() / sum);
                g[target as usize] -= share;
            }
        }
        let seed = Tensor::from_vec(seed, logits.shape(), logits.device())?;
        let gradients = (logits * seed)?.sum_all()?.backward()?;
        let mut of_site = std::collections::BTreeMap::new();
        for (key, var) in &variables {
            let gradient =
                gradients.get(var).ok_or_else(|| Error::internal("a site without a gradient"))?;
            of_site.insert(*key, gradient.flatten_all()?.to_vec1::<f32>()?);
        }
        let means = if action == Action::Mean { Some(self.means()?) } else { None };
        let mut all = Vec::with_capacity(trials.len());
        for (i, trial) in trials.iter().enumerate() {
            let run = self.activations(trial, &[])?;
            let mut row = Vec::with_capacity(components.len());
            for component in components {
                let missing =
                    || Error::request(format!("{component} has no output to take a gradient of"));
                let key = probed(component).ok_or_else(missing)?;
                let output = run.of(component, 0..run.positions, config).ok_or_else(missing)?;
                let (_, site, columns) = place(component, config).ok_or_else(missing)?;
                let of_component = output.len() / run.positions.max(1);
                let first = if site == key.1 { columns.start } else { 0 };
                let gradient = &of_site[&key];
                let wide = width(key.0, key.1, config);
                let mean = means.as_ref().and_then(|m| m.of(component, config));
                let mut change = 0f64;
                for position in 0..run.positions {
                    let g = &gradient[(offsets[i] + position) * wide + first..][..of_component];
                    let x = &output[position * of_component..][..of_component];
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
}
