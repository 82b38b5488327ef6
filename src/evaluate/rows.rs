//! One forward of the rows of many requests, and what is read of it.

use std::sync::Arc;

use super::engine::ModelEvaluator;
use super::lower::{Lowering, Place};
use super::plan::{Plan, Run};
use super::{Distributions, LayerRouting, Observation, Request};
use crate::error::Result;
use crate::model::batch::Row;
use crate::model::hooks::{Block, Change, Hooks, Site};
use crate::model::{Forward, Output, Pooled, Read, Readout};

/// A request on its way into a forward.
pub struct Job<'a> {
    pub request: &'a Request,
    pub plan: &'a Plan,
    /// What its row starts from, if from anything.
    pub run: Option<Arc<Run>>,
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
        let mut reads = Vec::new();
        // What is read before a row begins is as in its run, and goes behind the last row.
        let mut before: Vec<&[f32]> = Vec::new();
        for (i, job) in jobs.iter().enumerate() {
            let row = &forward.rows[i];
            let place = Place { tokens: offsets[i]..offsets[i + 1], position: row.prefix_len(), layer: row.entry().0 };
            spare(job, &place, d, &mut hooks);
            // What a run had below the layer it is resumed at is in what it left there.
            let trial = &job.plan.above(&job.request.trial, row.entry().0, config);
            let position = place.position;
            let lowering = Lowering { evaluator: self, trial, layout: &job.plan.layout, place, hooks: &mut hooks };
            lowering.run(&job.request.patches)?;
            for (n, at) in job.plan.read_positions().enumerate() {
                let token = match (at.checked_sub(position), &job.run) {
                    (None, Some(run)) => {
                        before.push(&run.residuals.pre[config.num_hidden_layers][at * d..][..d]);
                        offsets[jobs.len()] + before.len() - 1
                    }
                    (after, _) => offsets[i] + after.unwrap_or_default(),
                };
                reads.push(Read {
                    token,
                    target: job.plan.layout.ids.get(at + 1).copied(),
                    reference: job.request.reference.clone().map(|r| (r, n)),
                    keep: job.request.keep_distributions,
                });
            }
        }
        hooks.capture = (0..config.num_hidden_layers).filter(|l| config.is_sparse(*l)).map(|l| (l, Site::RouterLogits)).collect();
        forward.hooks = hooks;
        let mut output = self.forward(&forward)?;
        before.into_iter().for_each(|residual| output.residual.extend(residual));
        let mut readouts = self.model.read(&output.residual, &reads).into_iter();
        let mut read = 0;
        let observed = jobs.iter().enumerate().map(|(i, job)| {
            let positions = job.plan.read_positions().len();
            let mine: Vec<Readout> = readouts.by_ref().take(positions).collect();
            let first = reads[read].token;
            read += positions;
            Observation {
                routing: self.routing(&output, &forward.rows[i], offsets[i], job),
                state_norms: self.state_norms(&output, offsets[i + 1] - 1),
                sketch: self.sketch_of(&output.residual[first * d..][..d]),
                ..self.observed(mine, job)
            }
        });
        Ok(observed.collect())
    }

    fn observed(&self, readouts: Vec<Readout>, Job { request, plan, .. }: &Job) -> Observation {
        let continuation = plan.layout.ids.len() - plan.layout.prompt_len;
        let kept: Option<Vec<Vec<f32>>> = readouts.iter().map(|r| r.distribution.clone()).collect();
        Observation {
            log_probs: readouts.iter().take(continuation).map(|r| r.log_prob).collect(),
            entropy: readouts.iter().map(|r| r.entropy).collect(),
            divergence_bits: readouts.iter().filter_map(|r| r.divergence_bits).collect(),
            finite: readouts.iter().all(|r| r.finite),
            top: readouts.into_iter().map(|r| r.top).collect(),
            distributions: kept.filter(|_| request.keep_distributions).map(|log_probs| {
                Arc::new(Distributions { vocabulary: self.model.config.vocab_size, log_probs: log_probs.concat() })
            }),
            ..Observation::default()
        }
    }

    /// The experts chosen for the read positions, in the layers that were computed for the row.
    fn routing(&self, output: &Output<Pooled>, row: &Row, offset: usize, Job { plan, run, .. }: &Job) -> Vec<LayerRouting> {
        let Some(experts) = &self.model.config.experts else { return Vec::new() };
        let (n, first) = (experts.num_experts, row.prefix_len());
        let layers = output.captured.iter().filter(|((layer, _), _)| *layer >= row.entry().0);
        layers
            .map(|(&(layer, _), logits)| {
                let picked = plan.read_positions().flat_map(|at| match (at.checked_sub(first), run) {
                    (None, Some(run)) => &run.router_logits[&layer][at * n..][..n],
                    (after, _) => &logits[(offset + after.unwrap_or_default()) * n..][..n],
                });
                let picked: Vec<f32> = picked.copied().collect();
                LayerRouting { layer, num_experts: n, chosen: crate::model::chosen_experts(&picked, experts) }
            })
            .collect()
    }
}

/// Puts what a run has in the place of what need not be computed in the lowest layer.
fn spare(Job { plan, run, .. }: &Job, place: &Place, d_model: usize, hooks: &mut Hooks) {
    let Some(run) = run else { return };
    let positions = place.position..place.position + place.tokens.len();
    let Some((layer, stretches)) = plan.untouched(run, positions) else { return };
    for positions in stretches {
        let values = &run.residuals.pre[layer + 1][positions.start * d_model..positions.end * d_model];
        let start = place.tokens.start + positions.start - place.position;
        let tokens = start..start + positions.len();
        let change = Change::Affine { scale: 0.0, shift: Some(values.into()) };
        hooks.push(layer, Site::ResidPost, Block { tokens, columns: 0..d_model, change });
    }
}
