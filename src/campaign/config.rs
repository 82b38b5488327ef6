//! A campaign's definition: a TOML file, checked field by field.

use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Deserializer};

use crate::error::{Error, Result};
use crate::model::Config;
use crate::mutate::{self, Layers, Mutator};
use crate::oracle::OracleKind;

/// The definition of a campaign. Every key has a default, so a file says only what it changes; an
/// option of `glitch fuzz` overrides the key it names.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CampaignConfig {
    /// The model: a folder, a GGUF file, `builtin:NAME` or `hf:org/name` [default:
    /// `"builtin:dense"`; `--model`].
    pub model: String,
    /// A second model of the same vocabulary [default: none; `--against`]. The campaign then looks
    /// for texts after which the two predict different things: the oracle is `disagreement`, and
    /// only mutators of text are used.
    pub against: Option<String>,
    /// Seed of all randomness [default: 1; `--seed`]. The same seed, batch size and `max_evals`
    /// give the same findings.
    pub seed: u64,
    /// Wall-clock budget, model loading included: `"60s"`, `"10m"`, `"8h"` [default: none;
    /// `--max-time`].
    #[serde(deserialize_with = "duration")]
    pub max_time: Option<Duration>,
    /// Trials of the search; follow-ups (confirm, minimize, localize) are not counted [default:
    /// none; `--max-evals`].
    pub max_evals: Option<u64>,
    /// Groups of mutators [default: `tokens`, `vocabulary`, `embeddings`, `lesions` and `weights`;
    /// `--mutate`].
    pub mutate: Vec<String>,
    /// Layers whose components are lesioned, from the first to the last: `"3-7"`, or `"5"` for one
    /// [default: all; `--layers`]. Restricts the groups `lesions`, `sets` and `weights`; matched
    /// controls still come from the whole model.
    pub layers: Option<Layers>,
    /// Trials in one round, 1 to 65,536 [default: 128]. They share a forward pass, so a larger
    /// batch is faster until memory gets scarce.
    pub batch_size: usize,
    /// Matched controls behind each verdict, 8 to 1,024 [default: 16; `--controls`]. With `n` of
    /// them, no p-value is below 1/(n + 1).
    pub controls_per_trial: usize,
    /// The aim of the search [default: `kinds`]. `score` is how campaigns searched before they knew
    /// kinds, kept as a baseline to compare with.
    pub search: Search,
    /// The detectors that score trials [default: all that the selected mutators make trials for
    /// and that apply to the model; `--oracles`]. One that would score nothing is refused.
    pub oracles: Option<Vec<OracleKind>>,
    /// Findings that are confirmed, minimized and explained [default: 64]. The search goes on
    /// after them, and what it finds stays raw.
    pub max_findings: usize,
    /// Findings followed up after each round at most, 1 to 1,024 [default: 1], so that one round
    /// cannot consume the budget.
    pub follow_ups_per_round: usize,
    /// Trials that one minimization may judge, each with its controls [default: 400].
    #[serde(alias = "minimise_calls")]
    pub minimize_calls: u64,
    /// Rounds between two uses of the expensive oracles (`collapse`, which generates text, and
    /// `state_memory`), at least 1 [default: 8].
    pub generate_every: u64,
    /// Tokens at the end of each seed that are held back and teacher-forced, 1 to 256 and at most
    /// half of the seed [default: 8]. Divergence and loss are measured on them.
    pub continuation: usize,
    /// The texts to start from [default: the built-in seeds; `--seeds`]. An entry that ends in
    /// `.txt` or names a file is a file with one prompt a paragraph; any other is a prompt.
    pub seeds: Vec<String>,
    /// Prompts to start from, as they stand [default: none; `--prompt`]. With some here and no
    /// `seeds`, the built-in seeds are left out.
    pub prompts: Vec<String>,
    /// Stop at the first case, with exit code 77 [default: false; `--exit-on-find`].
    pub exit_on_find: bool,
    /// Stop when the next 1,000 evaluations show a new kind of finding with at most this
    /// probability, by the upper end of its 95% interval; above 0 and below 1 [default: none;
    /// `--until-stable`].
    pub until_stable: Option<f64>,
    /// Replaces every trial by one of its own controls, drawn anew for each prompt: what such a
    /// campaign reports is reported by chance [default: false; `--null`].
    pub null: bool,
    /// Folder of cases, journal and report [default: `"fuzz/out"`; `--out`].
    pub out: String,
}

