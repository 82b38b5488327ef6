//! The registry of oracles: a file each, and one line in the table below.
//!
//! [`OracleKind`], [`OracleKind::ALL`] and every question about a kind follow from the table, and
//! the trait [`Oracle`] requires what must be said of each, so the compiler finds what is missing.

pub mod collapse;
pub mod constant;
pub mod disagreement;
pub mod divergence;
pub mod echo;
pub mod loss;
pub mod nonfinite;
pub mod routing;
pub mod state;
pub mod target;

use std::fmt;
use std::sync::LazyLock;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::interface::Oracle;
use crate::model::Config;

/// Declares [`OracleKind`] from (variant, detector) pairs.
macro_rules! oracles {
    ($($(#[$doc:meta])* $kind:ident => $oracle:expr,)*) => {
        /// Names the detector that made a verdict; `divergence`, `non_finite`, ... in files.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum OracleKind {
            $($(#[$doc])* $kind,)*
        }

        impl OracleKind {
            /// Every kind, in the order in which a campaign asks them.
            pub const ALL: [Self; [$(Self::$kind),*].len()] = [$(Self::$kind),*];

            /// Returns the detector of this kind.
            pub fn oracle(self) -> &'static dyn Oracle {
                match self {
                    $(Self::$kind => &$oracle,)*
                }
            }
        }
    };
}

oracles! {
    /// Jensen-Shannon divergence from the baseline, bits, mean over the continuation.
    Divergence => divergence::Divergence,
    /// Improbability, in bits, of a token that the model was shown how to repeat.
    Echo => echo::Echo,
    /// Greedy generation degenerates: it loops, or ends at once.
    Collapse => collapse::Collapse,
    /// A logit is infinite or NaN.
    NonFinite => nonfinite::NonFinite,
    /// Loss on the continuation rises above the baseline's, nats per token.
    LossBlowup => loss::LossBlowup,
    /// A mixture sends its tokens to few experts, or to others.
    RoutingCollapse => routing::RoutingCollapse,
    /// A recurrent state grows.
    StateBlowup => state::StateBlowup,
    /// A recurrent state forgets what it would remember, or the reverse.
    StateMemory => state::StateMemory,
    /// The model says a given text.
    Target => target::Target,
    /// Two models predict different things.
    Disagreement => disagreement::Disagreement,
    /// The model writes one text after different prompts.
    ConstantAnswer => constant::ConstantAnswer,
}

/// Kinds whose oracle can judge echo prompts, in the order of [`OracleKind::ALL`].
static OF_ECHOES: LazyLock<Vec<OracleKind>> = LazyLock::new(|| {
    OracleKind::ALL.into_iter().filter(|kind| kind.oracle().judges_echoes()).collect()
});

/// Kinds whose oracle can judge mutations that keep the continuation, in the same order.
static OF_MUTATIONS: LazyLock<Vec<OracleKind>> = LazyLock::new(|| {
    OracleKind::ALL.into_iter().filter(|kind| kind.oracle().judges_mutations()).collect()
});

impl OracleKind {
    /// Returns the name in files: `divergence`, `non_finite`.
    pub fn name(self) -> &'static str {
        self.oracle().name()
    }

    /// Returns true if a model has what the oracle looks at.
    pub fn applies(self, config: &Config) -> bool {
        self.oracle().applies(config)
    }

    /// Returns the kinds that can judge mutations which leave the continuation as it is.
    pub fn of_mutations() -> &'static [Self] {
        &OF_MUTATIONS
    }

    /// Returns the kinds that can judge echo prompts about another token.
    pub fn of_echoes() -> &'static [Self] {
        &OF_ECHOES
    }
}

impl fmt::Display for OracleKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for OracleKind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for OracleKind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        Self::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| {
            // A name in a file may be megabytes long.
            let shown: String = name.chars().take(40).collect();
            let known = Self::ALL.map(|kind| format!("`{kind}`")).join(", ");
            serde::de::Error::custom(format!("unknown variant `{shown}`, expected one of {known}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_files() {
        let names = OracleKind::ALL.map(OracleKind::name);
        // Case files hold these: a new one goes in, none may change.
        for name in [
            "divergence",
            "echo",
            "collapse",
            "non_finite",
            "loss_blowup",
            "routing_collapse",
            "state_blowup",
            "state_memory",
            "target",
            "disagreement",
            "constant_answer",
        ] {
            assert!(names.contains(&name), "{name}");
        }
        for kind in OracleKind::ALL {
            let json = serde_json::to_string(&kind).unwrap();
            assert_eq!(json, format!("\"{kind}\""));
            assert_eq!(serde_json::from_str::<OracleKind>(&json).unwrap(), kind);
        }
        let error = serde_json::from_str::<OracleKind>("\"vibes\"").unwrap_err().to_string();
        assert!(error.contains("unknown variant `vibes`, expected one of `divergence`"), "{error}");
    }

    #[test]
    fn echo_prompts_and_mutations_have_judges() {
        use OracleKind::*;
        assert_eq!(OracleKind::of_echoes(), [Echo, NonFinite]);
        let others = [
            Divergence,
            Collapse,
            NonFinite,
            LossBlowup,
            RoutingCollapse,
            StateBlowup,
            StateMemory,
            Disagreement,
            ConstantAnswer,
        ];
        assert_eq!(OracleKind::of_mutations(), others);
    }

    /// Scores of a damaged or hostile case reach these too.
    #[test]
    fn every_oracle_has_words_for_any_score() {
        for oracle in OracleKind::ALL.map(OracleKind::oracle) {
            assert!(!oracle.label().is_empty() && oracle.meaning().ends_with('.'));
            for score in [0.5, 0.0, -1.0, 1e300, f64::NAN, f64::INFINITY] {
                let sentence = oracle.sentence("Deleting `x`", score);
                assert!(sentence.contains("Deleting `x`") && sentence.ends_with('.'), "{sentence}");
                assert!(!oracle.effect(score, "y").is_empty());
            }
        }
    }
}
