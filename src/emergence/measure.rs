//! Runs the model under sets of lesions, text by text, with the references beside it.

use std::sync::Arc;

use rayon::prelude::*;
use serde::Serialize;

use super::sets::PartSet;
use super::surrogate::{Function, Planted, Scales, Surrogate};
use crate::edit::{Action, Component, Edit, Trial};
use crate::error::{Error, Result};
use crate::evaluate::{Evaluator, ModelEvaluator, Observation, Patch, Request};

/// The largest number of sets in one call.
const CHUNK: usize = 256;
/// The largest number of log-probabilities that one call keeps (256 MB).
const CHUNK_VALUES: usize = 64 << 20;
/// The largest number of log-probabilities that the surrogate of a text keeps (512 MB). Where there
/// would be more, fewer positions are read.
const SURROGATE_VALUES: usize = 128 << 20;

/// The lesion of a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Replacement {
    /// Its output is set to zero.
    Zero,
    /// Its output is set to its mean over plain English.
    Mean,
    /// Its output is replaced by what it is at the same position of other texts.
    Resample,
}

/// The quantity that is explained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Scale {
    /// The loss, nats per token.
    Loss,
    /// The right token's centred logit: its logit minus the mean over the vocabulary, nats.
    Logit,
}

impl Scale {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Loss, Self::Logit];

    fn of(self, scales: Scales) -> f64 {
        match self {
            Self::Loss => scales.loss,
            Self::Logit => scales.logit,
        }
    }
}

/// The parts, what is done to them, and the texts.
pub struct Subject<'a> {
    /// The evaluator of the model.
    pub evaluator: &'a ModelEvaluator<'a>,
    /// The parts.
    pub parts: &'a [Component],
    /// The lesion of each.
    pub replacement: Replacement,
    /// The texts as token ids, at least two tokens each.
    pub texts: &'a [Vec<u32>],
    /// Every so-many-th predicted token of a text is measured.
    pub stride: usize,
}

/// Values of one text: for each function and scale, one for each set.
#[derive(Debug, Clone)]
pub struct TextValues {
    values: Vec<[Vec<f64>; 2]>,
    /// The strength of the planted terms, nats.
    pub strength: f64,
}

impl TextValues {
    /// Returns a function's values, one for each set.
    pub fn of(&self, function: Function, scale: Scale) -> &[f64] {
        &self.values[function as usize][scale as usize]
    }
}

/// Returns the stride at which the surrogate of the longest text fits into memory.
pub fn stride(parts: usize, texts: &[Vec<u32>], vocabulary: usize) -> usize {
    let longest = texts.iter().map(Vec::len).max().unwrap_or(1);
    ((parts + 1) * longest * vocabulary).div_ceil(SURROGATE_VALUES).max(1)
}

