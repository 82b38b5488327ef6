//! A campaign's definition: a TOML file, checked field by field.

use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Deserializer};

use crate::error::{Error, Result};
use crate::model::Config;
use crate::mutate::{self, Mutator};
use crate::oracle::OracleKind;

/// What a campaign does. Every field has a default, so a file says only what it changes.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CampaignConfig {
    /// The model, as `--model` takes it.
    pub model: String,
    pub seed: u64,
    /// Wall clock, model loading included: `"60s"`, `"8h"`.
    #[serde(deserialize_with = "duration")]
    pub max_time: Option<Duration>,
    /// Trials of the loop; follow-up (confirm, minimize, implicate) is not counted.
    pub max_evals: Option<u64>,
    /// Groups of mutators, see [`mutate::groups`].
    pub mutate: Vec<String>,
    /// Trials a round.
    pub batch_size: usize,
    pub controls_per_trial: usize,
    /// The oracles that judge; without them, all that the selected mutators make trials for.
    pub oracles: Option<Vec<OracleKind>>,
    /// Findings that are confirmed, minimized and implicated; the campaign goes on without after.
    pub max_findings: usize,
    /// Findings followed up after each round at most, so that one round cannot eat the budget.
    pub follow_ups_per_round: usize,
    /// Trials that one minimization may judge (each with its controls).
    #[serde(alias = "minimise_calls")]
    pub minimize_calls: u64,
    /// Every how many rounds text is generated for the collapse oracle (it costs many forwards).
    pub generate_every: u64,
    /// Tokens at the end of each seed that are teacher-forced.
    pub continuation: usize,
    /// Files with a prompt a paragraph, or prompts themselves; none: the built-in seeds.
    pub seeds: Vec<String>,
    pub exit_on_find: bool,
    /// Where cases, journal and report go.
    pub out: String,
}

impl Default for CampaignConfig {
    fn default() -> Self {
        Self {
            model: "builtin:dense".into(),
            seed: 1,
            max_time: None,
            max_evals: None,
            mutate: ["tokens", "vocabulary", "embeddings", "lesions", "weights"]
                .map(String::from)
                .to_vec(),
            batch_size: 128,
            controls_per_trial: crate::oracle::judge::CONTROLS_PER_TRIAL,
            oracles: None,
            max_findings: 64,
            follow_ups_per_round: 1,
            minimize_calls: 400,
            generate_every: 8,
            continuation: 8,
            seeds: Vec::new(),
            exit_on_find: false,
            out: "fuzz/out".into(),
        }
    }
}

impl CampaignConfig {
    /// Reads a definition; `path` is for the error, which is one line and names file and field.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        let config: Self = toml::from_str(text).map_err(|error| {
            let field = error
                .span()
                .and_then(|span| field_at(text, span.start))
                .unwrap_or_else(|| "(file)".into());
            Error::file(path, field, error.message().replace('\n', " "))
        })?;
        config.check().map_err(|(field, message)| Error::file(path, field, message))?;
        Ok(config)
    }

    /// The campaign of `glitch fuzz` without arguments, which `glitch compare` runs on every model.
    pub fn quick() -> Result<Self> {
        Self::parse(include_str!("quick.toml"), Path::new("fuzz/quick.toml"))
    }

    /// What the types do not say: field and fault.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        let within = |field, value: usize, low: usize, high: usize| {
            if (low..=high).contains(&value) {
                Ok(())
            } else {
                Err((field, format!("{value} is not within {low} to {high}")))
            }
        };
        within("batch_size", self.batch_size, 1, 65_536)?;
        within(
            "controls_per_trial",
            self.controls_per_trial,
            crate::oracle::LEAST_CONTROLS,
            1_024,
        )?;
        within("follow_ups_per_round", self.follow_ups_per_round, 1, 1_024)?;
        within("continuation", self.continuation, 1, 256)?;
        if self.generate_every == 0 {
            return Err(("generate_every", "0 is not within 1 to 18446744073709551615".into()));
        }
        let mutators =
            mutate::select(&self.mutate).map_err(|error| ("mutate", error.to_string()))?;
        if mutators.is_empty() {
            return Err(("mutate", "none given".into()));
        }
        let Some(oracles) = &self.oracles else { return Ok(()) };
        if oracles.is_empty() {
            return Err(("oracles", "none given".into()));
        }
        match oracles.iter().find(|kind| !feeds(&mutators, **kind)) {
            Some(kind) => {
                let groups = self.mutate.join(", ");
                let reason = match kind {
                    OracleKind::Target => {
                        "no mutator makes trials with a target; `glitch suffix` does".to_owned()
                    }
                    _ => format!("no mutator of {groups} makes trials that it judges"),
                };
                Err(("oracles", format!("`{kind}` would score nothing: {reason}")))
            }
            None => Ok(()),
        }
    }

    /// Returns the oracles that judge on a model: those named, or all that a selected mutator makes
    /// trials for and that apply to the model.
    ///
    /// # Errors
    /// [`Error::Request`] for an oracle that is named and would score nothing on this model.
    pub fn oracles_on(&self, model: &Config) -> Result<Vec<OracleKind>> {
        let mut mutators = mutate::select(&self.mutate)?;
        mutators.retain(|mutator| mutator.applies(model));
        let scores = |kind: &OracleKind| kind.applies(model) && feeds(&mutators, *kind);
        let Some(named) = &self.oracles else {
            return Ok(OracleKind::ALL.into_iter().filter(scores).collect());
        };
        match named.iter().find(|kind| !scores(kind)) {
            Some(kind) => Err(Error::request(format!(
                "oracles: `{kind}` would score nothing: the model has no part that it judges"
            ))),
            None => Ok(named.clone()),
        }
    }
}

