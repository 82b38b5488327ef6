//! Activations of one whole run, where each component's output is among them, and their means over
//! the reference text.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::edit::Component;
use crate::model::hooks::Site;
use crate::model::{Config, Residual};

/// The outputs of all components at every position of one run.
#[derive(Debug, Clone)]
pub struct Activations {
    /// The first position that was captured.
    pub first: usize,
    /// The length of the sequence.
    pub positions: usize,
    /// The captured values of each (layer, site), `[positions - first, width]`.
    pub sites: BTreeMap<(usize, Site), Vec<f32>>,
}

/// Returns the layer, site and columns that hold a component's output. Weights have none.
pub fn place(component: &Component, config: &Config) -> Option<(usize, Site, Range<usize>)> {
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

/// Returns the TransformerLens name of the hook point that holds a component's output, so that a
/// finding can be looked up with other tools: `L3.head1` is a slice of `blocks.3.attn.hook_z`.
///
/// A component that is a whole block holds exactly what the block adds to the residual stream, on
/// every model. On models that normalize a block's output before adding it (Gemma 3, OLMo 2) that
/// is the value after the norm. `hook_attn_out` and `hook_mlp_out` of TransformerLens are after it
/// too on Gemma 3 (`use_normalization_before_and_after`), but before it on OLMo 2, where no hook
/// point has the value.
///
/// `None` where TransformerLens has no hook point with the values: whole blocks of OLMo 2, single
/// weights and experts, routers, and recurrent layers. `None` also for a component that the model
/// does not have.
pub fn hook_name(component: &Component, config: &Config) -> Option<String> {
    if !config.has(component) {
        return None;
    }
    match *component {
        Component::Embed => Some("hook_embed".to_owned()),
        Component::Head { layer, .. }
            if config.mixer(layer) == (Component::Attention { layer }) =>
        {
            Some(format!("blocks.{layer}.attn.hook_z"))
        }
        Component::Attention { .. } | Component::Mlp { .. }
            if config.residual == Residual::PostNorm =>
        {
            None
        }
        Component::Attention { layer } => Some(format!("blocks.{layer}.hook_attn_out")),
        Component::Mlp { layer } => Some(format!("blocks.{layer}.hook_mlp_out")),
        Component::Neuron { layer, .. } if config.mlp(layer) == Some(Component::Mlp { layer }) => {
            Some(format!("blocks.{layer}.mlp.hook_post"))
        }
        _ => None,
    }
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

/// Returns the number of values that a site has for each token of a layer; 0 where the layer does
/// not have the site.
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
        // As wide as the sequence is long: no component's output.
        Site::Pattern => 0,
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
    /// Returns a component's output at `positions`, `[positions, width of the component]`; `None`
    /// for a weight, for a site that was not captured, and for what the run does not have.
    pub fn output(
        &self,
        component: &Component,
        positions: Range<usize>,
        config: &Config,
    ) -> Option<Vec<f32>> {
        let (layer, site, columns) = place(component, config)?;
        let (values, width) = (self.sites.get(&(layer, site))?, width(layer, site, config));
        if positions.start < self.first || positions.end > self.positions || columns.end > width {
            return None;
        }
        let rows = positions.map(|position| &values[(position - self.first) * width..]);
        Some(rows.flat_map(|row| row[columns.clone()].iter().copied()).collect())
    }
}

/// Averages rows of `width` values, leaving out the first `skip`.
pub fn mean_of_rows(values: &[f32], width: usize, skip: usize) -> Vec<f32> {
    let mut sum = vec![0f64; width];
    let rows = values[skip * width..].chunks_exact(width);
    let n = rows.len().max(1) as f64;
    rows.for_each(|row| sum.iter_mut().zip(row).for_each(|(s, x)| *s += f64::from(*x)));
    sum.into_iter().map(|s| (s / n) as f32).collect()
}

/// The mean output of every component over the reference text. BOS is left out: it is an outlier at
/// every site (an attention sink) and represents no position of real text.
#[derive(Debug, Clone)]
pub struct Means(BTreeMap<(usize, Site), Vec<f32>>);

impl Means {
    /// Averages a run over its positions, leaving out the first `skip`.
    pub fn new(run: &Activations, skip: usize, config: &Config) -> Self {
        let mean = |(&(layer, site), values): (&(usize, Site), &Vec<f32>)| {
            ((layer, site), mean_of_rows(values, width(layer, site, config), skip))
        };
        Self(run.sites.iter().map(mean).collect())
    }

    /// Returns the mean output of a component, `[width of the component]`; `None` for a weight, and
    /// for a site too large to be kept.
    pub fn output(&self, component: &Component, config: &Config) -> Option<&[f32]> {
        let (layer, site, columns) = place(component, config)?;
        self.0.get(&(layer, site)).map(|mean| &mean[columns])
    }
}
