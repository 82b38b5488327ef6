//! The choice of the next mutator: a bandit, and what its arms are paid.

use rand::Rng as _;

use super::parents::MAX_EXCESS;
use crate::rng::Rng;

/// Thompson sampling over arms with discounted Gaussian rewards.
///
/// A batch is drawn before any of its rewards is known, so a rule without randomness (UCB) would
/// give a whole batch to one arm; the discount lets an arm that has run dry be left.
#[derive(Debug, Clone)]
pub struct Bandit {
    /// Discounted trials and rewards of each arm.
    arms: Vec<(f64, f64)>,
}

/// Share of an arm's memory kept per trial of it: a thousand trials ago counts a third.
const KEEP: f64 = 0.999;

/// Reward expected of an arm that was never tried, as of one trial: what is untried looks good.
const OPTIMISM: f64 = 0.5;

/// Standard deviation of one reward, for the samples; rewards lie between 0 and 1.
const SPREAD: f64 = 0.5;

/// Share of the draws that go to any arm alike: a campaign's map should have no holes.
const EXPLORATION: f64 = 0.1;

impl Bandit {
    /// Makes a bandit of so many untried arms.
    pub fn new(arms: usize) -> Self {
        Self { arms: vec![(1.0, OPTIMISM); arms] }
    }

    /// Picks an arm, of those that `open` lets through where there are any.
    pub fn pick(&self, open: impl Fn(usize) -> bool, rng: &mut Rng) -> usize {
        let mut arms: Vec<usize> = (0..self.arms.len()).filter(|arm| open(*arm)).collect();
        if arms.is_empty() {
            arms = (0..self.arms.len()).collect();
        }
        let mut best = (f64::MIN, 0);
        for &arm in &arms {
            let (trials, reward) = self.arms[arm];
            let sample = reward / trials + normal(rng) * SPREAD / trials.sqrt();
            if sample > best.0 {
                best = (sample, arm);
            }
        }
        if rng.random_bool(EXPLORATION) { arms[rng.random_range(0..arms.len())] } else { best.1 }
    }

    /// Notes the reward of one trial of an arm, from 0 to 1.
    pub fn reward(&mut self, arm: usize, reward: f64) {
        if let Some((trials, sum)) = self.arms.get_mut(arm) {
            (*trials, *sum) = (*trials * KEEP + 1.0, *sum * KEEP + reward);
        }
    }
}

/// Reward of each unit of excess: a trial as far out as counts gets nearly as much as a finding.
const EXCESS_REWARD: f64 = 0.2;

/// Reward of the first trial of a kind that failed against its controls.
const FINDING_REWARD: f64 = 1.0;

/// Returns the reward of a trial's best score over the pre-threshold, which halves each time that
/// twice as many trials of its kind were judged (`familiarity`, in powers of two). With less of a
/// decay the mutator of the commonest kind gets most trials: a twin pays little, but always.
pub fn excess_reward(excess: f64, familiarity: u32) -> f64 {
    f64::min(excess, MAX_EXCESS) * EXCESS_REWARD * 0.5f64.powi(familiarity as i32)
}

/// Returns the reward of a trial that failed against its controls, after `known` others of its
/// kind.
pub fn finding_reward(known: u64) -> f64 {
    FINDING_REWARD / (1 + known) as f64
}

/// Draws from the standard normal distribution (Box and Muller).
fn normal(rng: &mut Rng) -> f64 {
    let (u, v): (f64, f64) = (rng.random(), rng.random());
    (-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::stream;

    #[test]
    fn the_bandit_finds_the_arm_that_pays_and_leaves_it_when_it_stops() {
        let (mut bandit, mut rng) = (Bandit::new(4), stream(1, "bandit"));
        let mut share = |paying: usize| {
            let mut counts = [0; 4];
            for _ in 0..6000 {
                let arm = bandit.pick(|_| true, &mut rng);
                counts[arm] += 1;
                bandit.reward(arm, if arm == paying { 0.8 } else { 0.1 });
            }
            counts[paying]
        };
        assert!(share(2) > 4500);
        assert!(share(0) > 2000);
    }

    #[test]
    fn the_hundredth_twin_pays_a_hundredth() {
        let familiarity = |judged: u64| u64::BITS - judged.leading_zeros();
        let first = excess_reward(9.0, familiarity(0));
        assert_eq!(first, MAX_EXCESS * EXCESS_REWARD);
        let hundredth = excess_reward(9.0, familiarity(100)) / first;
        assert!((0.005..0.02).contains(&hundredth), "{hundredth}");
        assert_eq!(excess_reward(9.0, u64::BITS) + 1.0, 1.0);
    }

    #[test]
    fn a_closed_arm_is_not_picked_unless_all_are_closed() {
        let (mut bandit, mut rng) = (Bandit::new(3), stream(1, "bandit"));
        (0..100).for_each(|_| bandit.reward(1, 1.0));
        assert!((0..200).all(|_| bandit.pick(|arm| arm != 1, &mut rng) != 1));
        assert!((0..200).any(|_| bandit.pick(|_| false, &mut rng) == 1));
    }
}
