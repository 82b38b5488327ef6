//! How much is still unseen, from how often what was seen was seen (Boehme 2018, "STADS: Software
//! Testing as Species Discovery").
//!
//! Good and Turing: the probability that the next sample is of a new kind is the share of samples
//! that are the only one of their kind. Chao (1984): of `f1` kinds seen once and `f2` seen twice,
//! at least about `f1^2 / (2 f2)` were not seen. Both assume that samples are drawn alike; a search
//! that turns to what is rare sees singletons sooner, so they are guides and no guarantees.

use serde::{Deserialize, Serialize};

/// Standard deviations of a 95% interval.
const Z: f64 = 1.96;

/// What was sampled so far: kinds, and how many were seen once and twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Samples, of which each shows one kind or none.
    pub samples: u64,
    /// Kinds that were seen.
    pub kinds: u64,
    /// Kinds that were seen once.
    pub once: u64,
    /// Kinds that were seen twice.
    pub twice: u64,
}

/// An estimate with a 95% interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Estimate {
    /// The estimate.
    pub value: f64,
    /// The lower end.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}

impl Seen {
    /// Takes the number of samples, and how often each kind was seen.
    pub fn new(samples: u64, counts: impl Iterator<Item = u64>) -> Self {
        let mut seen = Self { samples, kinds: 0, once: 0, twice: 0 };
        for count in counts.filter(|count| *count > 0) {
            seen.kinds += 1;
            seen.once += u64::from(count == 1);
            seen.twice += u64::from(count == 2);
        }
        seen
    }

    /// Returns the probability that the next `more` samples show a new kind (Good 1953), with the
    /// interval that comes from the number of kinds seen once, as a Poisson count.
    pub fn chance_of_new(&self, more: u64) -> Estimate {
        let (n, once) = (self.samples.max(1) as f64, self.once as f64);
        let chance = |once: f64| 1.0 - (-(more as f64) * (once / n).min(1.0)).exp();
        // The interval of a Poisson mean by its square root (Freeman and Tukey 1950).
        let low = (once.sqrt() - Z / 2.0).max(0.0).powi(2);
        let high = ((once + 1.0).sqrt() + Z / 2.0).powi(2);
        Estimate { value: chance(once), low: chance(low), high: chance(high) }
    }

    /// Returns how many kinds there are, seen or not: at least about so many (Chao 1984, corrected
    /// for small counts), with the interval of Chao 1987.
    pub fn kinds_in_all(&self) -> Estimate {
        self.estimate(&|once, twice| Self::unseen(once, twice), 0.0)
    }

    /// Returns how many kinds there will be after `more` samples (Chao et al. 2014, equation 9),
    /// with an interval for the number itself.
    pub fn kinds_after(&self, more: u64) -> Estimate {
        let n = self.samples.max(1) as f64;
        let new = |once: f64, twice: f64| {
            let unseen = Self::unseen(once, twice);
            if unseen <= 0.0 {
                return 0.0;
            }
            let rate = (once / (n * unseen + once)).min(1.0);
            unseen * (1.0 - (1.0 - rate).powf(more as f64))
        };
        // What will be found is a count around its mean.
        self.estimate(&new, 1.0)
    }

    fn unseen(once: f64, twice: f64) -> f64 {
        once * (once - 1.0).max(0.0) / (2.0 * (twice + 1.0))
    }

    /// Adds an estimate of new kinds to those that were seen. Its variance is that of the counts of
    /// kinds seen once and twice (by the delta method, from differences of one) and `own` times
    /// itself; the interval is log-normal, so it never begins below what was seen.
    fn estimate(&self, new: &dyn Fn(f64, f64) -> f64, own: f64) -> Estimate {
        let (once, twice, kinds) = (self.once as f64, self.twice as f64, self.kinds as f64);
        let value = new(once, twice);
        if value < 0.5 {
            // Hardly anything was seen once: as much as three samples of new kinds could have been
            // missed.
            return Estimate {
                value: kinds + value,
                low: kinds,
                high: kinds + value.max(1.0) + 2.0,
            };
        }
        let slope_once = (new(once + 1.0, twice) - new((once - 1.0).max(0.0), twice)) / 2.0;
        let slope_twice = (new(once, twice + 1.0) - new(once, (twice - 1.0).max(0.0))) / 2.0;
        let variance = slope_once * slope_once * once + slope_twice * slope_twice * twice.max(1.0);
        let relative = (variance + own * value) / (value * value);
        let factor = (Z * relative.ln_1p().sqrt()).exp();
        Estimate { value: kinds + value, low: kinds + value / factor, high: kinds + value * factor }
    }
}

#[cfg(test)]
mod tests {
    use rand::Rng as _;

    use super::*;
    use crate::rng;

    #[test]
    fn figures_by_hand() {
        let seen = Seen::new(1000, [900, 50, 2, 1, 1, 1, 1, 0].into_iter());
        assert_eq!(seen, Seen { samples: 1000, kinds: 7, once: 4, twice: 1 });
        // 4 * 3 / (2 * 2) unseen; 4 of 1,000 samples the only one of their kind.
        assert!((seen.kinds_in_all().value - 10.0).abs() < 1e-9);
        assert!((seen.chance_of_new(100).value - (1.0 - (-0.4f64).exp())).abs() < 1e-9);
        assert_eq!(seen.kinds_after(0).value, 7.0);
        let none = Seen::new(1000, [500, 500].into_iter());
        assert_eq!((none.kinds_in_all().value, none.chance_of_new(1000).value), (2.0, 0.0));
        assert!(none.chance_of_new(1000).high > 0.9, "1,000 more samples may show one");
        assert_eq!(Seen::new(0, [].into_iter()).kinds_after(1000).value, 0.0);
    }

    /// Kinds of very different frequency, most samples of none: the interval after a quarter of the
    /// samples holds what all of them show, nine times of ten.
    #[test]
    fn intervals_hold_what_is_found_later() {
        let (mut held, runs) = (0, 300);
        for seed in 0..runs {
            let mut rng = rng::stream(seed, "species");
            // The k-th kind has a probability of 0.05 / k^1.5, of 60 kinds.
            let cumulative: Vec<f64> = (1..=60)
                .scan(0.0, |sum, k| {
                    *sum += 0.05 / f64::from(k).powf(1.5);
                    Some(*sum)
                })
                .collect();
            let mut counts = vec![0u64; 60];
            let draw = |counts: &mut Vec<u64>, rng: &mut rng::Rng| {
                let at = rng.random::<f64>();
                if let Some(kind) = cumulative.iter().position(|sum| at < *sum) {
                    counts[kind] += 1;
                }
            };
            (0..5000).for_each(|_| draw(&mut counts, &mut rng));
            let seen = Seen::new(5000, counts.iter().copied());
            let after = seen.kinds_after(15_000);
            (0..15_000).for_each(|_| draw(&mut counts, &mut rng));
            let found = Seen::new(20_000, counts.iter().copied()).kinds as f64;
            held += u32::from((after.low.floor()..=after.high.ceil()).contains(&found));
        }
        let share = f64::from(held) / runs as f64;
        assert!((0.88..=0.995).contains(&share), "{share}");
    }
}
