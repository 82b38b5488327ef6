//! Observes the rows of many requests in one forward.
//!
//! The rows are packed end to end; every hook names the tokens of its own row. Values that a row
//! has in common with the cached forward it starts from are read there once for all rows.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::cache::CachedForward;
use super::engine::ModelEvaluator;
use super::lower::{Lowering, Place};
use super::plan::Plan;
use super::{LayerRouting, Observation, Request};
use crate::error::Result;
use crate::model::Distributions;
use crate::model::batch::Row;
use crate::model::hooks::{Block, Change, Hooks, Site};
use crate::model::{Config, Forward, Output, Pooled, Read, Readout};

/// A planned request with its row.
pub struct Job<'a> {
    /// The request.
    pub request: &'a Request,
    /// Its plan.
    pub plan: &'a Plan,
    /// The cached forward that its row starts from, if any.
    pub start: Option<Arc<CachedForward>>,
    /// The tokens to compute and what they continue from.
    pub row: Row,
}

impl ModelEvaluator<'_> {
    /// Observes the rows of `jobs`, which must ascend in their entries, in one forward.
    pub(super) fn observe_rows(&self, mut jobs: Vec<Job>) -> Result<Vec<Observation>> {
        let (config, d) = (&self.model.config, self.model.config.hidden_size);
        let rows = jobs.iter_mut().map(|job| std::mem::take(&mut job.row)).collect();
        let mut forward = Forward { rows, keep_ends: config.is_recurrent(), ..Forward::default() };
        let offsets = forward.offsets();
        let mut hooks = Hooks::default();
        let mut reads: Vec<Read> = Vec::new();
        // The indices of each job's reads. Where a row leaves the residual stream as its cached
        // forward has it, it is read once for all rows of that forward, after the last row.
        let mut reads_by_job: Vec<Vec<usize>> = Vec::new();
        let mut shared: BTreeMap<SharedRead, usize> = BTreeMap::new();
        let mut from_cached: Vec<&[f32]> = Vec::new();
        for (i, job) in jobs.iter().enumerate() {
            let row = &forward.rows[i];
            let place = Place {
                tokens: offsets[i]..offsets[i + 1],
                position: row.prefix_len(),
                layer: row.entry().layer(),
            };
            let untouched = skip_untouched(job, &place, config, &mut hooks);
            // The residual stream at the entry already has the lesions below it.
            let trial = &job.plan.above(&job.request.trial, row.entry().layer(), config);
            let position = place.position;
            let lowering = Lowering {
                baselines: self,
                trial,
                layout: &job.plan.layout,
                place,
                hooks: &mut hooks,
            };
            lowering.run(&job.request.patches)?;
            let mut mine = Vec::new();
            for (n, at) in job.plan.read_positions().enumerate() {
                let target = job.plan.layout.ids.get(at + 1).copied();
                let reference = job.request.reference.clone().map(|r| (r, n));
                let (keep, centre) = (job.request.keep_distributions, job.request.centre);
                let read =
                    |token| Read { token, target, reference: reference.clone(), keep, centre };
                let unchanged = job.start.as_ref().filter(|_| {
                    at < position || untouched.iter().any(|stretch| stretch.contains(&at))
                });
                let Some(cached) = unchanged else {
                    mine.push(reads.len());
                    reads.push(read(offsets[i] + at - position));
                    continue;
                };
                let reference = reference.as_ref().map(|(r, n)| (Arc::as_ptr(r) as usize, *n));
                let forward = Arc::as_ptr(cached) as usize;
                let key = SharedRead { forward, at, target, reference, keep, centre };
                mine.push(*shared.entry(key).or_insert_with(|| {
                    reads.push(read(offsets[jobs.len()] + from_cached.len()));
                    from_cached
                        .push(&cached.residuals.pre[config.num_hidden_layers][at * d..][..d]);
                    reads.len() - 1
                }));
            }
            reads_by_job.push(mine);
        }
        hooks.capture = (0..config.num_hidden_layers)
            .filter(|l| config.is_sparse(*l))
            .map(|l| (l, Site::RouterLogits))
            .collect();
        forward.hooks = hooks;
        let mut output = self.forward(&forward)?;
        from_cached.into_iter().for_each(|residual| output.residual.extend(residual));
        let readouts = self.model.read(&output.residual, &reads);
        let observed = jobs.iter().zip(&reads_by_job).enumerate().map(|(i, (job, mine))| {
            let first = reads[mine[0]].token;
            Observation {
                routing: self.routing(&output, &forward.rows[i], offsets[i], job),
                state_norms: self.state_norms(&output, offsets[i + 1] - 1),
                sketch: self.sketch(&output.residual[first * d..][..d]),
                ..self.observed(mine.iter().map(|read| readouts[*read].clone()).collect(), job)
            }
        });
        Ok(observed.collect())
    }

    fn observed(&self, readouts: Vec<Readout>, Job { request, plan, .. }: &Job) -> Observation {
        let continuation = plan.layout.ids.len() - plan.layout.prompt_len;
        let kept: Option<Vec<Vec<f32>>> = readouts.iter().map(|r| r.distribution.clone()).collect();
        Observation {
            distributions: kept.filter(|_| request.keep_distributions).map(|log_probs| {
                Arc::new(Distributions {
                    vocabulary: self.model.config.vocab_size,
                    log_probs: log_probs.concat(),
                })
            }),
            ..Observation::from_readouts(readouts, continuation)
        }
    }

    /// Returns the experts chosen at the read positions, in the layers that were computed for the
    /// row.
    fn routing(
        &self,
        output: &Output<Pooled>,
        row: &Row,
        offset: usize,
        Job { plan, start, .. }: &Job,
    ) -> Vec<LayerRouting> {
        let Some(experts) = &self.model.config.experts else { return Vec::new() };
        let (n, first) = (experts.num_experts, row.prefix_len());
        let layers = output.captured.iter().filter(|((layer, _), _)| *layer >= row.entry().layer());
        layers
            .map(|(&(layer, _), logits)| {
                let picked =
                    plan.read_positions().flat_map(|at| match (at.checked_sub(first), start) {
                        (None, Some(cached)) => &cached.router_logits[&layer][at * n..][..n],
                        (after, _) => &logits[(offset + after.unwrap_or_default()) * n..][..n],
                    });
                let picked: Vec<f32> = picked.copied().collect();
                LayerRouting {
                    layer,
                    num_experts: n,
                    chosen: crate::model::chosen_experts(&picked, experts),
                }
            })
            .collect()
    }
}

