//! Sets of lesioned parts, the measure over them, and which of them are run.
//!
//! Shares of variance depend on how sets are weighted, so the measure is a type of its own and is
//! named in every output. Where all sets can be run, all are, and each has the weight that the
//! measure gives it. Otherwise sets are drawn from the measure, and a set's weight is the number of
//! times it was drawn.

use rand::Rng as _;
use rand::seq::index;
use serde::Serialize;

use crate::rng;

/// A set of parts: their indices, ascending.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct PartSet(Vec<u32>);

impl PartSet {
    /// Makes a set of these indices, in any order.
    pub fn new(mut parts: Vec<u32>) -> Self {
        parts.sort_unstable();
        parts.dedup();
        Self(parts)
    }

    /// Returns the indices, ascending.
    pub fn parts(&self) -> &[u32] {
        &self.0
    }

    /// Returns the number of parts.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns whether a part is lesioned.
    pub fn contains(&self, part: u32) -> bool {
        self.0.binary_search(&part).is_ok()
    }

    /// Returns the number of parts that two sets have in common.
    pub fn overlap(&self, other: &Self) -> usize {
        let (mut a, mut b, mut common) = (&self.0[..], &other.0[..], 0);
        while let ([x, a_rest @ ..], [y, b_rest @ ..]) = (a, b) {
            match x.cmp(y) {
                std::cmp::Ordering::Less => a = a_rest,
                std::cmp::Ordering::Greater => b = b_rest,
                std::cmp::Ordering::Equal => (a, b, common) = (a_rest, b_rest, common + 1),
            }
        }
        common
    }

    /// Returns all subsets of at most `size` parts, the set itself included where it is that small.
    pub fn subsets(&self, size: usize) -> Vec<Self> {
        let mut subsets = vec![Self(Vec::new())];
        for &part in &self.0 {
            for at in 0..subsets.len() {
                if subsets[at].len() < size {
                    let mut larger = subsets[at].0.clone();
                    larger.push(part);
                    subsets.push(Self(larger));
                }
            }
        }
        subsets
    }
}

/// Returns all sets of at most `size` of `parts` parts, in lexicographic order.
pub fn all_sets(parts: usize, size: usize) -> Vec<PartSet> {
    let mut sets = PartSet((0..parts as u32).collect()).subsets(size);
    sets.sort_unstable();
    sets
}

/// Returns the number of sets of `size` of `parts` parts.
pub fn binomial(parts: usize, size: usize) -> f64 {
    (0..size)
        .map(|i| (parts as f64 - i as f64) / (i as f64 + 1.0))
        .product::<f64>()
        .max(0.0)
        .round()
}

/// Returns the number of sets of at most `size` of `parts` parts, the empty one included.
pub fn count(parts: usize, size: usize) -> f64 {
    (0..=size).map(|size| binomial(parts, size)).sum()
}

/// A probability measure over sets of parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Measure {
    /// Every size from 1 to `up_to` is as likely, and so is every set of one size.
    Sizes {
        /// The size of the largest sets.
        up_to: usize,
    },
    /// Every subset is as likely: each part is lesioned with probability 1/2.
    Subsets,
}

impl Measure {
    /// Returns the measure over sets of up to `up_to` of `parts` parts; sets of any size are all
    /// subsets.
    pub fn new(parts: usize, up_to: usize) -> Self {
        if up_to >= parts { Self::Subsets } else { Self::Sizes { up_to } }
    }

    /// Returns the size of the largest sets.
    pub fn largest(&self, parts: usize) -> usize {
        match *self {
            Self::Sizes { up_to } => up_to,
            Self::Subsets => parts,
        }
    }

    /// Returns the probability that a given part is lesioned.
    pub fn bias(&self, parts: usize) -> f64 {
        match *self {
            Self::Sizes { up_to } => (up_to as f64 + 1.0) / (2.0 * parts as f64),
            Self::Subsets => 0.5,
        }
    }

    /// Returns the probability of one set of this size.
    pub fn probability(&self, size: usize, parts: usize) -> f64 {
        match *self {
            Self::Sizes { up_to } if (1..=up_to).contains(&size) => {
                1.0 / (up_to as f64 * binomial(parts, size))
            }
            Self::Sizes { .. } => 0.0,
            Self::Subsets => 0.5f64.powi(parts as i32),
        }
    }

    fn draw(&self, parts: usize, rng: &mut rng::Rng) -> PartSet {
        let drawn: Vec<u32> = match *self {
            Self::Sizes { up_to } => {
                let size = rng.random_range(1..=up_to);
                index::sample(rng, parts, size).iter().map(|part| part as u32).collect()
            }
            Self::Subsets => (0..parts as u32).filter(|_| rng.random()).collect(),
        };
        PartSet::new(drawn)
    }
}

