//! The readout: from the residual stream to the logits of the positions that are read, reduced to
//! log-probability, entropy, divergence and top tokens.
//!
//! Logits exist for a few positions at a time; `[positions, vocabulary]` is kept only on request.

use std::sync::Arc;

use multiversion::multiversion;
use rayon::prelude::*;

use super::Model;
use super::arithmetic::kernels::{LANES, exp, lanes_sum, largest, ln, norm};
use super::arithmetic::pool::Pooled;
use super::config::NormKind;

/// Number of most probable tokens that are kept for each read position.
pub const TOP_TOKENS: usize = 5;

/// Natural log-probabilities at each read position, `[positions, vocabulary]`, row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct Distributions {
    /// Number of tokens of the vocabulary.
    pub vocabulary: usize,
    /// Nats, `[positions, vocabulary]`.
    pub log_probs: Vec<f32>,
}

impl Distributions {
    /// Returns the number of positions.
    pub fn positions(&self) -> usize {
        self.log_probs.len() / self.vocabulary.max(1)
    }

    /// Returns the log-probabilities at one position, `[vocabulary]`, nats.
    pub fn row(&self, position: usize) -> &[f32] {
        &self.log_probs[position * self.vocabulary..][..self.vocabulary]
    }
}

/// A position to read, and what to measure there.
pub struct Read {
    /// Packed token index.
    pub token: usize,
    /// Token whose log-probability is measured.
    pub target: Option<u32>,
    /// Distributions and the row of them from which the divergence is measured.
    pub reference: Option<(Arc<Distributions>, usize)>,
    /// Keeps the whole distribution.
    pub keep: bool,
    /// Measures the mean log-probability over the vocabulary.
    pub centre: bool,
}

/// The measurements at one position.
#[derive(Debug, Clone, Default)]
pub struct Readout {
    /// Log-probability of the target, nats; 0 without a target.
    pub log_prob: f32,
    /// Entropy of the distribution, nats.
    pub entropy: f32,
    /// The [`TOP_TOKENS`] most probable tokens and their log-probabilities (nats), best first.
    pub top: Vec<(u32, f32)>,
    /// Jensen-Shannon divergence from the reference, bits, in `0.0..=1.0`; `None` without one.
    pub divergence_bits: Option<f32>,
    /// Mean of the log-probabilities of all tokens, nats; `None` unless it was asked for. The
    /// target's log-probability minus it is the target's centred logit.
    pub mean_log_prob: Option<f32>,
    /// False if a logit was NaN or infinite; nothing else is measured then.
    pub finite: bool,
    /// Log-probabilities of all tokens, nats, if they were to be kept.
    pub distribution: Option<Vec<f32>>,
}

/// Logits that exist at one time, 25 MB: those of 128 positions at a vocabulary of 49,152.
const CHUNK_VALUES: usize = 128 * 49_152;

impl Model {
    /// Returns the logits `[tokens, vocab]` of a residual stream `[tokens, d_model]`.
    pub fn logits(&self, residual: &[f32]) -> Pooled {
        let x = norm(residual, &self.weights.norm);
        let rows = x.len() / self.config.hidden_size;
        let mut logits = Pooled::take(rows * self.config.vocab_size);
        self.weights.head.matrix.matmul(&x, rows, &mut logits);
        logits
    }

    /// Returns what vectors `[n, d_model]` in the residual stream add directly to the logits of
    /// `ids`, `[n, ids]`, up to the factor by which the final normalization divides.
    pub fn direct_logits(&self, vectors: &[f32], ids: &[u32]) -> Vec<f32> {
        let (d, final_norm) = (self.config.hidden_size, &self.weights.norm);
        let unembeddings: Vec<Vec<f32>> = ids
            .iter()
            .map(|&id| {
                let row = self.unembedding(id);
                row.iter().zip(&final_norm.weight).map(|(u, w)| u * w).collect()
            })
            .collect();
        let mut logits = Vec::with_capacity(vectors.len() / d * ids.len());
        for vector in vectors.chunks_exact(d) {
            let mean = match final_norm.kind {
                NormKind::Layer => vector.iter().sum::<f32>() / d as f32,
                _ => 0.0,
            };
            logits.extend(unembeddings.iter().map(|unembedding| {
                unembedding.iter().zip(vector).map(|(u, x)| u * (x - mean)).sum::<f32>()
            }));
        }
        logits
    }

