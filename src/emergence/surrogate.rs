//! References that the model is held against: functions of sets whose structure is known.
//!
//! The *additive surrogate* has the same single lesions as the model and nothing else: its logits
//! under a set are the intact model's plus the sum of the changes that the members make alone. In
//! logits it is the sum of its parts by construction. Its loss is not, because the loss is no
//! linear function of logits; what orders its loss has is what the scale alone brings about.
//!
//! The *planted* references add terms to the right token's logit in the surrogate. `D` is as large
//! as the largest effect that a single lesion has on the right token's mean centred logit in this
//! text:
//!
//! - AND of two parts, a redundancy: `-D` if both are lesioned, since either does the work alone.
//!   One interaction of order 2.
//! - OR of two parts, both of which are needed: `-D` if either is lesioned, and no more for both:
//!   `-D (x + y - x y)`. Order 1, and an interaction of order 2 of the other sign.
//! - A chain of three parts, each of which contributes `D / 3` and works only if those before it
//!   do: lesioning the first costs `D`, the second `2/3 D`, the third `1/3 D`, and together no more
//!   than the first of them alone. Orders 1, 2 and 3.

use rand::seq::index;
use serde::Serialize;

use super::sets::PartSet;
use crate::model::log_sum_exp;
use crate::rng;

/// Most terms of one kind that are planted.
const MOST_TERMS: usize = 2;

/// Functions of sets that are analysed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Function {
    /// The model itself.
    Model,
    /// The additive surrogate.
    Surrogate,
    /// The surrogate with planted redundancies.
    And,
    /// The surrogate with planted pairs that are both needed.
    Or,
    /// The surrogate with planted chains.
    Chain,
}

impl Function {
    /// All of them, the model first.
    pub const ALL: [Self; 5] = [Self::Model, Self::Surrogate, Self::And, Self::Or, Self::Chain];

    /// Returns the name in tables.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Surrogate => "additive",
            Self::And => "AND",
            Self::Or => "OR",
            Self::Chain => "chain",
        }
    }

    /// Returns the number of parts of a planted term; `None` where nothing is planted.
    pub fn term_size(&self) -> Option<usize> {
        match self {
            Self::Model | Self::Surrogate => None,
            Self::And | Self::Or => Some(2),
            Self::Chain => Some(3),
        }
    }

    /// Returns the share of `D` that a term of this kind takes from the right token's logit, in a
    /// chain in the order of the parts.
    fn loss_of_term(&self, term: &PartSet, set: &PartSet) -> f64 {
        let lesioned = |part: &&u32| set.contains(**part);
        let parts = term.parts();
        match self {
            Self::Model | Self::Surrogate => 0.0,
            Self::And => f64::from(u8::from(parts.iter().all(|part| lesioned(&part)))),
            Self::Or => f64::from(u8::from(parts.iter().any(|part| lesioned(&part)))),
            Self::Chain => match parts.iter().position(|part| lesioned(&part)) {
                Some(first) => (parts.len() - first) as f64 / parts.len() as f64,
                None => 0.0,
            },
        }
    }
}

/// The planted terms of one kind.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Planted {
    /// The kind.
    pub function: Function,
    /// The parts of each term; terms of one kind have no parts in common.
    pub terms: Vec<PartSet>,
}

/// Draws the terms of each kind.
pub fn plant(parts: usize, seed: u64) -> Vec<Planted> {
    let planted = [Function::And, Function::Or, Function::Chain].into_iter();
    planted
        .filter_map(|function| {
            let size = function.term_size()?;
            let terms = (parts / size).min(MOST_TERMS);
            let mut rng = rng::stream(seed, function.name());
            let drawn = index::sample(&mut rng, parts, terms * size).into_vec();
            let term =
                |parts: &[usize]| PartSet::new(parts.iter().map(|part| *part as u32).collect());
            Some(Planted { function, terms: drawn.chunks(size).map(term).collect() })
        })
        .collect()
}

