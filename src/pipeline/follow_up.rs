//! The follow-up of one raw finding.

use rand::Rng as _;

use super::explain::Explainer;
use super::finding::Finding;
use crate::case::{Case, Lineage};
use crate::edit::Trial;
use crate::error::Result;
use crate::minimize::{self, Minimization, Minimized};
use crate::oracle::{Judge as _, ModelJudge, Verdict};
use crate::replicate::{self, Replicator};
use crate::rng;
use crate::stats::evidence::Lond;

/// Depth of the explanation of a minimized finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Explanation {
    /// As a case that names the components it is localized to.
    Localized,
    /// As a case without localization, which costs most.
    Described,
    /// Not at all: no case is made of it.
    Skipped,
}

/// Hooks of the caller between the steps of a follow-up.
pub trait Steps {
    /// Called with the verdict of the trial against controls of a seed of its own; the follow-up
    /// ends here where it does not hold.
    ///
    /// # Errors
    /// Whatever ends the follow-up, such as a journal that cannot be written.
    fn confirmed(&mut self, _verdict: &Verdict, _holds: bool) -> Result<()> {
        Ok(())
    }

    /// Called with the finding once it is minimized; returns how far it is to be explained.
    ///
    /// # Errors
    /// As [`Steps::confirmed`].
    fn minimized(&mut self, finding: &Finding) -> Result<Explanation>;

    /// Called with the e-value of the finding in new prompts; returns whether it is a discovery.
    /// By default the finding is the only one that is tested.
    fn is_discovery(&mut self, e_value: f64) -> bool {
        Lond::new(replicate::FALSE_DISCOVERY).test(e_value)
    }
}

/// Outcome of a follow-up.
#[derive(Debug)]
pub enum Followed {
    /// It does not fail alone, or the caller skipped its explanation.
    Dropped,
    /// It is a case.
    Case {
        /// The finding, explained.
        case: Box<Case>,
        /// Trials that the explanation took; the judge counts those of the other steps.
        calls: u64,
        /// Other failures that the reduction met, each a raw finding of its own.
        others: Vec<Trial>,
    },
}

/// Follows up trials that fail inside a batch: confirms each with controls of its own, minimizes
/// it, confirms what is left, puts it into new prompts, and explains it.
pub struct FollowUp<'a> {
    /// Judges the trial, and every step of its reduction.
    pub judge: &'a ModelJudge<'a>,
    /// Options of the reduction.
    pub options: minimize::MinimizeOptions<'a>,
    /// Puts findings into new prompts; `None`: they are not replicated.
    pub replicator: Option<Replicator<'a>>,
    /// Makes the case.
    pub explainer: &'a dyn Explainer,
}

/// Returns the seed of the controls that a trial is confirmed with.
pub fn confirmation_seed(campaign: u64, trial: &Trial) -> u64 {
    seed(campaign, trial, "confirmation")
}

/// Returns a seed that follows from another, the trial and the purpose. It has 32 bits, so that a
/// case file's number survives programs that read it as floating point.
fn seed(from: u64, trial: &Trial, purpose: &str) -> u64 {
    let purpose = format!("{purpose}:{:?}", (&trial.base, &trial.continuation, &trial.edits));
    u64::from(rng::stream(from, &purpose).random::<u32>())
}

