//! Paths: what a node passes to the logits and to other nodes directly, by path patching.
//!
//! All is measured in the run in which the graph is alone, where nothing off it can stand in. The
//! change that a node makes to the residual stream is undone in front of one later node and nowhere
//! else; what that node then outputs is patched in, and everything after it follows.

use super::background::BackgroundRun;
use super::search::Search;
use super::{Edge, Place};
use crate::edit::{Component, Trial};
use crate::error::{Error, Result};
use crate::evaluate::{Activations, At, Evaluator as _, Patch, Request, Shift, Variant, place};
use crate::localize::symptom::last;
use crate::model::Residual;
use crate::model::hooks::Site;

/// The effect below which an edge is not kept.
const LEAST_EFFECT: f64 = 0.05;

/// A change of the residual stream at a position, `[d_model]`, and after which block it is made.
struct Change {
    after: Component,
    position: usize,
    values: Vec<f32>,
}

/// The run in which a graph is alone, against the first run of the background.
struct Alone<'b> {
    patches: Vec<Patch>,
    activations: Activations,
    /// The log-probability of the symptom, nats.
    log_prob: f64,
    background: &'b BackgroundRun,
}

impl<'s> Search<'s, '_, '_> {
    /// Measures the direct effect of each place on the logits, and the edges between the places,
    /// strongest first.
    ///
    /// # Errors
    /// Errors of the evaluator.
    pub fn paths(&mut self, places: &[Place]) -> Result<(Vec<f64>, Vec<Edge>)> {
        let alone = self.run_alone(places)?;
        let changes: Vec<Change> =
            places.iter().map(|place| self.change(&alone, place)).collect::<Result<_>>()?;
        let direct = self.direct(&alone, &changes)?;
        let undone = self.undone(&alone)?;
        let mut wanted: Vec<(Option<usize>, usize)> = Vec::new();
        let mut variants: Vec<(Variant, At)> = Vec::new();
        for (to, place) in places.iter().enumerate() {
            wanted.push((None, to));
            variants.push(self.without_edits(&alone, places, place, &undone)?);
            for (from, change) in changes.iter().enumerate() {
                if from != to && self.reaches(change, place) {
                    wanted.push((Some(from), to));
                    variants.push(self.without(&alone, place, change)?);
                }
            }
        }
        let corrupted = &self.symptom.runs.corrupted.trial;
        let evaluator = self.symptom.runs.evaluator;
        let outputs = evaluator.capture(corrupted, variants)?;
        let requests: Vec<Request> = wanted
            .iter()
            .zip(outputs)
            .map(|((_, to), values)| {
                let (component, first) = places[*to];
                let patch = Patch { component, first, values: values.into() };
                let patches = alone.patches.iter().cloned().chain([patch]).collect();
                Request::new(corrupted.clone()).patched(patches)
            })
            .collect();
        self.calls += 2 * requests.len() as u64;
        let observed = evaluator.observe(&requests)?;
        let mut edges: Vec<Edge> = wanted
            .iter()
            .zip(&observed)
            .map(|((from, to), o)| Edge {
                from: *from,
                to: *to,
                effect: self.removed(&alone, last(o)),
            })
            .filter(|edge| edge.effect >= LEAST_EFFECT)
            .collect();
        edges.sort_by(|a, b| {
            b.effect.total_cmp(&a.effect).then((a.from, a.to).cmp(&(b.from, b.to)))
        });
        Ok((direct, edges))
    }

