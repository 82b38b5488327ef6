//! One forward of the rows of many requests, and what is read of it.

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

/// A request on its way into a forward.
pub struct Job<'a> {
    pub request: &'a Request,
    pub plan: &'a Plan,
    /// What its row starts from, if from anything.
    pub run: Option<Arc<CachedForward>>,
    pub row: Row,
}

impl ModelEvaluator<'_> {
    /// Observes rows that ascend in their entries.
    pub(super) fn observe_rows(&self, mut jobs: Vec<Job>) -> Result<Vec<Observation>> {
        let (config, d) = (&self.model.config, self.model.config.hidden_size);
        let rows = jobs.iter_mut().map(|job| std::mem::take(&mut job.row)).collect();
        let mut forward = Forward { rows, keep_ends: config.is_recurrent(), ..Forward::default() };
        let offsets = forward.offsets();
        let mut hooks = Hooks::default();
        let mut reads: Vec<Read> = Vec::new();
        // Which reads are whose. What a row leaves as its run has it is read once for all rows of
        // that run, and goes behind the last row.
        let mut reads_of: Vec<Vec<usize>> = Vec::new();
        let mut shared: BTreeMap<Shared, usize> = BTreeMap::new();
        let mut of_runs: Vec<&[f32]> = Vec::new();
        for (i, job) in jobs.iter().enumerate() {
            let row = &forward.rows[i];
            let place = Place {
                tokens: offsets[i]..offsets[i + 1],
                position: row.prefix_len(),
                layer: row.entry().layer(),
            };
            let untouched = spare(job, &place, config, &mut hooks);
            // What a run had below the layer it is resumed at is in what it left there.
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
                let keep = job.request.keep_distributions;
                let read = |token| Read { token, target, reference: reference.clone(), keep };
                let as_run = job.run.as_ref().filter(|_| {
                    at < position || untouched.iter().any(|stretch| stretch.contains(&at))
                });
                let Some(run) = as_run else {
                    mine.push(reads.len());
                    reads.push(read(offsets[i] + at - position));
                    continue;
                };
                let reference = reference.as_ref().map(|(r, n)| (Arc::as_ptr(r) as usize, *n));
                let key = Shared { run: Arc::as_ptr(run) as usize, at, target, reference, keep };
                mine.push(*shared.entry(key).or_insert_with(|| {
                    reads.push(read(offsets[jobs.len()] + of_runs.len()));
                    of_runs.push(&run.residuals.pre[config.num_hidden_layers][at * d..][..d]);
                    reads.len() - 1
                }));
            }
            reads_of.push(mine);
        }
        hooks.capture = (0..config.num_hidden_layers)
            .filter(|l| config.is_sparse(*l))
            .map(|l| (l, Site::RouterLogits))
            .collect();
        forward.hooks = hooks;
        let mut output = self.forward(&forward)?;
        of_runs.into_iter().for_each(|residual| output.residual.extend(residual));
        let readouts = self.model.read(&output.residual, &reads);
        let observed = jobs.iter().zip(&reads_of).enumerate().map(|(i, (job, mine))| {
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

    /// The experts chosen for the read positions, in the layers that were computed for the row.
    fn routing(
        &self,
        output: &Output<Pooled>,
        row: &Row,
        offset: usize,
        Job { plan, run, .. }: &Job,
    ) -> Vec<LayerRouting> {
        let Some(experts) = &self.model.config.experts else { return Vec::new() };
        let (n, first) = (experts.num_experts, row.prefix_len());
        let layers = output.captured.iter().filter(|((layer, _), _)| *layer >= row.entry().layer());
        layers
            .map(|(&(layer, _), logits)| {
                let picked =
                    plan.read_positions().flat_map(|at| match (at.checked_sub(first), run) {
                        (None, Some(run)) => &run.router_logits[&layer][at * n..][..n],
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

/// What makes two reads of runs the same read. ForwardCache and references are known by their addresses.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Shared {
    run: usize,
    at: usize,
    target: Option<u32>,
    reference: Option<(usize, usize)>,
    keep: bool,
}

/// Puts what a run has in the place of what need not be computed in the lowest layer. The positions
/// that leave the last layer as in the run.
fn spare(
    Job { plan, run, .. }: &Job,
    place: &Place,
    config: &Config,
    hooks: &mut Hooks,
) -> Vec<Range<usize>> {
    let Some(run) = run else { return Vec::new() };
    let (positions, d) = (place.position..place.position + place.tokens.len(), config.hidden_size);
    let Some((layer, stretches)) = plan.untouched(run, positions) else { return Vec::new() };
    for positions in &stretches {
        let values = &run.residuals.pre[layer + 1][positions.start * d..positions.end * d];
        let start = place.tokens.start + positions.start - place.position;
        let tokens = start..start + positions.len();
        let change = Change::Affine { scale: 0.0, shift: Some(values.into()) };
        hooks.push(layer, Site::ResidPost, Block { tokens, columns: 0..d, change });
    }
    if layer + 1 == config.num_hidden_layers { stretches } else { Vec::new() }
}
