//! Addresses of parts of a model: `L11.head3`, `L11.mlp`, `L11.neuron1229`, `embed`, or one scalar
//! `L11.mlp.down[507,1229]`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A weight matrix of a layer, stored `[out, in]` as Hugging Face stores `nn.Linear`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Matrix {
    Q,
    K,
    V,
    O,
    Gate,
    Up,
    Down,
}

impl Matrix {
    pub const ALL: [Self; 7] = [Self::Q, Self::K, Self::V, Self::O, Self::Gate, Self::Up, Self::Down];

    /// `attn.q`, `mlp.down`, ...
    pub fn name(self) -> &'static str {
        match self {
            Self::Q => "attn.q",
            Self::K => "attn.k",
            Self::V => "attn.v",
            Self::O => "attn.o",
            Self::Gate => "mlp.gate",
            Self::Up => "mlp.up",
            Self::Down => "mlp.down",
        }
    }
}

/// An addressable part of a model. The order (layer first) is the order of the forward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Component {
    /// The token embedding of every position.
    Embed,
    /// The output of one query head, before the output projection (`z`).
    Head { layer: usize, head: usize },
    /// The whole output of the attention block.
    Attention { layer: usize },
    /// The whole output of the MLP.
    Mlp { layer: usize },
    /// One hidden unit of the MLP, after the activation (and the gate).
    Neuron { layer: usize, neuron: usize },
    /// What one expert of a mixture adds to its output: its own output times the weight that the router gives
    /// it; nothing for a token that is not routed to it.
    Expert { layer: usize, expert: usize },
    /// The logits by which a mixture chooses its experts.
    Router { layer: usize },
    /// One scalar of a weight matrix: row `out`, column `input`.
    Weight { layer: usize, matrix: Matrix, out: usize, input: usize },
}

impl Component {
    /// The layer it is in; the embedding counts as layer 0.
    pub fn layer(&self) -> usize {
        match *self {
            Self::Embed => 0,
            Self::Head { layer, .. }
            | Self::Attention { layer }
            | Self::Mlp { layer }
            | Self::Neuron { layer, .. }
            | Self::Expert { layer, .. }
            | Self::Router { layer }
            | Self::Weight { layer, .. } => layer,
        }
    }

    /// `embed`, `head`, `attn`, `mlp`, `neuron`, `expert`, `router` or `weight`: controls are drawn within a kind.
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
        }
    }
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embed => write!(f, "embed"),
            Self::Head { layer, head } => write!(f, "L{layer}.head{head}"),
            Self::Attention { layer } => write!(f, "L{layer}.attn"),
            Self::Mlp { layer } => write!(f, "L{layer}.mlp"),
            Self::Neuron { layer, neuron } => write!(f, "L{layer}.neuron{neuron}"),
            Self::Expert { layer, expert } => write!(f, "L{layer}.expert{expert}"),
            Self::Router { layer } => write!(f, "L{layer}.router"),
            Self::Weight { layer, matrix, out, input } => write!(f, "L{layer}.{}[{out},{input}]", matrix.name()),
        }
    }
}

impl FromStr for Component {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || {
            format!(
                "`{text}` is no component; examples: embed, L11.head3, L11.attn, L11.mlp, L11.neuron1229, L4.expert5, L4.router, L11.mlp.down[507,1229]"
            )
        };
        if text == "embed" {
            return Ok(Self::Embed);
        }
        let (layer, part) = text.strip_prefix('L').and_then(|rest| rest.split_once('.')).ok_or_else(bad)?;
        let layer = layer.parse().map_err(|_| bad())?;
        if part == "attn" {
            return Ok(Self::Attention { layer });
        }
        if part == "mlp" {
            return Ok(Self::Mlp { layer });
        }
        if part == "router" {
            return Ok(Self::Router { layer });
        }
        if let Some(expert) = part.strip_prefix("expert") {
            return Ok(Self::Expert { layer, expert: expert.parse().map_err(|_| bad())? });
        }
        if let Some(head) = part.strip_prefix("head") {
            return Ok(Self::Head { layer, head: head.parse().map_err(|_| bad())? });
        }
        if let Some(neuron) = part.strip_prefix("neuron") {
            return Ok(Self::Neuron { layer, neuron: neuron.parse().map_err(|_| bad())? });
        }
        let (name, indices) = part.strip_suffix(']').and_then(|p| p.split_once('[')).ok_or_else(bad)?;
        let matrix = Matrix::ALL.into_iter().find(|m| m.name() == name).ok_or_else(bad)?;
        let (out, input) = indices.split_once(',').ok_or_else(bad)?;
        Ok(Self::Weight { layer, matrix, out: out.parse().map_err(|_| bad())?, input: input.parse().map_err(|_| bad())? })
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
        ] {
            assert_eq!(text.parse::<Component>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in ["", "L", "L1", "L1.", "Lx.mlp", "L1.head", "L1.head-1", "L1.mlp.down[1]", "L1.mlp.side[1,2]", "embed[1]"] {
            let error = text.parse::<Component>().unwrap_err();
            assert!(error.contains("is no component"), "{text}: {error}");
        }
    }
}
