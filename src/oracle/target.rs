//! Text that a model was made to say.

use super::{Oracle, OracleKind, bounded};
use crate::evaluate::Observation;

/// How much more probable the continuation is than without the edits, nats per token, where greedy
/// generation says it word for word; 0 where it does not.
#[derive(Debug)]
pub struct Target;

impl Oracle for Target {
    fn kind(&self) -> OracleKind {
        OracleKind::Target
    }

    fn score(&self, trial: &Observation, baseline: &Observation) -> f64 {
        if !trial.says_continuation() {
            return 0.0;
        }
        bounded(baseline.loss(), 0.0, 1e3) - bounded(trial.loss(), 0.0, 1e3)
    }

    /// Half a nat a token: what the model would hardly not have said anyway is none.
    fn minimum(&self) -> f64 {
        0.5
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_greedy_generation_says_counts() {
        let said = |log_probs: [f32; 2], best: [f32; 2]| Observation {
            log_probs: log_probs.to_vec(),
            top: best.iter().map(|p| vec![(7, *p)]).collect(),
            finite: true,
            ..Observation::default()
        };
        let baseline = said([-5.0, -3.0], [-0.1, -0.1]);
        let check = |log_probs, best, score: f64| {
            let got = Target.score(&said(log_probs, best), &baseline);
            assert!((got - score).abs() < 1e-6, "{log_probs:?}: {got}");
        };
        check([-0.5, -0.5], [-0.5, -0.5], 3.5);
        check([-0.5, -0.7], [-0.5, -0.68], 0.0); // another token is the likelier second
        assert_eq!(Target.score(&Observation::default(), &baseline), 0.0, "nothing was read");
    }
}