/// Returns whether an oracle can judge the trials of any of these mutators.
fn feeds(mutators: &[&'static dyn Mutator], kind: OracleKind) -> bool {
    mutators.iter().any(|mutator| mutator.oracles().contains(&kind))
}

/// The key of the line that a byte of the file is in.
fn field_at(text: &str, byte: usize) -> Option<String> {
    let before = text.get(..byte)?;
    let start = before.rfind('\n').map_or(0, |at| at + 1);
    let line = text.get(start..)?.lines().next()?;
    let key: String = line.split('=').next()?.trim().chars().take(40).collect();
    (!key.is_empty()).then_some(key)
}

/// `90`, `90s`, `1.5m`, `8h`, `2d`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("`{}` is no time; examples: 60s, 10m, 8h", text.escape_debug());
    let text = text.trim();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "" | "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        "d" => 86_400.0,
        _ => return Err(bad()),
    };
    let value: f64 = digits.parse().map_err(|_| bad())?;
    Duration::try_from_secs_f64(value * unit).map_err(|_| bad())
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    parse_duration(&String::deserialize(deserializer)?).map(Some).map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expect: &str) {
        let error = CampaignConfig::parse(text, Path::new("x.toml")).unwrap_err().to_string();
        assert!(error.contains(expect) && !error.contains('\n'), "{error}");
    }

    #[test]
    fn errors_are_one_line_with_file_and_field() {
        check("seed = 1\nbatch_size = \"many\"", "x.toml: batch_size: ");
        check("bach_size = 3", "x.toml: bach_size: unknown field");
        check("batch_size = 0", "x.toml: batch_size: 0 is not within");
        check("max_time = \"soon\"", "`soon` is no time");
        check("mutate = [\"tokns\"]", "x.toml: mutate: no mutator `tokns`");
        check("oracles = [\"vibes\"]", "x.toml: oracles: ");
        check("seed = ", "x.toml: seed: ");
        check("oracles = []", "x.toml: oracles: none given");
        check("oracles = [\"target\"]", "x.toml: oracles: `target` would score nothing");
        let lesions = "mutate = [\"lesions\"]\noracles = [\"divergence\", \"echo\"]";
        check(lesions, "x.toml: oracles: `echo` would score nothing: no mutator of lesions");
    }

    #[test]
    fn the_definitions_that_ship_are_valid() {
        for name in ["quick", "overnight", "smollm2"] {
            let path = format!("{}/fuzz/{name}.toml", env!("CARGO_MANIFEST_DIR"));
            CampaignConfig::parse(&std::fs::read_to_string(&path).unwrap(), Path::new(&path))
                .unwrap();
        }
    }

    #[test]
    fn times() {
        let check =
            |text, seconds| assert_eq!(parse_duration(text).map(|d| d.as_secs()), Ok(seconds));
        check("90", 90);
        check("60s", 60);
        check("1.5m", 90);
        check("8h", 28_800);
        for bad in ["", "h", "-3s", "nans", "infs", "3 parsecs"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }
}