/// The sets that are run, and the weight of each in the measure.
#[derive(Debug, Clone)]
pub struct Design {
    /// The number of parts.
    pub parts: usize,
    /// The measure.
    pub measure: Measure,
    /// The sets, in lexicographic order; the empty set and all single parts are among them.
    pub sets: Vec<PartSet>,
    /// The weight of each set: its probability if all are run, else how often it was drawn.
    pub weights: Vec<f64>,
    /// True if every set that has a probability is run.
    pub exact: bool,
    /// True if all subsets of the parts are run.
    pub cube: bool,
}

impl Design {
    /// Chooses the sets: all subsets where there are at most `exact_sets`, or else all sets of the
    /// measure where those are so few, or else `draws` draws from the measure.
    pub fn new(parts: usize, measure: Measure, exact_sets: usize, draws: usize, seed: u64) -> Self {
        let largest = measure.largest(parts);
        let cube = Self::all_run(parts, parts, exact_sets);
        let exact = Self::all_run(parts, largest, exact_sets);
        if exact {
            let sets = all_sets(parts, if cube { parts } else { largest });
            let weights = sets.iter().map(|set| measure.probability(set.len(), parts)).collect();
            return Self { parts, measure, sets, weights, exact, cube };
        }
        let mut rng = rng::stream(seed, "sets of lesions");
        let mut drawn: std::collections::BTreeMap<PartSet, f64> =
            all_sets(parts, 1).into_iter().map(|set| (set, 0.0)).collect();
        for _ in 0..draws {
            *drawn.entry(measure.draw(parts, &mut rng)).or_default() += 1.0;
        }
        let (sets, weights) = drawn.into_iter().unzip();
        Self { parts, measure, sets, weights, exact: false, cube: false }
    }

    /// Returns whether all sets of at most `size` parts are run where up to `exact_sets` are.
    pub fn all_run(parts: usize, size: usize, exact_sets: usize) -> bool {
        count(parts, size) <= exact_sets as f64 + 1.0
    }

    /// Returns the place of a set among those that are run.
    pub fn find(&self, set: &PartSet) -> Option<usize> {
        self.sets.binary_search(set).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(parts: &[u32]) -> PartSet {
        PartSet::new(parts.to_vec())
    }

    #[test]
    fn sets_by_hand() {
        assert_eq!(set(&[5, 1, 3]).overlap(&set(&[3, 4, 5])), 2);
        assert_eq!(set(&[]).overlap(&set(&[3])), 0);
        assert!(set(&[2, 7]).contains(7) && !set(&[2, 7]).contains(3));
        let sizes = |n, k| all_sets(n, k).len();
        assert_eq!((sizes(4, 4), sizes(5, 2), sizes(8, 4)), (16, 16, 163));
        assert_eq!(all_sets(2, 2), [set(&[]), set(&[0]), set(&[0, 1]), set(&[1])]);
        assert_eq!([binomial(5, 2), binomial(8, 0), binomial(3, 4)], [10.0, 1.0, 0.0]);
    }

    #[test]
    fn probabilities_add_up_to_one() {
        for (parts, up_to) in [(5, 3), (6, 6), (12, 4)] {
            let measure = Measure::new(parts, up_to);
            let sets = all_sets(parts, parts);
            let p = |set: &PartSet| measure.probability(set.len(), parts);
            let sum: f64 = sets.iter().map(p).sum();
            assert!((sum - 1.0).abs() < 1e-12);
            let bias: f64 = sets.iter().filter(|set| set.contains(2)).map(p).sum();
            assert!((bias - measure.bias(parts)).abs() < 1e-12, "{bias}");
        }
    }

    #[test]
    fn few_sets_are_all_run_and_many_are_drawn() {
        let small = Design::new(8, Measure::new(8, 4), 4096, 100, 1);
        assert!(small.cube && small.exact && small.sets.len() == 256);
        assert_eq!(small.weights.iter().filter(|w| **w > 0.0).count(), 162);
        let medium = Design::new(8, Measure::new(8, 4), 200, 100, 1);
        assert!(!medium.cube && medium.exact && medium.sets.len() == 163);
        let large = Design::new(40, Measure::new(40, 4), 4096, 500, 1);
        assert!(!large.exact && large.sets.is_sorted());
        assert_eq!(large.weights.iter().sum::<f64>(), 500.0);
        assert!((0..40).all(|part| large.find(&set(&[part])).is_some()));
        assert!(large.find(&set(&[])).is_some() && large.sets.iter().all(|s| s.len() <= 4));
        let same = Design::new(40, Measure::new(40, 4), 4096, 500, 1);
        assert_eq!((large.sets, large.weights), (same.sets, same.weights));
    }
}
