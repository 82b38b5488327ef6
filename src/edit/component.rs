//! Addresses of parts of a model: `L11.head3`, `L11.mlp`, `L11.neuron1229`, `embed`, or one scalar
//! `L11.mlp.down[507,1229]`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Declares [`Matrix`] from (variant, name in addresses) pairs.
macro_rules! matrices {
    ($($(#[$doc:meta])* $matrix:ident = $name:literal,)*) => {
        /// A weight matrix of a layer, stored `[out, in]` as Hugging Face stores `nn.Linear`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Matrix {
            $($(#[$doc])* $matrix,)*
        }

        impl Matrix {
            /// Every matrix.
            pub const ALL: [Self; [$($name),*].len()] = [$(Self::$matrix),*];

            /// Returns the name in addresses: `attn.q`, `mlp.down`, ...
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$matrix => $name,)*
                }
            }

            /// Returns whether it is part of an MLP, and not of a mixer.
            pub fn is_of_mlp(self) -> bool {
                matches!(
                    self,
                    Self::Gate
                        | Self::Up
                        | Self::Down
                        | Self::ChannelKey
                        | Self::ChannelValue
                        | Self::ChannelReceptance
                )
            }
        }
    };
}

matrices! {
    /// Attention: queries.
    Q = "attn.q",
    /// Attention: keys.
    K = "attn.k",
    /// Attention: values.
    V = "attn.v",
    /// Attention: heads back to the residual stream.
    O = "attn.o",
    /// MLP: gate of a gated MLP.
    Gate = "mlp.gate",
    /// MLP: into the hidden units.
    Up = "mlp.up",
    /// MLP: back to the residual stream.
    Down = "mlp.down",
    /// State space: into its channels and gate (`in_proj`).
    SsmIn = "ssm.in",
    /// State space: from the channels to time step, `B` and `C` (Mamba, `x_proj`).
    SsmX = "ssm.x",
    /// State space: from there to the time step of each channel (Mamba, `dt_proj`).
    SsmDt = "ssm.dt",
    /// State space: back to the residual stream (`out_proj`).
    SsmOut = "ssm.out",
    /// Time mixing: receptance.
    Receptance = "time_mix.receptance",
    /// Time mixing: keys.
    Key = "time_mix.key",
    /// Time mixing: values.
    Value = "time_mix.value",
    /// Time mixing: gate.
    TimeGate = "time_mix.gate",
    /// Time mixing: back to the residual stream.
    TimeOut = "time_mix.output",
    /// Channel mixing: into the hidden units.
    ChannelKey = "channel_mix.key",
    /// Channel mixing: back to the residual stream.
    ChannelValue = "channel_mix.value",
    /// Channel mixing: receptance.
    ChannelReceptance = "channel_mix.receptance",
}

/// An addressable part of a model. The order is by kind, then layer, then place. Fields are
/// indices, from 0, of what they are called.
#[allow(missing_docs)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Component {
    /// The token embedding of every position.
    Embed,
    /// The output of one head before the output projection: of attention (`z`), of Mamba-2 and RWKV
    /// with the gate.
    Head { layer: usize, head: usize },
    /// The whole output of the attention block.
    Attention { layer: usize },
    /// The whole output of the MLP.
    Mlp { layer: usize },
    /// One hidden unit of the MLP or the channel mixing, after the activation (and the gate).
    Neuron { layer: usize, neuron: usize },
    /// The contribution of one expert to a mixture: its own output times the weight that the router
    /// gives it; zero for a token that is not routed to it.
    Expert { layer: usize, expert: usize },
    /// The logits by which a mixture chooses its experts.
    Router { layer: usize },
    /// One scalar of a weight matrix: row `out`, column `input`.
    Weight { layer: usize, matrix: Matrix, out: usize, input: usize },
    /// The whole output of a state space (Mamba).
    Ssm { layer: usize },
    /// The whole output of RWKV's time mixing.
    TimeMix { layer: usize },
    /// The whole output of RWKV's channel mixing.
    ChannelMix { layer: usize },
    /// One channel of a state space (or of RWKV-4's time mixing), gated, before the output
    /// projection.
    Channel { layer: usize, channel: usize },
    /// The output of a state space's convolution.
    Conv { layer: usize },
    /// The factor that the gate of a state space or of time mixing multiplies by.
    Gate { layer: usize },
    /// A state space's time step: the extent to which a token enters its state.
    Dt { layer: usize },
    /// The term that token shift adds before time mixing.
    Shift { layer: usize },
    /// The term that token shift adds before channel mixing.
    ChannelShift { layer: usize },
    /// The recurrent state, all of it or one part: a head's, or a channel's where there are no
    /// heads.
    State { layer: usize, part: Option<usize> },
}

