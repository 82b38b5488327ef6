//! Finds the smallest strength that still passes a test, by refining a grid.
//!
//! Each round tests several points between the largest strength known to fail and the smallest
//! known to pass, all in one batch: with `k` points the interval shrinks `k + 1` times, where
//! bisection would halve it.

use crate::error::{Error, Result};

/// Options of [`smallest`].
#[derive(Debug, Clone, Copy)]
pub struct StrengthOptions {
    /// The number of points in a round.
    pub points: usize,
    /// The answer is within this share of itself (or of a thousandth of the initial strength).
    pub tolerance: f32,
    /// The number of strengths that may be tested.
    pub max_calls: u64,
}

/// The result of a search.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Smallest {
    /// A strength that passes the test, with the sign of the initial one.
    pub strength: f32,
    /// The number of strengths tested.
    pub calls: u64,
    /// The number of batches they came in.
    pub rounds: u64,
    /// True if the tolerance was reached before the calls ran out.
    pub tight: bool,
}

/// Searches between 0 (no edit at all, assumed to fail the test) and `initial` (assumed to pass).
///
/// If the test is not monotone, the answer passes and a slightly smaller strength does not, which
/// is all that a local search can establish.
///
/// # Errors
/// Errors of the test; [`Error::Internal`] if it does not give one answer for each strength.
pub fn smallest(
    initial: f32,
    test: &mut dyn FnMut(&[f32]) -> Result<Vec<bool>>,
    options: &StrengthOptions,
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
            // No calls are left, or no floating-point numbers between the two.
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
            let options = StrengthOptions { points: 8, tolerance: 0.02, max_calls: 1000 };
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
            let found = smallest(
                1.0,
                &mut test,
                &StrengthOptions { points: 4, tolerance: 1e-3, max_calls },
            )
            .unwrap();
            assert!(found.calls <= max_calls && !found.tight && found.strength >= 0.37);
        }
    }
}
