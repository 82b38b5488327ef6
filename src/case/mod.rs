//! The case: a finding, minimized and localized, in a file that anyone can replay.
//!
//! This file has the schema; `file.rs` reads, writes and migrates it, `check.rs` validates what may
//! come from anyone.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::deficits::Deficits;
use crate::edit::{Edit, Trial};
use crate::localize::{Effect, Localization};
use crate::minimize::Minimization;
use crate::model::ModelRef;
use crate::oracle::{OracleKind, Verdict};
use crate::replicate::{Replication, Sampled};
use crate::text;

mod check;
mod check_localization;
mod file;
mod on_model;
mod rules;
#[cfg(test)]
pub(crate) mod tests;

pub use on_model::{check_edit, check_length};

/// The version of the case schema that this program writes; older ones stay readable.
///
/// Version 2 added `implication.positions`; version 3 `verdict.baseline`, `search`,
/// `replication` and `sampled`; version 4 `against`; version 5 `deficits`.
pub const SCHEMA_VERSION: u32 = 5;

/// The largest number of token ids in a case, base and continuation together. Cases are kilobytes;
/// this bound and the next ones keep a hostile one from costing more than its size suggests.
pub const MAX_IDS: usize = 65_536;
/// The largest number of edits in a case.
pub const MAX_EDITS: usize = 65_536;
/// The largest number of controls in a case.
pub const MAX_CONTROLS: usize = 65_536;
/// The largest number of entries of any other list in a case.
pub const MAX_ROWS: usize = 1 << 20;

/// The largest number of tokens that a replay may run through the model for the controls of a case:
/// each control is a trial as long as the case. This allows 128 controls of the longest case and
/// 1,024 of 8,192 tokens.
pub const MAX_CONTROL_TOKENS: usize = 1 << 23;

/// One finding, in a JSON file of its own. Token ids and edits are what is replayed; every text is
/// a comment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// [`SCHEMA_VERSION`] once it is read.
    pub schema_version: u32,
    /// First 16 hex digits of the sha256 over what is replayed (model, ids, edits, oracle).
    pub id: String,
    /// The model that the case was made on.
    pub model: ModelRef,
    /// Prompt ids before the edits.
    pub base: Vec<u32>,
    /// Teacher-forced continuation before the edits.
    pub continuation: Vec<u32>,
    /// The edits, whose positions count tokens of `base` and `continuation`.
    pub edits: Vec<Edit>,
    /// The verdict when the case was confirmed.
    pub verdict: Verdict,
    /// Seed from which the verdict's controls were drawn.
    pub control_seed: u64,
    /// The verdict by which a search found the trial, before it was minimized: its controls are
    /// those that it was picked by. `None` in older cases, and in those written by hand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub search: Option<Verdict>,
    /// The edits in prompts that the search never used. `None` in older cases, and where they
    /// cannot be put anywhere else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replication: Option<Replication>,
    /// What the model generates by sampling, for verdicts about greedy generation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampled: Option<Sampled>,
    /// The deficits of the model's own writing under the edits. `None` in older cases, and in those
    /// written by hand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deficits: Option<Deficits>,
    /// The second model of a case about two. `None` in all others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub against: Option<Against>,
    /// The outcome that a replay should find.
    pub expectation: Expectation,
    /// The record of its minimization, if it was minimized.
    #[serde(rename = "minimisation")]
    pub minimization: Option<Minimization>,
    /// The components that mediate it, if they were looked for.
    #[serde(rename = "implication")]
    pub localization: Option<Localization>,
    /// Its origin.
    pub lineage: Lineage,
    /// Top next tokens at the last prompt position, without the edits.
    pub top_before: Vec<TokenProbability>,
    /// The same with the edits.
    pub top_after: Vec<TokenProbability>,
    /// Texts for the reader; never replayed.
    pub comment: Comment,
}

/// The second model of a case about two, and what they disagree in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Against {
    /// The model that the case's is compared with.
    pub model: ModelRef,
    /// For each component, strongest first, the share of the disagreement that goes if the case's
    /// model gets the other's weights there (necessity), and the reverse (sufficiency). Empty where
    /// it was not measured.
    #[serde(default)]
    pub swaps: Vec<Effect>,
}

/// The outcome that a replay should find.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Expectation {
    /// The glitch reproduces: a case of the corpus.
    Reproduces,
    /// The glitch was fixed and must not come back.
    Gone,
}

/// The origin of a finding.
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

/// A next token and its probability.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenProbability {
    /// The token id.
    pub id: u32,
    /// The token, decoded.
    pub text: String,
    /// Its probability, between 0 and 1.
    pub probability: f64,
}

/// Texts for the reader of a case.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Comment {
    /// The unedited prompt, decoded.
    pub prompt: String,
    /// The edited prompt, decoded.
    pub edited_prompt: String,
    /// The unedited continuation, decoded.
    pub continuation: String,
    /// Greedy continuation of the unedited prompt.
    pub generated_before: String,
    /// Greedy continuation of the edited prompt.
    pub generated_after: String,
    /// One line: what happens.
    pub title: String,
}

impl Case {
    /// Returns the trial that is replayed.
    pub fn trial(&self) -> Trial {
        Trial {
            base: self.base.clone().into(),
            continuation: self.continuation.clone().into(),
            edits: self.edits.clone(),
        }
    }

    /// Computes the id of the content: the first 16 hex digits of the sha256 over the compact JSON
    /// of model fingerprint, base, continuation, edits, oracle and the fingerprint of the second
    /// model, if there is one, in this order. Scores, lineage and comments do not enter, so that
    /// the same glitch found twice is one case.
    pub fn compute_id(&self) -> String {
        #[derive(Serialize)]
        struct Content<'a> {
            fingerprint: &'a str,
            base: &'a [u32],
            continuation: &'a [u32],
            edits: &'a [Edit],
            oracle: OracleKind,
            #[serde(skip_serializing_if = "Option::is_none")]
            against: Option<&'a str>,
        }
        let content = Content {
            fingerprint: &self.model.fingerprint,
            base: &self.base,
            continuation: &self.continuation,
            edits: &self.edits,
            oracle: self.verdict.oracle,
            against: self.against.as_ref().map(|against| &against.model.fingerprint[..]),
        };
        // Strings, integers and floats always serialize (a NaN becomes null, which `validate`
        // refuses).
        let json = serde_json::to_vec(&content).unwrap_or_default();
        text::hex(&Sha256::digest(json)[..8])
    }
}
