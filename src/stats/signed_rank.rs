//! Wilcoxon's signed-rank test (1945) of paired differences.
//!
//! It asks only that under the null hypothesis each difference is as likely to be of one sign as of
//! the other, whatever its size. That holds by construction where both members of a pair were made
//! in the same way. One text with a huge difference counts as one text.

use super::{sorted, upper_tail};

/// The number of differences up to which the p-value is exact; above, the normal approximation.
const EXACT: usize = 64;

/// Returns the one-sided p-value for differences that tend to be positive: the probability, with
/// random signs, of a sum of the ranks of the positive ones at least as large. Zeros are left out,
/// ties get their mean rank, and NaN counts as zero. The smallest possible value of `n` differences
/// is `2^-n`.
pub fn signed_rank_p_value(differences: &[f64]) -> f64 {
    let differences: Vec<f64> =
        differences.iter().copied().filter(|d| !d.is_nan() && *d != 0.0).collect();
    let sizes = sorted(&differences.iter().map(|d| d.abs()).collect::<Vec<_>>());
    // Twice the rank, so that the mean ranks of ties are whole numbers.
    let double_rank = |size: f64| {
        let below = sizes.partition_point(|s| *s < size);
        let up_to = sizes.partition_point(|s| *s <= size);
        below + up_to + 1
    };
    let ranks: Vec<usize> = differences.iter().map(|d| double_rank(d.abs())).collect();
    let positive: usize =
        differences.iter().zip(&ranks).filter(|(d, _)| **d > 0.0).map(|(_, rank)| rank).sum();
    if ranks.len() <= EXACT { exact(&ranks, positive) } else { approximate(&ranks, positive) }
}

/// Returns the share of all choices of signs whose positive ranks sum to `sum` or more.
fn exact(ranks: &[usize], sum: usize) -> f64 {
    let mut share = vec![0.0; ranks.iter().sum::<usize>() + 1];
    share[0] = 1.0;
    for (done, rank) in ranks.iter().enumerate() {
        let largest: usize = ranks[..=done].iter().sum();
        for at in (0..=largest).rev() {
            let with = if at >= *rank { share[at - rank] } else { 0.0 };
            share[at] = 0.5 * (share[at] + with);
        }
    }
    // From the smallest terms on, so that a tail of 2^-64 is not lost.
    share[sum..].iter().rev().sum::<f64>().min(1.0)
}

fn approximate(ranks: &[usize], sum: usize) -> f64 {
    let total: usize = ranks.iter().sum();
    let variance: f64 = ranks.iter().map(|r| (*r as f64).powi(2) / 4.0).sum();
    upper_tail((sum as f64 - total as f64 / 2.0 - 0.5) / variance.sqrt())
}

#[cfg(test)]
mod tests {
    use rand::Rng as _;

    use super::*;
    use crate::rng;

    #[test]
    fn p_values_by_hand() {
        // All positive: one choice of signs in 2^n.
        assert_eq!(signed_rank_p_value(&[1.0, 2.0, 3.0, 4.0]), 1.0 / 16.0);
        assert_eq!(signed_rank_p_value(&[0.5; 16]), 2f64.powi(-16));
        // Ranks 1 to 4 with a negative 1: 9 or more is reached by {2,3,4} and {1,2,3,4}.
        assert_eq!(signed_rank_p_value(&[-1.0, 2.0, 3.0, 4.0]), 2.0 / 16.0);
        assert_eq!(signed_rank_p_value(&[-1.0, -2.0]), 1.0);
        // Ties at 1.5: W+ = 3 + 1.5, reached by {1.5, 3}, {1.5, 3} and all.
        assert_eq!(signed_rank_p_value(&[1.0, -1.0, 2.0]), 3.0 / 8.0);
        assert_eq!(signed_rank_p_value(&[]), 1.0);
        assert_eq!(signed_rank_p_value(&[0.0, f64::NAN, 1.0]), 0.5);
        // A loss that became infinite is the largest difference there is, and one text.
        assert_eq!(signed_rank_p_value(&[f64::INFINITY, 1.0, 2.0]), 1.0 / 8.0);
    }

    /// scipy.stats.wilcoxon(d, alternative="greater", method="exact"), scipy 1.17.
    #[test]
    fn p_values_are_those_of_scipy() {
        let d = [0.3, -0.1, 0.5, 0.7, -0.2, 0.9, 1.1, 0.05, -0.4, 0.6];
        assert!((signed_rank_p_value(&d) - 0.041_992_187_5).abs() < 1e-12);
    }

    #[test]
    fn both_forms_agree_and_are_uniform_under_the_null() {
        let mut rng = rng::stream(1, "signed ranks");
        let (mut low, runs) = (0, 4000);
        for _ in 0..runs {
            // Heavy tails, symmetric.
            let d: Vec<f64> = (0..24)
                .map(|_| rng.random_range(-1.0..1.0f64) / rng.random_range(1e-3..1.0))
                .collect();
            let sizes = sorted(&d.iter().map(|d| d.abs()).collect::<Vec<_>>());
            let ranks: Vec<usize> =
                d.iter().map(|d| 2 * (1 + sizes.partition_point(|s| *s < d.abs()))).collect();
            let sum: usize = d.iter().zip(&ranks).filter(|(d, _)| **d > 0.0).map(|(_, r)| r).sum();
            let (p, approximated) = (exact(&ranks, sum), approximate(&ranks, sum));
            assert!((p - approximated).abs() < 0.01, "{p} {approximated}");
            low += usize::from(p <= 0.05);
        }
        let share = low as f64 / runs as f64;
        assert!((0.04..0.06).contains(&share), "{share}");
    }
}
