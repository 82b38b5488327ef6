//! Candidates that differ from one sequence in a few tokens, run through the layers side by side
//! and pruned on the way: what is expected of a candidate at a layer is what it has become there,
//! exactly, and the rest of the way to first order. The idea is that of probe sampling (Zhao et al.
//! 2024, "Accelerating Greedy Coordinate Gradient via Probe Sampling"), with the model's own lower
//! layers for the draft, and nothing computed twice.

use std::ops::Range;
use std::sync::Arc;

use super::cache::CachedForward;
use super::engine::ModelEvaluator;
use super::observation::Observation;
use super::rows::forwards;
use crate::error::{Error, Result};
use crate::model::Distributions;
use crate::model::batch::{Entry, Residuals, Restart, Row};
use crate::model::{Forward, Read};

/// Candidates on their way through the model.
pub struct Race<'e, 'm> {
    evaluator: &'e ModelEvaluator<'m>,
    run: Arc<CachedForward>,
    ids: Vec<u32>,
    prompt_len: usize,
    /// Layers that those who are left went through.
    layers: usize,
    /// `None`: pruned.
    racers: Vec<Option<Racer>>,
}

/// What the loss is expected to change by, nats a token (or what the loss is in): to first order in
/// what a candidate has changed so far in the residual stream.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Expected {
    pub total: f64,
    /// What of it stands at the positions that predict the continuation.
    pub at_reads: f64,
}

struct Racer {
    /// The first position it changes: what stands before comes from the run.
    first: usize,
    ids: Vec<u32>,
    /// `[tokens, d_model]`, leaving the layers so far.
    residual: Vec<f32>,
}

impl<'m> ModelEvaluator<'m> {
    /// A race of `candidates`, lists of (position, id) each, on a prompt of `prompt_len` tokens and
    /// a continuation.
    ///
    /// # Errors
    /// [`Error::Request`] for positions that are none of the prompt's, and for recurrent models,
    /// which keep no state at every position.
    pub fn race(
        &self,
        ids: &[u32],
        prompt_len: usize,
        candidates: &[Vec<(usize, u32)>],
    ) -> Result<Race<'_, 'm>> {
        if self.model.config.is_recurrent() {
            return Err(Error::request(
                "a recurrent model runs no race: its rows begin where a state was kept",
            ));
        }
        if prompt_len == 0
            || prompt_len > ids.len()
            || candidates.iter().flatten().any(|(at, _)| *at >= prompt_len)
        {
            return Err(Error::request("a candidate changes what is no part of the prompt"));
        }
        candidates.iter().try_for_each(|c| {
            self.model.check_ids(&c.iter().map(|(_, id)| *id).collect::<Vec<_>>())
        })?;
        let end = (ids.len() - 1).max(prompt_len);
        let racer = |candidate: &Vec<(usize, u32)>| {
            let first = candidate.iter().map(|(at, _)| *at).min().unwrap_or(prompt_len - 1);
            let mut changed = ids[first..end].to_vec();
            candidate.iter().for_each(|(at, id)| changed[at - first] = *id);
            Some(Racer { first, ids: changed, residual: Vec::new() })
        };
        Ok(Race {
            evaluator: self,
            run: self.cached_forward(ids, &[])?,
            ids: ids.to_vec(),
            prompt_len,
            layers: 0,
            racers: candidates.iter().map(racer).collect(),
        })
    }
}

