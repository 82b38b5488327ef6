//! Predicts a set function on sets that a fit has not seen: ridge regression on all
//! products of at most one, two, three parts, with a penalty for each order.
//!
//! The basis is the p-biased Walsh-Fourier basis: products of `(x - p) / sqrt(p (1 - p))`, where p
//! is the probability that a part is lesioned. Under the measure its orders are (nearly)
//! uncorrelated, so a penalty on one does not leak into another, which it would with products of
//! indicators. The sum over all products of one order is an elementary symmetric polynomial of what
//! two sets have in common, so the fit is made through this kernel in the space of sets, and no
//! products have to be picked beforehand, however many parts there are.
//!
//! Every set is predicted by a fit that has not seen it (five folds), and penalties are chosen
//! within the training sets.

use rand::seq::SliceRandom as _;
use rayon::prelude::*;

use super::linear::{Cholesky, dot};
use super::sets::{PartSet, binomial};
use crate::rng;

/// The largest order that can be fitted.
pub const MOST_ORDERS: usize = 5;
/// The number of folds.
pub const FOLDS: usize = 5;

/// The most sets that one fit is made to, and that penalties are chosen with: the time of a fit
/// grows with the cube of their number. All other sets are predicted all the same.
const TRAINING_SETS: usize = 1024;
const PENALTY_SETS: usize = 512;

/// Variance of the coefficients of each order, and of what is left, which are added up.
#[derive(Debug, Clone, PartialEq)]
struct Penalty {
    orders: Vec<f64>,
    noise: f64,
}

/// Variances of what is left that are tried, in variances of order 1.
const NOISE: [f64; 8] = [1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0];
/// Ratios of the variance of an order to that of the order below it that are tried.
const RATIOS: [f64; 4] = [0.01, 0.05, 0.2, 1.0];
/// Variance of the constant, which the functions are nearly free of.
const CONSTANT: f64 = 1.0;

impl Penalty {
    /// Returns the penalties that are tried for fits of at most this order.
    fn grid(order: usize) -> Vec<Self> {
        let ratios = if order == 1 { &RATIOS[..1] } else { &RATIOS[..] };
        let of = |ratio: &f64| -> Vec<f64> { (0..order as i32).map(|i| ratio.powi(i)).collect() };
        let with_noise =
            |orders: Vec<f64>| NOISE.map(|noise| Self { orders: orders.clone(), noise });
        ratios.iter().map(of).flat_map(with_noise).collect()
    }
}

/// Measured sets with their weights.
pub struct Samples<'a> {
    /// The number of parts.
    pub parts: usize,
    /// The probability that a part is lesioned.
    pub bias: f64,
    /// The sets.
    pub sets: Vec<&'a PartSet>,
    /// Their weights, all positive, 1 on average.
    pub weights: Vec<f64>,
    /// The number of products of each order.
    pub products: [f64; MOST_ORDERS + 1],
}

/// A function's values on the samples: one list for each text.
pub type ByText = Vec<Vec<f64>>;

/// The coefficients of the fits to a function, and their residuals.
pub struct Fitted {
    /// For each order from 1, what held-out predictions leave of each text's values.
    pub residuals: Vec<ByText>,
    /// Coefficients of a fit of the highest order to all samples, of the mean over the texts.
    pub coefficients: Coefficients,
}

/// The coefficients of a fit, which are sums over the samples.
pub struct Coefficients {
    /// Weight of each sample, for each order.
    by_order: Vec<Vec<f64>>,
}

/// The fit of some samples: the factor of their kernel and their places.
struct Fit {
    factor: Cholesky,
    penalty: Penalty,
    train: Vec<usize>,
}

