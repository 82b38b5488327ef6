//! The smallest strength that still passes a test, by refining a grid: each round tests several
//! points between the largest strength known to fail the test and the smallest known to pass it.

use crate::error::{Error, Result};

#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Points a round: `k` of them shrink the interval `k + 1` times.
    pub points: usize,
    /// The answer is within this share of itself (or of the initial strength's thousandth).
    pub tolerance: f32,
    pub max_calls: u64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Smallest {
    /// Passes the test; has the sign of the initial one.
    pub strength: f32,
    pub calls: u64,
    pub rounds: u64,
    /// The tolerance was reached before the calls ran out.
    pub tight: bool,
}

/// Searches between 0 (taken to fail the test: no edit at all) and `initial` (taken to pass). Where
/// the test is not monotone the answer passes and a slightly smaller one does not, which is all
/// that a local search can say.
pub fn smallest(
    initial: f32,
    test: &mut dyn FnMut(&[f32]) -> Result<Vec<bool>>,
    options: &Options,
) -> Result<Smallest> {
    let (mut low, mut high) = (0.0f32, initial);
    let mut found = Smallest { strength: initial, calls: 0, rounds: 0, tight: false };
    loop {
        if (high - low).abs() <= options.tolerance * high.abs().max(initial.abs() * 1e-3)
            || !initial.is_finite()
        {
            found.tight = true;
            return Ok(found);
        }
        let points = options
            .points
            .max(1)
            .min(options.max_calls.saturating_sub(found.calls).min(1 << 16) as usize);
        let mut grid: Vec<f32> =
            (1..=points).map(|i| low + (high - low) * (i as f32 / (points + 1) as f32)).collect();
        grid.retain(|&point| point != low && point != high);
        grid.dedup();
        if grid.is_empty() {
            // Out of calls, or out of floating-point numbers between the two.
            found.tight = points > 0;
            return Ok(found);
        }
        let answers = test(&grid)?;
        if answers.len() != grid.len() {
            return Err(Error::internal(format!(
                "{} answers to {} candidates",
                answers.len(),
                grid.len()
            )));
        }
        found.calls += grid.len() as u64;
        found.rounds += 1;
        match answers.iter().position(|&passes| passes) {
            Some(first) => {
                high = grid[first];
                low = if first == 0 { low } else { grid[first - 1] };
            }
            None => low = grid[grid.len() - 1],
        }
        found.strength = high;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_are_found_from_either_side_of_zero() {
        for (initial, threshold) in [
            (1.0, 0.5),
            (8.0, 0.013),
            (-2.0, 1.9),
            (-1.0, 0.25),
            (1e-3, 4e-4),
            (1.0, 0.0),
            (3.0, 3.0),
        ] {
            let mut calls = 0;
            let mut test = |points: &[f32]| {
                calls += points.len() as u64;
                Ok(points.iter().map(|p: &f32| p.abs() >= threshold).collect())
            };
            let options = Options { points: 8, tolerance: 0.02, max_calls: 1000 };
            let found = smallest(initial, &mut test, &options).unwrap();
            assert_eq!(found.calls, calls);
            assert!(found.tight && found.calls <= 64, "{initial} {threshold}: {found:?}");
            assert!(
                found.strength.abs() >= threshold
                    && found.strength.signum() == f32::signum(initial)
            );
            let slack = 0.0201 * found.strength.abs().max(initial.abs() * 1e-3);
            assert!(found.strength.abs() - threshold <= slack, "{initial} {threshold}: {found:?}");
        }
    }

    #[test]
    fn the_budget_holds() {
        for max_calls in 0..20 {
            let mut test = |points: &[f32]| Ok(points.iter().map(|p| *p >= 0.37).collect());
            let found =
                smallest(1.0, &mut test, &Options { points: 4, tolerance: 1e-3, max_calls })
                    .unwrap();
            assert!(found.calls <= max_calls && !found.tight && found.strength >= 0.37);
        }
    }
}
