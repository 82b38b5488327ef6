//! The case file: a finding, minimized and explained, that anyone can replay.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::edit::{Edit, Trial};
use crate::error::{Error, Result};
use crate::localize::Localization;
use crate::minimize::Minimization;
use crate::model::ModelRef;
use crate::oracle::{OracleKind, Verdict};
use crate::storage;

mod check;
#[cfg(test)]
pub(crate) mod tests;

/// Version of the case schema written by this program; older ones stay readable.
///
/// Version 2 added `implication.positions`.
pub const SCHEMA_VERSION: u32 = 2;

/// Most token ids (base and continuation together), edits, controls and rows of any other list that
/// a case may hold. Cases are kilobytes; these bounds keep a hostile one from costing more than it
/// says.
pub const MAX_IDS: usize = 65_536;
pub const MAX_EDITS: usize = 65_536;
pub const MAX_CONTROLS: usize = 65_536;
pub const MAX_ROWS: usize = 1 << 20;

/// Most tokens that a replay may run through the model for the controls of a case: each control is
/// a trial as long as the case. It allows 128 controls of the longest case and 1,024 of 8,192
/// tokens.
pub const MAX_CONTROL_TOKENS: usize = 1 << 23;

/// One finding, in a JSON file of its own. Token ids and edits are the truth; every text is a
/// comment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    pub schema_version: u32,
    /// First 16 hex digits of the sha256 over what is replayed (model, ids, edits, oracle).
    pub id: String,
    pub model: ModelRef,
    /// Prompt ids before the edits.
    pub base: Vec<u32>,
    /// Teacher-forced continuation before the edits.
    pub continuation: Vec<u32>,
    pub edits: Vec<Edit>,
    pub verdict: Verdict,
    /// Seed from which the verdict's controls were drawn.
    pub control_seed: u64,
    pub expectation: Expectation,
    #[serde(rename = "minimisation")]
    pub minimization: Option<Minimization>,
    pub localization: Option<Localization>,
    pub lineage: Lineage,
    /// Top next tokens at the last prompt position, before and after the edits.
    pub top_before: Vec<TokenProbability>,
    pub top_after: Vec<TokenProbability>,
    /// What a reader sees; never replayed.
    pub comment: Comment,
}

