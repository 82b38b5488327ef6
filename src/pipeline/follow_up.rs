//! The follow-up of one raw finding.

use super::explain::Explainer;
use super::finding::Finding;
use crate::case::{Case, Lineage};
use crate::edit::Trial;
use crate::error::Result;
use crate::minimize::{self, Minimized};
use crate::oracle::{ModelJudge, Verdict};

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
    /// Called with the verdict of the trial judged alone; the follow-up ends here where that does
    /// not fail.
    ///
    /// # Errors
    /// Whatever ends the follow-up, such as a journal that cannot be written.
    fn confirmed(&mut self, _verdict: &Verdict) -> Result<()> {
        Ok(())
    }

    /// Called with the finding once it is minimized; returns how far it is to be explained.
    ///
    /// # Errors
    /// As [`Steps::confirmed`].
    fn minimized(&mut self, finding: &Finding) -> Result<Explanation>;
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

/// Follows up trials that fail inside a batch: confirms each alone, minimizes and explains it.
pub struct FollowUp<'a> {
    /// Judges the trial, and every step of its reduction.
    pub judge: &'a ModelJudge<'a>,
    /// Options of the reduction.
    pub options: minimize::MinimizeOptions<'a>,
    /// Makes the case.
    pub explainer: &'a dyn Explainer,
}

impl FollowUp<'_> {
    /// Takes one raw finding as far as it goes.
    ///
    /// # Errors
    /// Those of the judge, the reduction, the explainer and `steps`.
    pub fn run(&self, trial: Trial, lineage: Lineage, steps: &mut dyn Steps) -> Result<Followed> {
        let confirmed = self.judge.judge_alone(&trial)?;
        steps.confirmed(&confirmed)?;
        if !confirmed.fails() {
            return Ok(Followed::Dropped);
        }
        let (finding, others) = self.reduce(trial, confirmed, lineage)?;
        let localize = match steps.minimized(&finding)? {
            Explanation::Localized => true,
            Explanation::Described => false,
            Explanation::Skipped => return Ok(Followed::Dropped),
        };
        let (case, calls) = self.explainer.explain(&finding, localize)?;
        Ok(Followed::Case { case: Box::new(case), calls, others })
    }

    /// Reduces a confirmed trial; returns also the other failures met. The reduction judges in
    /// batches, and what is reported must fail alone: where it does not, the finding is kept as
    /// it was confirmed.
    fn reduce(
        &self,
        trial: Trial,
        confirmed: Verdict,
        lineage: Lineage,
    ) -> Result<(Finding, Vec<Trial>)> {
        let Minimized { trial: reduced, minimization, others, .. } =
            minimize::minimize(&trial, &confirmed, self.judge, &self.options)?;
        let alone = self.judge.judge_alone(&reduced)?;
        let (trial, verdict, minimization) = if alone.fails() {
            (reduced, alone, Some(minimization))
        } else {
            (trial, confirmed, None)
        };
        let control_seed = self.judge.seed;
        Ok((Finding { trial, verdict, control_seed, minimization, lineage }, others))
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
        fn confirmed(&mut self, verdict: &Verdict) -> Result<()> {
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
        let follow_up = FollowUp { judge: &judge, options, explainer: &Plain };
        let trial = Trial::new((0..=10).collect::<Vec<u32>>(), [20, 21]).with_edits(edits);
        let lineage = Lineage { seed: 5, evaluation: 0, mutators: vec![], parent: "a".into() };
        let mut steps = Recorded { explanation, verdicts: vec![], findings: vec![] };
        (follow_up.run(trial, lineage, &mut steps).unwrap(), steps)
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
            assert_eq!((&case.verdict, case.control_seed), (&steps.findings[0].verdict, 5));
            assert!(case.verdict.fails() && case.minimization.is_some());
        }
        let (followed, steps) = follow(edits(), Explanation::Skipped);
        assert!(matches!(followed, Followed::Dropped) && steps.findings.len() == 1);
    }
}
