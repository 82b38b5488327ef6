//! Successive halving of candidates on their way through the layers.
//!
//! Candidates that differ from one sequence in a few tokens run side by side, some layers at a
//! time. After each rung the loss change of a candidate is estimated (what the layers so far made
//! of it, exactly; the remaining layers to first order, by the gradient of the residual stream),
//! and the caller prunes the least promising. The schedule is that of successive halving (Jamieson
//! and Talwalkar 2016); scoring candidates with a cheap draft follows probe sampling (Zhao et al.
//! 2024, "Accelerating Greedy Coordinate Gradient via Probe Sampling"). Here the model's own lower
//! layers are the draft, so that nothing is computed twice and a candidate that is never pruned
//! gets exactly the observation it would get in a batch.

use std::ops::Range;
use std::sync::Arc;

use super::batching::forwards;
use super::cache::CachedForward;
use super::engine::ModelEvaluator;
use super::observation::Observation;
use crate::error::{Error, Result};
use crate::model::Distributions;
use crate::model::batch::{Entry, Residuals, Restart, Row};
use crate::model::{Forward, Read};

/// A run of successive halving: the candidates that are left, and how far they have come.
pub struct SuccessiveHalving<'e, 'm> {
    evaluator: &'e ModelEvaluator<'m>,
    /// The plain forward of `ids`.
    cached: Arc<CachedForward>,
    ids: Vec<u32>,
    prompt_len: usize,
    /// The number of layers that the remaining candidates went through.
    layers: usize,
    /// `None` for a pruned candidate.
    candidates: Vec<Option<Candidate>>,
}

/// An estimate of how a candidate changes the loss, in the loss's own unit (nats per token): to
/// first order in the candidate's change of the residual stream so far.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Expected {
    /// The estimated change, summed over all positions.
    pub total: f64,
    /// The part of `total` at the positions that predict the continuation.
    pub at_reads: f64,
}

struct Candidate {
    /// The first position it changes; earlier positions come from the cached forward.
    first: usize,
    ids: Vec<u32>,
    /// The residual stream leaving the last layer so far, `[tokens, d_model]`.
    residual: Vec<f32>,
}

impl<'m> ModelEvaluator<'m> {
    /// Starts successive halving of `candidates`, each a list of (position, id) replacements in a
    /// sequence whose first `prompt_len` tokens are the prompt and whose rest is the continuation.
    ///
    /// # Errors
    /// [`Error::Request`] for positions outside the prompt, and for recurrent models, which keep
    /// no state at every position.
    pub fn successive_halving(
        &self,
        ids: &[u32],
        prompt_len: usize,
        candidates: &[Vec<(usize, u32)>],
    ) -> Result<SuccessiveHalving<'_, 'm>> {
        if self.model.config.is_recurrent() {
            return Err(Error::request(
                "successive halving needs attention: a recurrent model keeps no state at every \
                position, so its rows cannot start at the first replaced token",
            ));
        }
        if prompt_len == 0
            || prompt_len > ids.len()
            || candidates.iter().flatten().any(|(at, _)| *at >= prompt_len)
        {
            return Err(Error::request("a candidate replaces a token outside the prompt"));
        }
        candidates.iter().try_for_each(|c| {
            self.model.check_ids(&c.iter().map(|(_, id)| *id).collect::<Vec<_>>())
        })?;
        let end = (ids.len() - 1).max(prompt_len);
        let candidate = |replacements: &Vec<(usize, u32)>| {
            let first = replacements.iter().map(|(at, _)| *at).min().unwrap_or(prompt_len - 1);
            let mut changed = ids[first..end].to_vec();
            replacements.iter().for_each(|(at, id)| changed[at - first] = *id);
            Some(Candidate { first, ids: changed, residual: Vec::new() })
        };
        Ok(SuccessiveHalving {
            evaluator: self,
            cached: self.cached_forward(ids, &[])?,
            ids: ids.to_vec(),
            prompt_len,
            layers: 0,
            candidates: candidates.iter().map(candidate).collect(),
        })
    }
}

