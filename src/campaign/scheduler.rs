//! Which parent and which mutator next: a queue with energies and a bandit.

use rand::Rng as _;

use crate::edit::Trial;
use crate::rng::Rng;

/// A trial that may be mutated.
#[derive(Debug, Clone)]
pub struct Entry {
    pub trial: Trial,
    /// Name of the seed it descends from.
    pub seed: String,
    /// The mutators applied, first to last.
    pub mutators: Vec<String>,
    /// How promising it looked when it came in.
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

impl Queue {
    /// A queue of seeds, which never leave it.
    pub fn new(seeds: impl IntoIterator<Item = (String, Trial)>) -> Self {
        let entry =
            |(seed, trial)| Entry { trial, seed, mutators: Vec::new(), energy: 1.0, picks: 0 };
        let entries: Vec<Entry> = seeds.into_iter().map(entry).collect();
        Self { seeds: entries.len(), entries }
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

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

    pub fn pick(&mut self, rng: &mut Rng) -> Option<&Entry> {
        // The seeds and the rest get half of the picks each: seeds keep the edits few.
        let range = match rng.random_bool(0.5) || self.entries.len() == self.seeds {
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

/// Share of an arm's memory kept per trial of it.
const KEEP: f64 = 0.999;

impl Bandit {
    pub fn new(arms: usize) -> Self {
        // One optimistic trial each: what has not been tried looks good.
        Self { arms: vec![(1.0, 0.5); arms] }
    }

    /// An arm, of those that `open` lets through where there are any.
    pub fn pick(&self, open: impl Fn(usize) -> bool, rng: &mut Rng) -> usize {
        let mut arms: Vec<usize> = (0..self.arms.len()).filter(|arm| open(*arm)).collect();
        if arms.is_empty() {
            arms = (0..self.arms.len()).collect();
        }
        let mut best = (f64::MIN, 0);
        for &arm in &arms {
            let (trials, reward) = self.arms[arm];
            let sample = reward / trials + normal(rng) * 0.5 / trials.sqrt();
            if sample > best.0 {
                best = (sample, arm);
            }
        }
        // Every arm keeps a tenth of the draws between them: a campaign's map should have no holes.
        if rng.random_bool(0.1) { arms[rng.random_range(0..arms.len())] } else { best.1 }
    }

    /// `reward` between 0 and 1.
    pub fn reward(&mut self, arm: usize, reward: f64) {
        if let Some((trials, sum)) = self.arms.get_mut(arm) {
            (*trials, *sum) = (*trials * KEEP + 1.0, *sum * KEEP + reward);
        }
    }
}

/// Box and Muller.
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
