//! Actions: the ways in which a lesion changes a component.

use serde::{Deserialize, Serialize};

use super::check::{Fault, fault, finite};
use super::component::Component;
use super::phrase::Phrase;
use super::words::{Words, cut};
use crate::text::number;

/// A change of the output of a component, or of a single weight, by a lesion (ablation).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Action {
    /// Replace the output by zero (zero ablation).
    Zero,
    /// Replace the output by its mean over the built-in reference text (mean ablation); a weight by
    /// the mean of its matrix row.
    Mean,
    /// Replace the output by what it is at the same position of another text, a stretch of the
    /// built-in reference text (resample ablation: Chan et al. 2022, "Causal scrubbing").
    Resample {
        /// Seed that draws where the stretch begins.
        seed: u64,
    },
    /// Mask an expert: its router logit is minus infinity before the choice, and the other experts
    /// share the weight it would have got as the model's routing has it. `unroute` in files.
    #[serde(rename = "unroute", alias = "mask")]
    Mask,
    /// Force tokens to an expert: the router chooses it alone. `route` in files.
    #[serde(rename = "route", alias = "force")]
    Force,
    /// Add to an expert's router logit before the choice, so that it is chosen more often, or less
    /// (SteerMoE: Fayyaz et al. 2025, "Steering MoE LLMs via Expert (De)Activation", softly).
    Promote {
        /// The change of the logit, nats; 0 changes nothing, a negative one demotes.
        logit: f32,
    },
    /// Flip one bit of a weight as the file stores it: a fault of memory (Rakin et al. 2019,
    /// "Bit-Flip Attack").
    Flip {
        /// 0 is the sign, then come the exponent and the mantissa, each from its highest bit down.
        bit: u32,
    },
    /// Multiply the output by `factor`.
    Scale {
        /// 1 changes nothing.
        factor: f32,
    },
    /// Add Gaussian noise of `strength` times the output's own norm, one draw per position.
    Noise {
        /// Seed of the draws.
        seed: u64,
        /// Norm of the noise in norms of the output.
        strength: f32,
    },
}

/// Bits of the widest format that weights are stored in.
const MAX_BITS: u32 = 32;