impl<'a> Samples<'a> {
    /// Takes sets and their weights, which are divided by their mean, so that penalties mean the
    /// same whatever the weights are.
    pub fn new(parts: usize, bias: f64, sets: Vec<&'a PartSet>, weights: &[f64]) -> Self {
        let mean = weights.iter().sum::<f64>() / weights.len().max(1) as f64;
        let products = std::array::from_fn(|order| binomial(parts, order).max(1.0));
        let weights = weights.iter().map(|weight| weight / mean).collect();
        Self { parts, bias, sets, weights, products }
    }

    /// Fits polynomials of up to each of `orders` orders to each function and returns what held-out
    /// predictions leave of it. A fit is linear in the function, so texts are predicted with the
    /// penalties of the mean over texts, and the mean of their predictions is that of the mean.
    pub fn fit(&self, functions: &[ByText], orders: usize, seed: u64) -> Vec<Fitted> {
        let (n, folds) = (self.sets.len(), self.folds(seed));
        let means: Vec<Vec<f64>> = functions.iter().map(mean).collect();
        let grids: Vec<Vec<Penalty>> = (1..=orders).map(Penalty::grid).collect();
        // errors[fold][order][penalty][function]: of penalties, on sets of the training sets.
        let errors: Vec<Vec<Vec<Vec<f64>>>> = (0..FOLDS)
            .map(|fold| {
                let next = &folds[(fold + 1) % FOLDS];
                let validation = &next[..next.len().min(PENALTY_SETS)];
                let train = others(&folds, &[fold, (fold + 1) % FOLDS], PENALTY_SETS);
                let error = |penalty: &Penalty| self.errors(&train, validation, penalty, &means);
                grids.iter().map(|grid| grid.par_iter().map(error).collect()).collect()
            })
            .collect();
        let mut residuals =
            vec![
                vec![vec![vec![0.0; n]; functions.first().map_or(0, Vec::len)]; orders];
                functions.len()
            ];
        for (fold, held_out) in folds.iter().enumerate() {
            let train = others(&folds, &[fold], TRAINING_SETS);
            for (order, grid) in grids.iter().enumerate() {
                let chosen: Vec<usize> = (0..functions.len())
                    .map(|f| smallest(errors[fold][order].iter().map(|of| of[f])))
                    .collect();
                let refit = |at: usize| -> Vec<(usize, Vec<Vec<f64>>)> {
                    let of = (0..functions.len()).filter(|&f| chosen[f] == at);
                    let fit = self.factor(&train, &grid[at]);
                    let predict = |f: usize| {
                        let texts: Vec<&[f64]> = functions[f].iter().map(Vec::as_slice).collect();
                        let predicted = match &fit {
                            Some(fit) => self.predict(fit, &texts, held_out),
                            None => texts
                                .iter()
                                .map(|v| vec![self.weighted_mean(v, &train); held_out.len()])
                                .collect(),
                        };
                        (f, predicted)
                    };
                    of.map(predict).collect()
                };
                let penalties = (0..grid.len()).filter(|at| chosen.contains(at));
                let penalties: Vec<usize> = penalties.collect();
                let refitted: Vec<_> = penalties.into_par_iter().flat_map_iter(refit).collect();
                for (f, predicted) in refitted {
                    for (text, predicted) in predicted.into_iter().enumerate() {
                        for (&at, predicted) in held_out.iter().zip(predicted) {
                            residuals[f][order][text][at] = functions[f][text][at] - predicted;
                        }
                    }
                }
            }
        }
        let everything = others(&folds, &[], TRAINING_SETS);
        let highest = &grids[orders - 1];
        let coefficients = means.par_iter().enumerate().map(|(f, values)| {
            let total = |at: usize| errors.iter().map(|fold| fold[orders - 1][at][f]).sum::<f64>();
            let penalty = &highest[smallest((0..highest.len()).map(total))];
            let by_order = match self.factor(&everything, penalty) {
                Some(fit) => {
                    let dual = self.dual(&fit, values).0;
                    let scaled = |order: usize| {
                        let scale = penalty.orders[order - 1] / self.products[order];
                        let mut by_sample = vec![0.0; n];
                        let of = everything.iter().zip(&dual);
                        of.for_each(|(&at, alpha)| by_sample[at] = alpha * scale);
                        by_sample
                    };
                    (1..=orders).map(scaled).collect()
                }
                None => vec![vec![0.0; n]; orders],
            };
            Coefficients { by_order }
        });
        let coefficients: Vec<Coefficients> = coefficients.collect();
        residuals
            .into_iter()
            .zip(coefficients)
            .map(|(residuals, coefficients)| Fitted { residuals, coefficients })
            .collect()
    }

