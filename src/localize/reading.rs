//! How replaced tokens reach what is said after them: which heads read them, up to which layer they
//! matter in their own place, and whether other tokens there, and tokens that fail, act the same
//! way.

use std::ops::Range;

use super::patching::{Direction, NOTHING, Patching, rank};
use super::{Carried, Contrast, ContrastKind, Implication, Reading};
use crate::edit::{Component, Edit, Trial};
use crate::error::Result;
use crate::evaluate::{Evaluator as _, ModelEvaluator, Request};

/// Heads that are tried, the strongest of the case's, and how many of them are kept together as its
/// readers.
const TRIED: usize = 32;
const READERS: usize = 8;

/// How the replaced tokens of a case act, and the same figures of other `trials` with replacements
/// in the same place. `None` where the case is not made of replacements in its prompt, or nothing
/// carries it.
///
/// # Errors
/// What the evaluator refuses.
pub fn reading(
    evaluator: &ModelEvaluator,
    trial: &Trial,
    implication: &Implication,
    trials: &[(ContrastKind, Trial)],
) -> Result<Option<(Reading, u64)>> {
    let Some(span) = span(trial).filter(|_| !implication.set.is_empty()) else { return Ok(None) };
    let mut own = Patching::new(evaluator, trial)?;
    if own.total < NOTHING {
        return Ok(None);
    }
    let config = &evaluator.model.config;
    let mixes =
        |c: &Component| matches!(c, Component::Head { .. }) || config.mixer(c.layer()) == *c;
    let tried: Vec<Component> =
        rank(&implication.effects).into_iter().filter(mixes).take(TRIED).collect();
    let alone = own.without(tried.chunks(1), &span)?;
    let mut readers: Vec<(f64, Component)> = alone.into_iter().zip(tried).collect();
    readers.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let readers: Vec<Component> = readers.into_iter().take(READERS).map(|(_, head)| head).collect();
    let carried = own.carried(&implication.set, &readers, &span)?;
    let mut calls = own.calls;
    let mut contrasts = Vec::new();
    for (kind, trial) in trials {
        let mut other = Patching::new(evaluator, trial)?;
        let carried = other.carried(
            &implication.set,
            &readers,
            &self::span(trial).unwrap_or(span.clone()),
        )?;
        calls += other.calls;
        contrasts.push(Contrast { kind: *kind, edits: trial.edits.clone(), carried });
    }
    Ok(Some((
        Reading { first: span.start, last: span.end - 1, readers, carried, contrasts },
        calls,
    )))
}

/// From the first replaced position to behind the last, where all edits are replacements in the
/// prompt.
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
    /// The share of the effect that goes when each of some sets is patched behind `span` and
    /// nowhere else.
    fn without<'s>(
        &mut self,
        sets: impl Iterator<Item = &'s [Component]>,
        span: &Range<usize>,
    ) -> Result<Vec<f64>> {
        let after = [(span.end, span.end, self.glitched.0.len() - span.end)];
        let requests: Vec<Request> = sets
            .map(|set| self.request(set, &after, Direction::Necessity))
            .collect::<Result<_>>()?;
        self.calls += requests.len() as u64;
        Ok(self
            .evaluator
            .observe(&requests)?
            .iter()
            .map(|o| 1.0 - o.mean_divergence_bits() / self.total)
            .collect())
    }

    /// What a set does everywhere, and what readers do behind `span`, in this case.
    fn carried(
        &mut self,
        set: &[Component],
        readers: &[Component],
        span: &Range<usize>,
    ) -> Result<Carried> {
        let ids = self.glitched.0.layout().ids;
        let clean = self.clean.0.layout().ids;
        let prompt_len = self.glitched.0.base.len();
        let observed =
            self.evaluator.handover(&ids, prompt_len, span.clone(), &clean, &self.reference)?;
        self.calls += observed.len() as u64;
        let loss = self.loss;
        if self.total < NOTHING {
            return Ok(Carried { loss, each: vec![0.0; readers.len()], ..Carried::default() });
        }
        let (necessity, sufficiency) = self.measure(&[set.to_vec()])?[0];
        let left = self.without(std::iter::once(readers).chain(readers.chunks(1)), span)?;
        Ok(Carried {
            loss,
            divergence_bits: self.total,
            necessity,
            sufficiency,
            readers: left[0],
            each: left[1..].to_vec(),
            handover: observed
                .iter()
                .map(|o| 1.0 - o.mean_divergence_bits() / self.total)
                .collect(),
        })
    }
}
