//! The goal of a suffix: a loss to descend and an oracle to judge by.

use serde::{Deserialize, Serialize};

use crate::evaluate::Observation;
use crate::oracle::OracleKind;

/// Behaviour that is searched for after prompt and suffix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum GoalKind {
    /// Say a given text.
    Target,
    /// Predict anything but the prediction without the suffix.
    Away,
    /// Repeat one token over and over.
    Loop,
    /// End at once.
    End,
    /// Find a given text improbable.
    Loss,
}

/// The combination of several tokens' losses into one.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mean {
    /// Cross entropy: their mean.
    Arithmetic,
    /// `ln(mean(exp(alpha * x))) / alpha`: nearer to the largest of them, the token that is
    /// farthest from being said (Asadi and Littman 2017; as a loss of suffixes by nanoGCG).
    Mellowmax {
        /// Sharpness: 0 is the mean, infinity the maximum.
        alpha: f64,
    },
}

/// A kind of goal with its text and loss.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Goal {
    /// Behaviour that is searched for.
    pub kind: GoalKind,
    /// Ids predicted after the prompt; empty where the goal concerns the first token alone
    /// ([`GoalKind::Away`]).
    pub continuation: Vec<u32>,
    /// Combination of the tokens' losses.
    pub mean: Mean,
}

impl Goal {
    /// Returns the oracle that decides whether the goal is reached.
    pub fn oracle(&self) -> OracleKind {
        match self.kind {
            GoalKind::Target | GoalKind::Loop | GoalKind::End => OracleKind::Target,
            GoalKind::Away => OracleKind::Divergence,
            GoalKind::Loss => OracleKind::LossBlowup,
        }
    }

    /// Returns the loss of an observation, nats per token; for [`GoalKind::Away`] minus the
    /// divergence in bits, 0 to -1.
    pub fn loss(&self, observation: &Observation) -> f64 {
        match self.kind {
            GoalKind::Away => {
                -f64::from(observation.divergence_bits.first().copied().unwrap_or(0.0))
            }
            _ => {
                let losses: Vec<f64> =
                    observation.log_probs.iter().map(|p| -f64::from(*p)).collect();
                self.sign() * self.mean.combine(&losses).0
            }
        }
    }

    /// Returns true if an observation looks like success; the oracle judges it against controls
    /// later.
    pub fn reached(&self, observation: &Observation, baseline: &Observation) -> bool {
        match self.oracle() {
            OracleKind::Target => observation.says_continuation(),
            oracle => oracle.oracle().score(observation, baseline) > oracle.oracle().minimum(),
        }
    }

    fn sign(&self) -> f64 {
        if self.kind == GoalKind::Loss { -1.0 } else { 1.0 }
    }

    /// Returns the loss of logits `[reads, vocab]` and its gradient, of the same shape. `reference`
    /// holds the log-probabilities `[vocab]` of the first read without the suffix, for
    /// [`GoalKind::Away`].
    pub fn loss_of_logits(
        &self,
        logits: &[f32],
        vocabulary: usize,
        reference: Option<&[f32]>,
    ) -> (f64, Vec<f32>) {
        let mut log_probs: Vec<f64> = logits.iter().map(|x| f64::from(*x)).collect();
        for row in log_probs.chunks_exact_mut(vocabulary) {
            let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum = largest + row.iter().map(|x| (x - largest).exp()).sum::<f64>().ln();
            row.iter_mut().for_each(|x| *x -= sum);
        }
        if self.kind == GoalKind::Away {
            return away(&log_probs, vocabulary, reference.unwrap_or_default());
        }
        let rows = || log_probs.chunks_exact(vocabulary).zip(&self.continuation);
        let losses: Vec<f64> = rows().map(|(row, target)| -row[*target as usize]).collect();
        let (value, weights) = self.mean.combine(&losses);
        let mut gradient = Vec::with_capacity(logits.len());
        for ((row, target), weight) in rows().zip(weights) {
            let at = gradient.len();
            gradient.extend(row.iter().map(|p| (self.sign() * weight * p.exp()) as f32));
            gradient[at + *target as usize] -= (self.sign() * weight) as f32;
        }
        gradient.resize(logits.len(), 0.0);
        (self.sign() * value, gradient)
    }
}

impl Mean {
    /// Returns the combined loss and the derivative for each of the losses.
    fn combine(self, losses: &[f64]) -> (f64, Vec<f64>) {
        let n = losses.len().max(1) as f64;
        match self {
            Self::Arithmetic => (losses.iter().sum::<f64>() / n, vec![1.0 / n; losses.len()]),
            Self::Mellowmax { alpha } => {
                let largest = losses.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let powers: Vec<f64> =
                    losses.iter().map(|x| (alpha * (x - largest)).exp()).collect();
                let sum: f64 = powers.iter().sum();
                (largest + (sum / n).ln() / alpha, powers.iter().map(|p| p / sum).collect())
            }
        }
    }
}

