//! Shares of variance with their intervals: percentile bootstraps over texts and, where sets were
//! drawn, over sets.

use rand::Rng as _;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::regression::ByText;
use super::unlearned::Unlearned;
use crate::{rng, stats};

/// Bootstrap replicates.
const REPLICATES: usize = 1000;

/// A figure with its 95% interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Estimate {
    /// The figure.
    pub value: f64,
    /// Its interval; `None` for a single text.
    pub interval: Option<(f64, f64)>,
}

/// A figure in each replicate, by which figures are compared within replicates.
#[derive(Debug, Clone)]
pub struct Replicated {
    /// The figure on the texts and sets as they are.
    pub value: f64,
    /// The figure in each replicate; none for a single text.
    pub replicates: Vec<f64>,
}

impl Replicated {
    /// Returns the figure with its percentile interval.
    pub fn estimate(&self) -> Estimate {
        let ends = || [0.025, 0.975].map(|q| stats::quantile(&self.replicates, q));
        let interval = (!self.replicates.is_empty()).then(ends).map(|[low, high]| (low, high));
        Estimate { value: self.value, interval }
    }

    /// Returns the difference, replicate by replicate.
    pub fn minus(&self, other: &Self) -> Self {
        self.with(other, |a, b| a - b)
    }

    /// Returns the sum, replicate by replicate.
    pub fn plus(&self, other: &Self) -> Self {
        self.with(other, |a, b| a + b)
    }

    fn with(&self, other: &Self, f: impl Fn(f64, f64) -> f64) -> Self {
        let pairs = self.replicates.iter().zip(&other.replicates);
        let replicates = pairs.map(|(a, b)| f(*a, *b)).collect();
        Self { value: f(self.value, other.value), replicates }
    }
}

/// The number of times that a bootstrap counts each text, and each set.
struct Counts {
    texts: Vec<f64>,
    sets: Option<Vec<f64>>,
}

/// The replicates, the same for every function.
pub struct Bootstrap {
    counts: Vec<Counts>,
}

impl Bootstrap {
    /// Draws the replicates: texts with replacement; `sets` (drawn ones) likewise.
    pub fn new(texts: usize, sets: Option<usize>, seed: u64) -> Self {
        let mut rng = rng::stream(seed, "bootstrap of texts and sets");
        let mut draw = |n: usize| {
            let mut counts = vec![0.0; n];
            (0..n).for_each(|_| counts[rng.random_range(0..n)] += 1.0);
            counts
        };
        let replicates = if texts > 1 { REPLICATES } else { 0 };
        let counts =
            (0..replicates).map(|_| Counts { texts: draw(texts), sets: sets.map(&mut draw) });
        Self { counts: counts.collect() }
    }

    /// Returns the share of the variance of a function, of the mean over its texts, that goes where
    /// only the residuals are left; one share for each of `residuals`. `unlearned`, if there is
    /// any, has what the mean square of each is too large by.
    pub fn explained(
        &self,
        weights: &[f64],
        values: &ByText,
        residuals: &[&ByText],
        unlearned: &[Unlearned],
    ) -> Vec<Replicated> {
        let all = Counts { texts: vec![1.0; values.len()], sets: None };
        let shares = |counts: &Counts| shares(counts, weights, values, residuals, unlearned);
        let value = shares(&all);
        let replicates: Vec<Vec<f64>> = self.counts.par_iter().map(shares).collect();
        let of = |(at, value): (usize, &f64)| Replicated {
            value: *value,
            replicates: replicates.iter().map(|shares| shares[at]).collect(),
        };
        value.iter().enumerate().map(of).collect()
    }

    /// Returns the share of each group in the squares of coefficients, of the mean over the texts:
    /// the weight of each order in a spectrum. `group` names the group of each coefficient, from 0;
    /// `None` leaves it out.
    pub fn spectrum(&self, coefficients: &ByText, group: &[Option<usize>]) -> Vec<Replicated> {
        let (texts, groups) =
            (coefficients.len(), group.iter().flatten().max().map_or(0, |most| most + 1));
        // Squares of a mean over texts are sums of products of two texts.
        let mut products = vec![vec![0.0; texts * texts]; groups];
        for (at, group) in group.iter().enumerate().filter_map(|(at, g)| Some((at, (*g)?))) {
            for a in 0..texts {
                for b in 0..texts {
                    products[group][a * texts + b] += coefficients[a][at] * coefficients[b][at];
                }
            }
        }
        let shares = |counts: &[f64]| -> Vec<f64> {
            let square = |products: &Vec<f64>| -> f64 {
                let of = |(at, product): (usize, &f64)| {
                    counts[at / texts] * counts[at % texts] * product
                };
                products.iter().enumerate().map(of).sum()
            };
            let squares: Vec<f64> = products.iter().map(square).collect();
            let total: f64 = squares.iter().sum();
            squares.iter().map(|square| ratio(*square, total)).collect()
        };
        let value = shares(&vec![1.0; texts]);
        let replicates: Vec<Vec<f64>> =
            self.counts.iter().map(|counts| shares(&counts.texts)).collect();
        let of = |(at, value): (usize, &f64)| Replicated {
            value: *value,
            replicates: replicates.iter().map(|shares| shares[at]).collect(),
        };
        value.iter().enumerate().map(of).collect()
    }
}

