//! Which components a model has.

use super::{Config, Mixer, Ssm};
use crate::edit::Component;
use crate::model::Rwkv;

impl Config {
    /// Heads of a layer's mixer: of attention, Mamba-2, and RWKV from version 6 on.
    pub fn heads(&self, layer: usize) -> usize {
        match self.mixers[layer] {
            Mixer::Attention => self.num_attention_heads,
            Mixer::Ssm => self.ssm.as_ref().map_or(0, |s| s.num_heads),
            Mixer::TimeMix => self.rwkv.as_ref().map_or(0, |r| r.num_heads),
        }
    }

    /// Width of what goes into the output projection of a layer's mixer.
    pub fn z_width(&self, layer: usize) -> usize {
        match self.mixers[layer] {
            Mixer::Attention => self.num_attention_heads * self.v_head_dim(),
            Mixer::Ssm => self.ssm.as_ref().map_or(0, |s| s.intermediate_size),
            Mixer::TimeMix => self.rwkv.as_ref().map_or(0, |r| r.attention_size),
        }
    }

    /// Channels of a layer's inner state: of a state space, and of RWKV-4's time mixing, which has
    /// no heads.
    pub fn channels(&self, layer: usize) -> usize {
        match self.mixers[layer] {
            Mixer::TimeMix if self.heads(layer) > 0 => 0,
            Mixer::Attention => 0,
            _ => self.z_width(layer),
        }
    }

    /// MLP neurons of a layer (of RWKV, of its channel mixing): none where there is a mixture of
    /// experts.
    pub fn neurons(&self, layer: usize) -> usize {
        if self.is_sparse(layer) { 0 } else { self.intermediate_size }
    }

    /// Experts of a layer: none where it has an MLP.
    pub fn num_experts(&self, layer: usize) -> usize {
        self.experts.as_ref().filter(|e| e.sparse[layer]).map_or(0, |e| e.num_experts)
    }

    /// The parts of a layer's recurrent state and the values of each: a head, or a channel where
    /// there are no heads. `(0, 0)` for attention.
    pub fn state_parts(&self, layer: usize) -> (usize, usize) {
        let ssm = self.ssm_of(layer).map(Ssm::state_parts);
        ssm.or_else(|| self.rwkv_of(layer).map(Rwkv::state_parts)).unwrap_or((0, 0))
    }

    /// The layers that have components of this kind, ascending.
    pub fn layers_with(&self, component: Component) -> Vec<usize> {
        (0..self.num_hidden_layers).filter(|layer| self.count_in(*layer, component) > 0).collect()
    }

    /// What a layer's mixer adds to the residual stream, as a component.
    pub fn mixer(&self, layer: usize) -> Component {
        match self.mixers[layer] {
            Mixer::Attention => Component::Attention { layer },
            Mixer::Ssm => Component::Ssm { layer },
            Mixer::TimeMix => Component::TimeMix { layer },
        }
    }

    /// What a layer's MLP, mixture or channel mixing adds, as a component; `None` where there is
    /// none.
    pub fn mlp(&self, layer: usize) -> Option<Component> {
        let mlp = if self.rwkv.is_some() {
            Component::ChannelMix { layer }
        } else {
            Component::Mlp { layer }
        };
        self.has_mlp().then_some(mlp)
    }

    /// How many components of the kind of `like` a layer has.
    pub fn count_in(&self, layer: usize, like: Component) -> usize {
        usize::from(match like {
            Component::Embed => layer == 0,
            Component::Head { .. } => return self.heads(layer),
            Component::Channel { .. } => return self.channels(layer),
            Component::Neuron { .. } => return self.neurons(layer),
            Component::Expert { .. } => return self.num_experts(layer),
            Component::State { part: Some(_), .. } => return self.state_parts(layer).0,
            Component::Weight { matrix, .. } => {
                return self
                    .matrix_shape(layer, matrix)
                    .map_or(0, |(rows, columns)| rows * columns);
            }
            Component::Router { .. } => self.is_sparse(layer),
            Component::Attention { .. } => self.mixers[layer] == Mixer::Attention,
            Component::Ssm { .. } | Component::Conv { .. } | Component::Dt { .. } => {
                self.ssm_of(layer).is_some()
            }
            Component::TimeMix { .. }
            | Component::Shift { .. }
            | Component::ChannelShift { .. } => self.rwkv_of(layer).is_some(),
            Component::Mlp { .. } => self.has_mlp() && self.rwkv.is_none(),
            Component::ChannelMix { .. } => self.rwkv_of(layer).is_some(),
            Component::Gate { .. } => {
                self.ssm_of(layer).is_some() || self.rwkv_of(layer).is_some_and(|r| r.version != 4)
            }
            Component::State { part: None, .. } => self.state_parts(layer).0 > 0,
        })
    }

    /// The `index`th component of the kind of `like` in a layer.
    pub fn nth_in(&self, layer: usize, like: Component, index: usize) -> Component {
        match like {
            Component::Embed => Component::Embed,
            Component::Head { .. } => Component::Head { layer, head: index },
            Component::Channel { .. } => Component::Channel { layer, channel: index },
            Component::Neuron { .. } => Component::Neuron { layer, neuron: index },
            Component::Expert { .. } => Component::Expert { layer, expert: index },
            Component::State { part, .. } => Component::State { layer, part: part.map(|_| index) },
            Component::Weight { matrix, .. } => {
                let columns = self.matrix_shape(layer, matrix).map_or(1, |(_, columns)| columns);
                Component::Weight { layer, matrix, out: index / columns, input: index % columns }
            }
            Component::Router { .. } => Component::Router { layer },
            Component::Attention { .. } => Component::Attention { layer },
            Component::Mlp { .. } => Component::Mlp { layer },
            Component::Ssm { .. } => Component::Ssm { layer },
            Component::TimeMix { .. } => Component::TimeMix { layer },
            Component::ChannelMix { .. } => Component::ChannelMix { layer },
            Component::Conv { .. } => Component::Conv { layer },
            Component::Gate { .. } => Component::Gate { layer },
            Component::Dt { .. } => Component::Dt { layer },
            Component::Shift { .. } => Component::Shift { layer },
            Component::ChannelShift { .. } => Component::ChannelShift { layer },
        }
    }

    /// All components of the kind of `like`, in model order.
    pub fn all_like(&self, like: Component) -> impl Iterator<Item = Component> {
        let layers = 0..self.num_hidden_layers;
        layers.flat_map(move |layer| {
            (0..self.count_in(layer, like)).map(move |i| self.nth_in(layer, like, i))
        })
    }

    /// Whether the model has a component.
    pub fn has(&self, component: &Component) -> bool {
        let layer = component.layer();
        if layer >= self.num_hidden_layers {
            return false;
        }
        let count = self.count_in(layer, *component);
        match *component {
            Component::Head { head: index, .. }
            | Component::Channel { channel: index, .. }
            | Component::Neuron { neuron: index, .. }
            | Component::Expert { expert: index, .. }
            | Component::State { part: Some(index), .. } => index < count,
            Component::Weight { matrix, out, input, .. } => self
                .matrix_shape(layer, matrix)
                .is_some_and(|(rows, columns)| out < rows && input < columns),
            _ => count > 0,
        }
    }
}