/// The logits of the intact model and their changes under single lesions, at some positions of a
/// text.
pub struct Surrogate {
    vocabulary: usize,
    targets: Vec<u32>,
    /// Log-probabilities of the intact model, `[positions, vocabulary]`, nats.
    intact: Vec<f32>,
    /// Changes of the log-probabilities under each single lesion, each `[positions, vocabulary]`.
    changes: Vec<Vec<f32>>,
    /// Means of the above over the vocabulary, `[positions]`; of each part.
    intact_means: Vec<f64>,
    change_means: Vec<Vec<f64>>,
}

/// Loss and right token's centred logit, means over the positions of a text.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scales {
    /// Nats per token.
    pub loss: f64,
    /// The right token's logit minus the mean over the vocabulary, nats.
    pub logit: f64,
}

impl Surrogate {
    /// Makes the surrogate of a text from log-probabilities `[positions, vocabulary]`, which are
    /// logits up to a constant of the position that changes nothing here. `targets` are the right
    /// tokens.
    pub fn new(
        vocabulary: usize,
        targets: Vec<u32>,
        intact: Vec<f32>,
        lesioned: Vec<Vec<f32>>,
    ) -> Self {
        let means = |values: &[f32]| -> Vec<f64> {
            let mean = |row: &[f32]| row.iter().map(|x| f64::from(*x)).sum::<f64>();
            values.chunks_exact(vocabulary).map(|row| mean(row) / vocabulary as f64).collect()
        };
        let mut changes = lesioned;
        for change in &mut changes {
            change.iter_mut().zip(&intact).for_each(|(x, intact)| *x -= intact);
        }
        let (intact_means, change_means) =
            (means(&intact), changes.iter().map(|change| means(change)).collect());
        Self { vocabulary, targets, intact, changes, intact_means, change_means }
    }

    /// Returns the largest effect of a single lesion on the right token's centred logit, mean over
    /// the positions, nats.
    pub fn largest_effect(&self) -> f64 {
        let effect = |(change, means): (&Vec<f32>, &Vec<f64>)| {
            let of = |(position, target): (usize, &u32)| {
                let change = change[position * self.vocabulary + *target as usize];
                f64::from(change) - means[position]
            };
            let sum: f64 = self.targets.iter().enumerate().map(of).sum();
            sum.abs() / self.targets.len().max(1) as f64
        };
        self.changes.iter().zip(&self.change_means).map(effect).fold(0.0, f64::max)
    }