impl Component {
    /// The kinds of components.
    pub const KINDS: [&str; 19] = [
        "embed",
        "head",
        "attn",
        "mlp",
        "neuron",
        "expert",
        "router",
        "weight",
        "ssm",
        "time_mix",
        "channel_mix",
        "channel",
        "conv",
        "gate",
        "dt",
        "time_mix.shift",
        "channel_mix.shift",
        "state",
        "state part",
    ];

    /// Returns the layer it is in; the embedding counts as layer 0.
    pub fn layer(&self) -> usize {
        match *self {
            Self::Embed => 0,
            Self::Head { layer, .. }
            | Self::Attention { layer }
            | Self::Mlp { layer }
            | Self::Neuron { layer, .. }
            | Self::Expert { layer, .. }
            | Self::Router { layer }
            | Self::Weight { layer, .. }
            | Self::Ssm { layer }
            | Self::TimeMix { layer }
            | Self::ChannelMix { layer }
            | Self::Channel { layer, .. }
            | Self::Conv { layer }
            | Self::Gate { layer }
            | Self::Dt { layer }
            | Self::Shift { layer }
            | Self::ChannelShift { layer }
            | Self::State { layer, .. } => layer,
        }
    }

    /// Returns whether it is the MLP of its layer or part of it, and not the mixer.
    pub fn is_of_mlp(&self) -> bool {
        match self {
            Self::Mlp { .. }
            | Self::Neuron { .. }
            | Self::Expert { .. }
            | Self::Router { .. }
            | Self::ChannelMix { .. }
            | Self::ChannelShift { .. } => true,
            Self::Weight { matrix, .. } => matrix.is_of_mlp(),
            _ => false,
        }
    }

    /// Returns whether it is the whole mixer or MLP of its layer.
    pub fn is_block(&self) -> bool {
        matches!(
            self,
            Self::Attention { .. }
                | Self::Ssm { .. }
                | Self::TimeMix { .. }
                | Self::Mlp { .. }
                | Self::ChannelMix { .. }
        )
    }

    /// Returns the kind, one of [`Component::KINDS`], within which controls are drawn: `embed`,
    /// `head`, `attn`, `mlp`, ...
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Embed => "embed",
            Self::Head { .. } => "head",
            Self::Attention { .. } => "attn",
            Self::Mlp { .. } => "mlp",
            Self::Neuron { .. } => "neuron",
            Self::Expert { .. } => "expert",
            Self::Router { .. } => "router",
            Self::Weight { .. } => "weight",
            Self::Ssm { .. } => "ssm",
            Self::TimeMix { .. } => "time_mix",
            Self::ChannelMix { .. } => "channel_mix",
            Self::Channel { .. } => "channel",
            Self::Conv { .. } => "conv",
            Self::Gate { .. } => "gate",
            Self::Dt { .. } => "dt",
            Self::Shift { .. } => "time_mix.shift",
            Self::ChannelShift { .. } => "channel_mix.shift",
            Self::State { part: None, .. } => "state",
            Self::State { part: Some(_), .. } => "state part",
        }
    }
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embed => write!(f, "embed"),
            Self::Weight { layer, matrix, out, input } => {
                write!(f, "L{layer}.{}[{out},{input}]", matrix.name())
            }
            Self::Head { layer, head: index }
            | Self::Neuron { layer, neuron: index }
            | Self::Expert { layer, expert: index }
            | Self::Channel { layer, channel: index } => {
                write!(f, "L{layer}.{}{index}", self.kind())
            }
            Self::State { layer, part: Some(part) } => write!(f, "L{layer}.state{part}"),
            whole => write!(f, "L{}.{}", whole.layer(), whole.kind()),
        }
    }
}