    /// Returns the folds: places of sets, shuffled.
    pub fn folds(&self, seed: u64) -> Vec<Vec<usize>> {
        let mut order: Vec<usize> = (0..self.sets.len()).collect();
        order.shuffle(&mut rng::stream(seed, "folds"));
        (0..FOLDS).map(|fold| order.iter().skip(fold).step_by(FOLDS).copied().collect()).collect()
    }

    /// Returns the coefficient of the product of these parts in the p-biased basis.
    pub fn coefficient(&self, coefficients: &Coefficients, product: &PartSet) -> f64 {
        let Some(by_sample) = coefficients.by_order.get(product.len().wrapping_sub(1)) else {
            return 0.0;
        };
        let spread = (self.bias * (1.0 - self.bias)).sqrt();
        let (lesioned, intact) = ((1.0 - self.bias) / spread, -self.bias / spread);
        let value = |set: &PartSet| {
            let common = set.overlap(product);
            lesioned.powi(common as i32) * intact.powi((product.len() - common) as i32)
        };
        self.sets.iter().zip(by_sample).map(|(set, alpha)| alpha * value(set)).sum()
    }

    /// Returns the kernel of two sets: the sum over all products of their values on both, by order
    /// and divided by the number of products, times the variances of the orders.
    pub fn kernel(&self, a: &PartSet, b: &PartSet, orders: &[f64]) -> f64 {
        let n = self.parts as f64;
        let both = a.overlap(b) as f64;
        let one = (a.len() + b.len()) as f64 - 2.0 * both;
        let (x, y) = ((1.0 - self.bias) / self.bias, self.bias / (1.0 - self.bias));
        let none = n - both - one;
        // Elementary symmetric polynomials from power sums (Newton's identities).
        let mut symmetric = [1.0; MOST_ORDERS + 1];
        let mut power = [0.0; MOST_ORDERS + 1];
        let (mut x_power, mut y_power, mut sign) = (1.0, 1.0, 1.0);
        let mut sum = CONSTANT;
        for (order, variance) in (1..).zip(orders) {
            (x_power, y_power, sign) = (x_power * x, y_power * y, -sign);
            power[order] = both * x_power + one * sign + none * y_power;
            let term = |i: usize| {
                let sign = if i % 2 == 1 { 1.0 } else { -1.0 };
                sign * symmetric[order - i] * power[i]
            };
            symmetric[order] = (1..=order).map(term).sum::<f64>() / order as f64;
            sum += variance * symmetric[order] / self.products[order];
        }
        sum
    }

    fn factor(&self, train: &[usize], penalty: &Penalty) -> Option<Fit> {
        let size = train.len();
        let mut rows = vec![0.0; size * size];
        for (i, &a) in train.iter().enumerate() {
            for (entry, &b) in rows[i * size..].iter_mut().zip(&train[..=i]) {
                *entry = self.kernel(self.sets[a], self.sets[b], &penalty.orders);
            }
            rows[i * size + i] += penalty.noise / self.weights[a];
        }
        let factor = Cholesky::new(rows, size)?;
        Some(Fit { factor, penalty: penalty.clone(), train: train.to_vec() })
    }

