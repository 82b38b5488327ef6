//! The components of a model: which there are, how many, and how wide.

use super::{Config, Mixer, Ssm};
use crate::edit::Component;
use crate::model::Rwkv;

impl Config {
    /// Returns the number of heads of a layer's mixer: attention, Mamba-2, and RWKV from version 6
    /// on have heads.
    pub fn heads(&self, layer: usize) -> usize {
        match self.mixers[layer] {
            Mixer::Attention => self.num_attention_heads,
            Mixer::Ssm => self.ssm.as_ref().map_or(0, |s| s.num_heads),
            Mixer::TimeMix => self.rwkv.as_ref().map_or(0, |r| r.num_heads),
        }
    }

    /// Returns the width of the input of the output projection of a layer's mixer.
    pub fn z_width(&self, layer: usize) -> usize {
        match self.mixers[layer] {
            Mixer::Attention => self.num_attention_heads * self.v_head_dim(),
            Mixer::Ssm => self.ssm.as_ref().map_or(0, |s| s.intermediate_size),
            Mixer::TimeMix => self.rwkv.as_ref().map_or(0, |r| r.attention_size),
        }
    }

    /// Returns the number of channels of a layer's mixer: a state space has channels, and RWKV-4's
    /// time mixing, which has no heads.
    pub fn channels(&self, layer: usize) -> usize {
        match self.mixers[layer] {
            Mixer::TimeMix if self.heads(layer) > 0 => 0,
            Mixer::Attention => 0,
            _ => self.z_width(layer),
        }
    }

    /// Returns the number of MLP neurons of a layer, in RWKV those of the channel mixing; 0 if it
    /// has a mixture of experts.
    pub fn neurons(&self, layer: usize) -> usize {
        if self.is_sparse(layer) { 0 } else { self.intermediate_size }
    }

    /// Returns the number of experts of a layer; 0 if it has an MLP.
    pub fn num_experts(&self, layer: usize) -> usize {
        self.experts.as_ref().filter(|e| e.sparse[layer]).map_or(0, |e| e.num_experts)
    }

    /// Returns the number of parts of a layer's recurrent state and the number of values of each. A
    /// part belongs to a head, or to a channel where there are no heads. `(0, 0)` for attention.
    pub fn state_parts(&self, layer: usize) -> (usize, usize) {
        let ssm = self.ssm_of(layer).map(Ssm::state_parts);
        ssm.or_else(|| self.rwkv_of(layer).map(Rwkv::state_parts)).unwrap_or((0, 0))
    }

    /// Returns the layers that have components of the kind of `component`, ascending.
    pub fn layers_with(&self, component: Component) -> Vec<usize> {
        (0..self.num_hidden_layers).filter(|layer| self.count_in(*layer, component) > 0).collect()
    }

    /// Returns the mixer of a layer as a component.
    pub fn mixer(&self, layer: usize) -> Component {
        match self.mixers[layer] {
            Mixer::Attention => Component::Attention { layer },
            Mixer::Ssm => Component::Ssm { layer },
            Mixer::TimeMix => Component::TimeMix { layer },
        }
    }

    /// Returns the MLP, mixture or channel mixing of a layer as a component; `None` if there is
    /// none.
    pub fn mlp(&self, layer: usize) -> Option<Component> {
        let mlp = if self.rwkv.is_some() {
            Component::ChannelMix { layer }
        } else {
            Component::Mlp { layer }
        };
        self.has_mlp().then_some(mlp)
    }

    /// Returns the number of components of the kind of `like` in a layer.
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

    /// Returns the component number `index` of the kind of `like` in a layer.
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

    /// Returns all components of the kind of `like`, in model order.
    pub fn all_like(&self, like: Component) -> impl Iterator<Item = Component> {
        let layers = 0..self.num_hidden_layers;
        layers.flat_map(move |layer| {
            (0..self.count_in(layer, like)).map(move |i| self.nth_in(layer, like, i))
        })
    }

    /// Returns whether the model has a component.
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