    /// Returns the surrogate under a set, without and with the planted terms of each kind, whose
    /// strength is `strength` nats: as many values as there are kinds, plus one.
    pub fn under(&self, set: &PartSet, planted: &[Planted], strength: f64) -> Vec<Scales> {
        let drops: Vec<f64> = std::iter::once(0.0)
            .chain(planted.iter().map(|planted| {
                let of = |term| planted.function.loss_of_term(term, set);
                planted.terms.iter().map(of).sum::<f64>() * strength
            }))
            .collect();
        let mut sums = vec![Scales { loss: 0.0, logit: 0.0 }; drops.len()];
        let mut logits = vec![0f32; self.vocabulary];
        for (position, &target) in self.targets.iter().enumerate() {
            let row = position * self.vocabulary..(position + 1) * self.vocabulary;
            logits.copy_from_slice(&self.intact[row.clone()]);
            let mut mean = self.intact_means[position];
            for &part in set.parts() {
                let change = &self.changes[part as usize][row.clone()];
                logits.iter_mut().zip(change).for_each(|(x, change)| *x += change);
                mean += self.change_means[part as usize][position];
            }
            let right = f64::from(logits[target as usize]);
            let log_prob = right - f64::from(log_sum_exp(&mut logits));
            for (sum, drop) in sums.iter_mut().zip(&drops) {
                // Only the right token's logit differs: its new share follows from the old one.
                let normalizer = (log_prob.min(0.0).exp() * (-drop).exp_m1()).ln_1p();
                sum.loss += normalizer + drop - log_prob;
                sum.logit += right - mean - drop * (1.0 - 1.0 / self.vocabulary as f64);
            }
        }
        let positions = self.targets.len().max(1) as f64;
        let mean =
            |sum: Scales| Scales { loss: sum.loss / positions, logit: sum.logit / positions };
        sums.into_iter().map(mean).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(parts: &[u32]) -> PartSet {
        PartSet::new(parts.to_vec())
    }

    #[test]
    fn planted_terms_by_hand() {
        let (pair, chain) = (set(&[1, 4]), set(&[0, 2, 5]));
        let of = |function: Function, term: &PartSet, parts: &[u32]| {
            function.loss_of_term(term, &set(parts))
        };
        let and = |parts| of(Function::And, &pair, parts);
        assert_eq!([and(&[1]), and(&[2, 4]), and(&[1, 4])], [0.0, 0.0, 1.0]);
        let or = |parts| of(Function::Or, &pair, parts);
        assert_eq!([or(&[0]), or(&[1]), or(&[1, 4])], [0.0, 1.0, 1.0]);
        let chain = |parts| of(Function::Chain, &chain, parts);
        assert_eq!([chain(&[0]), chain(&[2]), chain(&[5])], [1.0, 2.0 / 3.0, 1.0 / 3.0]);
        assert_eq!([chain(&[0, 2, 5]), chain(&[2, 5]), chain(&[1])], [1.0, 2.0 / 3.0, 0.0]);
        let planted = plant(8, 1);
        assert_eq!(planted.iter().map(|p| p.terms.len()).collect::<Vec<_>>(), [2, 2, 2]);
        assert_eq!(planted[0].terms[0].overlap(&planted[0].terms[1]), 0);
    }

    /// Two positions, three tokens, two parts: everything is computed anew from logits.
    #[test]
    fn the_surrogate_is_the_sum_of_changes_in_logits() {
        let intact = [[0.5f64, -1.0, 0.2], [2.0, 0.0, -0.5]];
        let changes = [[[0.3, 0.1, -0.4], [-1.0, 0.5, 0.0]], [[-0.2, 0.0, 0.6], [0.1, 0.2, 0.3]]];
        let log_softmax = |row: [f64; 3]| -> [f64; 3] {
            let sum = row.iter().map(|x| x.exp()).sum::<f64>().ln();
            row.map(|x| x - sum)
        };
        let add = |a: [f64; 3], b: [f64; 3]| [a[0] + b[0], a[1] + b[1], a[2] + b[2]];
        let flat = |rows: [[f64; 3]; 2]| -> Vec<f32> {
            rows.iter().flat_map(|row| log_softmax(*row)).map(|x| x as f32).collect()
        };
        let single = |part: usize| -> [[f64; 3]; 2] {
            [add(intact[0], changes[part][0]), add(intact[1], changes[part][1])]
        };
        let lesioned = vec![flat(single(0)), flat(single(1))];
        let surrogate = Surrogate::new(3, vec![2, 0], flat(intact), lesioned);
        let planted = [Planted { function: Function::And, terms: vec![set(&[0, 1])] }];
        let got = surrogate.under(&set(&[0, 1]), &planted, 0.7);
        for (got, drop) in got.iter().zip([0.0, 0.7]) {
            let (mut loss, mut logit) = (0.0, 0.0);
            for (position, target) in [(0, 2), (1, 0)] {
                let sum = add(intact[position], changes[0][position]);
                let mut row = add(sum, changes[1][position]);
                row[target] -= drop;
                loss -= log_softmax(row)[target] / 2.0;
                logit += (row[target] - row.iter().sum::<f64>() / 3.0) / 2.0;
            }
            assert!((got.loss - loss).abs() < 1e-6 && (got.logit - logit).abs() < 1e-6);
        }
        // A single lesion is the model's own.
        let alone = surrogate.under(&set(&[1]), &planted, 0.7);
        let own: f64 =
            [(0, 2), (1, 0)].iter().map(|&(p, t)| -log_softmax(single(1)[p])[t] / 2.0).sum();
        assert!((alone[0].loss - own).abs() < 1e-6 && alone[0] == alone[1]);
    }
}
