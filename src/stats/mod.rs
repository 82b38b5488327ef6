//! The statistics of verdicts and sweeps: order statistics, false discovery rate, intervals.
//!
//! Everything here takes plain slices and is total: no input panics, and NaN sorts last, because
//! the numbers come from models that may well produce NaN.

pub mod evidence;
mod moderated;
mod rotation;
pub mod sequential;
mod signed_rank;
mod tail;
mod unseen;
mod walsh_hadamard;

pub use moderated::moderated_p_values;
pub use rotation::Rotation;
pub use signed_rank::signed_rank_p_value;
pub use tail::Tail;
pub use unseen::{Estimate, Seen};
pub use walsh_hadamard::walsh_hadamard;

/// Returns a copy in ascending order (NaN last).
pub fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// Returns the `q`-quantile (0 to 1), linear between neighbours (type 7, as R and numpy do); NaN
/// when empty.
pub fn quantile(values: &[f64], q: f64) -> f64 {
    let sorted = sorted(values);
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let at = q.clamp(0.0, 1.0) * last as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    // Equal neighbours first: between two infinities the interpolation would be NaN.
    if low == high { low } else { low + (high - low) * at.fract() }
}

/// Returns the mean; 0 when empty.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// Returns the median; NaN when empty.
pub fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// Ratio of a normal's standard deviation to its median absolute deviation, `1 / Phi^-1(3/4)`.
pub const MAD_TO_DEVIATION: f64 = 1.4826;

/// Returns the median absolute deviation from the median; times [`MAD_TO_DEVIATION`] it estimates a
/// normal's standard deviation.
pub fn mad(values: &[f64]) -> f64 {
    let centre = median(values);
    median(&values.iter().map(|v| (v - centre).abs()).collect::<Vec<_>>())
}

/// Returns Benjamini-Hochberg q-values (1995), in the order of the p-values given: the smallest
/// false discovery rate at which each would be called a discovery.
pub fn q_values(p_values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p_values.len()).collect();
    order.sort_by(|&a, &b| p_values[a].total_cmp(&p_values[b]));
    let mut q = vec![1.0; p_values.len()];
    let mut smallest = 1.0_f64;
    // From the largest p-value down, so that a q-value never exceeds that of a larger p-value.
    for (rank, &index) in order.iter().enumerate().rev() {
        smallest = smallest.min(p_values[index] * p_values.len() as f64 / (rank + 1) as f64);
        q[index] = smallest;
    }
    q
}

/// Returns the one-sided p-value of a score by its rank among controls,
/// `(1 + #{c >= score}) / (1 + n)`. It is never zero: `n` controls cannot show anything rarer than
/// 1 in `n + 1`.
pub fn p_value(score: f64, controls: &[f64]) -> f64 {
    let at_least = controls.iter().filter(|c| c.total_cmp(&score).is_ge()).count();
    (1 + at_least) as f64 / (1 + controls.len()) as f64
}

/// Returns the [`p_value`] of many scores against one pool of controls, in `O((n + m) log m)`.
pub fn p_values(scores: &[f64], controls: &[f64]) -> Vec<f64> {
    let pool = sorted(controls);
    let rank = |score: &f64| pool.len() - pool.partition_point(|c| c.total_cmp(score).is_lt());
    scores.iter().map(|score| (1 + rank(score)) as f64 / (1 + pool.len()) as f64).collect()
}

/// Returns Wilson's score interval of a proportion at `z` standard deviations (1.96: 95%).
pub fn wilson(successes: u64, trials: u64, z: f64) -> (f64, f64) {
    if trials == 0 {
        return (0.0, 1.0);
    }
    let (n, p) = (trials as f64, successes as f64 / trials as f64);
    let denominator = 1.0 + z * z / n;
    let centre = (p + z * z / (2.0 * n)) / denominator;
    let half = z / denominator * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt();
    ((centre - half).max(0.0), (centre + half).min(1.0))
}

/// Returns half the width of the 95% confidence interval of a mean by Student's t; 0 for a single
/// value.
pub fn t_half_width(values: &[f64]) -> f64 {
    /// 97.5% quantiles by degrees of freedom, from 1 on.
    const QUANTILES: [f64; 12] =
        [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179];
    let n = values.len();
    if n < 2 {
        return 0.0;
    }
    let mean = values.iter().sum::<f64>() / n as f64;
    let variance = values.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / (n - 1) as f64;
    // Beyond the table the last entry is a little too wide, which is the safe side.
    QUANTILES[(n - 2).min(QUANTILES.len() - 1)] * (variance / n as f64).sqrt()
}

/// Returns `P(Z >= z)` of a standard normal: Abramowitz and Stegun 7.1.26, absolute error below
/// 1.5e-7, and the asymptotic form in the far tail, where the value is smaller than that error.
pub fn upper_tail(z: f64) -> f64 {
    if z > 4.0 {
        return (-0.5 * z * z).exp() / (z * (std::f64::consts::TAU).sqrt()) * (1.0 - 1.0 / (z * z));
    }
    if z < 0.0 {
        return 1.0 - upper_tail(-z);
    }
    let x = z / std::f64::consts::SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * x);
    let poly = t
        * (0.254_829_592
            + t * (-0.284_496_736
                + t * (1.421_413_741 + t * (-1.453_152_027 + t * 1.061_405_429))));
    0.5 * poly * (-x * x).exp()
}

