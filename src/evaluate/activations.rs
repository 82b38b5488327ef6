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
pub fn place(
    component: &Component,
    config: &Config,
) -> Option<(usize, Site, std::ops::Range<usize>)> {
    let d = config.hidden_size;
    let part = |index: usize, width: usize| index * width..(index + 1) * width;
    Some(match *component {
        Component::Embed => (0, Site::Embed, 0..d),
        Component::Head { layer, head } => (
            layer,
            Site::Z,
            part(head, config.z_width(layer).checked_div(config.heads(layer)).unwrap_or(0)),
        ),
        Component::Channel { layer, channel } => (layer, Site::Z, part(channel, 1)),
        Component::Attention { layer }
        | Component::Ssm { layer }
        | Component::TimeMix { layer } => (layer, Site::AttnOut, 0..d),
        Component::Mlp { layer } | Component::ChannelMix { layer } => (layer, Site::MlpOut, 0..d),
        Component::Neuron { layer, neuron } => (layer, Site::Neurons, part(neuron, 1)),
        Component::Expert { layer, expert } => (layer, Site::Experts, part(expert, d)),
        Component::State { layer, part: Some(index) } => {
            (layer, Site::State, part(index, config.state_parts(layer).1))
        }
        Component::Router { layer } => {
            (layer, Site::RouterLogits, 0..width(layer, Site::RouterLogits, config))
        }
        Component::Conv { layer } => (layer, Site::Conv, 0..width(layer, Site::Conv, config)),
        Component::Gate { layer } => (layer, Site::Gate, 0..width(layer, Site::Gate, config)),
        Component::Dt { layer } => (layer, Site::Dt, 0..width(layer, Site::Dt, config)),
        Component::Shift { layer } => (layer, Site::Shift, 0..d),
        Component::ChannelShift { layer } => (layer, Site::ChannelShift, 0..d),
        Component::State { layer, part: None } => {
            (layer, Site::State, 0..width(layer, Site::State, config))
        }
        Component::Weight { .. } => return None,
    })
}

/// The sites that hold the output of some component.
pub const COMPONENT_SITES: [Site; 13] = [
    Site::Embed,
    Site::Z,
    Site::AttnOut,
    Site::Neurons,
    Site::MlpOut,
    Site::RouterLogits,
    Site::Experts,
    Site::Conv,
    Site::Gate,
    Site::Dt,
    Site::Shift,
    Site::ChannelShift,
    Site::State,
];

/// Width of a site in a layer.
pub fn width(layer: usize, site: Site, config: &Config) -> usize {
    match site {
        Site::Z => config.z_width(layer),
        Site::Neurons => config.neurons(layer),
        Site::RouterLogits => config.num_experts(layer),
        Site::Experts => config.num_experts(layer) * config.hidden_size,
        Site::Conv => config.ssm_of(layer).map_or(0, |s| s.conv_width()),
        Site::Dt => config.ssm_of(layer).map_or(0, |s| s.dt_width()),
        Site::Gate => config.z_width(layer),
        Site::State => {
            let (parts, size) = config.state_parts(layer);
            parts * size
        }
        Site::Embed
        | Site::ResidPre
        | Site::AttnOut
        | Site::ResidMid
        | Site::MlpOut
        | Site::ResidPost
        | Site::Shift
        | Site::ChannelShift => config.hidden_size,
    }
}

impl Activations {
    /// A component's output at `positions`, `[positions, width]`; `None` for a weight, or beyond
    /// the run.
    pub fn of(
        &self,
        component: &Component,
        positions: std::ops::Range<usize>,
        config: &Config,
    ) -> Option<Vec<f32>> {
        let (layer, site, columns) = place(component, config)?;
        let (values, width) = (self.sites.get(&(layer, site))?, width(layer, site, config));
        if positions.end > self.positions {
            return None;
        }
        Some(positions.flat_map(|p| values[p * width..][columns.clone()].iter().copied()).collect())
    }
}

/// Mean output of every component over the reference text, BOS left out: it is an outlier
/// everywhere (attention sinks) and would stand for no position of a real text.
#[derive(Debug, Clone)]
pub struct Means(BTreeMap<(usize, Site), Vec<f32>>);

impl Means {
    pub fn new(run: &Activations, skip: usize, config: &Config) -> Self {
        let mean = |layer: usize, site: Site, values: &[f32]| {
            let width = width(layer, site, config);
            let mut sum = vec![0f64; width];
            let rows = values[skip * width..].chunks_exact(width);
            let n = rows.len().max(1) as f64;
            rows.for_each(|row| sum.iter_mut().zip(row).for_each(|(s, x)| *s += f64::from(*x)));
            sum.into_iter().map(|s| (s / n) as f32).collect()
        };
        Self(
            run.sites
                .iter()
                .map(|(&(layer, site), values)| ((layer, site), mean(layer, site, values)))
                .collect(),
        )
    }

    /// Mean output of a component, `[width]`.
    pub fn of(&self, component: &Component, config: &Config) -> Option<&[f32]> {
        let (layer, site, columns) = place(component, config)?;
        self.0.get(&(layer, site)).map(|mean| &mean[columns])
    }
}
