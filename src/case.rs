//! The case file: a finding, minimised and explained, that anyone can replay.

use serde::{Deserialize, Serialize};

use crate::edit::{Edit, Trial};
use crate::implicate::Implication;
use crate::oracle::Verdict;

/// Version of the case schema written by this program; older ones stay readable.
pub const SCHEMA_VERSION: u32 = 1;

/// One finding, in a JSON file of its own. Token ids and edits are the truth; every text is a comment.
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
    pub minimisation: Option<Minimisation>,
    pub implication: Option<Implication>,
    pub lineage: Lineage,
    /// Top next tokens at the last prompt position, before and after the edits.
    pub top_before: Vec<TokenProbability>,
    pub top_after: Vec<TokenProbability>,
    /// What a reader sees; never replayed.
    pub comment: Comment,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelRef {
    /// How the model was named (`builtin:dense`, a folder, a GGUF file).
    pub name: String,
    /// sha256 over the model's tensors and configuration.
    pub fingerprint: String,
    /// sha256 over the tokenizer; `None` for a model without one.
    pub tokenizer: Option<String>,
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
pub struct Minimisation {
    /// Trials evaluated by the reduction.
    pub calls: u64,
    pub elements_before: usize,
    pub elements_after: usize,
    /// No single remaining element can go (each was tried, alone, at the end).
    pub one_minimal: bool,
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
        Trial { base: self.base.clone().into(), continuation: self.continuation.clone().into(), edits: self.edits.clone() }
    }
}
