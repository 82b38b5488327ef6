//! Replays a case: judges it again and compares the verdict with the stored one.

use std::path::Path;

use rand::Rng as _;

use super::under_test::{ModelUnderTest, judged_by};
use crate::case::{Case, Expectation};
use crate::edit::Trial;
use crate::error::{Error, Result};
use crate::evaluate::ModelEvaluator;
use crate::oracle::{Judge, ModelJudge, Verdict};
use crate::rng;

/// Scores that differ by no more than this share of the stored one are the same: machines differ in
/// the last digits.
const RELATIVE_TOLERANCE: f64 = 1e-3;

/// Comparison of a verdict with the stored one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Still fails, with the stored score within the tolerance.
    Reproduced,
    /// No longer fails.
    Gone,
    /// Still fails, with another score or under another oracle.
    Changed,
}

impl Status {
    /// Returns the name in tables and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Reproduced => "reproduced",
            Self::Gone => "gone",
            Self::Changed => "changed",
        }
    }
}

/// The outcome of a replay.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Comparison of the verdict with the stored one.
    pub status: Status,
    /// The verdict now; the stored one is the case's.
    pub verdict: Verdict,
}

impl Outcome {
    /// Returns whether the outcome is the one the case expects.
    pub fn as_expected(&self, expectation: Expectation) -> bool {
        match expectation {
            Expectation::Reproduces => self.status == Status::Reproduced,
            Expectation::Gone => self.status == Status::Gone,
        }
    }
}

/// Replays a case on a model: checks that the model is the one it was made on (unless `any_model`)
/// and has everything the case speaks of, then judges the case's trial again, alone, with the same
/// oracle and controls. `path` is the case's file, for errors.
///
/// # Errors
/// [`Error::Fingerprint`] for another model; [`Error::File`] naming the field that asks for what
/// the model does not have; what the evaluator refuses.
pub fn replay(
    path: &Path,
    case: &Case,
    model: &ModelUnderTest,
    evaluator: &ModelEvaluator,
    any_model: bool,
) -> Result<Outcome> {
    if !any_model {
        model.check_fingerprint(path, case)?;
    }
    model.check(path, case)?;
    // What the model alone can refuse is a fault of the case too: it asks for something impossible.
    judged_by(path, case, evaluator, |evaluator, _| {
        judge_again(case, &Alone(&model.judge(evaluator, case)))
    })
    .map_err(|error| match error {
        Error::Request(message) => Error::file(path, "edits", message),
        other => other,
    })
}

/// Judges a case's trial again under each of `seeds` seeds of controls, none of which made its
/// verdict; returns under how many it fails.
///
/// # Errors
/// As [`replay`].
pub fn holds_under(
    path: &Path,
    case: &Case,
    model: &ModelUnderTest,
    evaluator: &ModelEvaluator,
    seeds: u64,
) -> Result<u64> {
    model.check(path, case)?;
    judged_by(path, case, evaluator, |evaluator, _| {
        let (judge, trial) = (model.judge(evaluator, case), case.trial());
        let mut holds = 0;
        for seed in 0..seeds {
            let seed = rng::stream(seed, &format!("unseen controls of {}", case.id)).random();
            holds += u64::from(judge.confirm(&trial, seed)?.0.fails());
        }
        Ok(holds)
    })
}

/// Judges every trial by itself, as a finding is confirmed.
struct Alone<'a>(&'a ModelJudge<'a>);

impl Judge for Alone<'_> {
    fn judge(&self, trials: &[Trial]) -> Result<Vec<Verdict>> {
        trials.iter().map(|trial| self.0.judge_alone(trial)).collect()
    }
}

/// Compares the judge's verdict on the case's trial with the stored one. The judge must be made for
/// the case: its oracle and control seed.
fn judge_again(case: &Case, judge: &dyn Judge) -> Result<Outcome> {
    let verdicts = judge.judge(&[case.trial()])?;
    let count = verdicts.len();
    match <[Verdict; 1]>::try_from(verdicts) {
        Ok([verdict]) => Ok(Outcome { status: status(&case.verdict, &verdict), verdict }),
        Err(_) => Err(Error::internal(format!("{count} verdicts on one trial"))),
    }
}

fn status(then: &Verdict, now: &Verdict) -> Status {
    let tolerance =
        then.noise_floor.max(now.noise_floor).max(RELATIVE_TOLERANCE * then.score.abs());
    if !now.fails() {
        Status::Gone
    } else if now.oracle == then.oracle && (now.score - then.score).abs() <= tolerance {
        Status::Reproduced
    } else {
        Status::Changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::OracleKind;

    struct Fixed(Vec<Verdict>);

    impl Judge for Fixed {
        fn judge(&self, _: &[Trial]) -> Result<Vec<Verdict>> {
            Ok(self.0.clone())
        }
    }

    #[test]
    fn the_status_follows_the_figures() {
        let case = crate::case::tests::example();
        let check = |score: f64, oracle, expected| {
            let verdict = Verdict {
                score,
                margin: score - case.verdict.threshold,
                oracle,
                ..case.verdict.clone()
            };
            let outcome = judge_again(&case, &Fixed(vec![verdict])).unwrap();
            assert_eq!(outcome.status, expected, "{score}");
            assert_eq!(
                outcome.as_expected(Expectation::Reproduces),
                expected == Status::Reproduced
            );
            assert_eq!(outcome.as_expected(Expectation::Gone), expected == Status::Gone);
        };
        check(0.8, OracleKind::Divergence, Status::Reproduced);
        check(0.8007, OracleKind::Divergence, Status::Reproduced);
        check(0.802, OracleKind::Divergence, Status::Changed);
        check(0.4, OracleKind::Divergence, Status::Changed);
        check(0.8, OracleKind::Echo, Status::Changed);
        check(0.3, OracleKind::Divergence, Status::Gone);
        check(f64::NAN, OracleKind::Divergence, Status::Gone);
        assert!(judge_again(&case, &Fixed(vec![])).is_err());
    }
}