impl Action {
    /// Returns the name in tables.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Zero => "zero",
            Self::Mean => "mean",
            Self::Resample { .. } => "resample",
            Self::Flip { .. } => "flip",
            Self::Mask => "mask",
            Self::Force => "force",
            Self::Promote { .. } => "promote",
            Self::Scale { .. } => "scale",
            Self::Noise { .. } => "noise",
        }
    }

    /// Returns true for changes to a router's choice, which apply to experts alone.
    pub fn is_of_experts(&self) -> bool {
        matches!(self, Self::Mask | Self::Force | Self::Promote { .. })
    }

    /// Reads an action that begins with `verb`, its component and the position it is restricted to;
    /// `None` for a verb that is no action's.
    pub(super) fn read(
        verb: &str,
        words: &mut Words,
    ) -> Result<Option<(Self, Component, Option<usize>)>, String> {
        let mut action = match verb {
            "zero" => Self::Zero,
            "mean" => Self::Mean,
            "resample" => Self::Resample { seed: 0 },
            "mask" | "unroute" => Self::Mask,
            "force" | "route" => Self::Force,
            "promote" => Self::Promote { logit: words.number("a logit")? },
            "flip" => Self::Flip { bit: bit(words)? },
            "scale" => Self::Scale { factor: words.number("a factor")? },
            "noise" => Self::Noise { seed: 0, strength: words.number("a strength")? },
            _ => return Ok(None),
        };
        let component = words.component()?;
        if action.is_of_experts() && !matches!(component, Component::Expert { .. }) {
            return Err(format!(
                "{component} is no expert; only experts are masked, forced or promoted"
            ));
        }
        let position = words.place()?;
        if let Self::Noise { seed, .. } | Self::Resample { seed } = &mut action {
            *seed = words.seed()?;
        }
        Ok(Some((action, component, position)))
    }

    /// Returns the action on a component as [`read`](Self::read) reads it.
    pub(super) fn to_text(self, component: &Component, position: Option<usize>) -> String {
        let place = position.map_or(String::new(), |position| format!(" at {position}"));
        match self {
            Self::Zero | Self::Mean | Self::Mask | Self::Force => {
                format!("{} {component}{place}", self.name())
            }
            Self::Resample { seed } => format!("resample {component}{place} seed {seed}"),
            Self::Flip { bit } => format!("flip {bit} {component}{place}"),
            Self::Promote { logit } => format!("promote {logit} {component}{place}"),
            Self::Scale { factor } => format!("scale {factor} {component}{place}"),
            Self::Noise { seed, strength } => {
                format!("noise {strength} {component}{place} seed {seed}")
            }
        }
    }

    /// Returns the strength that the reduction makes smaller: 0 changes nothing.
    pub(super) fn strength(&self) -> Option<f32> {
        match self {
            Self::Promote { logit } => Some(*logit),
            Self::Scale { factor } => Some(factor - 1.0),
            Self::Zero
            | Self::Mean
            | Self::Resample { .. }
            | Self::Flip { .. }
            | Self::Mask
            | Self::Force
            | Self::Noise { .. } => None,
        }
    }

    /// Sets the [`strength`](Self::strength) where there is one.
    pub(super) fn set_strength(&mut self, strength: f32) {
        match self {
            Self::Promote { logit } => *logit = strength,
            Self::Scale { factor } => *factor = 1.0 + strength,
            _ => {}
        }
    }

    /// Checks what can be checked without a model.
    pub(super) fn check(&self, component: &Component) -> Result<(), Fault> {
        if self.is_of_experts() && !matches!(component, Component::Expert { .. }) {
            return fault("action", format!("{}, but {component} is no expert", self.name()));
        }
        let is_weight = matches!(component, Component::Weight { .. });
        match *self {
            Self::Flip { .. } if !is_weight => {
                fault("action", format!("flip, but {component} is no weight"))
            }
            Self::Flip { bit } if bit >= MAX_BITS => {
                fault("action.bit", format!("{bit}, but a weight has at most {MAX_BITS} bits"))
            }
            Self::Flip { .. } => Ok(()),
            Self::Resample { .. } if is_weight => fault(
                "action",
                format!("resample, but {component} is a weight, the same in any text"),
            ),
            Self::Promote { logit } => finite("action.logit", logit),
            Self::Scale { factor } => finite("action.factor", factor),
            Self::Noise { strength, .. } => finite("action.strength", strength),
            Self::Zero | Self::Mean | Self::Resample { .. } | Self::Mask | Self::Force => Ok(()),
        }
    }

    /// Returns the action on a component in words.
    pub(super) fn phrase(&self, component: &Component) -> Phrase {
        match *self {
            Self::Zero => Phrase::new("set", "setting", format!("{component} to zero")),
            Self::Mask => Phrase::new("keep", "keeping", format!("the router from {component}")),
            Self::Force => {
                Phrase::new("force", "forcing", format!("every token to {component} alone"))
            }
            Self::Promote { logit } => Phrase::new(
                "add",
                "adding",
                format!("{} to the router logit of {component}", number(logit.into())),
            ),
            Self::Mean => Phrase::new("replace", "replacing", format!("{component} by its mean")),
            Self::Resample { seed } => Phrase::new(
                "replace",
                "replacing",
                format!("{component} by what it is in another text (text seed {seed})"),
            ),
            Self::Flip { bit } => {
                Phrase::new("flip", "flipping", format!("bit {bit} of {component}"))
            }
            Self::Scale { factor } => Phrase::new(
                "multiply",
                "multiplying",
                format!("{component} by {}", number(factor.into())),
            ),
            Self::Noise { seed, strength } => Phrase::new(
                "add",
                "adding",
                format!(
                    "noise of {} times its size to {component} (noise seed {seed})",
                    number(strength.into())
                ),
            ),
        }
    }

    /// Returns the action on a component in a few words, for titles.
    pub(super) fn title(&self, component: &Component) -> String {
        match self {
            Self::Zero => format!("zeroing {component}"),
            Self::Mask => format!("masking {component}"),
            Self::Force => format!("forcing {component}"),
            Self::Promote { logit } => {
                format!("promoting {component} by {}", number(f64::from(*logit)))
            }
            Self::Mean => format!("mean-ablating {component}"),
            Self::Resample { .. } => format!("resampling {component}"),
            Self::Flip { bit } => format!("flipping bit {bit} of {component}"),
            Self::Scale { factor } => {
                format!("scaling {component} by {}", number(f64::from(*factor)))
            }
            Self::Noise { strength, .. } => {
                format!("noise of {} on {component}", number(f64::from(*strength)))
            }
        }
    }
}

/// Takes the number of a bit.
fn bit(words: &mut Words) -> Result<u32, String> {
    let expected = "a bit (0 is the sign)";
    let word = words.word(expected)?;
    word.parse().map_err(|_| format!("expected {expected}, got `{}`", cut(word)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Case files hold the old words, and their ids depend on them.
    #[test]
    fn files_keep_the_old_words_and_may_have_the_new() {
        for (action, old, new) in
            [(Action::Mask, "unroute", "mask"), (Action::Force, "route", "force")]
        {
            let json = |word: &str| format!("{{\"kind\":\"{word}\"}}");
            assert_eq!(serde_json::to_string(&action).unwrap(), json(old));
            for word in [old, new] {
                assert_eq!(serde_json::from_str::<Action>(&json(word)).unwrap(), action);
            }
            assert_eq!(action.name(), new);
        }
    }
}