/// The aim of a campaign: it decides which trials are judged and followed up, and which mutators
/// are paid.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Search {
    /// Trials of kinds seldom judged, findings least like those that are known, three of a kind.
    #[default]
    Kinds,
    /// The highest scores, of the oracle with the fewest findings.
    Score,
}

impl Default for CampaignConfig {
    fn default() -> Self {
        Self {
            model: "builtin:dense".into(),
            against: None,
            seed: 1,
            max_time: None,
            max_evals: None,
            mutate: ["tokens", "vocabulary", "embeddings", "lesions", "weights"]
                .map(String::from)
                .to_vec(),
            layers: None,
            batch_size: 128,
            search: Search::Kinds,
            controls_per_trial: crate::oracle::judge::CONTROLS_PER_TRIAL,
            oracles: None,
            max_findings: 64,
            follow_ups_per_round: 1,
            minimize_calls: 400,
            generate_every: 8,
            continuation: 8,
            seeds: Vec::new(),
            prompts: Vec::new(),
            exit_on_find: false,
            until_stable: None,
            null: false,
            out: "fuzz/out".into(),
        }
    }
}

impl CampaignConfig {
    /// Reads a definition.
    ///
    /// # Errors
    /// [`Error::File`], one line that names `path` and the field.
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

    /// Returns the campaign of `glitch fuzz` without arguments, which `glitch compare` runs on
    /// every model.
    ///
    /// # Errors
    /// None: the definition ships with the program, and a test reads it.
    pub fn quick() -> Result<Self> {
        Self::parse(include_str!("quick.toml"), Path::new("fuzz/quick.toml"))
    }

