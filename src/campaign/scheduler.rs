//! The choice of the next parent (a queue with energies) and of the next mutator (a bandit).

use rand::Rng as _;

use crate::edit::Trial;
use crate::rng::Rng;

/// A trial that may be mutated.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The trial.
    pub trial: Trial,
    /// Name of the seed it descends from.
    pub seed: String,
    /// The mutators applied, first to last.
    pub mutators: Vec<String>,
    /// Weight with which it is picked, before it was ever picked; a seed has 1.
    pub energy: f64,
    picks: u32,
}

/// Parents, chosen in proportion to energy over times chosen.
#[derive(Debug, Default)]
pub struct Queue {
    entries: Vec<Entry>,
    seeds: usize,
}

/// Entries besides the seeds; the weakest goes when there are more.
const CAPACITY: usize = 512;

/// Share of the picks that go to the seeds: they keep the edits few.
const SEED_SHARE: f64 = 0.5;

impl Queue {
    /// Makes a queue of named seeds, which never leave it.
    pub fn new(seeds: impl IntoIterator<Item = (String, Trial)>) -> Self {
        let entry =
            |(seed, trial)| Entry { trial, seed, mutators: Vec::new(), energy: 1.0, picks: 0 };
        let entries: Vec<Entry> = seeds.into_iter().map(entry).collect();
        Self { seeds: entries.len(), entries }
    }

    /// Returns the number of entries, seeds included.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Adds an entry; the weakest one that is no seed leaves where there are too many.
    pub fn push(&mut self, trial: Trial, seed: String, mutators: Vec<String>, energy: f64) {
        self.entries.push(Entry { trial, seed, mutators, energy, picks: 0 });
        if self.entries.len() > self.seeds + CAPACITY {
            let weakest = (self.seeds..self.entries.len())
                .min_by(|&a, &b| self.weight(a).total_cmp(&self.weight(b)));
            if let Some(weakest) = weakest {
                self.entries.remove(weakest);
            }
        }
    }

    /// Picks a parent.
    pub fn pick(&mut self, rng: &mut Rng) -> Option<&Entry> {
        let range = match rng.random_bool(SEED_SHARE) || self.entries.len() == self.seeds {
            true => 0..self.seeds,
            false => self.seeds..self.entries.len(),
        };
        let total: f64 = range.clone().map(|i| self.weight(i)).sum();
        let mut left = rng.random::<f64>() * total;
        let chosen = range.clone().find(|&i| {
            left -= self.weight(i);
            left <= 0.0
        });
        let chosen = chosen.or(range.last())?;
        let entry = self.entries.get_mut(chosen)?;
        entry.picks = entry.picks.saturating_add(1);
        Some(entry)
    }

    fn weight(&self, index: usize) -> f64 {
        let entry = &self.entries[index];
        entry.energy / f64::from(1 + entry.picks)
    }
}

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

/// Excess (score over pre-threshold) beyond which more counts as no better: one huge score must
/// hold neither the bandit nor the queue.
const MAX_EXCESS: f64 = 4.0;

/// Reward of a trial of new behaviour, and reward of each unit of excess. A trial that is new and
/// as far out as counts gets 0.2 + 4 * 0.2 = 1, as much as a finding.
const NOVELTY_REWARD: f64 = 0.2;
const EXCESS_REWARD: f64 = 0.2;

/// Reward of the first trial of a kind that failed against its controls.
const FINDING_REWARD: f64 = 1.0;

/// Energy of a trial that is new and scores nothing: a quarter of a seed's.
const NOVELTY_ENERGY: f64 = 0.25;

/// Returns the bandit's reward of a trial, from 0 to 1: whether its behaviour is new, and its best
/// score over the pre-threshold, which pays less the more often trials of its kind were judged
/// (`familiarity`, in powers of two).
pub fn reward(new: bool, excess: f64, familiarity: u32) -> f64 {
    let novelty = if new { NOVELTY_REWARD } else { 0.0 };
    novelty + f64::min(excess, MAX_EXCESS) * EXCESS_REWARD / f64::from(1 + familiarity)
}

/// Returns the reward of a trial that failed against its controls, after `known` others of its
/// kind.
pub fn finding_reward(known: u64) -> f64 {
    FINDING_REWARD / (1 + known) as f64
}

/// Returns the energy with which a trial of new behaviour enters the queue.
pub fn energy(excess: f64) -> f64 {
    NOVELTY_ENERGY + f64::min(excess, MAX_EXCESS)
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
    fn a_closed_arm_is_not_picked_unless_all_are_closed() {
        let (mut bandit, mut rng) = (Bandit::new(3), stream(1, "bandit"));
        (0..100).for_each(|_| bandit.reward(1, 1.0));
        assert!((0..200).all(|_| bandit.pick(|arm| arm != 1, &mut rng) != 1));
        assert!((0..200).any(|_| bandit.pick(|_| false, &mut rng) == 1));
    }

    #[test]
    fn the_queue_is_bounded_and_keeps_its_seeds() {
        let seed = Trial::new([1, 2], [3]);
        let mut queue = Queue::new([("a".to_string(), seed.clone())]);
        let mut rng = stream(1, "queue");
        assert_eq!(queue.pick(&mut rng).unwrap().trial, seed);
        for energy in 0..2000 {
            queue.push(seed.clone(), "a".into(), vec![], f64::from(energy));
        }
        assert_eq!(queue.len(), 1 + CAPACITY);
        assert!((0..50).any(|_| queue.pick(&mut rng).unwrap().energy == 1.0));
        assert!(Queue::default().pick(&mut rng).is_none());
    }
}