    /// Returns the weights of the training sets in predictions, and the constant.
    fn dual(&self, fit: &Fit, values: &[f64]) -> (Vec<f64>, f64) {
        let constant = self.weighted_mean(values, &fit.train);
        let centred: Vec<f64> = fit.train.iter().map(|&at| values[at] - constant).collect();
        (fit.factor.solve(&centred), constant)
    }

    /// Predicts each function on the held-out sets, `[functions][held_out]`.
    fn predict(&self, fit: &Fit, functions: &[&[f64]], held_out: &[usize]) -> Vec<Vec<f64>> {
        let duals: Vec<_> = functions.iter().map(|values| self.dual(fit, values)).collect();
        let mut predicted = vec![Vec::with_capacity(held_out.len()); functions.len()];
        for &at in held_out {
            let kernel =
                |&other: &usize| self.kernel(self.sets[at], self.sets[other], &fit.penalty.orders);
            let row: Vec<f64> = fit.train.iter().map(kernel).collect();
            for (predicted, (dual, constant)) in predicted.iter_mut().zip(&duals) {
                predicted.push(constant + dot(dual, &row));
            }
        }
        predicted
    }

    /// Returns the weighted squared error of each function on the validation sets.
    fn errors(
        &self,
        train: &[usize],
        validation: &[usize],
        penalty: &Penalty,
        functions: &[Vec<f64>],
    ) -> Vec<f64> {
        let Some(fit) = self.factor(train, penalty) else {
            return vec![f64::INFINITY; functions.len()];
        };
        let of: Vec<&[f64]> = functions.iter().map(Vec::as_slice).collect();
        let error = |(values, predicted): (&Vec<f64>, Vec<f64>)| {
            let errors = validation.iter().zip(predicted);
            errors.map(|(&at, p)| self.weights[at] * (values[at] - p).powi(2)).sum()
        };
        functions.iter().zip(self.predict(&fit, &of, validation)).map(error).collect()
    }

    fn weighted_mean(&self, values: &[f64], of: &[usize]) -> f64 {
        let weight: f64 = of.iter().map(|&at| self.weights[at]).sum();
        of.iter().map(|&at| self.weights[at] * values[at]).sum::<f64>()
            / weight.max(f64::MIN_POSITIVE)
    }
}

/// Returns members of all folds but these, at most so many, as many of each fold.
fn others(folds: &[Vec<usize>], but: &[usize], most: usize) -> Vec<usize> {
    let kept = folds.iter().enumerate().filter(|(fold, _)| !but.contains(fold));
    let each = most / (folds.len() - but.len());
    kept.flat_map(|(_, members)| members.iter().take(each).copied()).collect()
}

/// Returns the mean over the texts.
fn mean(function: &ByText) -> Vec<f64> {
    let sets = function.first().map_or(0, Vec::len);
    (0..sets)
        .map(|at| function.iter().map(|text| text[at]).sum::<f64>() / function.len() as f64)
        .collect()
}

/// Returns the place of the smallest value, the first of equal ones.
fn smallest(values: impl Iterator<Item = f64>) -> usize {
    values.enumerate().min_by(|a, b| a.1.total_cmp(&b.1)).map_or(0, |(at, _)| at)
}

#[cfg(test)]
mod tests {
    use rand::Rng as _;

    use super::*;
    use crate::emergence::sets::{Design, Measure};

    /// Shares of the variance that held-out predictions explain, by order.
    fn shares(samples: &Samples, function: &[f64], fitted: &Fitted) -> Vec<f64> {
        let every: Vec<usize> = (0..function.len()).collect();
        let mean = samples.weighted_mean(function, &every);
        let sum = |values: &dyn Fn(usize) -> f64| -> f64 {
            every.iter().map(|&at| samples.weights[at] * values(at).powi(2)).sum()
        };
        let total = sum(&|at| function[at] - mean);
        let left = |residuals: &ByText| sum(&|at| residuals[0][at]);
        fitted.residuals.iter().map(|residuals| 1.0 - left(residuals) / total).collect()
    }

