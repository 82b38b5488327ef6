//! Steering: changes of the residual stream along a direction. Adding a vector is activation
//! addition (Turner et al. 2023, "Steering Language Models With Activation Engineering"), removing
//! it directional ablation (Arditi et al. 2024, "Refusal in Language Models Is Mediated by a Single
//! Direction"), clamping it what is done to a feature of a sparse autoencoder (Templeton et al.
//! 2024, "Scaling Monosemanticity").

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::check::{Fault, fault, finite};
use super::phrase::Phrase;
use super::stand_in::StandIns;
use super::words::Words;
use crate::text::number;

/// A place in the residual stream of a layer; `L3.resid_mid` in files and on the screen,
/// `blocks.3.hook_resid_mid` in TransformerLens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResidualSite {
    /// The layer.
    pub layer: usize,
    /// The place in it.
    pub at: InLayer,
}

/// A place of the residual stream in a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum InLayer {
    /// Before both blocks.
    Pre,
    /// Between the mixer and the MLP; there is none where both read the same stream.
    Mid,
    /// After both blocks.
    Post,
}

impl ResidualSite {
    /// Returns the name of the hook point in TransformerLens.
    pub fn hook_name(&self) -> String {
        format!("blocks.{}.hook_{}", self.layer, self.at.name())
    }
}

impl InLayer {
    fn name(self) -> &'static str {
        match self {
            Self::Pre => "resid_pre",
            Self::Mid => "resid_mid",
            Self::Post => "resid_post",
        }
    }
}

impl fmt::Display for ResidualSite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "L{}.{}", self.layer, self.at.name())
    }
}

impl FromStr for ResidualSite {
    type Err = String;

    /// Reads `L3.resid_mid` or `blocks.3.hook_resid_mid`.
    fn from_str(text: &str) -> Result<Self, String> {
        let ours = || text.strip_prefix('L')?.split_once('.');
        let hook = || text.strip_prefix("blocks.")?.split_once(".hook_");
        let places = [InLayer::Pre, InLayer::Mid, InLayer::Post];
        let found = ours().or_else(hook).and_then(|(layer, name)| {
            let at = places.into_iter().find(|at| at.name() == name)?;
            Some(Self { layer: layer.parse().ok()?, at })
        });
        found.ok_or_else(|| {
            format!(
                "`{text}` is no place in the residual stream; examples: L3.resid_pre, \
                L3.resid_mid, L3.resid_post, blocks.3.hook_resid_mid"
            )
        })
    }
}

