//! Replays a case: judges it again and compares the verdict with the stored one.

use crate::case::{Case, Expectation};
use crate::error::{Error, Result};
use crate::oracle::Judge;
use crate::oracle::Verdict;

/// Scores that differ by no more than this share of the stored one are the same: machines differ in
/// the last digits.
const RELATIVE_TOLERANCE: f64 = 1e-3;

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
    pub fn name(self) -> &'static str {
        match self {
            Self::Reproduced => "reproduced",
            Self::Gone => "gone",
            Self::Changed => "changed",
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    pub status: Status,
    /// The verdict now; the stored one is the case's.
    pub verdict: Verdict,
}

impl Outcome {
    pub fn as_expected(&self, expectation: Expectation) -> bool {
        match expectation {
            Expectation::Reproduces => self.status == Status::Reproduced,
            Expectation::Gone => self.status == Status::Gone,
        }
    }
}

/// Judges the case's trial again. `judge` must be made for the case: its oracle and control seed.
pub fn replay(case: &Case, judge: &dyn Judge) -> Result<Outcome> {
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
    use crate::edit::Trial;
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
            let outcome = replay(&case, &Fixed(vec![verdict])).unwrap();
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
        assert!(replay(&case, &Fixed(vec![])).is_err());
    }
}