impl SuccessiveHalving<'_, '_> {
    /// Runs the remaining candidates through the first `layers` layers, continuing where the last
    /// call stopped.
    ///
    /// # Errors
    /// Errors of the forward pass.
    pub fn advance(&mut self, layers: usize) -> Result<()> {
        let d = self.evaluator.model.config.hidden_size;
        let (from, cached) = (self.layers, self.cached.clone());
        for mut chunk in forwards(self.candidates.iter_mut().flatten(), |c| c.ids.len()) {
            let row = |candidate: &mut &mut Candidate| {
                let restart = (from > 0).then(|| {
                    let mut pre = vec![Vec::new(); from];
                    pre.push(std::mem::take(&mut candidate.residual));
                    Restart {
                        entry: Entry::Layer(from),
                        residuals: Arc::new(Residuals { pre, mid: Vec::new() }),
                        start: 0,
                    }
                });
                let prefix = cached.prefix(candidate.first);
                Row { prefix, ids: candidate.ids.clone(), restart }
            };
            let forward = Forward {
                rows: chunk.iter_mut().map(row).collect(),
                layers: Some(layers),
                ..Forward::default()
            };
            let residual = self.evaluator.forward(&forward)?.residual;
            let mut at = 0;
            for candidate in chunk {
                candidate.residual = residual[at * d..(at + candidate.ids.len()) * d].to_vec();
                at += candidate.ids.len();
            }
        }
        self.layers = layers;
        Ok(())
    }

    /// Estimates the loss change of each remaining candidate: its change of the residual stream so
    /// far, times the `gradient` there, `[positions, d_model]` from position `start` on
    /// ([`OneHotGradient::residuals`](super::OneHotGradient::residuals)). Pruned candidates get
    /// `None`.
    ///
    /// # Errors
    /// [`Error::Request`] if the gradient does not cover every changed position.
    pub fn expected(&self, start: usize, gradient: &[f32]) -> Result<Vec<Option<Expected>>> {
        let d = self.evaluator.model.config.hidden_size;
        let base = &self.cached.residuals.pre[self.layers];
        let estimate = |candidate: &Candidate| {
            let from = candidate.first.checked_sub(start)?;
            let gradient = gradient.get(from * d..from * d + candidate.residual.len())?;
            let old = &base[candidate.first * d..][..candidate.residual.len()];
            let read = (self.prompt_len - 1 - candidate.first) * d;
            let change = |values: Range<usize>| {
                let changed = candidate.residual[values.clone()]
                    .iter()
                    .zip(&old[values.clone()])
                    .zip(&gradient[values]);
                changed.map(|((n, o), g)| f64::from((n - o) * g)).sum::<f64>()
            };
            let at_reads = change(read..old.len());
            Some(Expected { total: change(0..read) + at_reads, at_reads })
        };
        let estimate = |candidate: &Candidate| {
            estimate(candidate).ok_or_else(|| {
                Error::request(
                    "the gradient does not cover every position that a candidate changes",
                )
            })
        };
        self.candidates.iter().map(|c| c.as_ref().map(estimate).transpose()).collect()
    }

    /// Removes the candidates for which `keep` returns false.
    pub fn prune(&mut self, keep: impl Fn(usize) -> bool) {
        self.candidates
            .iter_mut()
            .enumerate()
            .filter(|(i, _)| !keep(*i))
            .for_each(|(_, candidate)| *candidate = None);
    }

    /// Runs the remaining candidates to the last layer and observes them, in the order of the
    /// candidates, with `None` for pruned ones: log-probabilities, entropies, top tokens and, with
    /// a `reference`, divergences at the read positions.
    ///
    /// # Errors
    /// Errors of the forward pass.
    pub fn finish(
        mut self,
        reference: Option<&Arc<Distributions>>,
    ) -> Result<Vec<Option<Observation>>> {
        let (model, d) = (self.evaluator.model, self.evaluator.model.config.hidden_size);
        self.advance(model.config.num_hidden_layers)?;
        let (mut residual, mut reads) = (Vec::new(), Vec::new());
        let positions = self.prompt_len - 1..(self.ids.len() - 1).max(self.prompt_len);
        for candidate in self.candidates.iter().flatten() {
            for (n, at) in positions.clone().enumerate() {
                reads.push(Read {
                    token: reads.len(),
                    target: self.ids.get(at + 1).copied(),
                    reference: reference.map(|r| (r.clone(), n)),
                    keep: false,
                    centre: false,
                });
                residual.extend_from_slice(&candidate.residual[(at - candidate.first) * d..][..d]);
            }
        }
        let mut readouts = model.read(&residual, &reads).into_iter();
        let continuation = self.ids.len() - self.prompt_len;
        let observed = self.candidates.iter().map(|candidate| {
            candidate.as_ref()?;
            let readouts = readouts.by_ref().take(positions.len()).collect();
            Some(Observation::from_readouts(readouts, continuation))
        });
        Ok(observed.collect())
    }
}
