//! Generation that degenerates: it loops, repeats a few tokens, or ends at once.

use crate::evaluate::Observation;
use crate::oracle::interface::Oracle;
use crate::text::{number, percent};

/// Scores how much more degenerate the greedy generation is than the baseline's, -1 to 1. Small
/// models loop on their own, so only the difference counts.
#[derive(Debug)]
pub struct Collapse;

/// Tokens generated: enough to see a loop of period 8 three times.
pub const GENERATE: usize = 24;

/// Longest period that is taken for a loop.
const MAX_PERIOD: usize = 8;

impl Oracle for Collapse {
    fn name(&self) -> &'static str {
        "collapse"
    }

    fn label(&self) -> &'static str {
        "collapse"
    }

    fn unit(&self) -> &'static str {
        ""
    }

    fn meaning(&self) -> &'static str {
        "Left to write on its own, the model falls into a loop or stops at once."
    }

    fn sentence(&self, cause: &str, score: f64) -> String {
        let score = number(score);
        format!(
            "{cause} makes the model's own writing degenerate, into a loop or an early end (score \
            {score})."
        )
    }

    fn effect(&self, _score: f64, _continuation: &str) -> String {
        "makes generation collapse".to_owned()
    }

    fn judges_mutations(&self) -> bool {
        true
    }

    fn generate(&self) -> usize {
        GENERATE
    }

    fn degenerates(&self) -> Option<fn(&Observation) -> bool> {
        Some(|observation| degeneracy(&observation.generated, GENERATE) >= Self.minimum())
    }

    fn score(&self, trial: &Observation, baseline: &Observation) -> f64 {
        degeneracy(&trial.generated, GENERATE) - degeneracy(&baseline.generated, GENERATE)
    }

    /// The share of the generated text that is no loop.
    fn baseline(&self, baseline: &Observation) -> f64 {
        1.0 - degeneracy(&baseline.generated, GENERATE)
    }

    fn baseline_sentence(&self, value: f64) -> String {
        format!("Without the edits {} of what it writes is varied text.", percent(value))
    }

    /// Ten of the 24 tokens.
    fn minimum(&self) -> f64 {
        0.4
    }
}

/// Returns 0 (varied text of full length) to 1 (one token over and over, or nothing at all).
fn degeneracy(generated: &[u32], asked: usize) -> f64 {
    if asked == 0 {
        return 0.0;
    }
    let missing = 1.0 - generated.len().min(asked) as f64 / asked as f64;
    let looping = looping_share(generated);
    let mut distinct = generated.to_vec();
    distinct.sort_unstable();
    distinct.dedup();
    // Ordinary text repeats some tokens too: fewer than half distinct begins to count.
    let repeated = if generated.len() < MAX_PERIOD {
        0.0
    } else {
        (1.0 - 2.0 * distinct.len() as f64 / generated.len() as f64).max(0.0)
    };
    missing.max(looping).max(repeated)
}

/// Returns the largest share of the text, from its end backwards, that repeats with a period; at
/// least three rounds, because twice may be style.
fn looping_share(ids: &[u32]) -> f64 {
    let mut longest = 0;
    for period in 1..=MAX_PERIOD.min(ids.len() / 3) {
        let repeats = (period..ids.len()).rev().take_while(|&i| ids[i] == ids[i - period]).count();
        if repeats >= 2 * period && repeats + period > longest {
            longest = repeats + period;
        }
    }
    longest as f64 / ids.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(ids: &[u32], expect: f64) {
        let got = degeneracy(ids, 12);
        assert!((got - expect).abs() < 1e-9, "{ids:?}: {got} is not {expect}");
    }

    #[test]
    fn degeneracy_by_hand() {
        check(&[], 1.0);
        check(&[1], 11.0 / 12.0);
        check(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12], 0.0);
        check(&[5; 12], 1.0);
        check(&[9, 8, 7, 1, 2, 3, 1, 2, 3, 1, 2, 3], 0.75);
        check(&[9, 8, 7, 6, 5, 4, 1, 2, 3, 1, 2, 3], 0.0); // twice only
        check(&[1, 2, 2, 1, 1, 2, 1, 1, 2, 2, 1, 2], 1.0 - 2.0 * 2.0 / 12.0);
    }

    #[test]
    fn only_the_difference_from_the_baseline_counts() {
        let looping = Observation { generated: vec![3; GENERATE], ..Default::default() };
        let varied =
            Observation { generated: (0..GENERATE as u32).collect(), ..Default::default() };
        assert_eq!(Collapse.score(&looping, &looping), 0.0);
        assert_eq!(Collapse.score(&looping, &varied), 1.0);
    }
}