impl FromStr for Component {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || {
            format!(
                "`{text}` is not a component; examples: embed, L11.head3, L11.attn, L11.mlp, \
                L11.neuron1229, L4.expert5, L4.router, L3.ssm, L3.channel17, L3.state5, \
                L2.time_mix, L2.channel_mix, L11.mlp.down[507,1229]"
            )
        };
        if text == "embed" {
            return Ok(Self::Embed);
        }
        let (layer, part) =
            text.strip_prefix('L').and_then(|rest| rest.split_once('.')).ok_or_else(bad)?;
        let layer = layer.parse().map_err(|_| bad())?;
        let whole = match part {
            "attn" => Some(Self::Attention { layer }),
            "mlp" => Some(Self::Mlp { layer }),
            "router" => Some(Self::Router { layer }),
            "ssm" => Some(Self::Ssm { layer }),
            "time_mix" => Some(Self::TimeMix { layer }),
            "channel_mix" => Some(Self::ChannelMix { layer }),
            "conv" => Some(Self::Conv { layer }),
            "gate" => Some(Self::Gate { layer }),
            "dt" => Some(Self::Dt { layer }),
            "time_mix.shift" => Some(Self::Shift { layer }),
            "channel_mix.shift" => Some(Self::ChannelShift { layer }),
            "state" => Some(Self::State { layer, part: None }),
            _ => None,
        };
        if let Some(whole) = whole {
            return Ok(whole);
        }
        let digits = part.trim_start_matches(|c: char| !c.is_ascii_digit());
        let (name, index) = (&part[..part.len() - digits.len()], digits.parse().ok());
        match (name, index) {
            ("head", Some(head)) => return Ok(Self::Head { layer, head }),
            ("neuron", Some(neuron)) => return Ok(Self::Neuron { layer, neuron }),
            ("expert", Some(expert)) => return Ok(Self::Expert { layer, expert }),
            ("channel", Some(channel)) => return Ok(Self::Channel { layer, channel }),
            ("state", part @ Some(_)) => return Ok(Self::State { layer, part }),
            _ => {}
        }
        let (name, indices) =
            part.strip_suffix(']').and_then(|p| p.split_once('[')).ok_or_else(bad)?;
        let matrix = Matrix::ALL.into_iter().find(|m| m.name() == name).ok_or_else(bad)?;
        let (out, input) = indices.split_once(',').ok_or_else(bad)?;
        Ok(Self::Weight {
            layer,
            matrix,
            out: out.parse().map_err(|_| bad())?,
            input: input.parse().map_err(|_| bad())?,
        })
    }
}

impl Serialize for Component {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Component {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_a_round_trip() {
        for text in [
            "embed",
            "L0.head3",
            "L11.attn",
            "L2.mlp",
            "L11.neuron1229",
            "L4.expert5",
            "L4.router",
            "L11.mlp.down[507,1229]",
            "L3.attn.q[0,7]",
            "L3.ssm",
            "L3.channel17",
            "L3.conv",
            "L3.gate",
            "L3.dt",
            "L3.state",
            "L3.state5",
            "L2.time_mix",
            "L2.channel_mix",
            "L2.time_mix.shift",
            "L2.channel_mix.shift",
            "L2.time_mix.receptance[1,2]",
            "L3.ssm.in[500,3]",
        ] {
            let component: Component = text.parse().unwrap();
            assert_eq!(component.to_string(), text);
            assert!(Component::KINDS.contains(&component.kind()), "{text}");
        }
    }

    #[test]
    fn malformed_addresses_are_refused() {
        for text in [
            "",
            "L",
            "L1",
            "L1.",
            "Lx.mlp",
            "L1.head",
            "L1.head-1",
            "L1.mlp.down[1]",
            "L1.mlp.side[1,2]",
            "embed[1]",
            "L1.state-1",
            "L1.ssm2",
            "L1.channel",
        ] {
            let error = text.parse::<Component>().unwrap_err();
            assert!(error.contains("is not a component"), "{text}: {error}");
        }
    }
}