/// What a replay should find.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Expectation {
    /// The glitch is there: a case of the corpus.
    Reproduces,
    /// The glitch is mended and must stay away.
    Gone,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lineage {
    /// Seed of the campaign.
    pub seed: u64,
    /// Evaluation number at which the raw finding was made.
    pub evaluation: u64,
    /// The mutators applied, first to last.
    pub mutators: Vec<String>,
    /// Name of the seed prompt it descends from.
    pub parent: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenProbability {
    pub id: u32,
    pub text: String,
    pub probability: f64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Comment {
    /// The unedited prompt, decoded.
    pub prompt: String,
    /// The edited prompt, decoded.
    pub edited_prompt: String,
    pub continuation: String,
    /// Greedy continuation of the unedited and of the edited prompt.
    pub generated_before: String,
    pub generated_after: String,
    /// One line: what happens.
    pub title: String,
}

impl Case {
    /// The trial that is replayed.
    pub fn trial(&self) -> Trial {
        Trial {
            base: self.base.clone().into(),
            continuation: self.continuation.clone().into(),
            edits: self.edits.clone(),
        }
    }

    /// The id that belongs to the content: first 16 hex digits of the sha256 over the compact JSON
    /// of model fingerprint, base, continuation, edits and oracle, in this order. Scores, lineage
    /// and comments do not enter: the same glitch found twice is one case.
    pub fn compute_id(&self) -> String {
        #[derive(Serialize)]
        struct Content<'a> {
            fingerprint: &'a str,
            base: &'a [u32],
            continuation: &'a [u32],
            edits: &'a [Edit],
            oracle: OracleKind,
        }
        let content = Content {
            fingerprint: &self.model.fingerprint,
            base: &self.base,
            continuation: &self.continuation,
            edits: &self.edits,
            oracle: self.verdict.oracle,
        };
        // Strings, integers and floats always serialise (a NaN becomes null, and `validate` refuses
        // it).
        let json = serde_json::to_vec(&content).unwrap_or_default();
        crate::text::hex(&Sha256::digest(json)[..8])
    }

    /// Reads and validates a case of any schema version known.
    pub fn read(path: &Path) -> Result<Self> {
        Self::parse(path, &storage::read_bounded(path, storage::MAX_FILE)?)
    }

    /// As [`Case::read`], from the bytes of the file at `path`.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        /// All that every version has in common.
        #[derive(Deserialize)]
        struct Versioned {
            schema_version: u32,
        }
        let case: Self = match storage::parse_json::<Versioned>(path, bytes)?.schema_version {
            // Straight from the bytes: a key that is there twice is an error, not the last one's.
            SCHEMA_VERSION => storage::parse_json(path, bytes)?,
            older => {
                storage::from_value(path, migrate(path, storage::parse_json(path, bytes)?, older)?)?
            }
        };
        case.validate(path)?;
        Ok(case)
    }

    /// Writes `<id>.json` into `dir`, atomically, and returns its path. An earlier case of the
    /// same id is replaced, another file of that name is not. An invalid case (its id is not that
    /// of its content, a score is not finite) is refused: nobody could read it again.
    ///
    /// # Errors
    /// [`Error::File`] for an invalid case and for a file in the way.
    pub fn write(&self, dir: &Path) -> Result<PathBuf> {
        let path = dir.join(format!("{}.json", self.id));
        self.validate(&path)?;
        storage::replace_ours(&path, &storage::pretty_json(&path, self)?)?;
        Ok(path)
    }

    /// Like [`Case::write`], but leaves an earlier case of the same id as it is unless `force`.
    ///
    /// # Errors
    /// [`Error::File`] for an invalid case, and if there is a file of that name.
    pub fn write_new(&self, dir: &Path, force: bool) -> Result<PathBuf> {
        if force {
            return self.write(dir);
        }
        let path = dir.join(format!("{}.json", self.id));
        self.validate(&path)?;
        match storage::write_new(&path, &storage::pretty_json(&path, self)?)? {
            true => Ok(path),
            false => Err(Error::file(path, "--out", "exists already; --force replaces it")),
        }
    }

    /// Checks everything that can be checked without the model; an error names `path` and the
    /// field. Whether ids and components exist is the model's to say.
    pub fn validate(&self, path: &Path) -> Result<()> {
        check::faults(self).map_err(|(field, message)| Error::file(path, field, message))
    }
}

/// Brings a case of an older schema up to the current one, version by version; files already
/// written stay readable for ever. A new version adds an arm here and never changes an old one.
fn migrate(path: &Path, mut value: serde_json::Value, version: u32) -> Result<serde_json::Value> {
    match version {
        SCHEMA_VERSION => Ok(value),
        1 => {
            // A struct may also be spelt as an array, which no version ever wrote.
            let Some(fields) = value.as_object_mut() else {
                return Err(Error::file(path, "(top level)", "invalid type: a case is an object"));
            };
            fields.insert("schema_version".into(), 2.into());
            if let Some(localization) =
                fields.get_mut("implication").and_then(|i| i.as_object_mut())
                && localization.insert("positions".into(), serde_json::json!([])).is_some()
            {
                return Err(Error::file(
                    path,
                    "implication.positions",
                    "unknown field in a case of version 1",
                ));
            }
            migrate(path, value, 2)
        }
        newer if newer > SCHEMA_VERSION => Err(Error::file(
            path,
            "schema_version",
            format!(
                "{newer} is newer than this program, which reads up to {SCHEMA_VERSION}; update \
                glitch"
            ),
        )),
        unknown => Err(Error::file(
            path,
            "schema_version",
            format!("{unknown} is no version of the case schema"),
        )),
    }
}