impl FollowUp<'_> {
    /// Takes one raw finding as far as it goes; `search` is the verdict that it was found by.
    ///
    /// # Errors
    /// Those of the judge, the reduction, the explainer and `steps`.
    pub fn run(
        &self,
        trial: Trial,
        search: Option<Verdict>,
        lineage: Lineage,
        steps: &mut dyn Steps,
    ) -> Result<Followed> {
        let control_seed = self.seed(&trial, "confirmation");
        let (confirmed, holds) = self.judge.confirm(&trial, control_seed)?;
        steps.confirmed(&confirmed, holds)?;
        if !holds {
            return Ok(Followed::Dropped);
        }
        let raw = Finding {
            trial,
            verdict: confirmed,
            control_seed,
            search,
            minimization: None,
            replication: None,
            sampled: None,
            lineage,
        };
        let (mut finding, others) = self.reduce(raw)?;
        let localize = match steps.minimized(&finding)? {
            Explanation::Localized => true,
            Explanation::Described => false,
            Explanation::Skipped => return Ok(Followed::Dropped),
        };
        if let Some(replicator) = &self.replicator {
            let seed = self.seed(&finding.trial, "new prompts");
            finding.replication = replicator.run(self.judge, &finding.trial, seed)?;
        }
        if let Some(replication) = &mut finding.replication {
            // The condition is part of the evidence, which stays an e-value: of discoveries that
            // are picked from afterwards, the false discovery rate would not be controlled.
            let holds = replication.holds_in_most();
            replication.consistent =
                steps.is_discovery(if holds { replication.e_value } else { 0.0 });
        }
        let seed = self.seed(&finding.trial, "samples");
        finding.sampled = replicate::sampled(self.judge, &finding.trial, seed)?;
        let (case, calls) = self.explainer.explain(&finding, localize)?;
        Ok(Followed::Case { case: Box::new(case), calls, others })
    }

    fn seed(&self, trial: &Trial, purpose: &str) -> u64 {
        seed(self.judge.seed, trial, purpose)
    }

    /// Reduces a confirmed trial, with controls that stay the same throughout, and confirms the
    /// result against controls of a new seed. Where that fails, the reduction is undone step by
    /// step, in strides that double, until it holds; at worst the finding is kept as it was.
    /// Returns also the other failures met.
    fn reduce(&self, raw: Finding) -> Result<(Finding, Vec<Trial>)> {
        let count = self.judge.controls_per_trial;
        let judge = self.judge.with_controls_of(&raw.trial, count, raw.control_seed);
        let original = judge.judge(std::slice::from_ref(&raw.trial))?;
        let Some(original) = original.first().filter(|verdict| verdict.fails()) else {
            self.judge.add_calls(judge.calls());
            return Ok((raw, Vec::new()));
        };
        let Minimized { minimization, others, steps, .. } =
            minimize::minimize(&raw.trial, original, &judge, &self.options)?;
        self.judge.add_calls(judge.calls());
        let mut undone = 0;
        loop {
            // Steps are undone from the last; before the first there is the raw trial.
            let left = steps.len().saturating_sub(undone);
            let Some(trial) = left.checked_sub(1).and_then(|last| steps.get(last)) else {
                // Nothing could be removed, or nothing that was removed can be left out.
                let minimization = steps.is_empty().then_some(minimization);
                return Ok((Finding { minimization, ..raw }, others));
            };
            let control_seed = self.seed(trial, "confirmation");
            let (verdict, holds) = self.judge.confirm(trial, control_seed)?;
            if holds {
                let minimization = Minimization {
                    elements_after: minimize::elements(trial),
                    one_minimal: minimization.one_minimal && undone == 0,
                    ..minimization
                };
                let (trial, minimization) = (trial.clone(), Some(minimization));
                return Ok((Finding { trial, verdict, control_seed, minimization, ..raw }, others));
            }
            undone = (2 * undone).max(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edit::Edit;
    use crate::oracle::OracleKind;
    use crate::testing::fake::{self, FakeEvaluator};

    /// Makes a case of nothing but the finding.
    struct Plain;

    impl Explainer for Plain {
        fn explain(&self, finding: &Finding, localize: bool) -> Result<(Case, u64)> {
            Ok((fake::case_of(finding), if localize { 100 } else { 2 }))
        }
    }

    /// Records the steps, and explains as told.
    struct Recorded {
        explanation: Explanation,
        verdicts: Vec<Verdict>,
        findings: Vec<Finding>,
    }

    impl Steps for Recorded {
        fn confirmed(&mut self, verdict: &Verdict, _: bool) -> Result<()> {
            self.verdicts.push(verdict.clone());
            Ok(())
        }

        fn minimized(&mut self, finding: &Finding) -> Result<Explanation> {
            self.findings.push(finding.clone());
            Ok(self.explanation)
        }
    }

    fn follow(edits: Vec<Edit>, explanation: Explanation) -> (Followed, Recorded) {
        let (config, vocabulary) = (fake::config(), fake::vocabulary());
        let kind = OracleKind::Divergence;
        let judge = ModelJudge::new(&FakeEvaluator, &config, &vocabulary, kind, 5, 1e-4);
        let options = minimize::MinimizeOptions { keep_first: 1, ..Default::default() };
        let prompts = fake::new_prompts();
        let replicator = Some(Replicator { prompts: &prompts, null: false });
        let follow_up = FollowUp { judge: &judge, options, replicator, explainer: &Plain };
        let trial = Trial::new((0..=10).collect::<Vec<u32>>(), [20, 21]).with_edits(edits);
        let lineage = Lineage { seed: 5, evaluation: 0, mutators: vec![], parent: "a".into() };
        let mut steps = Recorded { explanation, verdicts: vec![], findings: vec![] };
        (follow_up.run(trial, None, lineage, &mut steps).unwrap(), steps)
    }

    #[test]
    fn a_trial_that_does_not_fail_alone_is_dropped_before_it_is_minimized() {
        let ordinary = vec![Edit::Replace { position: 4, id: 55 }];
        let (followed, steps) = follow(ordinary, Explanation::Localized);
        assert!(matches!(followed, Followed::Dropped));
        assert!(!steps.verdicts[0].fails() && steps.findings.is_empty());
    }

    #[test]
    fn a_confirmed_trial_is_minimized_and_explained_as_told() {
        let edits =
            || vec![Edit::Replace { position: 4, id: 666 }, Edit::Replace { position: 6, id: 55 }];
        for (explanation, expected) in
            [(Explanation::Localized, Some(100)), (Explanation::Described, Some(2))]
        {
            let (followed, steps) = follow(edits(), explanation);
            let Followed::Case { case, calls, .. } = followed else { panic!("{followed:?}") };
            assert_eq!(Some(calls), expected);
            // The token that does nothing is gone, and the verdict was made alone on what is left.
            assert!(matches!(case.edits[..], [Edit::Replace { id: 666, .. }]), "{:?}", case.edits);
            assert_eq!(case.verdict, steps.findings[0].verdict);
            assert!(case.verdict.fails() && case.minimization.is_some());
            // Confirmed with controls of another seed than the search's, and in new prompts.
            assert!(case.control_seed != 5 && case.verdict.controls.len() >= 253);
            let replication = case.replication.unwrap();
            assert!(replication.consistent && replication.holds() == 12, "{replication:?}");
        }
        let (followed, steps) = follow(edits(), Explanation::Skipped);
        assert!(matches!(followed, Followed::Dropped) && steps.findings.len() == 1);
    }
}