    fn samples(design: &Design) -> Samples<'_> {
        let drawn = design.sets.iter().zip(&design.weights).filter(|(_, weight)| **weight > 0.0);
        let (sets, weights): (Vec<&PartSet>, Vec<f64>) = drawn.unzip();
        Samples::new(design.parts, design.measure.bias(design.parts), sets, &weights)
    }

    #[test]
    fn the_kernel_is_the_sum_over_products() {
        let design = Design::new(6, Measure::new(6, 3), 10, 20, 1);
        let samples = samples(&design);
        let (a, b) = (PartSet::new(vec![0, 2, 3]), PartSet::new(vec![2, 5]));
        let p = samples.bias;
        let value = |set: &PartSet, part: u32| {
            (f64::from(u8::from(set.contains(part))) - p) / (p * (1.0 - p)).sqrt()
        };
        let products = crate::emergence::sets::all_sets(6, 4);
        for order in 1..=4 {
            let of_order: Vec<&PartSet> = products.iter().filter(|m| m.len() == order).collect();
            let product = |set: &PartSet, m: &PartSet| -> f64 {
                m.parts().iter().map(|&part| value(set, part)).product()
            };
            let expect: f64 = of_order.iter().map(|m| product(&a, m) * product(&b, m)).sum::<f64>()
                / of_order.len() as f64;
            let mut orders = [0.0; 4];
            orders[order - 1] = 1.0;
            let got = samples.kernel(&a, &b, &orders) - CONSTANT;
            assert!((got - expect).abs() < 1e-9, "{order}: {got} {expect}");
        }
    }

    #[test]
    fn planted_polynomials_are_recovered_order_by_order() {
        let design = Design::new(20, Measure::new(20, 6), 10, 600, 3);
        let samples = samples(&design);
        let has = |set: &PartSet, parts: &[u32]| {
            f64::from(u8::from(parts.iter().all(|part| set.contains(*part))))
        };
        let of = |f: &dyn Fn(&PartSet) -> f64| -> ByText {
            vec![samples.sets.iter().map(|set| f(set)).collect()]
        };
        let singles = |set: &PartSet| has(set, &[0]) - 2.0 * has(set, &[7]) + 0.5 * has(set, &[19]);
        let mut rng = crate::rng::stream(9, "noise");
        let noise: Vec<f64> = samples.sets.iter().map(|_| rng.random_range(-1.0..1.0)).collect();
        let functions = [
            of(&singles),
            of(&|set| singles(set) + 4.0 * has(set, &[3, 11])),
            of(&|set| singles(set) + 6.0 * has(set, &[2, 5, 13])),
            vec![noise],
        ];
        let fitted = samples.fit(&functions, 3, 1);
        let of: Vec<Vec<f64>> = functions
            .iter()
            .zip(&fitted)
            .map(|(function, fitted)| shares(&samples, &function[0], fitted))
            .collect();
        assert!(of[0][0] > 0.999, "{:?}", of[0]);
        assert!(of[1][0] < 0.85 && of[1][1] > of[1][0] + 0.1, "{:?}", of[1]);
        // Noise is not predicted, by any order.
        assert!(of[3].iter().all(|share| share.abs() < 0.1), "{:?}", of[3]);
        // The largest coefficient of each order is the planted one.
        let largest = |f: usize, order: usize| {
            let products = crate::emergence::sets::all_sets(20, order);
            let size = |m: &PartSet| samples.coefficient(&fitted[f].coefficients, m).abs();
            let of_order = products.into_iter().filter(|m| m.len() == order);
            of_order.max_by(|a, b| size(a).total_cmp(&size(b))).unwrap()
        };
        assert_eq!(largest(1, 2), PartSet::new(vec![3, 11]));
        assert_eq!(largest(2, 3), PartSet::new(vec![2, 5, 13]));
    }
}
