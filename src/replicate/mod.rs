//! Replication: a finding is put into prompts that the search never used.
//!
//! A finding is the most extreme of thousands of trials. To run it again, even against other
//! controls, does not undo that it was picked: the most extreme of thousands of ordinary trials is
//! as extreme when it is run again. New prompts are independent of the search. In each the edits
//! are ranked among controls drawn for that prompt; if they did nothing consistent every rank would
//! be as likely as any other, whatever the search did. The ranks become e-values, which multiply
//! ([`crate::stats::evidence`]).

mod prompts;
mod sampled;
mod transplant;

pub use prompts::{NewEcho, NewPrompts, encoded_passages, in_context, is_echo, passages};
pub use sampled::{Sampled, sampled};
pub use transplant::transplant;

use serde::{Deserialize, Serialize};

use crate::edit::Trial;
use crate::error::Result;
use crate::oracle::{Judge as _, ModelJudge, controls};
use crate::rng;
use crate::stats::evidence;

/// New prompts that a finding is put into.
pub const PROMPTS: usize = 12;
/// Controls in each.
pub const CONTROLS: usize = 31;
/// False discovery rate of the findings called consistent.
pub const FALSE_DISCOVERY: f64 = 0.05;

/// The edits of a finding in one new prompt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InPrompt {
    /// Name of the prompt.
    pub prompt: String,
    /// Score there, in the oracle's unit.
    pub score: f64,
    /// The score that a trial must exceed there.
    pub threshold: f64,
    /// True if it fails there.
    pub holds: bool,
    /// Controls that score at least as much.
    pub as_extreme: usize,
    /// Controls there.
    pub controls: usize,
}

/// The edits of a finding in prompts that the search never used.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Replication {
    /// Each new prompt.
    pub prompts: Vec<InPrompt>,
    /// The product of the e-values of the ranks.
    pub e_value: f64,
    /// True if the finding is consistent: its e-value is a discovery in the stream of those tested
    /// ([`evidence::Lond`] at [`FALSE_DISCOVERY`]), and it [holds in most](Self::holds_in_most)
    /// of the prompts. Else it is specific to its prompt.
    pub consistent: bool,
}

impl Replication {
    /// Returns in how many prompts the finding holds.
    pub fn holds(&self) -> usize {
        self.prompts.iter().filter(|prompt| prompt.holds).count()
    }

    /// Returns the p-value of the e-value: valid whatever the search did.
    pub fn p_value(&self) -> f64 {
        evidence::p_of_e(self.e_value)
    }

    /// Returns whether it holds in more than half of the prompts, as it must to be called
    /// consistent. Ordinary tokens differ too (a quotation mark changes what follows more than most
    /// tokens do, in any prompt), and the most extreme of thousands of trials ranks high
    /// everywhere; but it seldom fails in most prompts.
    pub fn holds_in_most(&self) -> bool {
        2 * self.holds() > self.prompts.len()
    }
}

/// Puts findings into new prompts.
#[derive(Debug, Clone, Copy)]
pub struct Replicator<'a> {
    /// The prompts to choose from.
    pub prompts: &'a NewPrompts,
    /// For a null campaign: in each prompt one of the finding's controls takes its place.
    pub null: bool,
}