/// Returns minus the Jensen-Shannon divergence (bits) of the first row from `reference` and its
/// gradient. With `m` the mean of both, the derivative for a logit of `q` is `q * (l - E_q[l]) /
/// 2`, where `l` is `ln(q / m)`.
fn away(log_probs: &[f64], vocabulary: usize, reference: &[f32]) -> (f64, Vec<f32>) {
    let mut gradient = vec![0f32; log_probs.len()];
    let q = &log_probs[..vocabulary.min(log_probs.len())];
    let (mut divergence, mut mean, mut logs) = (0f64, 0f64, Vec::with_capacity(q.len()));
    for (lq, lp) in q.iter().zip(reference) {
        let (q, p) = (lq.exp(), f64::from(*lp).exp());
        let log_m = (0.5 * (p + q)).ln();
        let (log_q, log_p) = (
            if q > 0.0 { lq - log_m } else { 0.0 },
            if p > 0.0 { f64::from(*lp) - log_m } else { 0.0 },
        );
        divergence += 0.5 * (q * log_q + p * log_p);
        mean += q * log_q;
        logs.push(log_q);
    }
    let bits = std::f64::consts::LN_2;
    for ((g, lq), log) in gradient.iter_mut().zip(q).zip(&logs) {
        *g = (-0.5 * lq.exp() * (log - mean) / bits) as f32;
    }
    (-divergence / bits, gradient)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn goal(kind: GoalKind, mean: Mean) -> Goal {
        Goal {
            kind,
            continuation: if kind == GoalKind::Away { vec![] } else { vec![2, 0, 4] },
            mean,
        }
    }

    #[test]
    fn gradients_are_derivatives() {
        const V: usize = 5;
        let logits: Vec<f32> = (0..3 * V).map(|i| ((i * 7 + 3) % 11) as f32 * 0.4 - 2.0).collect();
        let reference: Vec<f32> = [0.1f32, 0.2, 0.3, 0.15, 0.25].iter().map(|p| p.ln()).collect();
        for goal in [
            goal(GoalKind::Target, Mean::Arithmetic),
            goal(GoalKind::Target, Mean::Mellowmax { alpha: 1.5 }),
            goal(GoalKind::Loss, Mean::Arithmetic),
            goal(GoalKind::Away, Mean::Arithmetic),
        ] {
            let (_, gradient) = goal.loss_of_logits(&logits, V, Some(&reference));
            assert_eq!(gradient.len(), logits.len());
            assert!(gradient.iter().any(|g| g.abs() > 0.01), "{goal:?}: no gradient");
            for (i, analytic) in gradient.iter().enumerate() {
                let moved = |h: f32| {
                    let mut moved = logits.clone();
                    moved[i] += h;
                    goal.loss_of_logits(&moved, V, Some(&reference)).0
                };
                let numeric = (moved(1e-2) - moved(-1e-2)) / 2e-2;
                assert!(
                    (numeric - f64::from(*analytic)).abs() < 1e-3,
                    "{goal:?} {i}: {analytic}, by differences {numeric}"
                );
            }
        }
    }

    #[test]
    fn a_mellow_maximum_lies_between_mean_and_maximum() {
        let losses = [1.0, 2.0, 6.0];
        let (mellow, weights) = Mean::Mellowmax { alpha: 1.0 }.combine(&losses);
        assert!(
            mellow > 3.0 && mellow < 6.0 && (weights.iter().sum::<f64>() - 1.0).abs() < 1e-12,
            "{mellow}"
        );
        assert!((Mean::Mellowmax { alpha: 1e-6 }.combine(&losses).0 - 3.0).abs() < 1e-4);
        assert_eq!(Mean::Arithmetic.combine(&losses).0, 3.0);
    }

    #[test]
    fn losses_of_logits_and_of_observations_agree() {
        let observed = Observation {
            log_probs: vec![-1.0, -2.0, -6.0],
            divergence_bits: vec![0.25],
            ..Observation::default()
        };
        assert_eq!(goal(GoalKind::Target, Mean::Arithmetic).loss(&observed), 3.0);
        assert_eq!(goal(GoalKind::Loss, Mean::Arithmetic).loss(&observed), -3.0);
        assert_eq!(goal(GoalKind::Away, Mean::Arithmetic).loss(&observed), -0.25);
    }
}
