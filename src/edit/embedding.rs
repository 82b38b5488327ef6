//! Changes of one embedding vector.

use serde::{Deserialize, Serialize};

use super::check::{Fault, finite};
use super::phrase::Phrase;
use super::stand_in::StandIns;
use super::words::{Words, cut};
use crate::text::{number, percent};

/// The kinds of change, for error messages.
const KINDS: &str = "noise, towards or direction";

/// A change of one embedding vector `e` `[d_model]`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum EmbeddingChange {
    /// `e + strength * |e| * u`, `u` a random unit vector drawn from `seed`.
    Noise {
        /// Seed of the direction.
        seed: u64,
        /// Length of the added vector in lengths of `e`.
        strength: f32,
    },
    /// `e + strength * |e| * v`, `v` the unit vector from the embedding of `from` to that of `to`.
    Direction {
        /// Id of the token that the direction starts at.
        from: u32,
        /// Id of the token that it points to.
        to: u32,
        /// Length of the added vector in lengths of `e`.
        strength: f32,
    },
    /// `e + strength * (E[id] - e)`: 1 is the other token's embedding.
    Towards {
        /// Id of the other token.
        id: u32,
        /// Share of the way.
        strength: f32,
    },
}

impl EmbeddingChange {
    /// Returns the strength: 0 changes nothing.
    pub fn strength(&self) -> f32 {
        match *self {
            Self::Noise { strength, .. }
            | Self::Direction { strength, .. }
            | Self::Towards { strength, .. } => strength,
        }
    }

    /// Reads a change as a person writes it: `noise 2 seed 7`, `towards 91 0.5`.
    pub(super) fn read(words: &mut Words) -> Result<Self, String> {
        match words.word(KINDS)? {
            "noise" => {
                let strength = words.number("a strength")?;
                Ok(Self::Noise { seed: words.seed()?, strength })
            }
            "towards" => {
                Ok(Self::Towards { id: words.token()?, strength: words.number("a strength")? })
            }
            "direction" => Ok(Self::Direction {
                from: words.token()?,
                to: words.token()?,
                strength: words.number("a strength")?,
            }),
            other => Err(format!("expected {KINDS}, got `{}`", cut(other))),
        }
    }

    /// Returns the change as [`read`](Self::read) reads it.
    pub(super) fn to_text(self) -> String {
        match self {
            Self::Noise { seed, strength } => format!("noise {strength} seed {seed}"),
            Self::Towards { id, strength } => format!("towards {id} {strength}"),
            Self::Direction { from, to, strength } => format!("direction {from} {to} {strength}"),
        }
    }

    /// Sets the strength.
    pub(super) fn set_strength(&mut self, new: f32) {
        match self {
            Self::Noise { strength, .. }
            | Self::Direction { strength, .. }
            | Self::Towards { strength, .. } => *strength = new,
        }
    }

    /// Checks what can be checked without a model.
    pub(super) fn check(&self) -> Result<(), Fault> {
        finite("change.strength", self.strength())
    }

    /// Returns the ids of the tokens whose embeddings it uses.
    pub(super) fn token_ids(&self) -> Vec<u32> {
        match *self {
            Self::Noise { .. } => Vec::new(),
            Self::Direction { from, to, .. } => vec![from, to],
            Self::Towards { id, .. } => vec![id],
        }
    }

    /// Returns a matched ordinary change of the same strength.
    pub(super) fn control(&self, stand_ins: &mut dyn StandIns) -> Self {
        match *self {
            Self::Noise { strength, .. } | Self::Direction { strength, .. } => {
                Self::Noise { seed: stand_ins.seed(), strength }
            }
            Self::Towards { id, strength } => Self::Towards { id: stand_ins.token(id), strength },
        }
    }

    /// Returns what the change does, without how much; `token` is the one at its position.
    pub(super) fn signature(&self, token: Option<u32>) -> String {
        match self {
            Self::Noise { .. } => format!("noise {token:?}"),
            Self::Direction { from, to, .. } => format!("direction {from} {to}"),
            Self::Towards { id, .. } => format!("towards {id}"),
        }
    }

    /// Returns the change of the embedding at `position` in words.
    pub(super) fn phrase(&self, position: usize, token: &dyn Fn(u32) -> String) -> Phrase {
        match *self {
            Self::Noise { seed, strength } => Phrase::new(
                "add",
                "adding",
                format!(
                    "noise of {} times its length to the embedding at {position} (noise seed \
                    {seed})",
                    number(strength.into())
                ),
            ),
            Self::Direction { from, to, strength } => Phrase::new(
                "push",
                "pushing",
                format!(
                    "the embedding at {position} by {} times its length along the direction from \
                    {} to {}",
                    number(strength.into()),
                    token(from),
                    token(to)
                ),
            ),
            Self::Towards { id, strength } => Phrase::new(
                "move",
                "moving",
                format!(
                    "the embedding at {position} towards {} by {} of the way",
                    token(id),
                    percent(strength.into())
                ),
            ),
        }
    }
}
