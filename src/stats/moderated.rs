//! Variances of many groups, each measured on few values: shrunk towards what the groups have in
//! common (Smyth 2004, "Linear models and empirical Bayes methods for assessing differential
//! expression in microarray experiments", sections 3 and 6.2).
//!
//! The groups' variances are taken to be drawn from a scaled inverse chi-squared distribution,
//! which is fitted to their logarithms. A t statistic with the shrunk variance has more degrees of
//! freedom than the group alone gives, and unlike one with a pooled variance it holds its rate
//! where some groups vary more than others.

use statrs::distribution::{ContinuousCDF as _, StudentsT};
use statrs::function::gamma::digamma;

/// Returns for each group the two-sided p-value of a value being one more draw of the group's: a
/// pair of the value and the draws. The groups should have equally many draws. It is 1 where the
/// value or a draw is not finite, and where there are fewer than two draws.
pub fn moderated_p_values(groups: &[(f64, &[f64])]) -> Vec<f64> {
    let moments: Vec<Option<(f64, f64)>> = groups.iter().map(|(_, draws)| moments(draws)).collect();
    let degrees = |draws: &[f64]| draws.len().saturating_sub(1) as f64;
    let several = groups.iter().map(|(_, draws)| degrees(draws)).filter(|degrees| *degrees > 0.0);
    let least = several.fold(f64::INFINITY, f64::min);
    let variances: Vec<f64> = moments.iter().flatten().map(|(_, variance)| *variance).collect();
    let common = CommonVariance::fit(&variances, least);
    let p_value = |value: f64, draws: &[f64], moments: Option<(f64, f64)>| {
        let ((mean, variance), common) = (moments?, common?);
        let (variance, degrees) = common.shrink(variance, degrees(draws));
        let of_one_more = variance * (1.0 + 1.0 / draws.len() as f64);
        let t = (value - mean).abs() / of_one_more.sqrt();
        Some(2.0 * StudentsT::new(0.0, 1.0, degrees).ok()?.sf(t)).filter(|_| value.is_finite())
    };
    let all = groups.iter().zip(moments);
    all.map(|(&(value, draws), moments)| p_value(value, draws, moments).unwrap_or(1.0)).collect()
}

/// Returns mean and variance; `None` for fewer than two values or one that is not finite.
fn moments(values: &[f64]) -> Option<(f64, f64)> {
    if values.len() < 2 || !values.iter().all(|x| x.is_finite()) {
        return None;
    }
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares = values.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>();
    Some((mean, squares / (n - 1.0)))
}

/// The least variance that counts, as a share of the median: one of zero has no logarithm.
const LEAST_SHARE: f64 = 1e-5;

/// What the variances of many groups have in common.
#[derive(Debug, Clone, Copy, PartialEq)]
struct CommonVariance {
    /// The variance they are shrunk towards.
    variance: f64,
    /// The degrees of freedom that it counts for; infinite if the groups do not differ.
    degrees_of_freedom: f64,
    /// The degrees of freedom of all groups together.
    pooled: f64,
}

impl CommonVariance {
    /// Fits the variances of groups with `degrees_of_freedom` each. `None` without a variance above
    /// zero or without degrees of freedom.
    fn fit(variances: &[f64], degrees_of_freedom: f64) -> Option<Self> {
        let least = LEAST_SHARE * super::median(variances);
        let pooled = degrees_of_freedom * variances.len() as f64;
        if !(pooled > 0.0 && variances.iter().all(|v| v.is_finite())) {
            return None;
        }
        let half = degrees_of_freedom / 2.0;
        // Logarithms, less what the logarithm of a chi-squared variable adds.
        let logs: Vec<f64> = variances
            .iter()
            .map(|v| v.max(least))
            .filter(|v| *v > 0.0)
            .map(|v| v.ln() - digamma(half) + half.ln())
            .collect();
        let n = logs.len() as f64;
        let mean = logs.iter().sum::<f64>() / n;
        if logs.is_empty() {
            return None;
        }
        let between = logs.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / (n - 1.0);
        let excess = between - trigamma(half);
        Some(if excess > 0.0 {
            let d0 = 2.0 * trigamma_inverse(excess);
            let variance = (mean + digamma(d0 / 2.0) - (d0 / 2.0).ln()).exp();
            Self { variance, degrees_of_freedom: d0, pooled }
        } else {
            // They differ no more than by chance, or there is only one.
            let variance = variances.iter().sum::<f64>() / variances.len() as f64;
            Self { variance, degrees_of_freedom: f64::INFINITY, pooled }
        })
    }

