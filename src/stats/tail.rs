//! How improbable a score is that exceeds all controls: an exponential upper tail, fitted to the
//! controls without the largest of them.
//!
//! A rank among `n` controls cannot be rarer than 1 in `n + 1`, too little if as many scores are
//! tested. Beyond a high quantile the tails of many distributions are close to exponential
//! (Pickands 1975: a generalized Pareto with shape 0), whose scale is the mean excess. The largest
//! controls may be what is looked for, so they only count as being large: the scale is estimated
//! with right-censoring at a higher quantile (Epstein and Sobel 1953, "Life Testing").

use super::{p_value, quantile};

/// The tail begins at this quantile of the controls.
const FROM: f64 = 0.9;
/// Controls beyond this quantile are not told apart.
const CENSORED: f64 = 0.99;
/// The fewest controls that a tail is fitted to: 18 of them are in it and not censored.
const LEAST: usize = 200;

/// An upper tail.
#[derive(Debug, Clone)]
pub struct Tail<'a> {
    controls: &'a [f64],
    from: f64,
    scale: f64,
    /// Controls that the scale was estimated from.
    seen: f64,
}

impl<'a> Tail<'a> {
    /// Fits the tail of controls; `None` for fewer than 200, and for a tail without width.
    pub fn fit(controls: &'a [f64]) -> Option<Self> {
        if controls.len() < LEAST {
            return None;
        }
        let (from, censored) = (quantile(controls, FROM), quantile(controls, CENSORED));
        let beyond: Vec<f64> =
            controls.iter().filter(|c| **c > from).map(|c| c.min(censored) - from).collect();
        let seen = controls.iter().filter(|c| **c > from && **c < censored).count();
        let scale = beyond.iter().sum::<f64>() / seen as f64;
        let seen = seen as f64;
        (scale.is_finite() && scale > 0.0).then_some(Self { controls, from, scale, seen })
    }

    /// Returns the probability that a control scores as much: its rank among the controls, or the
    /// fitted tail beyond the quantile at which that begins. The scale is an estimate, so the tail
    /// is that of the prediction, a little heavier than exponential: exact for exponential excesses
    /// (Lawless 1971).
    pub fn p_value(&self, score: f64) -> f64 {
        if score <= self.from {
            return p_value(score, self.controls);
        }
        let excess = (score - self.from) / self.scale;
        (1.0 - FROM) * (1.0 + excess / self.seen).powf(-self.seen)
    }
}

#[cfg(test)]
mod tests {
    use rand::Rng as _;

    use super::*;
    use crate::rng;

    fn exponential(count: usize, scale: f64, seed: u64) -> Vec<f64> {
        let mut rng = rng::stream(seed, "tail");
        (0..count).map(|_| -scale * rng.random_range(f64::EPSILON..1.0).ln()).collect()
    }

    /// One in ten thousand, out of two thousand controls, a little more as the scale is estimated;
    /// outliers among them change little.
    #[test]
    fn a_tail_goes_on_beyond_its_controls() {
        let mut ratios = Vec::new();
        for seed in 0..20 {
            let mut controls = exponential(2000, 3.0, seed);
            controls.extend([500.0; 5]);
            let tail = Tail::fit(&controls).unwrap();
            let score = 3.0 * 1e4f64.ln();
            ratios.push(tail.p_value(score).log10());
        }
        let mean = ratios.iter().sum::<f64>() / 20.0;
        assert!((-4.0..-3.7).contains(&mean), "{mean}");
        assert!(ratios.iter().all(|p| (p + 4.0).abs() < 0.7), "{ratios:?}");
    }

    /// Scores like the controls: the share of p-values below each level is that level.
    #[test]
    fn scores_like_the_controls_have_uniform_p_values() {
        for (count, seeds) in [(2000, 1), (200, 400)] {
            let mut below = [0.0; 5];
            let levels = [0.5, 0.1, 0.01, 0.001, 1e-4];
            for seed in 0..seeds {
                let controls = exponential(count, 3.0, seed);
                let tail = Tail::fit(&controls).unwrap();
                // The probability that an exponential score has such a p-value, by bisection.
                for (below, level) in below.iter_mut().zip(levels) {
                    let (mut low, mut high) = (0.0, 200.0);
                    for _ in 0..60 {
                        let middle = 0.5 * (low + high);
                        match tail.p_value(middle) <= level {
                            true => high = middle,
                            false => low = middle,
                        }
                    }
                    *below += (-high / 3.0f64).exp() / seeds as f64;
                }
            }
            for (below, level) in below.into_iter().zip(levels) {
                assert!((below / level - 1.0).abs() < 0.5, "{count}: {level}: {below}");
            }
        }
    }

    #[test]
    fn what_has_no_tail_is_not_fitted() {
        assert!(Tail::fit(&exponential(199, 3.0, 1)).is_none());
        assert!(Tail::fit(&vec![1.0; 500]).is_none());
    }
}