impl Race<'_, '_> {
    /// Takes those who are left up to where `layers` layers are behind them.
    pub fn advance(&mut self, layers: usize) -> Result<()> {
        let d = self.evaluator.model.config.hidden_size;
        let (from, run) = (self.layers, self.run.clone());
        for mut chunk in forwards(self.racers.iter_mut().flatten(), |racer| racer.ids.len()) {
            let row = |racer: &mut &mut Racer| {
                let restart = (from > 0).then(|| {
                    let mut pre = vec![Vec::new(); from];
                    pre.push(std::mem::take(&mut racer.residual));
                    Restart {
                        entry: Entry::Layer(from),
                        residuals: Arc::new(Residuals { pre, mid: Vec::new() }),
                        start: 0,
                    }
                });
                Row { prefix: run.prefix(racer.first), ids: racer.ids.clone(), restart }
            };
            let forward = Forward {
                rows: chunk.iter_mut().map(row).collect(),
                layers: Some(layers),
                ..Forward::default()
            };
            let residual = self.evaluator.forward(&forward)?.residual;
            let mut at = 0;
            for racer in chunk {
                racer.residual = residual[at * d..(at + racer.ids.len()) * d].to_vec();
                at += racer.ids.len();
            }
        }
        self.layers = layers;
        Ok(())
    }

    /// What is expected of each who is left: what it changed so far in the residual stream, times
    /// the gradient there, `[positions, d_model]` from position `start` on
    /// ([`OneHotGradient::residuals`](super::OneHotGradient::residuals)).
    ///
    /// # Errors
    /// [`Error::Request`] where the gradient does not reach all that changed.
    pub fn expected(&self, start: usize, gradient: &[f32]) -> Result<Vec<Option<Expected>>> {
        let d = self.evaluator.model.config.hidden_size;
        let base = &self.run.residuals.pre[self.layers];
        let of = |racer: &Racer| {
            let from = racer.first.checked_sub(start)?;
            let gradient = gradient.get(from * d..from * d + racer.residual.len())?;
            let old = &base[racer.first * d..][..racer.residual.len()];
            let read = (self.prompt_len - 1 - racer.first) * d;
            let change = |values: Range<usize>| {
                let changed = racer.residual[values.clone()]
                    .iter()
                    .zip(&old[values.clone()])
                    .zip(&gradient[values]);
                changed.map(|((n, o), g)| f64::from((n - o) * g)).sum::<f64>()
            };
            let at_reads = change(read..old.len());
            Some(Expected { total: change(0..read) + at_reads, at_reads })
        };
        let of =
            |racer: &Racer| of(racer).ok_or_else(|| Error::internal("a race beyond its gradient"));
        self.racers.iter().map(|racer| racer.as_ref().map(of).transpose()).collect()
    }

    /// Only those for which `keep` says so go on.
    pub fn retain(&mut self, keep: impl Fn(usize) -> bool) {
        self.racers
            .iter_mut()
            .enumerate()
            .filter(|(i, _)| !keep(*i))
            .for_each(|(_, racer)| *racer = None);
    }

    /// What those who are left do at the end, in the order of the candidates: log-probabilities,
    /// entropies, top tokens and, with a `reference`, divergences at the read positions.
    pub fn finish(
        mut self,
        reference: Option<&Arc<Distributions>>,
    ) -> Result<Vec<Option<Observation>>> {
        let (model, d) = (self.evaluator.model, self.evaluator.model.config.hidden_size);
        self.advance(model.config.num_hidden_layers)?;
        let (mut residual, mut reads) = (Vec::new(), Vec::new());
        let positions = self.prompt_len - 1..(self.ids.len() - 1).max(self.prompt_len);
        for racer in self.racers.iter().flatten() {
            for (n, at) in positions.clone().enumerate() {
                reads.push(Read {
                    token: reads.len(),
                    target: self.ids.get(at + 1).copied(),
                    reference: reference.map(|r| (r.clone(), n)),
                    keep: false,
                });
                residual.extend_from_slice(&racer.residual[(at - racer.first) * d..][..d]);
            }
        }
        let mut readouts = model.read(&residual, &reads).into_iter();
        let continuation = self.ids.len() - self.prompt_len;
        let observed = self.racers.iter().map(|racer| {
            racer.as_ref()?;
            Some(Observation::of(readouts.by_ref().take(positions.len()).collect(), continuation))
        });
        Ok(observed.collect())
    }
}