impl Replicator<'_> {
    /// Puts the edits of `trial` into new prompts, chosen and with controls drawn by `seed`, and
    /// judges each as `judge` does. `None` if they cannot be put elsewhere: a deletion of a token,
    /// a set of edits longer than a prompt, an oracle about one given text.
    /// [`Replication::consistent`] is left false, because it depends on what else is tested.
    ///
    /// # Errors
    /// Those of the judge.
    pub fn run(&self, judge: &ModelJudge, trial: &Trial, seed: u64) -> Result<Option<Replication>> {
        let mut rng = rng::stream(seed, "new prompts");
        let bos = judge.config.bos_token_id;
        let (evaluator, oracle) = (judge.evaluator, judge.oracle);
        let chosen = self.prompts.choose(evaluator, trial, oracle, bos, PROMPTS, &mut rng)?;
        if chosen.is_empty() {
            return Ok(None);
        }
        let (names, mut trials): (Vec<String>, Vec<Trial>) = chosen.into_iter().unzip();
        if self.null {
            for trial in &mut trials {
                *trial = controls::control(trial, judge.config, judge.vocabulary, &mut rng);
            }
        }
        let there = judge.with_seed(seed).with_controls(CONTROLS);
        let verdicts = there.judge(&trials)?;
        judge.add_calls(there.calls());
        let prompts: Vec<InPrompt> = names
            .into_iter()
            .zip(verdicts)
            .map(|(prompt, verdict)| InPrompt {
                prompt,
                score: verdict.score,
                threshold: verdict.threshold,
                holds: verdict.fails(),
                as_extreme: verdict.as_extreme(),
                controls: verdict.controls.len(),
            })
            .collect();
        let e_value = prompts
            .iter()
            .map(|prompt| evidence::rank_e_value(prompt.as_extreme, prompt.controls))
            .product();
        Ok(Some(Replication { prompts, e_value, consistent: false }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edit::{Action, Component, Edit};
    use crate::oracle::OracleKind;
    use crate::testing::fake::{self, FakeEvaluator};

    fn replicate(
        edits: Vec<Edit>,
        oracle: OracleKind,
        seed: u64,
        null: bool,
    ) -> Option<Replication> {
        let (config, vocabulary, prompts) =
            (fake::config(), fake::vocabulary(), fake::new_prompts());
        let judge = ModelJudge::new(&FakeEvaluator, &config, &vocabulary, oracle, 5, 1e-4);
        let trial = Trial::new((0..=10).collect::<Vec<u32>>(), [20, 21]).with_edits(edits);
        Replicator { prompts: &prompts, null }.run(&judge, &trial, seed).unwrap()
    }

    #[test]
    fn planted_glitches_hold_in_new_prompts_and_ordinary_trials_do_not() {
        let divergence = OracleKind::Divergence;
        let token = |id| vec![Edit::Replace { position: 6, id }];
        let glitch = replicate(token(666), divergence, 1, false).unwrap();
        assert_eq!((glitch.holds(), glitch.prompts.len()), (PROMPTS, PROMPTS));
        assert!(glitch.p_value() < 1e-5 && glitch.holds_in_most(), "{glitch:?}");
        let head = Component::Head { layer: 1, head: 2 };
        let lesion = replicate(vec![Edit::lesion(head, Action::Zero)], divergence, 1, false);
        assert_eq!(lesion.unwrap().holds(), PROMPTS);
        let ordinary = replicate(token(77), divergence, 1, false).unwrap();
        assert!(ordinary.holds() == 0 && ordinary.p_value() > 0.01, "{ordinary:?}");
    }

    #[test]
    fn in_a_null_campaign_nothing_is_consistent_and_p_is_uniform() {
        let glitch = vec![Edit::Replace { position: 6, id: 666 }];
        let runs: Vec<Replication> = (0..200)
            .map(|seed| replicate(glitch.clone(), OracleKind::Divergence, seed, true).unwrap())
            .collect();
        assert!(runs.iter().all(|run| run.holds() == 0));
        let mean = runs.iter().map(|run| run.e_value).sum::<f64>() / 200.0;
        assert!((0.2..2.0).contains(&mean), "{mean}");
        let below = runs.iter().filter(|run| run.p_value() <= 0.05).count();
        assert!(below <= 10, "{below} of 200");
    }

    #[test]
    fn what_cannot_be_transplanted_is_not() {
        let delete = vec![Edit::Delete { position: 3 }];
        assert_eq!(replicate(delete, OracleKind::Divergence, 1, false), None);
        let token = vec![Edit::Replace { position: 3, id: 9 }];
        assert_eq!(replicate(token, OracleKind::Target, 1, false), None);
    }
}