    /// Runs the graph alone.
    fn run_alone(&mut self, places: &[Place]) -> Result<Alone<'s>> {
        let background = self.background.runs.first();
        let background = background.ok_or_else(|| Error::internal("a background of no runs"))?;
        let (trial, evaluator) = (&self.symptom.runs.corrupted.trial, self.symptom.runs.evaluator);
        let patches = self.alone(&places.iter().copied().collect(), background)?;
        let activations = evaluator.activations(trial, &patches)?;
        let request = Request::new(trial.clone()).patched(patches.clone());
        let log_prob = evaluator.observe(&[request])?.first().map_or(f64::NAN, last);
        self.calls += 2;
        Ok(Alone { patches, activations, log_prob, background })
    }

    /// Returns the share of the effect that is gone at this log-probability of the symptom.
    fn removed(&self, alone: &Alone, log_prob: f64) -> f64 {
        (alone.log_prob - log_prob) / (self.symptom.corrupted - alone.background.log_prob)
    }

    /// Returns the change of the residual stream by which a place gets the background's output.
    fn change(&self, alone: &Alone, &(component, position): &Place) -> Result<Change> {
        let runs = &self.symptom.runs;
        let config = &runs.evaluator.model.config;
        let missing = || Error::internal(format!("{component} has no output"));
        let other = &alone.background.activations;
        let source = self.background.source(position).ok_or_else(missing)?;
        let layer = component.layer();
        let block = match self.order(&component).1 {
            true => component,
            false => config.mixer(layer),
        };
        let before = alone.activations.output(&block, position..position + 1, config);
        let before = before.ok_or_else(missing)?;
        let after = if block == component {
            other.output(&block, source..source + 1, config).ok_or_else(missing)?
        } else {
            // A head adds to the stream through the output projection of its layer.
            let patch = runs.patch(&component, position, other, source, 1)?;
            let patches = alone.patches.iter().cloned().chain([patch]).collect();
            let variant = Variant { patches, shifts: Vec::new() };
            let at = (layer, Site::AttnOut, 0..config.hidden_size, position..position + 1);
            runs.evaluator.capture(&runs.corrupted.trial, vec![(variant, at)])?.remove(0)
        };
        let values = after.iter().zip(&before).map(|(a, b)| a - b).collect();
        Ok(Change { after: block, position, values })
    }

    /// Returns what undoes the edits themselves: changes of the embedding, and patches of the
    /// blocks that they are in.
    fn undone(&self, alone: &Alone) -> Result<Variant> {
        let runs = &self.symptom.runs;
        let (evaluator, config) = (runs.evaluator, &runs.evaluator.model.config);
        let d = config.hidden_size;
        // The residual streams at the beginning, from the first of these positions to the last.
        let mut undone = Variant::default();
        let pairs: Vec<(usize, usize)> = (self.positions.iter())
            .filter_map(|position| Some((self.background.source(*position)?, *position)))
            .collect();
        if let (Some(first), Some(last)) = (pairs.first(), pairs.last()) {
            let stream = |trial: &Trial, first: usize, last: usize| -> Result<Vec<f32>> {
                let at = (0, Site::ResidPre, 0..d, first..last + 1);
                Ok(evaluator.capture(trial, vec![(Variant::default(), at)])?.remove(0))
            };
            let own = stream(&runs.corrupted.trial, first.1, last.1)?;
            let other = stream(&alone.background.trial, first.0, last.0)?;
            for (source, position) in &pairs {
                let own = &own[(position - first.1) * d..][..d];
                let other = &other[(source - first.0) * d..][..d];
                if own != other {
                    let values = other.iter().zip(own).map(|(a, b)| a - b).collect();
                    let (layer, site, position) = (0, Site::ResidPre, *position);
                    undone.shifts.push(Shift { layer, site, position, values });
                }
            }
        }
        for block in &self.background.edited {
            for &(source, first, len) in &self.background.stretches {
                let other = &alone.background.activations;
                undone.patches.push(runs.patch(block, first, other, source, len)?);
            }
        }
        Ok(undone)
    }

    /// Builds the variant in which a place sees the edits undone, while every other node does what
    /// it does.
    fn without_edits(
        &self,
        alone: &Alone,
        places: &[Place],
        place: &Place,
        undone: &Variant,
    ) -> Result<(Variant, At)> {
        let mut variant = undone.clone();
        variant.patches.extend(alone.patches.iter().cloned());
        for (component, position) in places.iter().filter(|other| *other != place) {
            let runs = &self.symptom.runs;
            let (own, at) = (&alone.activations, *position);
            variant.patches.push(runs.patch(component, at, own, at, 1)?);
        }
        Ok((variant, self.at(place)?))
    }

    /// Measures the share of the effect that each change removes at the logits alone.
    fn direct(&mut self, alone: &Alone, changes: &[Change]) -> Result<Vec<f64>> {
        let evaluator = self.symptom.runs.evaluator;
        let config = &evaluator.model.config;
        let d = config.hidden_size;
        let last = self.symptom.position;
        let at = (config.num_hidden_layers - 1, Site::ResidPost, 0..d, last..last + 1);
        let trial = &self.symptom.runs.corrupted.trial;
        let variant = Variant { patches: alone.patches.clone(), shifts: Vec::new() };
        let last = evaluator.capture(trial, vec![(variant, at)])?.remove(0);
        self.calls += 1;
        let here = |change: &Change| change.position == self.symptom.position;
        let mut residuals = Vec::with_capacity(changes.len() * d);
        for change in changes.iter().filter(|change| here(change)) {
            residuals.extend(last.iter().zip(&change.values).map(|(x, v)| x + v));
        }
        let mut read = evaluator.read_log_probs(&residuals, self.symptom.token).into_iter();
        // Nothing else is at the position that is read.
        let share = |change| match here(change) {
            true => read.next().map_or(0.0, |log_prob| self.removed(alone, log_prob)),
            false => 0.0,
        };
        let shares = changes.iter().map(share);
        Ok(shares.map(|share| if share.is_nan() { 0.0 } else { share }).collect())
    }

    /// Returns true if a change can be part of the input of a place.
    fn reaches(&self, change: &Change, (component, position): &Place) -> bool {
        let config = &self.symptom.runs.evaluator.model.config;
        let (from, to) = (self.order(&change.after), self.order(component));
        // In parallel, the MLP does not see the mixer of its layer.
        let before = from < to && (from.0 < to.0 || config.residual != Residual::Parallel);
        let mixes = !matches!(component, Component::Mlp { .. });
        before && (change.position == *position || mixes && change.position < *position)
    }

    /// Builds the variant in which a place alone sees a change.
    fn without(&self, alone: &Alone, place: &Place, change: &Change) -> Result<(Variant, At)> {
        let config = &self.symptom.runs.evaluator.model.config;
        let (layer, is_mlp) = self.order(&place.0);
        let mid = is_mlp && config.residual != Residual::Parallel;
        let site = if mid { Site::ResidMid } else { Site::ResidPre };
        let (position, values) = (change.position, change.values.clone());
        let shifts = vec![Shift { layer, site, position, values }];
        Ok((Variant { patches: alone.patches.clone(), shifts }, self.at(place)?))
    }

    /// Returns where the output of a place is.
    fn at(&self, (component, position): &Place) -> Result<At> {
        let (layer, site, columns) = place(component, &self.symptom.runs.evaluator.model.config)
            .ok_or_else(|| Error::internal(format!("{component} has no output")))?;
        Ok((layer, site, columns, *position..position + 1))
    }
}
