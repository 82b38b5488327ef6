//! Activations of a whole run, and their means over the reference text.

use std::collections::BTreeMap;

use crate::edit::Component;
use crate::model::Config;
use crate::model::hooks::Site;

/// The output of every component at every position of one run.
#[derive(Debug, Clone)]
pub struct Activations {
    pub positions: usize,
    /// `[positions, width]` per site.
    pub sites: BTreeMap<(usize, Site), Vec<f32>>,
}

/// Where a component's output is: layer, site, columns. Weights have none.
pub fn place(component: &Component, config: &Config) -> Option<(usize, Site, std::ops::Range<usize>)> {
    let (d, dim) = (config.hidden_size, config.head_dim);
    match *component {
        Component::Embed => Some((0, Site::Embed, 0..d)),
        Component::Head { layer, head } => Some((layer, Site::Z, head * dim..(head + 1) * dim)),
        Component::Attention { layer } => Some((layer, Site::AttnOut, 0..d)),
        Component::Mlp { layer } => Some((layer, Site::MlpOut, 0..d)),
        Component::Neuron { layer, neuron } => Some((layer, Site::Neurons, neuron..neuron + 1)),
        Component::Expert { layer, expert } => Some((layer, Site::Experts, expert * d..(expert + 1) * d)),
        Component::Router { layer } => Some((layer, Site::RouterLogits, 0..config.num_experts(layer))),
        Component::Weight { .. } => None,
    }
}

/// The sites that hold the output of some component.
pub const COMPONENT_SITES: [Site; 7] =
    [Site::Embed, Site::Z, Site::AttnOut, Site::Neurons, Site::MlpOut, Site::RouterLogits, Site::Experts];

/// Width of a site.
pub fn width(site: Site, config: &Config) -> usize {
    match site {
        Site::Z => config.q_width(),
        Site::Neurons => config.intermediate_size,
        Site::RouterLogits => config.experts.as_ref().map_or(0, |e| e.num_experts),
        Site::Experts => config.experts.as_ref().map_or(0, |e| e.num_experts * config.hidden_size),
        Site::Embed | Site::ResidPre | Site::AttnOut | Site::MlpOut | Site::ResidPost => config.hidden_size,
    }
}

impl Activations {
    /// A component's output at `positions`, `[positions, width]`; `None` for a weight, or beyond the run.
    pub fn of(&self, component: &Component, positions: std::ops::Range<usize>, config: &Config) -> Option<Vec<f32>> {
        let (layer, site, columns) = place(component, config)?;
        let (values, width) = (self.sites.get(&(layer, site))?, width(site, config));
        if positions.end > self.positions {
            return None;
        }
        Some(positions.flat_map(|p| values[p * width..][columns.clone()].iter().copied()).collect())
    }
}

/// Mean output of every component over the reference text, BOS left out: it is an outlier everywhere
/// (attention sinks) and would stand for no position of a real text.
#[derive(Debug, Clone)]
pub struct Means(BTreeMap<(usize, Site), Vec<f32>>);

impl Means {
    pub fn new(run: &Activations, skip: usize, config: &Config) -> Self {
        let mean = |site: Site, values: &[f32]| {
            let width = width(site, config);
            let mut sum = vec![0f64; width];
            let rows = values[skip * width..].chunks_exact(width);
            let n = rows.len().max(1) as f64;
            rows.for_each(|row| sum.iter_mut().zip(row).for_each(|(s, x)| *s += f64::from(*x)));
            sum.into_iter().map(|s| (s / n) as f32).collect()
        };
        Self(run.sites.iter().map(|(&(layer, site), values)| ((layer, site), mean(site, values))).collect())
    }

    /// Mean output of a component, `[width]`.
    pub fn of(&self, component: &Component, config: &Config) -> Option<&[f32]> {
        let (layer, site, columns) = place(component, config)?;
        self.0.get(&(layer, site)).map(|mean| &mean[columns])
    }
}
