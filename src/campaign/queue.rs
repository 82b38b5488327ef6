//! Parents as campaigns had them before they knew kinds: a queue with energies, for a search by
//! score.

use super::parents::{Entry, MAX_EXCESS, Offer, Parents, draw, picks_seed};
use crate::edit::Trial;
use crate::rng::Rng;

/// An entry that is picked in proportion to its energy over the number of its picks.
#[derive(Debug)]
struct Queued {
    entry: Entry,
    energy: f64,
    picks: u32,
}

impl Queued {
    fn weight(&self) -> f64 {
        self.energy / f64::from(1 + self.picks)
    }
}

/// Parents, chosen in proportion to energy over times chosen.
#[derive(Debug, Default)]
pub struct Queue {
    entries: Vec<Queued>,
    seeds: usize,
}

/// Entries besides the seeds; the weakest goes when there are more.
const CAPACITY: usize = 512;

/// Energy of a seed.
const SEED_ENERGY: f64 = 1.0;

/// Energy of a trial that is new and scores nothing.
const NOVELTY_ENERGY: f64 = 0.25;

/// Reward of a trial of new behaviour.
const NOVELTY_REWARD: f64 = 0.2;

impl Queue {
    /// Makes a queue of named seeds, which never leave it.
    pub fn new(seeds: impl IntoIterator<Item = (String, Trial)>) -> Self {
        let queued = |seed| Queued { entry: Entry::seed(seed), energy: SEED_ENERGY, picks: 0 };
        let entries: Vec<Queued> = seeds.into_iter().map(queued).collect();
        Self { seeds: entries.len(), entries }
    }
}

impl Parents for Queue {
    fn pick(&mut self, rng: &mut Rng) -> Option<&Entry> {
        let range = match picks_seed(rng) || self.entries.len() == self.seeds {
            true => 0..self.seeds,
            false => self.seeds..self.entries.len(),
        };
        let weights: Vec<f64> = self.entries[range.clone()].iter().map(Queued::weight).collect();
        let chosen = self.entries.get_mut(range.start + draw(&weights, rng)?)?;
        chosen.picks = chosen.picks.saturating_add(1);
        Some(&chosen.entry)
    }

    /// Adds a trial of new behaviour; the weakest one that is no seed leaves where there are too
    /// many.
    fn offer(&mut self, Offer { entry, excess, new, .. }: Offer) -> f64 {
        if !new {
            return 0.0;
        }
        let energy = NOVELTY_ENERGY + excess.min(MAX_EXCESS);
        self.entries.extend(entry.map(|entry| Queued { entry, energy, picks: 0 }));
        if self.entries.len() > self.seeds + CAPACITY {
            let weakest = (self.seeds..self.entries.len())
                .min_by(|&a, &b| self.entries[a].weight().total_cmp(&self.entries[b].weight()));
            if let Some(weakest) = weakest {
                self.entries.remove(weakest);
            }
        }
        NOVELTY_REWARD
    }

    fn len(&self) -> usize {
        self.entries.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::stream;

    #[test]
    fn the_queue_is_bounded_and_keeps_its_seeds() {
        let seed = Trial::new([1, 2], [3]);
        let mut queue = Queue::new([("a".to_string(), seed.clone())]);
        let mut rng = stream(1, "queue");
        assert_eq!(queue.pick(&mut rng).unwrap().trial, seed);
        let entry = Entry { trial: seed.clone(), seed: "b".into(), mutators: vec![] };
        let offer =
            |new| Offer { entry: Some(entry.clone()), excess: 2.0, edits: 0, new, cell: None };
        assert_eq!((queue.offer(offer(false)), queue.len()), (0.0, 1));
        for _ in 0..2000 {
            assert_eq!(queue.offer(offer(true)), NOVELTY_REWARD);
        }
        assert_eq!(queue.len(), 1 + CAPACITY);
        assert!((0..50).any(|_| queue.pick(&mut rng).unwrap().seed == "a"));
        assert!(Queue::default().pick(&mut rng).is_none());
    }
}
