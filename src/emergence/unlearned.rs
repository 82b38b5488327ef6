//! The part of their order that fits have not learned: a square by which the mean square of
//! held-out residuals is too large.
//!
//! Held-out predictions leave the sum of what no polynomial of the order explains and of the
//! fit's own error. The latter is a polynomial, whose square is the mean over pairs of
//! independent sets of the products of residuals and of the kernel. The fit of a fold is fixed by
//! the other folds, so pairs within a fold estimate it without bias. This needs products that are
//! uncorrelated under the measure: that of all subsets.
//!
//! The estimate is noisy itself, since it rests on the held-out sets whose residuals it corrects.
//! So a bootstrap that counts sets counts their pairs, too, and takes the same sets for both.

use super::linear::dot;
use super::regression::{ByText, FOLDS, Samples};

/// The sums over pairs of held-out sets that the estimate is made of.
pub struct Unlearned {
    /// The folds: places of sets.
    folds: Vec<Vec<usize>>,
    /// The weight of each set.
    weights: Vec<f64>,
    /// The weight of a set that was drawn once.
    once: f64,
    /// For each text and set, the sum over the other sets of its fold of their weights, residuals
    /// and kernels with it.
    partners: ByText,
    /// The kernel of each set with itself, as often as it was drawn again.
    itself: Vec<f64>,
}

impl Unlearned {
    /// Takes the residuals of held-out predictions by fits of this order.
    pub fn new(samples: &Samples, residuals: &ByText, order: usize, seed: u64) -> Self {
        let orders: Vec<f64> = (1..=order).map(|order| samples.products[order]).collect();
        let weights = samples.weights.clone();
        let once = weights.iter().copied().fold(f64::INFINITY, f64::min);
        let folds = samples.folds(seed);
        let mut partners = vec![vec![0.0; weights.len()]; residuals.len()];
        let mut itself = vec![0.0; weights.len()];
        for fold in &folds {
            let weighted: Vec<Vec<f64>> = residuals
                .iter()
                .map(|text| fold.iter().map(|&at| weights[at] * text[at]).collect())
                .collect();
            for (i, &a) in fold.iter().enumerate() {
                let mut row: Vec<f64> = fold
                    .iter()
                    .map(|&b| samples.kernel(samples.sets[a], samples.sets[b], &orders))
                    .collect();
                // A set that was drawn more than once makes pairs with itself. All its draws are in
                // one fold, where independent draws would have been in any.
                itself[a] = row[i] * (weights[a] - once) / FOLDS as f64;
                row[i] = 0.0;
                for (partners, weighted) in partners.iter_mut().zip(&weighted) {
                    partners[a] = dot(weighted, &row);
                }
            }
        }
        Self { folds, weights, once, partners, itself }
    }

    /// Returns the sums over partners, by text, of which [`square`](Self::square) takes the mean
    /// over texts.
    pub fn partners(&self) -> &ByText {
        &self.partners
    }

    /// Returns the estimate from means over the texts of the residuals and of the
    /// [`partners`](Self::partners).
    ///
    /// Where a bootstrap has `counts` of sets, a pair of sets with counts c and d counts
    /// `c + d - 1` times, which is `c d` to first order. So no sum over pairs is needed for each
    /// replicate. Where next to nothing is left to learn, first order overstates the noise by a
    /// factor of 1.4; on average it never understates it. A set that is counted twice makes no pair
    /// with its copy, which would not be independent of it.
    pub fn square(&self, residuals: &[f64], partners: &[f64], counts: Option<&[f64]>) -> f64 {
        let of_fold = |fold: &Vec<usize>| -> f64 {
            let all: f64 = fold.iter().map(|&at| self.weights[at]).sum();
            let (mut square, mut pairs) = (0.0, 0.0);
            for &at in fold {
                let (weight, count) = (self.weights[at], counts.map_or(1.0, |counts| counts[at]));
                // Summed over both sets of a pair, `2 c - 1` is twice the weight of the pair.
                let paired = 2.0 * count - 1.0;
                square += weight
                    * residuals[at]
                    * (paired * partners[at] + count * self.itself[at] * residuals[at]);
                pairs += weight * (paired * (all - weight) + count * (weight - self.once));
            }
            if pairs > 0.0 { square / pairs } else { 0.0 }
        };
        self.folds.iter().map(of_fold).sum::<f64>() / FOLDS as f64
    }
}

#[cfg(test)]
mod tests {
    use rand::Rng as _;

    use super::*;
    use crate::emergence::sets::{Design, Measure, PartSet, all_sets};