    /// Shrinks the variance of a group with these degrees of freedom. Returns it with the degrees
    /// of freedom of a t statistic that uses it.
    fn shrink(&self, variance: f64, degrees_of_freedom: f64) -> (f64, f64) {
        let d0 = self.degrees_of_freedom;
        let shrunk = match d0.is_finite() {
            true => {
                (d0 * self.variance + degrees_of_freedom * variance) / (d0 + degrees_of_freedom)
            }
            false => self.variance,
        };
        (shrunk, (d0 + degrees_of_freedom).min(self.pooled))
    }
}

/// Returns the second derivative of the logarithm of the gamma function, for `x > 0`.
fn trigamma(x: f64) -> f64 {
    // Recurrence up to where the asymptotic series holds (Abramowitz and Stegun 1964, 6.4.6 and
    // 6.4.12).
    let (mut x, mut sum) = (x, 0.0);
    while x < 10.0 {
        sum += 1.0 / (x * x);
        x += 1.0;
    }
    let y = 1.0 / (x * x);
    sum + 1.0 / x + y / 2.0 + y / x * (1.0 / 6.0 - y * (1.0 / 30.0 - y * (1.0 / 42.0 - y / 30.0)))
}

/// Returns the `x` at which [`trigamma`] is `y`, for `y > 0`. It falls from infinity to zero.
fn trigamma_inverse(y: f64) -> f64 {
    let (mut low, mut high) = (1e-8f64, 1e8f64);
    // Halving on a logarithmic scale: 60 steps leave a relative error of 1e-16.
    for _ in 0..60 {
        let middle = (low * high).sqrt();
        if trigamma(middle) > y { low = middle } else { high = middle }
    }
    (low * high).sqrt()
}

#[cfg(test)]
mod tests {
    use rand::Rng as _;

    use super::*;
    use crate::rng;

    #[test]
    fn trigamma_is_that_of_tables() {
        let pi_squared = std::f64::consts::PI.powi(2);
        for (x, expected) in
            [(1.0, pi_squared / 6.0), (0.5, pi_squared / 2.0), (2.0, pi_squared / 6.0 - 1.0)]
        {
            assert!((trigamma(x) - expected).abs() < 1e-10, "{x}");
            assert!((trigamma_inverse(expected) / x - 1.0).abs() < 1e-9, "{x}");
        }
    }

    /// A normal deviate, near enough.
    fn normal(rng: &mut rng::Rng) -> f64 {
        (0..12).map(|_| rng.random_range(-0.5..0.5f64)).sum()
    }

    /// Variances of `groups` groups with 7 degrees of freedom; every deviation is `scale(group)`.
    fn variances(groups: usize, scale: impl Fn(usize) -> f64) -> Vec<f64> {
        let mut rng = rng::stream(1, "variances");
        let of = |scale: f64, rng: &mut rng::Rng| {
            let x: Vec<f64> = (0..8).map(|_| scale * normal(rng)).collect();
            let mean = x.iter().sum::<f64>() / 8.0;
            x.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / 7.0
        };
        (0..groups).map(|i| of(scale(i), &mut rng)).collect()
    }

    #[test]
    fn groups_of_one_variance_are_pooled_and_others_keep_theirs() {
        let same = CommonVariance::fit(&variances(400, |_| 0.5), 7.0).unwrap();
        let (variance, degrees) = same.shrink(1.0, 7.0);
        assert!((0.23..0.30).contains(&variance) && degrees > 60.0, "{variance} {degrees}");
        // A third of the deviations are four times as large.
        let mixed = variances(400, |i| if i.is_multiple_of(3) { 2.0 } else { 0.5 });
        let mixed = CommonVariance::fit(&mixed, 7.0).unwrap();
        let (small, degrees) = mixed.shrink(0.25, 7.0);
        assert!((0.2..0.4).contains(&small) && (8.0..12.0).contains(&degrees), "{small} {degrees}");
        assert!(mixed.shrink(4.0, 7.0).0 > 2.0);
    }

    #[test]
    fn one_group_and_groups_without_variance_are_no_exception() {
        let one = CommonVariance::fit(&[0.09], 3.0).unwrap();
        assert_eq!(one.shrink(0.09, 3.0), (0.09, 3.0));
        assert_eq!(CommonVariance::fit(&[0.0, 0.0], 3.0), None);
        assert_eq!(CommonVariance::fit(&[], 3.0), None);
        assert_eq!(CommonVariance::fit(&[0.1], 0.0), None);
        assert_eq!(CommonVariance::fit(&[f64::NAN, 0.1], 3.0), None);
        let with_zero = CommonVariance::fit(&[0.0, 0.1, 0.2, 0.1], 3.0).unwrap();
        assert!(with_zero.shrink(0.1, 3.0).0.is_finite());
    }
}