    /// Checks what the types leave open.
    ///
    /// # Errors
    /// The first field at fault, and what is wrong with it.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        if let Some(chance) = self.until_stable
            && !(chance > 0.0 && chance < 1.0)
        {
            return Err(("until_stable", format!("{chance} is not between 0 and 1")));
        }
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
        let mutators = self.mutators().map_err(|error| ("mutate", error.to_string()))?;
        if self.mutate.is_empty() {
            return Err(("mutate", "none given".into()));
        }
        if mutators.is_empty() {
            let groups = self.mutate.join(", ");
            return Err(("mutate", format!("no group of {groups} changes the text alone")));
        }
        if self.layers.is_some() && self.against.is_some() {
            return Err(("layers", "two models are compared, and no component is lesioned".into()));
        }
        if self.layers.is_some() && !self.mutate.iter().any(|group| drawn_from_layers(group)) {
            let message = format!("no group of {} draws components", self.mutate.join(", "));
            return Err(("layers", message));
        }
        let Some(oracles) = &self.oracles else { return Ok(()) };
        if oracles.is_empty() {
            return Err(("oracles", "none given".into()));
        }
        match oracles.iter().find(|kind| !self.scores(&mutators, **kind)) {
            Some(kind) => {
                let groups = self.mutate.join(", ");
                let reason = match kind {
                    OracleKind::Target => {
                        "no mutator makes trials with a target; `glitch suffix` does".to_owned()
                    }
                    OracleKind::Disagreement => "there is no second model (`against`)".to_owned(),
                    _ if self.against.is_some() => "two models are compared".to_owned(),
                    _ => format!("no mutator of {groups} makes trials that it judges"),
                };
                Err(("oracles", format!("`{kind}` would score nothing: {reason}")))
            }
            None => Ok(()),
        }
    }

    /// Returns the mutators of the campaign: where two models are compared, those that change the
    /// text alone. A lesion is of one model, so disagreement about it is trivial.
    ///
    /// # Errors
    /// [`Error::Request`] for an unknown group.
    pub fn mutators(&self) -> Result<Vec<&'static dyn Mutator>> {
        let mut mutators = mutate::select(&self.mutate)?;
        if self.against.is_some() {
            mutators.retain(|mutator| {
                mutator.groups().iter().any(|group| OF_TEXT.contains(group))
                    && mutator.oracles().contains(&OracleKind::Disagreement)
            });
        }
        Ok(mutators)
    }

    /// Returns whether an oracle scores the trials of any of these mutators in this campaign.
    fn scores(&self, mutators: &[&'static dyn Mutator], kind: OracleKind) -> bool {
        kind.oracle().needs_other_model() == self.against.is_some()
            && mutators.iter().any(|mutator| mutator.oracles().contains(&kind))
    }

    /// Returns the oracles that judge on a model: those named, or all that a selected mutator makes
    /// trials for and that apply to the model.
    ///
    /// # Errors
    /// [`Error::Request`] for an oracle that is named and would score nothing on this model.
    pub fn oracles_on(&self, model: &Config) -> Result<Vec<OracleKind>> {
        let mut mutators = self.mutators()?;
        mutators.retain(|mutator| mutator.applies(model));
        let scores = |kind: &OracleKind| kind.applies(model) && self.scores(&mutators, *kind);
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

/// The groups whose mutators change the text alone.
const OF_TEXT: [&str; 4] = ["tokens", "dictionary", "vocabulary", "suffix"];

/// Returns whether a group of mutators draws components, which `layers` restricts.
fn drawn_from_layers(group: &str) -> bool {
    ["lesions", "sets", "weights"].contains(&group)
}

/// Reads the name of an oracle, as files have it.
///
/// # Errors
/// A message that lists the names.
pub fn parse_oracle(name: &str) -> Result<OracleKind, String> {
    OracleKind::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| {
        let names: Vec<&str> = OracleKind::ALL.into_iter().map(OracleKind::name).collect();
        let shown: String = name.chars().take(40).collect();
        format!("no oracle `{}`; there are {}", shown.escape_debug(), names.join(", "))
    })
}

/// Returns the key of the line that a byte of the file is in.
fn field_at(text: &str, byte: usize) -> Option<String> {
    let before = text.get(..byte)?;
    let start = before.rfind('\n').map_or(0, |at| at + 1);
    let line = text.get(start..)?.lines().next()?;
    let key: String = line.split('=').next()?.trim().chars().take(40).collect();
    (!key.is_empty()).then_some(key)
}

/// Reads a duration: `90`, `90s`, `1.5m`, `8h`, `2d`.
///
/// # Errors
/// A message with examples.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("`{}` is no duration; examples: 60s, 10m, 8h", text.escape_debug());
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
        check("max_time = \"soon\"", "`soon` is no duration");
        check("mutate = [\"tokns\"]", "x.toml: mutate: no mutator `tokns`");
        check("oracles = [\"vibes\"]", "x.toml: oracles: ");
        check("layers = \"7-3\"", "x.toml: layers: 7-3 is empty");
        check("layers = 3", "x.toml: layers: ");
        check("layers = \"3\"\nmutate = [\"tokens\"]", "x.toml: layers: no group of tokens draws");
        check("seed = ", "x.toml: seed: ");
        check("oracles = []", "x.toml: oracles: none given");
        check("oracles = [\"target\"]", "x.toml: oracles: `target` would score nothing");
        check("oracles = [\"disagreement\"]", "there is no second model");
        check("against = \"x\"\noracles = [\"divergence\"]", "two models are compared");
        check("against = \"x\"\nlayers = \"1\"", "layers: two models are compared");
        check("against = \"x\"\nmutate = [\"lesions\"]", "mutate: no group of lesions changes");
        let lesions = "mutate = [\"lesions\"]\noracles = [\"divergence\", \"echo\"]";
        check(lesions, "x.toml: oracles: `echo` would score nothing: no mutator of lesions");
    }

    #[test]
    fn keys_have_their_new_and_their_old_spelling() {
        let parse = |text: &str| CampaignConfig::parse(text, Path::new("x.toml")).unwrap();
        let all = parse("layers = \"1-2\"\nprompts = [\"It was\"]\nminimize_calls = 9");
        assert_eq!(all.layers, Some(Layers { first: 1, last: 2 }));
        assert_eq!((all.prompts, all.minimize_calls), (vec!["It was".to_owned()], 9));
        assert_eq!(parse("minimise_calls = 7").minimize_calls, 7);
    }

    #[test]
    fn oracles_are_read_by_name() {
        for kind in OracleKind::ALL {
            assert_eq!(parse_oracle(kind.name()), Ok(kind));
        }
        let error = parse_oracle("vibes").unwrap_err();
        assert!(error.starts_with("no oracle `vibes`; there are divergence, echo,"), "{error}");
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
