//! What a campaign leaves beside its cases: `summary.json`.

use serde::{Deserialize, Serialize};

use crate::model::ModelRef;
use crate::mutate::interactions::Interactions;

/// Version of `summary.json`.
pub const SCHEMA_VERSION: u32 = 1;

/// Counts and curves of one campaign; everything in it follows from seed and evaluations, except
/// `timing`, which is the only part with a clock in it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Summary {
    pub schema_version: u32,
    pub model: ModelRef,
    pub seed: u64,
    pub batch_size: usize,
    pub evaluations: u64,
    /// Trials spent on confirming, minimizing and implicating, besides `evaluations`.
    pub follow_up_evaluations: u64,
    pub behaviours: u64,
    pub queue: u64,
    pub findings_raw: u64,
    pub findings_confirmed: u64,
    #[serde(rename = "findings_minimised")]
    pub findings_minimized: u64,
    /// Matched controls judged, and how many the same thresholds flagged.
    pub controls: u64,
    pub controls_flagged: u64,
    pub mutators: Vec<MutatorYield>,
    /// One point every few batches, ascending in `evaluations`.
    pub curve: Vec<CurvePoint>,
    /// What the mutator of sets was guided by, a table a prompt; empty where there was none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interactions: Vec<Interactions>,
    /// Ids of the cases in `cases/`, in order of discovery.
    pub cases: Vec<String>,
    /// Why the campaign ended: `max-evals`, `max-time`, `interrupted` or `exit-on-find`.
    pub stopped_by: String,
    pub timing: Option<Timing>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MutatorYield {
    pub mutator: String,
    pub trials: u64,
    pub new_behaviours: u64,
    pub findings: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CurvePoint {
    pub evaluations: u64,
    pub behaviours: u64,
    pub findings_raw: u64,
    pub findings_confirmed: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Timing {
    pub elapsed_s: f64,
    pub evaluations_per_s: f64,
    pub tokens_per_s: f64,
}
