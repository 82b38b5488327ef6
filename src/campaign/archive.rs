//! An archive of the best trial of each kind and effect (MAP-Elites: Mouret and Clune 2015,
//! "Illuminating search spaces by mapping elites"): parents come from cells that few trials fell
//! into.
//!
//! A queue in which high scores have energy breeds variants of the first finding. Here a cell has
//! one parent however many trials fall into it, and the more do, the less often it is picked.

use std::collections::BTreeMap;

use super::cell::Cell;
use super::parents::{Entry, MAX_EXCESS, Offer, Parents, draw, picks_seed};
use crate::edit::Trial;
use crate::rng::Rng;

/// The best trial of a cell.
#[derive(Debug)]
struct Elite {
    /// The trial; `None` for one that is no parent.
    entry: Option<Entry>,
    /// Its best score over the pre-threshold.
    excess: f64,
    /// The number of its edits.
    edits: usize,
    /// Trials that fell into the cell, and times that its elite was picked.
    visits: u32,
}

impl Elite {
    /// Returns how often it is picked, relative to others.
    fn weight(&self) -> f64 {
        if self.entry.is_some() { 1.0 / f64::from(self.visits) } else { 0.0 }
    }
}

/// Reward of the first trial of a cell; less where it does not stand out.
const CELL_REWARD: f64 = 1.0;

/// Reward of a trial that takes the place of an elite.
const ELITE_REWARD: f64 = 0.2;

/// Seeds, and the elites of the cells.
#[derive(Debug, Default)]
pub struct Archive {
    seeds: Vec<Entry>,
    /// Picks of a seed.
    picks: usize,
    cells: BTreeMap<Cell, Elite>,
}

impl Archive {
    /// Makes an archive of named seeds, which are picked in turn.
    pub fn new(seeds: impl IntoIterator<Item = (String, Trial)>) -> Self {
        let seeds = seeds.into_iter().map(Entry::seed).collect();
        Self { seeds, ..Self::default() }
    }

    fn pick_seed(&mut self) -> Option<&Entry> {
        let index = self.picks.checked_rem(self.seeds.len())?;
        self.picks += 1;
        self.seeds.get(index)
    }
}

impl Parents for Archive {
    fn pick(&mut self, rng: &mut Rng) -> Option<&Entry> {
        let weights: Vec<f64> = self.cells.values().map(Elite::weight).collect();
        if picks_seed(rng) || weights.iter().all(|weight| *weight == 0.0) {
            return self.pick_seed();
        }
        let elite = self.cells.values_mut().nth(draw(&weights, rng)?)?;
        elite.visits = elite.visits.saturating_add(1);
        elite.entry.as_ref()
    }

    fn offer(&mut self, Offer { entry, excess, cell, edits, .. }: Offer) -> f64 {
        let Some(cell) = cell else { return 0.0 };
        // Of those that stand out this much, the shortest is the elite.
        let excess = excess.min(MAX_EXCESS);
        let Some(elite) = self.cells.get_mut(&cell) else {
            self.cells.insert(cell, Elite { entry, excess, edits, visits: 1 });
            return CELL_REWARD * excess.min(1.0);
        };
        elite.visits = elite.visits.saturating_add(1);
        if excess < elite.excess || excess == elite.excess && edits >= elite.edits {
            return 0.0;
        }
        *elite = Elite { entry, excess, edits, ..*elite };
        ELITE_REWARD
    }

    fn len(&self) -> usize {
        self.seeds.len() + self.cells.values().filter(|elite| elite.entry.is_some()).count()
    }
}

#[cfg(test)]
mod tests {
    use super::super::cell::tests::{cell, head, trial};
    use super::*;
    use crate::rng::stream;

    fn offer(trial: &Trial, excess: f64) -> Offer {
        let entry = Some(Entry { trial: trial.clone(), seed: "b".into(), mutators: vec![] });
        let (edits, cell) = (trial.edits.len(), Some(cell(trial, 2.0)));
        Offer { entry, excess, edits, new: false, cell }
    }

    #[test]
    fn a_cell_keeps_its_best_and_of_these_its_shortest() {
        let mut archive = Archive::default();
        let (short, long) = (trial(&[head(1)]), trial(&[head(1), head(2)]));
        let offers = [(&long, 2.0), (&short, 1.0), (&short, 2.0), (&long, 9.0), (&short, 5.0)];
        let gains = offers.map(|(trial, excess)| archive.offer(offer(trial, excess)));
        let better = ELITE_REWARD;
        assert_eq!(gains, [CELL_REWARD, 0.0, better, better, better]);
        assert_eq!(archive.len(), 1);
        assert_eq!(archive.pick(&mut stream(1, "archive")).unwrap().trial, short);
        let nothing = Offer { cell: None, ..offer(&short, 0.0) };
        assert_eq!((archive.offer(nothing), archive.len()), (0.0, 1));
        let echo = Offer { entry: None, cell: Some(cell(&short, 9.0)), ..offer(&short, 1.0) };
        assert_eq!((archive.offer(echo), archive.len()), (CELL_REWARD, 1));
        // The first of a cell that stands out little is paid little.
        let other = Offer { cell: Some(cell(&short, 1.0)), ..offer(&short, 0.25) };
        assert_eq!((archive.offer(other), archive.len()), (0.25 * CELL_REWARD, 2));
    }

    #[test]
    fn parents_come_from_sparse_cells() {
        let mut archive = Archive::new([("a".to_string(), trial(&[]))]);
        let (rare, common) = (trial(&[head(1)]), trial(&[head(2)]));
        archive.offer(offer(&rare, 1.0));
        for _ in 0..500 {
            archive.offer(offer(&common, 1.0));
        }
        let mut rng = stream(1, "archive");
        let picked: Vec<Trial> =
            (0..300).map(|_| archive.pick(&mut rng).unwrap().trial.clone()).collect();
        let count = |trial: &Trial| picked.iter().filter(|picked| *picked == trial).count();
        assert!(count(&rare) > 3 * count(&common), "{} {}", count(&rare), count(&common));
        assert!((100..200).contains(&count(&trial(&[]))));
        assert!(Archive::default().pick(&mut rng).is_none());
    }
}