fn shares(
    counts: &Counts,
    weights: &[f64],
    values: &ByText,
    residuals: &[&ByText],
    unlearned: &[Unlearned],
) -> Vec<f64> {
    let weights: Vec<f64> = match &counts.sets {
        Some(sets) => weights.iter().zip(sets).map(|(weight, count)| weight * count).collect(),
        None => weights.to_vec(),
    };
    let values = mean(values, &counts.texts);
    let sum: f64 = weights.iter().sum();
    let centre = weights.iter().zip(&values).map(|(w, v)| w * v).sum::<f64>() / sum;
    let square = |values: &[f64], centre: f64| -> f64 {
        let squares = weights.iter().zip(values).map(|(w, v)| w * (v - centre) * (v - centre));
        squares.sum::<f64>() / sum
    };
    let total = square(&values, centre);
    let share = |(at, of): (usize, &&ByText)| {
        let left = mean(of, &counts.texts);
        let too_large = unlearned.get(at).map_or(0.0, |of| {
            of.square(&left, &mean(of.partners(), &counts.texts), counts.sets.as_deref())
        });
        1.0 - ratio(square(&left, 0.0) - too_large, total)
    };
    residuals.iter().enumerate().map(share).collect()
}

/// Returns the mean over the texts, each counted so often.
pub fn mean(values: &ByText, counts: &[f64]) -> Vec<f64> {
    let mut mean = vec![0.0; values.first().map_or(0, Vec::len)];
    let sum: f64 = counts.iter().sum();
    for (text, count) in values.iter().zip(counts).filter(|(_, count)| **count > 0.0) {
        let share = count / sum;
        mean.iter_mut().zip(text).for_each(|(mean, value)| *mean += share * value);
    }
    mean
}

/// Returns `a / b`; 0 where nothing varies.
fn ratio(a: f64, b: f64) -> f64 {
    if b > 0.0 { a / b } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_by_hand() {
        // Means over the texts 1, 3, 5 (mean 3, variance sum 8), of the residuals 0, 1, -1.
        let values = vec![vec![0.0, 3.0, 4.0], vec![2.0, 3.0, 6.0]];
        let residuals = vec![vec![0.0, 2.0, -1.0], vec![0.0, 0.0, -1.0]];
        let bootstrap = Bootstrap::new(2, None, 1);
        let of = &bootstrap.explained(&[1.0; 3], &values, &[&residuals], &[])[0];
        assert!((of.value - 0.75).abs() < 1e-12, "{}", of.value);
        let (low, high) = of.estimate().interval.unwrap();
        assert!(low <= of.value && of.value <= high && low < high);
        assert_eq!(of.minus(of).estimate(), Estimate { value: 0.0, interval: Some((0.0, 0.0)) });
        // A set without weight counts for nothing.
        let of = &bootstrap.explained(&[1.0, 0.0, 1.0], &values, &[&residuals], &[])[0];
        assert!((of.value - 0.875).abs() < 1e-12, "{}", of.value);
        let single = Bootstrap::new(1, None, 1);
        let of =
            single.explained(&[1.0; 3], &values[..1].to_vec(), &[&residuals[..1].to_vec()], &[]);
        assert_eq!(of[0].estimate().interval, None);
    }

    #[test]
    fn spectra_by_hand() {
        let coefficients = vec![vec![9.0, 1.0, 2.0, 0.0], vec![9.0, 3.0, 0.0, 2.0]];
        let group = [None, Some(0), Some(0), Some(1)];
        // Means 2, 1 and 1: squares 4 + 1, and 1.
        let of = Bootstrap::new(2, None, 1).spectrum(&coefficients, &group);
        assert!((of[0].value - 5.0 / 6.0).abs() < 1e-12 && (of[1].value - 1.0 / 6.0).abs() < 1e-12);
    }

    #[test]
    fn drawn_sets_widen_the_interval() {
        let values: ByText = vec![(0..40).map(f64::from).collect(); 3];
        let residuals: ByText = vec![(0..40).map(|i| f64::from(i % 7)).collect(); 3];
        let weights = [1.0; 40];
        let width = |sets| {
            let of = Bootstrap::new(3, sets, 1).explained(&weights, &values, &[&residuals], &[]);
            of[0].estimate().interval.map(|(low, high)| high - low).unwrap()
        };
        assert!(width(None) < 1e-12 && width(Some(40)) > 0.01);
    }
}