impl Serialize for ResidualSite {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ResidualSite {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A vector of the residual stream, `[d_model]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum SteeringVector {
    /// These values.
    Values {
        /// `[d_model]`.
        values: Vec<f32>,
    },
    /// A random direction of a given length.
    Random {
        /// Seed of the direction.
        seed: u64,
        /// The length.
        norm: f32,
    },
}

impl SteeringVector {
    /// Returns the length.
    pub fn norm(&self) -> f32 {
        match self {
            Self::Values { values } => {
                values.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt() as f32
            }
            Self::Random { norm, .. } => *norm,
        }
    }

    /// Reads a vector as a person writes it: the name of a safetensors file, `random NORM`, or the
    /// values as `[0.5,-1,2]`.
    fn read(words: &mut Words) -> Result<Self, String> {
        if words.accept("random") {
            return Ok(Self::Random { seed: 0, norm: words.number("a length")? });
        }
        let expected = "a vector (a safetensors file, `random NORM`, or values as [0.5,-1])";
        words.vector(expected).map(|values| Self::Values { values })
    }

    fn to_text(&self) -> String {
        match self {
            Self::Values { values } => {
                let values: Vec<String> = values.iter().map(ToString::to_string).collect();
                format!("[{}]", values.join(","))
            }
            Self::Random { norm, .. } => format!("random {norm}"),
        }
    }

    fn check(&self, max_values: usize) -> Result<(), Fault> {
        match self {
            Self::Values { values } if values.len() > max_values => fault(
                "steering.vector.values",
                format!("{} entries, at most {max_values} are read", values.len()),
            ),
            Self::Values { values } => {
                values.iter().try_for_each(|value| finite("steering.vector.values", *value))?;
                match self.norm().is_normal() {
                    true => Ok(()),
                    false => {
                        fault("steering.vector.values", format!("a length of {}", self.norm()))
                    }
                }
            }
            Self::Random { norm, .. } if norm.is_normal() && *norm > 0.0 => Ok(()),
            Self::Random { norm, .. } => {
                fault("steering.vector.norm", format!("a length of {norm}"))
            }
        }
    }

    /// Returns a random direction of the same length.
    fn control(&self, stand_ins: &mut dyn StandIns) -> Self {
        Self::Random { seed: stand_ins.seed(), norm: self.norm() }
    }

    /// Returns a name of the direction, for signatures; random ones are all alike.
    fn signature(&self) -> String {
        match self {
            Self::Values { values } => {
                let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
                Sha256::digest(&bytes)[..8].iter().map(|byte| format!("{byte:02x}")).collect()
            }
            Self::Random { .. } => "random".to_owned(),
        }
    }
}

/// A change of the residual stream `x` along a vector `v`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum SteeringChange {
    /// `x + strength * v`.
    Add {
        /// 0 changes nothing.
        strength: f32,
    },
    /// `x - (x . v / |v|^2) v`: what is left has no part along `v`.
    Remove,
    /// `x + (value - x . v / |v|^2) v`: the part along `v` becomes `value * v`.
    Clamp {
        /// The part in lengths of `v`.
        value: f32,
    },
}

/// A change of the residual stream at one place, along a vector.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Steering {
    /// The place.
    pub site: ResidualSite,
    /// The vector.
    pub vector: SteeringVector,
    /// The change along it.
    pub change: SteeringChange,
}

impl Steering {
    /// Reads a steering edit that begins with `verb`, and the position it is restricted to; `None`
    /// for a verb of another edit.
    pub(super) fn read(
        verb: &str,
        words: &mut Words,
    ) -> Result<Option<(Self, Option<usize>)>, String> {
        let change = match verb {
            "add" => SteeringChange::Add { strength: words.number("a strength")? },
            "remove" => SteeringChange::Remove,
            "clamp" => SteeringChange::Clamp { value: words.number("a value")? },
            _ => return Ok(None),
        };
        let mut vector = SteeringVector::read(words)?;
        let site = words.word("a place in the residual stream, such as L3.resid_post")?;
        let site = super::words::cut(site).parse()?;
        let position = words.place()?;
        if let SteeringVector::Random { seed, .. } = &mut vector {
            *seed = words.seed()?;
        }
        Ok(Some((Self { site, vector, change }, position)))
    }

    /// Returns the edit as [`read`](Self::read) reads it, with the values of its vector.
    pub(super) fn to_text(&self, position: Option<usize>) -> String {
        let change = match self.change {
            SteeringChange::Add { strength } => format!("add {strength}"),
            SteeringChange::Remove => "remove".to_owned(),
            SteeringChange::Clamp { value } => format!("clamp {value}"),
        };
        let place = position.map_or(String::new(), |position| format!(" at {position}"));
        let seed = match self.vector {
            SteeringVector::Random { seed, .. } => format!(" seed {seed}"),
            SteeringVector::Values { .. } => String::new(),
        };
        format!("{change} {} {}{place}{seed}", self.vector.to_text(), self.site)
    }

    /// Returns the strength that the reduction makes smaller: 0 changes nothing.
    pub(super) fn strength(&self) -> Option<f32> {
        match self.change {
            SteeringChange::Add { strength } => Some(strength),
            SteeringChange::Remove | SteeringChange::Clamp { .. } => None,
        }
    }

    /// Sets the [`strength`](Self::strength) where there is one.
    pub(super) fn set_strength(&mut self, new: f32) {
        if let SteeringChange::Add { strength } = &mut self.change {
            *strength = new;
        }
    }

    /// Checks what can be checked without a model; a list of values may have `max_values`.
    pub(super) fn check(&self, max_values: usize) -> Result<(), Fault> {
        match self.change {
            SteeringChange::Add { strength } => finite("steering.change.strength", strength)?,
            SteeringChange::Clamp { value } => finite("steering.change.value", value)?,
            SteeringChange::Remove => {}
        }
        self.vector.check(max_values)
    }

    /// Returns the same change along a random direction of the same length.
    pub(super) fn control(&self, stand_ins: &mut dyn StandIns) -> Self {
        Self { vector: self.vector.control(stand_ins), ..self.clone() }
    }

    /// Returns what the edit does, without where and how much.
    pub(super) fn signature(&self) -> String {
        let change = match self.change {
            SteeringChange::Add { .. } => "add",
            SteeringChange::Remove => "remove",
            SteeringChange::Clamp { .. } => "clamp",
        };
        format!("{change} {} {}", self.vector.signature(), self.site)
    }

    /// Returns the edit in words.
    pub(super) fn phrase(&self) -> Phrase {
        let direction = match &self.vector {
            SteeringVector::Values { .. } => "a direction".to_owned(),
            SteeringVector::Random { seed, .. } => format!("a random direction (seed {seed})"),
        };
        let length = number(self.vector.norm().into());
        let site = self.site;
        match self.change {
            SteeringChange::Add { strength } => Phrase::new(
                "add",
                "adding",
                format!(
                    "{} times {direction} of length {length} to {site}",
                    number(strength.into())
                ),
            ),
            SteeringChange::Remove => {
                Phrase::new("remove", "removing", format!("{direction} from {site}"))
            }
            SteeringChange::Clamp { value } => Phrase::new(
                "clamp",
                "clamping",
                format!(
                    "{site} along {direction} to {} times its length of {length}",
                    number(value.into())
                ),
            ),
        }
    }

    /// Returns the edit in a few words, for titles.
    pub(super) fn title(&self) -> String {
        let site = self.site;
        match self.change {
            SteeringChange::Add { strength } => {
                format!("adding a direction to {site} by {strength:.2}")
            }
            SteeringChange::Remove => format!("removing a direction from {site}"),
            SteeringChange::Clamp { value } => {
                format!("clamping {site} along a direction to {value:.2}")
            }
        }
    }
}