    /// Reads positions of a residual stream `[tokens, d_model]`; one readout for each, in order.
    pub fn read(&self, residual: &[f32], reads: &[Read]) -> Vec<Readout> {
        let (d, vocabulary) = (self.config.hidden_size, self.config.vocab_size);
        let mut readouts = Vec::with_capacity(reads.len());
        for chunk in reads.chunks((CHUNK_VALUES / vocabulary).max(1)) {
            let mut picked = Pooled::take(chunk.len() * d);
            picked
                .chunks_exact_mut(d)
                .zip(chunk)
                .for_each(|(x, r)| x.copy_from_slice(&residual[r.token * d..][..d]));
            let mut logits = self.logits(&picked);
            let rows = logits.par_chunks_mut(vocabulary).zip(chunk);
            readouts.par_extend(rows.map(|(logits, read)| reduce(logits, read)));
        }
        readouts
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
fn reduce(logits: &mut [f32], read: &Read) -> Readout {
    // Only NaN and infinity do not become zero when multiplied by it.
    if lanes_sum(logits, |x| x * 0.0) != 0.0 {
        // No comparison with a NaN holds: such a row is reported as not finite, without
        // measurements.
        return Readout {
            log_prob: f32::NEG_INFINITY,
            divergence_bits: read.reference.as_ref().map(|_| 1.0),
            distribution: read.keep.then(|| logits.to_vec()),
            ..Readout::default()
        };
    }
    let max = largest(logits);
    let (sum, weighted) = exponentials(logits, max);
    let log_sum = sum.ln();
    let entropy = log_sum - weighted / sum;
    logits.iter_mut().for_each(|x| *x -= log_sum);
    let divergence_bits =
        read.reference.as_ref().map(|(d, row)| jensen_shannon_bits(logits, d.row(*row)));
    Readout {
        log_prob: read.target.map_or(0.0, |t| logits[t as usize]),
        entropy: entropy.max(0.0),
        top: top(logits),
        divergence_bits,
        mean_log_prob: read.centre.then(|| lanes_sum(logits, |x| x) / logits.len() as f32),
        finite: true,
        distribution: read.keep.then(|| logits.to_vec()),
    }
}

/// Subtracts `max` from all values; returns the sum of their exponentials and the sum of
/// exponential times value.
#[inline(always)]
fn exponentials(x: &mut [f32], max: f32) -> (f32, f32) {
    let (mut sums, mut weighted) = ([0f32; LANES], [0f32; LANES]);
    let (chunks, rest) = x.as_chunks_mut::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            add_exponential(&mut chunk[i], max, &mut sums[i], &mut weighted[i]);
        }
    }
    for (i, x) in rest.iter_mut().enumerate() {
        add_exponential(x, max, &mut sums[i], &mut weighted[i]);
    }
    (sums.iter().sum(), weighted.iter().sum())
}

#[inline(always)]
fn add_exponential(x: &mut f32, max: f32, sum: &mut f32, weighted: &mut f32) {
    *x -= max;
    let e = exp(*x);
    *sum += e;
    *weighted = e.mul_add(*x, *weighted);
}

/// Returns the logarithm of the sum of the exponentials of values, none of which is NaN. The values
/// are overwritten.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
pub fn log_sum_exp(values: &mut [f32]) -> f32 {
    let max = largest(values);
    max + exponentials(values, max).0.ln()
}

/// Jensen-Shannon divergence of two distributions given as log-probabilities (nats), in bits.
#[inline(always)]
fn jensen_shannon_bits(p: &[f32], q: &[f32]) -> f32 {
    let mut lanes = [0f32; LANES];
    let ((p, p_rest), (q, q_rest)) = (p.as_chunks::<LANES>(), q.as_chunks::<LANES>());
    for (p, q) in p.iter().zip(q) {
        for i in 0..LANES {
            lanes[i] += divergence_term(p[i], q[i]);
        }
    }
    for (lane, (p, q)) in lanes.iter_mut().zip(p_rest.iter().zip(q_rest)) {
        *lane += divergence_term(*p, *q);
    }
    (0.5 * lanes.iter().sum::<f32>() / std::f32::consts::LN_2).clamp(0.0, 1.0)
}