impl Subject<'_> {
    /// Measures the model and the references under these sets on one text; `None` if `go_on` says
    /// no in between. `done` is told how many more sets are measured.
    ///
    /// # Errors
    /// [`Error::Request`] for a part that cannot be replaced, or whose lesion alone leaves logits
    /// that are not finite; errors of the forward pass.
    pub fn measure(
        &self,
        text: usize,
        sets: &[PartSet],
        planted: &[Planted],
        done: &dyn Fn(u64),
        go_on: &dyn Fn() -> bool,
    ) -> Result<Option<TextValues>> {
        let Some(surrogate) = self.surrogate(text, go_on)? else { return Ok(None) };
        let strength = surrogate.largest_effect();
        let Some(model) = self.model(text, sets, done, go_on)? else { return Ok(None) };
        let references: Vec<Vec<Scales>> =
            sets.par_iter().map(|set| surrogate.under(set, planted, strength)).collect();
        let mut values =
            vec![[vec![f64::NAN; sets.len()], vec![f64::NAN; sets.len()]]; Function::ALL.len()];
        for scale in Scale::ALL {
            let column = |at: usize| references.iter().map(move |of| scale.of(of[at])).collect();
            values[Function::Model as usize][scale as usize] =
                model.iter().map(|scales| scale.of(*scales)).collect();
            values[Function::Surrogate as usize][scale as usize] = column(0);
            for (at, planted) in planted.iter().enumerate() {
                values[planted.function as usize][scale as usize] = column(at + 1);
            }
        }
        Ok(Some(TextValues { values, strength }))
    }

    /// Measures the model alone under these sets on one text; `None` if `go_on` says no.
    ///
    /// # Errors
    /// As [`measure`](Self::measure).
    pub fn model(
        &self,
        text: usize,
        sets: &[PartSet],
        done: &dyn Fn(u64),
        go_on: &dyn Fn() -> bool,
    ) -> Result<Option<Vec<Scales>>> {
        let lesions = self.lesions(text)?;
        let mut scales = Vec::with_capacity(sets.len());
        for chunk in sets.chunks(CHUNK) {
            if !go_on() {
                return Ok(None);
            }
            let requests: Vec<Request> =
                chunk.iter().map(|set| self.request(text, &lesions, set).centred()).collect();
            let observed = self.evaluator.observe(&requests)?;
            scales.extend(observed.iter().map(|o| self.scales(o)));
            done(chunk.len() as u64);
        }
        Ok(Some(scales))
    }

    /// Measures the single lesions of a text with their distributions.
    fn surrogate(&self, text: usize, go_on: &dyn Fn() -> bool) -> Result<Option<Surrogate>> {
        let (ids, vocabulary) = (&self.texts[text], self.evaluator.model.config.vocab_size);
        let lesions = self.lesions(text)?;
        let sets: Vec<PartSet> = std::iter::once(PartSet::new(Vec::new()))
            .chain((0..self.parts.len() as u32).map(|part| PartSet::new(vec![part])))
            .collect();
        let mut kept: Vec<Vec<f32>> = Vec::with_capacity(sets.len());
        let at_once = (CHUNK_VALUES / (ids.len() * vocabulary)).clamp(1, CHUNK);
        for chunk in sets.chunks(at_once) {
            if !go_on() {
                return Ok(None);
            }
            let request = |set| self.request(text, &lesions, set).keeping_distributions();
            let observed =
                self.evaluator.observe(&chunk.iter().map(request).collect::<Vec<_>>())?;
            for (set, observed) in chunk.iter().zip(observed) {
                if !observed.finite {
                    let what = match set.parts() {
                        [part] => format!("{} lesioned alone", self.parts[*part as usize]),
                        _ => "the intact model".to_owned(),
                    };
                    return Err(Error::request(format!(
                        "{what} gives logits that are not finite: there is no surrogate to add up"
                    )));
                }
                let distributions = observed
                    .distributions
                    .ok_or_else(|| Error::internal("distributions were not kept"))?;
                let read = (0..distributions.positions()).step_by(self.stride);
                kept.push(read.flat_map(|at| distributions.row(at).iter().copied()).collect());
            }
        }
        let targets = ids[1..].iter().step_by(self.stride).copied().collect();
        let intact = kept.remove(0);
        Ok(Some(Surrogate::new(vocabulary, targets, intact, kept)))
    }

    fn request(&self, text: usize, lesions: &[Lesion], set: &PartSet) -> Request {
        let ids = &self.texts[text];
        let (mut edits, mut patches) = (Vec::new(), Vec::new());
        for &part in set.parts() {
            match &lesions[part as usize] {
                Lesion::Edit(edit) => edits.push(edit.clone()),
                Lesion::Patch(patch) => patches.push(patch.clone()),
            }
        }
        Request::new(Trial::new(&ids[..1], &ids[1..]).with_edits(edits)).patched(patches)
    }

    /// Returns what is done to each part on a text.
    fn lesions(&self, text: usize) -> Result<Vec<Lesion>> {
        let action = match self.replacement {
            Replacement::Zero => Action::Zero,
            Replacement::Mean => Action::Mean,
            Replacement::Resample => return self.resampled(text),
        };
        Ok(self.parts.iter().map(|&part| Lesion::Edit(Edit::lesion(part, action))).collect())
    }

    /// Returns patches with the parts' outputs at the same positions of the texts that follow,
    /// which are read as one until it is as long.
    fn resampled(&self, text: usize) -> Result<Vec<Lesion>> {
        let length = self.texts[text].len();
        let config = &self.evaluator.model.config;
        let others = (1..self.texts.len()).map(|i| &self.texts[(text + i) % self.texts.len()]);
        let mut ids: Vec<u32> = Vec::new();
        for other in others {
            let begins = config.bos_token_id.is_some_and(|bos| other.first() == Some(&bos));
            ids.extend(&other[usize::from(begins && !ids.is_empty())..]);
        }
        if ids.is_empty() {
            return Err(Error::request("--action resample needs at least two texts"));
        }
        let ids: Vec<u32> = ids.iter().cycle().take(length).copied().collect();
        let run = self.evaluator.activations(&Trial::new(ids, []), &[])?;
        let patch = |&component: &Component| {
            let values = run.output(&component, 0..length, config).ok_or_else(|| {
                Error::request(format!("{component} has no output that could be resampled"))
            })?;
            Ok(Lesion::Patch(Patch { component, first: 0, values: Arc::from(values) }))
        };
        self.parts.iter().map(patch).collect()
    }

    /// Returns loss and centred logit of an observation at the positions that are measured; an
    /// infinite loss where logits are not finite.
    fn scales(&self, observed: &Observation) -> Scales {
        if !observed.finite {
            return Scales { loss: f64::INFINITY, logit: f64::NEG_INFINITY };
        }
        let read = observed.log_probs.iter().zip(&observed.mean_log_probs).step_by(self.stride);
        let (mut sum, mut positions) = (Scales { loss: 0.0, logit: 0.0 }, 0.0);
        for (log_prob, mean) in read {
            sum.loss -= f64::from(*log_prob);
            sum.logit += f64::from(*log_prob) - f64::from(*mean);
            positions += 1.0;
        }
        Scales { loss: sum.loss / positions, logit: sum.logit / positions }
    }
}

/// The lesion of one part on a text.
enum Lesion {
    Edit(Edit),
    Patch(Patch),
}
