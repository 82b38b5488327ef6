//! Attribution of replaced tokens: how they reach the predictions after them.
//!
//! Two measurements locate the route. Heads are patched at the positions after the replaced tokens
//! and nowhere else: those whose patch removes the effect attend to the tokens and write the result
//! where it is read. And the residual stream at the tokens' own positions is patched layer by
//! layer: the effect stops depending on those positions in the layers in which later positions
//! attend to them. Both are repeated with other tokens in the same place, random ones and ones that
//! fail, to tell what is particular to these tokens.

use std::ops::Range;

use super::components::rank;
use super::patching::{NEGLIGIBLE_BITS, Patching};
use super::runs::Direction;
use super::{ComparisonKind, ComparisonTokens, Localization, Mediation, TokenAttribution};
use crate::edit::{Component, Edit, Trial};
use crate::error::Result;
use crate::evaluate::{Evaluator as _, LayerwisePatching, ModelEvaluator, Request};

/// The number of the case's strongest heads that are tried.
const HEADS_TRIED: usize = 32;
/// The number of them that are kept as attending heads.
const HEADS_KEPT: usize = 8;

/// Attributes the effect of a case's replaced tokens to the heads that attend to them, and takes
/// the same figures of other `trials` with replacements in the same place. Returns the attribution
/// and the number of trials evaluated; `None` if the case is not made of replacements in its
/// prompt, if nothing follows these, or if no component mediates it.
///
/// # Errors
/// Errors of the evaluator.
pub fn attribute_tokens(
    evaluator: &ModelEvaluator,
    trial: &Trial,
    localization: &Localization,
    trials: &[(ComparisonKind, Trial)],
) -> Result<Option<(TokenAttribution, u64)>> {
    let mediators = localization.mediators();
    // Where nothing follows the tokens, nothing attends to them.
    let followed = |span: &Range<usize>| span.end < trial.len();
    let Some(span) = span(trial).filter(|span| followed(span) && !mediators.is_empty()) else {
        return Ok(None);
    };
    let mut own = Patching::new(evaluator, trial)?;
    if own.total < NEGLIGIBLE_BITS {
        return Ok(None);
    }
    let config = &evaluator.model.config;
    let mixes = |c: &Component| {
        let whole = config.mixer(c.layer()) == *c && config.heads(c.layer()) == 0;
        matches!(c, Component::Head { .. }) || whole
    };
    let tried: Vec<Component> =
        rank(&localization.effects).into_iter().filter(mixes).take(HEADS_TRIED).collect();
    let alone = own.removed_after(tried.chunks(1), &span)?;
    let mut ranked: Vec<(f64, Component)> = alone.into_iter().zip(tried).collect();
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let attending: Vec<Component> =
        ranked.into_iter().take(HEADS_KEPT).map(|(_, head)| head).collect();
    let mediation = own.mediation(&mediators, &attending, &span)?;
    let mut calls = own.calls;
    let mut comparisons = Vec::new();
    for (kind, trial) in trials {
        let mut other = Patching::new(evaluator, trial)?;
        let mediation =
            other.mediation(&mediators, &attending, &self::span(trial).unwrap_or(span.clone()))?;
        calls += other.calls;
        comparisons.push(ComparisonTokens { kind: *kind, edits: trial.edits.clone(), mediation });
    }
    let (first, last) = (span.start, span.end - 1);
    Ok(Some((TokenAttribution { first, last, attending, mediation, comparisons }, calls)))
}

/// Returns the range from the first to the last replaced position, if all edits are replacements in
/// the prompt.
fn span(trial: &Trial) -> Option<Range<usize>> {
    let replaced = |edit: &Edit| match edit {
        Edit::Replace { position, .. } if *position < trial.base.len() => Some(*position),
        _ => None,
    };
    let positions: Option<Vec<usize>> = trial.edits.iter().map(replaced).collect();
    let positions = positions?;
    Some(*positions.iter().min()?..positions.iter().max()? + 1)
}

impl Patching<'_, '_> {
    /// Measures the share of the effect that is removed by patching each set at the positions after
    /// `span`, and nowhere else.
    fn removed_after<'s>(
        &mut self,
        sets: impl Iterator<Item = &'s [Component]>,
        span: &Range<usize>,
    ) -> Result<Vec<f64>> {
        let after = [(span.end, span.end, self.runs.corrupted.trial.len() - span.end)];
        let requests: Vec<Request> = sets
            .map(|set| self.request(set, &after, Direction::Necessity))
            .collect::<Result<_>>()?;
        self.calls += requests.len() as u64;
        Ok(self
            .runs
            .evaluator
            .observe(&requests)?
            .iter()
            .map(|o| 1.0 - o.mean_divergence_bits() / self.total)
            .collect())
    }

    /// Measures what mediates the effect of the tokens in `span`: `set` at all positions, the
    /// attending heads after `span`, and the residual stream in `span` layer by layer.
    fn mediation(
        &mut self,
        set: &[Component],
        attending: &[Component],
        span: &Range<usize>,
    ) -> Result<Mediation> {
        let ids = self.runs.corrupted.trial.layout().ids;
        let clean = self.runs.clean.trial.layout().ids;
        let observed = self.runs.evaluator.patch_residual_by_layer(&LayerwisePatching {
            ids: &ids,
            prompt_len: self.runs.corrupted.trial.base.len(),
            positions: span.clone(),
            source: &clean,
            reference: &self.reference,
        })?;
        self.calls += observed.len() as u64;
        let loss = self.loss;
        if self.total < NEGLIGIBLE_BITS {
            let attending_each = vec![0.0; attending.len()];
            return Ok(Mediation { loss, attending_each, ..Mediation::default() });
        }
        let (necessity, sufficiency) = self.measure(&[set.to_vec()])?[0];
        let removed =
            self.removed_after(std::iter::once(attending).chain(attending.chunks(1)), span)?;
        Ok(Mediation {
            loss,
            divergence_bits: self.total,
            necessity,
            sufficiency,
            attending: removed[0],
            attending_each: removed[1..].to_vec(),
            layerwise: observed
                .iter()
                .map(|o| 1.0 - o.mean_divergence_bits() / self.total)
                .collect(),
        })
    }
}