    fn samples(design: &Design) -> Samples<'_> {
        let drawn = design.sets.iter().zip(&design.weights).filter(|(_, weight)| **weight > 0.0);
        let (sets, weights): (Vec<&PartSet>, Vec<f64>) = drawn.unzip();
        Samples::new(design.parts, design.measure.bias(design.parts), sets, &weights)
    }

    #[test]
    fn what_was_not_learned_is_estimated() {
        // Noise on all subsets of 10 parts: order 2 has 55 of 1,023 coefficients, and 1/20 of the
        // variance; a fit to 400 sets learns next to nothing of it.
        let mut rng = crate::rng::stream(4, "noise");
        let all = Design::new(10, Measure::Subsets, 2000, 0, 1);
        let noise: Vec<f64> = all.sets.iter().map(|_| rng.random_range(-1.0..1.0)).collect();
        let mean = noise.iter().sum::<f64>() / 1024.0;
        let variance = noise.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / 1024.0;
        let products = all_sets(10, 2);
        let sign = |set: &PartSet, product: &PartSet| (-1f64).powi(set.overlap(product) as i32);
        let weight = |product: &PartSet| {
            let terms = all.sets.iter().zip(&noise).map(|(set, v)| v * sign(set, product));
            (terms.sum::<f64>() / 1024.0).powi(2)
        };
        let true_share = products[1..].iter().map(weight).sum::<f64>() / variance;
        let mut estimates = Vec::new();
        for seed in 1..=8 {
            let design = Design::new(10, Measure::Subsets, 10, 400, seed);
            let samples = samples(&design);
            let of: ByText =
                vec![samples.sets.iter().map(|s| noise[all.find(s).unwrap()]).collect()];
            let fitted = samples.fit(std::slice::from_ref(&of), 2, seed);
            let left = &fitted[0].residuals[1];
            let unlearned = Unlearned::new(&samples, left, 2, seed);
            let unlearned = unlearned.square(&left[0], &unlearned.partners()[0], None);
            let every: Vec<usize> = (0..of[0].len()).collect();
            let sum = |value: &dyn Fn(usize) -> f64| -> f64 {
                every.iter().map(|&at| samples.weights[at] * value(at)).sum()
            };
            let centre = sum(&|at| of[0][at]) / sum(&|_| 1.0);
            let held_out =
                1.0 - sum(&|at| left[0][at].powi(2)) / sum(&|at| (of[0][at] - centre).powi(2));
            assert!(held_out < 0.03, "{held_out}");
            estimates.push(held_out + unlearned / variance);
        }
        let estimate = estimates.iter().sum::<f64>() / 8.0;
        assert!((estimate - true_share).abs() < 0.03, "{estimate} {true_share} {estimates:?}");
    }

    /// The same from all pairs, one by one.
    fn by_pairs(samples: &Samples, left: &[f64], order: usize, counts: &[f64], seed: u64) -> f64 {
        let orders: Vec<f64> = (1..=order).map(|order| samples.products[order]).collect();
        let once = samples.weights.iter().copied().fold(f64::INFINITY, f64::min);
        let mut mean = 0.0;
        for fold in samples.folds(seed) {
            let (mut square, mut pairs) = (0.0, 0.0);
            for &a in &fold {
                for &b in &fold {
                    let (v, w) = (samples.weights[a], samples.weights[b]);
                    let kernel = samples.kernel(samples.sets[a], samples.sets[b], &orders);
                    let (count, drawn_apart) = match a == b {
                        true => (counts[a] * (v - once) / v, 1.0 / FOLDS as f64),
                        false => (counts[a] + counts[b] - 1.0, 1.0),
                    };
                    square += drawn_apart * count * v * w * left[a] * left[b] * kernel;
                    pairs += count * v * w;
                }
            }
            mean += square / pairs / FOLDS as f64;
        }
        mean
    }

    #[test]
    fn a_bootstrap_counts_pairs_as_often_as_their_sets() {
        let design = Design::new(7, Measure::Subsets, 10, 60, 2);
        let samples = samples(&design);
        assert!(samples.weights.iter().any(|weight| *weight > 1.5), "some are drawn twice");
        let n = samples.sets.len();
        let left: ByText = (0..2)
            .map(|text| (0..n).map(|i| ((i * (text + 3)) % 7) as f64 - 3.0).collect())
            .collect();
        let of = Unlearned::new(&samples, &left, 2, 5);
        let mean = |of: &ByText, counts: [f64; 2]| -> Vec<f64> {
            (0..n).map(|i| (counts[0] * of[0][i] + counts[1] * of[1][i]) / 2.0).collect()
        };
        let counts: Vec<f64> = (0..n).map(|i| [1.0, 0.0, 2.0][i % 3]).collect();
        for texts in [[1.0, 1.0], [0.0, 2.0]] {
            let (left, partners) = (mean(&left, texts), mean(of.partners(), texts));
            for sets in [None, Some(&counts[..])] {
                let got = of.square(&left, &partners, sets);
                let all = sets.map_or(vec![1.0; n], <[f64]>::to_vec);
                let expected = by_pairs(&samples, &left, 2, &all, 5);
                assert!(
                    (got - expected).abs() < 1e-9 * expected.abs().max(1.0),
                    "{got} {expected}"
                );
            }
        }
    }
}