/// Returns Spearman's rank correlation, ties at their mean rank; `None` when it is undefined (fewer
/// than two pairs, unequal lengths, or a side that is constant).
pub fn spearman(a: &[f64], b: &[f64]) -> Option<f64> {
    if a.len() != b.len() || a.len() < 2 {
        return None;
    }
    let (a, b) = (ranks(a), ranks(b));
    let mean = (a.len() + 1) as f64 / 2.0;
    let (mut covariance, mut variance_a, mut variance_b) = (0.0, 0.0, 0.0);
    for (x, y) in a.iter().zip(&b) {
        covariance += (x - mean) * (y - mean);
        variance_a += (x - mean) * (x - mean);
        variance_b += (y - mean) * (y - mean);
    }
    let scale = (variance_a * variance_b).sqrt();
    (scale > 0.0).then(|| (covariance / scale).clamp(-1.0, 1.0))
}

/// Returns ranks from 1, ties at their mean.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut start = 0;
    while start < order.len() {
        let tied = order[start..]
            .iter()
            .take_while(|&&i| values[i] == values[order[start]])
            .count()
            .max(1);
        for &index in &order[start..start + tied] {
            ranks[index] = start as f64 + (tied + 1) as f64 / 2.0;
        }
        start += tied;
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn close(got: f64, expect: f64) {
        assert!((got - expect).abs() < 1e-6, "{got} is not {expect}");
    }

    #[test]
    fn quantiles_interpolate_as_numpy_does() {
        close(quantile(&[4.0, 1.0, 3.0, 2.0], 0.25), 1.75);
        close(quantile(&[4.0, 1.0, 3.0, 2.0], 1.0), 4.0);
        close(median(&[3.0, 1.0, 2.0]), 2.0);
        close(median(&[7.0]), 7.0);
        assert_eq!(median(&[f64::INFINITY, f64::INFINITY]), f64::INFINITY);
        assert!(median(&[]).is_nan());
        close(mad(&[1.0, 1.0, 2.0, 2.0, 4.0, 6.0, 9.0]), 1.0);
    }

    #[test]
    fn the_normal_tail_is_right() {
        for (z, p) in [
            (0.0, 0.5),
            (1.0, 0.158_655_25),
            (1.96, 0.024_997_9),
            (-1.0, 0.841_344_75),
            (5.0, 2.866_5e-7),
        ] {
            assert!((upper_tail(z) / p - 1.0f64).abs() < 5e-3, "{z}: {} not {p}", upper_tail(z));
        }
    }

    #[test]
    fn q_values_by_hand() {
        // p sorted: .01 .02 .03 .5, times 4/rank: .04 .04 .04 .5
        let q = q_values(&[0.03, 0.5, 0.01, 0.02]);
        for (got, expect) in q.iter().zip([0.04, 0.5, 0.04, 0.04]) {
            close(*got, expect);
        }
        assert!(q_values(&[]).is_empty());
    }

    #[test]
    fn p_values_count_ranks() {
        close(p_value(3.0, &[1.0, 2.0, 3.0, 4.0]), 0.6);
        close(p_value(5.0, &[1.0, 2.0, 3.0, 4.0]), 0.2);
        close(p_value(0.0, &[]), 1.0);
    }

    #[test]
    fn intervals_and_correlation_by_hand() {
        let (low, high) = wilson(8, 10, 1.96);
        assert!((low - 0.4902).abs() < 1e-3 && (high - 0.9433).abs() < 1e-3, "{low} {high}");
        assert_eq!(wilson(0, 0, 1.96), (0.0, 1.0));
        close(spearman(&[1.0, 2.0, 3.0], &[10.0, 20.0, 15.0]).unwrap(), 0.5);
        close(spearman(&[1.0, 2.0, 2.0, 3.0], &[1.0, 2.0, 2.0, 3.0]).unwrap(), 1.0);
        assert_eq!(spearman(&[1.0, 1.0], &[1.0, 2.0]), None);
        assert_eq!(spearman(&[1.0], &[1.0]), None);
    }

    proptest! {
        #[test]
        fn q_values_are_monotone_and_never_below_p(
            p in prop::collection::vec(0.0..=1.0_f64, 1..40),
        ) {
            let q = q_values(&p);
            for i in 0..p.len() {
                prop_assert!(q[i] >= p[i] - 1e-12 && q[i] <= 1.0);
                for j in 0..p.len() {
                    prop_assert!(p[i] > p[j] || q[i] <= q[j]);
                }
            }
        }

        #[test]
        fn pooled_p_values_are_the_single_ones(
            scores in prop::collection::vec(-3..3_i32, 0..20),
            pool in prop::collection::vec(-3..3_i32, 0..20),
        ) {
            let scores: Vec<f64> = scores.into_iter().map(f64::from).collect();
            let pool: Vec<f64> = pool.into_iter().map(f64::from).collect();
            let expect: Vec<f64> = scores.iter().map(|&s| p_value(s, &pool)).collect();
            prop_assert_eq!(p_values(&scores, &pool), expect);
        }

        #[test]
        fn quantiles_grow_and_stay_within(
            values in prop::collection::vec(-1e3..1e3_f64, 1..30),
            a in 0.0..1.0_f64,
            b in 0.0..1.0_f64,
        ) {
            let (low, high) = (quantile(&values, a.min(b)), quantile(&values, a.max(b)));
            prop_assert!(low <= high + 1e-9);
            prop_assert!(quantile(&values, 0.0) <= low && high <= quantile(&values, 1.0));
        }
    }
}
