//! Parents: the trials that may be mutated, and how the next one is chosen.

use rand::Rng as _;

use super::cell::Cell;
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
}

impl Entry {
    /// Makes an entry of a named seed.
    pub fn seed((seed, trial): (String, Trial)) -> Self {
        Self { trial, seed, mutators: Vec::new() }
    }
}

/// An evaluated trial.
#[derive(Debug, Clone)]
pub struct Offer {
    /// The trial as a parent; `None` for one that no mutator can change (an echo prompt).
    pub entry: Option<Entry>,
    /// Its best score over the pre-threshold.
    pub excess: f64,
    /// The number of its edits.
    pub edits: usize,
    /// True if its behaviour is new to the novelty map.
    pub new: bool,
    /// Its kind and effect; `None` where it scores nothing.
    pub cell: Option<Cell>,
}

/// The trials that may be mutated.
pub trait Parents {
    /// Picks a parent; `None` if there are none.
    fn pick(&mut self, rng: &mut Rng) -> Option<&Entry>;

    /// Takes an evaluated trial in, if it is worth it; returns what its mutator is paid for that,
    /// from 0 to 1.
    fn offer(&mut self, offer: Offer) -> f64;

    /// Returns the number of parents, seeds included.
    fn len(&self) -> usize;
}

/// Excess (score over pre-threshold) beyond which more counts as no better: one huge score must
/// hold neither the parents nor the bandit.
pub(super) const MAX_EXCESS: f64 = 4.0;

/// Share of the picks that go to the seeds: they keep the edits few.
const SEED_SHARE: f64 = 0.5;

/// Returns whether the next parent is to be a seed.
pub(super) fn picks_seed(rng: &mut Rng) -> bool {
    rng.random_bool(SEED_SHARE)
}

/// Draws an index in proportion to its weight; `None` of none.
pub(super) fn draw(weights: &[f64], rng: &mut Rng) -> Option<usize> {
    let mut left = rng.random::<f64>() * weights.iter().sum::<f64>();
    let chosen = weights.iter().position(|weight| {
        left -= weight;
        left <= 0.0
    });
    chosen.or(weights.len().checked_sub(1))
}
