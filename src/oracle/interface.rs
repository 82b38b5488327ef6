//! The trait of a detector: what an oracle needs measured, how it scores, and how its scores are
//! put into words.

use crate::evaluate::Observation;
use crate::model::Config;
use crate::text::percent;

/// A detector. Everything that is specific to one oracle lives behind this trait, in its one file.
///
/// Methods without a default must be answered by every oracle; the others say that the oracle is an
/// ordinary one.
pub trait Oracle: Sync {
    /// Returns the name in files and on the command line: `divergence`, `non_finite`.
    fn name(&self) -> &'static str;

    /// Returns the name on screen and on the page.
    fn label(&self) -> &'static str;

    /// Returns the unit of the score: `bits`, `nats per token`; empty for a score without one.
    fn unit(&self) -> &'static str;

    /// Returns one sentence on what the oracle detects and what its score means.
    fn meaning(&self) -> &'static str;

    /// Returns one sentence on what happened in a case with this score. `cause` is its subject
    /// ("Replacing ` king` by ` Guid`"), or the token ("the token ` Guid` (id 4091)") for an oracle
    /// that [`edits_one_token`](Oracle::edits_one_token).
    fn sentence(&self, cause: &str, score: f64) -> String;

    /// Returns the same in a few words, for the title of a case: "raises the loss by 2.10 nats a
    /// token". `continuation` is the text after the prompt.
    fn effect(&self, score: f64, continuation: &str) -> String;

    /// Scores the trial's behaviour in the oracle's unit; finite, larger is worse.
    fn score(&self, trial: &Observation, baseline: &Observation) -> f64;

    /// Returns the smallest score of interest: the threshold is never below it, however quiet the
    /// controls are.
    fn minimum(&self) -> f64;

    /// Returns how well the baseline does what the trial is judged by, between 0 and 1: here the
    /// geometric mean of the probabilities of the continuation, which falls where a text is no
    /// longer the ordinary text it was; 1 where there is none. A reduction keeps at least half of
    /// it: a score is a difference, and what the model cannot do without the edits either is no
    /// glitch of theirs.
    fn baseline(&self, baseline: &Observation) -> f64 {
        probability(baseline)
    }

    /// Returns one sentence on what [`Oracle::baseline`] is, given its value.
    fn baseline_sentence(&self, value: f64) -> String {
        format!(
            "Without the edits the tokens of the text have a probability of {} (geometric mean).",
            percent(value)
        )
    }

    /// Returns true if the oracle can judge mutations that leave the continuation as it is: all
    /// but those of echo prompts.
    fn judges_mutations(&self) -> bool;

    /// Returns true if the oracle can judge echo prompts about another token.
    fn judges_echoes(&self) -> bool {
        false
    }

    /// Returns true if a model has what the oracle looks at.
    fn applies(&self, _config: &Config) -> bool {
        true
    }

    /// Returns true if the oracle reads the divergence from the baseline's distributions.
    fn needs_reference(&self) -> bool {
        false
    }

    /// Returns true if the oracle reads how much of the beginning is left in the recurrent state.
    fn needs_memory(&self) -> bool {
        false
    }

    /// Returns true if the oracle compares the model with a second one, so that it needs an
    /// evaluator of both.
    fn needs_other_model(&self) -> bool {
        false
    }

    /// Returns the number of tokens to generate greedily.
    fn generate(&self) -> usize {
        0
    }

    /// Returns the number of tokens to generate greedily after other prompts with the same edits.
    fn generate_elsewhere(&self) -> usize {
        0
    }

    /// Returns the test of whether what an observation generated is degenerate by itself, whatever
    /// the baseline does; `None` for an oracle that is not about degeneration.
    fn degenerates(&self) -> Option<fn(&Observation) -> bool> {
        None
    }

    /// Returns true if a trial costs many forwards.
    fn is_costly(&self) -> bool {
        self.generate() > 0 || self.needs_memory()
    }

    /// Returns true if all places that an edited token is put in belong together: the reduction
    /// keeps or removes them at once.
    fn edits_one_token(&self) -> bool {
        false
    }

    /// Returns true if the score is read off the probabilities of the continuation, so that a trial
    /// without one cannot be judged.
    fn needs_continuation(&self) -> bool {
        false
    }

    /// Returns true if the continuation is what the finding is about, so that the reduction must
    /// not shorten it.
    fn keeps_continuation(&self) -> bool {
        false
    }
}

/// Returns the geometric mean of the probabilities of the continuation; 0 where it is NaN.
pub(super) fn probability(observation: &Observation) -> f64 {
    let probability = (-observation.loss()).exp();
    if probability.is_nan() { 0.0 } else { probability.clamp(0.0, 1.0) }
}

/// Clamps `value` to `[low, high]`; NaN counts as the worst. Scores go into JSON, which has neither
/// infinities nor NaN.
pub(super) fn bounded(value: f64, low: f64, high: f64) -> f64 {
    if value.is_nan() { high } else { value.clamp(low, high) }
}
