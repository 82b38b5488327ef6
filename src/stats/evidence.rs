//! Evidence as bets: e-values, and the false discovery rate over a stream of them.
//!
//! An *e-value* is the factor by which a bet against the null hypothesis has multiplied its stake:
//! its mean is at most 1 if the hypothesis holds, so `1 / e` is a p-value (Ville's inequality).
//! E-values of independent pieces of evidence are multiplied. See Vovk and Wang 2021, "E-values:
//! calibration, combination and applications".

/// Returns the e-value of a rank: `as_extreme` of `controls` score at least as much as the trial,
/// which under the null hypothesis is any number from 0 to `controls` with the same probability
/// (ties only make it larger). The bet is in proportion to `p^(-1/2)`, with `p` the rank's p-value
/// (the calibrator of Vovk and Wang, section 2, for discrete ranks), so its mean is exactly 1.
pub fn rank_e_value(as_extreme: usize, controls: usize) -> f64 {
    let bet = |rank: usize| (rank as f64).powf(-0.5);
    let mean = (1..=controls + 1).map(bet).sum::<f64>() / (controls + 1) as f64;
    bet(as_extreme.min(controls) + 1) / mean
}

/// Returns the p-value of an e-value.
pub fn p_of_e(e_value: f64) -> f64 {
    if e_value.is_nan() { 1.0 } else { (1.0 / e_value).clamp(0.0, 1.0) }
}

/// The e-LOND procedure (Xu and Ramdas 2024, "Online multiple testing with e-values"): e-values
/// come one by one, each is decided at once, and the false discovery rate over all decisions so
/// far stays at or below `level`, whatever their dependence.
#[derive(Debug, Clone, PartialEq)]
pub struct Lond {
    level: f64,
    tested: u64,
    discoveries: u64,
}

impl Lond {
    /// Starts a stream with a false discovery rate of at most `level`.
    pub fn new(level: f64) -> Self {
        Self { level, tested: 0, discoveries: 0 }
    }

    /// Returns the e-value that the next hypothesis needs to be a discovery.
    pub fn needed(&self) -> f64 {
        1.0 / (self.level * share(self.tested + 1) * (self.discoveries + 1) as f64)
    }

    /// Takes the next e-value; returns whether it is a discovery.
    pub fn test(&mut self, e_value: f64) -> bool {
        let discovery = e_value >= self.needed();
        self.tested += 1;
        self.discoveries += u64::from(discovery);
        discovery
    }

    /// Returns how many hypotheses were tested, and how many are discoveries.
    pub fn counts(&self) -> (u64, u64) {
        (self.tested, self.discoveries)
    }
}

/// Share of the level that hypothesis `t` (from 1) is tested at: `1 / (t ln^2(t + 1))` over the
/// sum of these, which falls slowly, so that a long campaign can still find something.
fn share(t: u64) -> f64 {
    /// Upper bound of the sum over all `t`: that of the first million, and the integral from there.
    const SUM: f64 = 3.388;
    let t = t as f64;
    1.0 / (SUM * t * (t + 1.0).ln().powi(2))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng;
    use rand::Rng as _;

    #[test]
    fn a_rank_has_a_mean_of_one() {
        for controls in [0, 1, 8, 31, 64] {
            let mean = (0..=controls).map(|r| rank_e_value(r, controls)).sum::<f64>()
                / (controls + 1) as f64;
            assert!((mean - 1.0).abs() < 1e-9, "{controls}: {mean}");
        }
        assert_eq!(rank_e_value(0, 0), 1.0); // no controls, no evidence
        assert!((rank_e_value(0, 31) - 3.2188).abs() < 1e-3, "{}", rank_e_value(0, 31));
        assert!(rank_e_value(31, 31) < 0.6);
        assert_eq!((p_of_e(0.5), p_of_e(20.0), p_of_e(f64::NAN)), (1.0, 0.05, 1.0));
    }

    #[test]
    fn the_shares_sum_to_at_most_one() {
        let sum: f64 = (1..=1_000_000).map(share).sum();
        // The rest is at most the integral of 1 / (t ln^2 t), which is 1 / ln t.
        let rest = 1.0 / (3.388 * 1e6_f64.ln());
        assert!(sum + rest <= 1.0 && sum + rest > 0.99, "{sum} {rest}");
    }

    /// Streams of nulls and of nulls mixed with effects: the share of false discoveries.
    #[test]
    fn false_discoveries_stay_below_the_level() {
        let (mut all_null, mut mixed) = (0.0, 0.0);
        for seed in 0..400 {
            let mut rng = rng::stream(seed, "lond");
            let mut null =
                || (0..12).map(|_| rank_e_value(rng.random_range(0..=31), 31)).product::<f64>();
            let mut lond = Lond::new(0.05);
            let found = (0..50).filter(|_| lond.test(null())).count();
            all_null += f64::from(found > 0) / 400.0;
            let mut lond = Lond::new(0.05);
            let (mut right, mut wrong) = (0, 0);
            for i in 0..50 {
                match i % 2 {
                    0 => right += usize::from(lond.test(rank_e_value(0, 31).powi(12))),
                    _ => wrong += usize::from(lond.test(null())),
                }
            }
            assert_eq!((right, lond.counts().0), (25, 50));
            mixed += wrong as f64 / (right + wrong) as f64 / 400.0;
        }
        assert!(all_null <= 0.05 && mixed <= 0.05, "{all_null} {mixed}");
    }
}