/// Returns the contribution of one token to twice the divergence, nats.
#[inline(always)]
fn divergence_term(lp: f32, lq: f32) -> f32 {
    let (p, q) = (exp(lp), exp(lq));
    let log_mean = ln(0.5 * (p + q));
    // A probability of zero contributes nothing; its logarithm may be -inf, whose product is not.
    let a = if p > 0.0 { p * (lp - log_mean) } else { 0.0 };
    let b = if q > 0.0 { q * (lq - log_mean) } else { 0.0 };
    a + b
}

/// Returns the most probable ids and their log-probabilities, best first; ties by id.
#[inline(always)]
fn top(log_probs: &[f32]) -> Vec<(u32, f32)> {
    let mut best: Vec<(u32, f32)> = Vec::with_capacity(TOP_TOKENS + 1);
    let mut least = f32::NEG_INFINITY;
    for (chunk, first) in log_probs.chunks(LANES).zip((0..).step_by(LANES)) {
        // Few chunks hold anything that belongs in the list.
        if best.len() == TOP_TOKENS && largest(chunk) <= least {
            continue;
        }
        for (id, &x) in (first..).zip(chunk) {
            if x > least || best.len() < TOP_TOKENS {
                let at = best.partition_point(|(_, y)| *y >= x);
                best.insert(at, (id, x));
                best.truncate(TOP_TOKENS);
                if best.len() == TOP_TOKENS {
                    least = best[TOP_TOKENS - 1].1;
                }
            }
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log_softmax(x: &[f64]) -> Vec<f64> {
        let sum: f64 = x.iter().map(|x| x.exp()).sum();
        x.iter().map(|x| x - sum.ln()).collect()
    }

    #[test]
    fn reductions_agree_with_their_definitions() {
        use rand::Rng as _;
        let mut rng = crate::rng::stream(3, "readout");
        let mut random = |n| (0..n).map(|_| rng.random_range(-8.0..8.0)).collect::<Vec<f64>>();
        let (a, b) = (random(1003), random(1003));
        let (p, q) = (log_softmax(&a), log_softmax(&b));
        let entropy: f64 = -p.iter().map(|l| l.exp() * l).sum::<f64>();
        let js: f64 = p
            .iter()
            .zip(&q)
            .map(|(lp, lq)| {
                let m = (0.5 * (lp.exp() + lq.exp())).ln();
                0.5 * (lp.exp() * (lp - m) + lq.exp() * (lq - m))
            })
            .sum::<f64>()
            / std::f64::consts::LN_2;
        let reference = Arc::new(Distributions {
            vocabulary: 1003,
            log_probs: q.iter().map(|x| *x as f32).collect(),
        });
        let mut logits: Vec<f32> = a.iter().map(|x| *x as f32).collect();
        let out = reduce(
            &mut logits,
            &Read {
                token: 0,
                target: Some(17),
                reference: Some((reference, 0)),
                keep: true,
                centre: true,
            },
        );
        assert!((f64::from(out.log_prob) - p[17]).abs() < 1e-5);
        assert!((f64::from(out.entropy) - entropy).abs() < 1e-4, "{} {entropy}", out.entropy);
        assert!(
            (f64::from(out.divergence_bits.unwrap()) - js).abs() < 1e-5,
            "{:?} {js}",
            out.divergence_bits
        );
        let mean = p.iter().sum::<f64>() / 1003.0;
        assert!((f64::from(out.mean_log_prob.unwrap()) - mean).abs() < 1e-4);
        let mut shifted: Vec<f32> = p.iter().map(|x| *x as f32 + 2.5).collect();
        assert!((log_sum_exp(&mut shifted) - 2.5).abs() < 1e-5);
        let mut order: Vec<usize> = (0..1003).collect();
        order.sort_by(|i, j| p[*j].total_cmp(&p[*i]));
        assert_eq!(out.top.iter().map(|t| t.0 as usize).collect::<Vec<_>>(), order[..5]);
        assert!(out.finite);
    }

    #[test]
    fn a_nan_is_reported_and_not_averaged() {
        let mut logits = vec![0.0, f32::NAN, 1.0];
        let out = reduce(
            &mut logits,
            &Read { token: 0, target: Some(0), reference: None, keep: false, centre: false },
        );
        assert!(!out.finite && out.log_prob == f32::NEG_INFINITY);
    }
}