/// The key of a read of a cached forward, equal for reads with equal results. Forwards and
/// references are identified by their addresses.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct SharedRead {
    forward: usize,
    at: usize,
    target: Option<u32>,
    reference: Option<(usize, usize)>,
    keep: bool,
    centre: bool,
}

/// Takes the output of the lowest lesioned layer from the cached forward at the positions that the
/// lesions there do not touch, so that its experts need not be computed for them. Returns the
/// positions that leave the last layer as in the cached forward.
fn skip_untouched(
    Job { plan, start, .. }: &Job,
    place: &Place,
    config: &Config,
    hooks: &mut Hooks,
) -> Vec<Range<usize>> {
    let Some(cached) = start else { return Vec::new() };
    let (positions, d) = (place.position..place.position + place.tokens.len(), config.hidden_size);
    let Some((layer, stretches)) = plan.untouched(cached, positions) else { return Vec::new() };
    for positions in &stretches {
        let values = &cached.residuals.pre[layer + 1][positions.start * d..positions.end * d];
        let start = place.tokens.start + positions.start - place.position;
        let tokens = start..start + positions.len();
        let change = Change::Affine { scale: 0.0, shift: Some(values.into()) };
        hooks.push(layer, Site::ResidPost, Block { tokens, columns: 0..d, change });
    }
    if layer + 1 == config.num_hidden_layers { stretches } else { Vec::new() }
}
