//! `summary.json`: the counts and curves that a campaign leaves beside its cases.

use serde::{Deserialize, Serialize};

use crate::model::ModelRef;
use crate::mutate::interactions::Interactions;
use crate::stats::{Estimate, Seen};

/// Version of `summary.json`.
pub const SCHEMA_VERSION: u32 = 1;

/// Counts and curves of one campaign; everything in it follows from seed and evaluations, except
/// `timing`, which is the only part with a clock in it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Summary {
    /// [`SCHEMA_VERSION`] when this program wrote it.
    pub schema_version: u32,
    /// The model that was fuzzed.
    pub model: ModelRef,
    /// The model that it was compared with. `None` where it was not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub against: Option<ModelRef>,
    /// Seed of the campaign.
    pub seed: u64,
    /// Trials in one round.
    pub batch_size: usize,
    /// Trials of the loop.
    pub evaluations: u64,
    /// Trials spent on confirming, minimizing and localizing, besides `evaluations`.
    pub follow_up_evaluations: u64,
    /// Behaviours in the novelty map at the end.
    pub behaviours: u64,
    /// Trials that may be mutated, at the end.
    pub queue: u64,
    /// Trials that failed inside a batch.
    pub findings_raw: u64,
    /// Raw findings that failed again alone.
    pub findings_confirmed: u64,
    /// Confirmed findings whose minimized trial still fails.
    #[serde(rename = "findings_minimised")]
    pub findings_minimized: u64,
    /// True for a null campaign, in which every trial was replaced by one of its own controls.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub null: bool,
    /// Trials of the loop with a score beyond the pre-threshold of an oracle.
    #[serde(default)]
    pub extreme: u64,
    /// Those of them that were judged against matched controls: in each round those of the kinds
    /// that were judged least often, then the most extreme.
    #[serde(default)]
    pub judged: u64,
    /// Minimized findings that were put into new prompts.
    #[serde(default)]
    pub replicated: u64,
    /// Those of them called consistent, of which 5% are expected to be false; the others are
    /// specific to their prompt.
    #[serde(default)]
    pub consistent: u64,
    /// Matched controls judged.
    pub controls: u64,
    /// Controls that the same thresholds flagged.
    pub controls_flagged: u64,
    /// The yield of each mutator.
    pub mutators: Vec<MutatorYield>,
    /// The kinds of its raw findings, those with most of them first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kinds: Vec<KindCount>,
    /// Estimates of the kinds that are still unseen; `None` in older summaries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unseen: Option<Unseen>,
    /// One point every few batches, ascending in `evaluations`.
    pub curve: Vec<CurvePoint>,
    /// Interactions that guided the mutator of sets, a table a prompt; empty where there were none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interactions: Vec<Interactions>,
    /// Ids of the cases in `cases/`, in order of discovery.
    pub cases: Vec<String>,
    /// Why the campaign ended: `max-evals`, `max-time`, `interrupted`, `exit-on-find`, `stable`, or
    /// `exhausted` where no mutator could propose anything.
    pub stopped_by: String,
    /// The clock's part; `None` before the campaign is over.
    pub timing: Option<Timing>,
}

/// Yield of one mutator.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MutatorYield {
    /// Name of the mutator.
    pub mutator: String,
    /// Trials whose last edit it made.
    pub trials: u64,
    /// Trials of new behaviour among them.
    pub new_behaviours: u64,
    /// Raw findings among them.
    pub findings: u64,
}

/// The raw findings of one kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KindCount {
    /// The kind in words.
    pub kind: String,
    /// Trials of the kind, or of one that it explains, that failed inside a batch or while another
    /// was minimized. 0 for a kind that only minimizing led to.
    pub raw: u64,
    /// Confirmed findings that are of the kind once minimized.
    pub minimized: u64,
    /// Raw findings beyond those that were followed up, in a sample: judged again, with new
    /// controls.
    #[serde(default)]
    pub sampled: u64,
    /// Those of the sample that failed again.
    #[serde(default)]
    pub held: u64,
}

/// Returns how many of the kinds have raw findings.
pub fn kinds_seen(kinds: &[KindCount]) -> u64 {
    kinds.iter().filter(|kind| kind.raw > 0).count() as u64
}

/// Estimates of the kinds that a campaign has not seen, by how many of its kinds have one raw
/// finding and how many two ([`stats::Seen`](crate::stats::Seen)).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unseen {
    /// Probability that the next [`NEXT_EVALUATIONS`] evaluations show a new kind.
    pub chance_of_new: Estimate,
    /// Kinds in all, seen or not.
    pub kinds_in_all: Estimate,
    /// Kinds that a campaign of four times the evaluations will have shown.
    pub kinds_after_four_times: Estimate,
}

/// The evaluations for which the chance of a new kind is told.
pub const NEXT_EVALUATIONS: u64 = 1000;

impl Unseen {
    /// Estimates from the kinds of so many evaluations.
    pub fn new(evaluations: u64, kinds: &[KindCount]) -> Self {
        let seen = Seen::new(evaluations, kinds.iter().map(|kind| kind.raw));
        Self {
            chance_of_new: seen.chance_of_new(NEXT_EVALUATIONS),
            kinds_in_all: seen.kinds_in_all(),
            kinds_after_four_times: seen.kinds_after(3 * evaluations),
        }
    }
}

/// Counts at one point of a campaign.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CurvePoint {
    /// Trials of the loop so far.
    pub evaluations: u64,
    /// Behaviours in the novelty map.
    pub behaviours: u64,
    /// Raw findings so far.
    pub findings_raw: u64,
    /// Findings confirmed so far.
    pub findings_confirmed: u64,
}

/// Speed of a campaign, by the wall clock.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Timing {
    /// Seconds since the program started.
    pub elapsed_s: f64,
    /// Trials a second, follow-ups included.
    pub evaluations_per_s: f64,
    /// Tokens of the loop's trials a second.
    pub tokens_per_s: f64,
}
