//! The reference text: mean outputs of components over it, and their outputs in stretches of it.

use std::ops::Range;
use std::sync::Arc;

use rand::Rng as _;

use super::activations::{Activations, Means, mean_of_rows, place};
use super::captures::Variant;
use super::engine::{ModelEvaluator, lock};
use crate::edit::{Component, Trial};
use crate::error::{Error, Result};
use crate::rng;

/// The plain English text over which mean ablation takes its means.
pub const REFERENCE_TEXT: &str = include_str!("../../corpus/seeds/reference.txt");

/// The number of stretches whose runs are remembered.
const REMEMBERED: usize = 4;

/// Runs of stretches have a multiple of so many tokens, so that longer trials seldom need another.
const STEP: usize = 32;

impl ModelEvaluator<'_> {
    /// Returns the tokens of [`REFERENCE_TEXT`]; BOS first where the model has one.
    pub(super) fn reference_ids(&self) -> Result<Vec<u32>> {
        match &self.model.tokenizer {
            Some(_) => self.model.encode(REFERENCE_TEXT),
            // Without a tokenizer, ids at even steps through the vocabulary: at least not one token
            // over and over.
            None => {
                Ok((0..128).map(|i| (i * 7919 % self.model.config.vocab_size) as u32).collect())
            }
        }
    }

    /// Returns the reference text as far as it fits the context, and how many of its first tokens
    /// represent no position of real text.
    fn averaged(&self) -> Result<(Trial, usize)> {
        let ids = self.reference_ids()?;
        let ids = &ids[..ids.len().min(self.model.config.max_position_embeddings)];
        Ok((Trial::new(ids, []), usize::from(self.model.config.bos_token_id.is_some())))
    }

    /// Returns the mean outputs over [`REFERENCE_TEXT`], computed once.
    ///
    /// # Errors
    /// Errors of the forward pass.
    pub fn means(&self) -> Result<Arc<Means>> {
        if let Some(means) = self.means.get() {
            return Ok(means.clone());
        }
        let (text, skip) = self.averaged()?;
        let run = self.activations(&text, &[])?;
        Ok(self.means.get_or_init(|| Arc::new(Means::new(&run, skip, &self.model.config))).clone())
    }

    /// Returns the mean output of a component over [`REFERENCE_TEXT`], `[width of the component]`.
    ///
    /// # Errors
    /// [`Error::Request`] for a component without an output; errors of the forward pass.
    pub(super) fn mean_output(&self, component: &Component) -> Result<Arc<[f32]>> {
        if let Some(mean) = self.means()?.output(component, &self.model.config) {
            return Ok(mean.into());
        }
        // Its site is too large to be kept.
        let (text, skip) = self.averaged()?;
        let outputs = self.output_in(&text, component, 0..text.base.len())?;
        Ok(mean_of_rows(&outputs, outputs.len() / text.base.len().max(1), skip).into())
    }

    /// Returns the output of a component at these positions of a stretch of the reference text,
    /// `[positions, width of the component]`. `seed` draws where the stretch begins.
    ///
    /// # Errors
    /// [`Error::Request`] for a component without an output; errors of the forward pass.
    pub(super) fn resampled(
        &self,
        component: &Component,
        seed: u64,
        positions: Range<usize>,
    ) -> Result<Arc<[f32]>> {
        let run = self.run_of_stretch(seed, positions.end)?;
        if let Some(output) = run.output(component, positions.clone(), &self.model.config) {
            return Ok(output.into());
        }
        let stretch = self.stretch(seed, positions.end)?;
        Ok(self.output_in(&stretch, component, positions)?.into())
    }

    /// Returns so many tokens of the reference text, from a place that `seed` draws on; where it
    /// ends it begins again. BOS comes first where the tokenizer puts it there.
    fn stretch(&self, seed: u64, tokens: usize) -> Result<Trial> {
        let (ids, bos) = (self.reference_ids()?, self.model.config.bos_token_id);
        let bos = bos.filter(|bos| ids.first() == Some(bos));
        let text = &ids[usize::from(bos.is_some())..];
        let start = rng::stream(seed, "resample").random_range(0..text.len().max(1));
        let stretch = text.iter().cycle().skip(start).copied();
        let ids: Vec<u32> = bos.into_iter().chain(stretch).take(tokens).collect();
        Ok(Trial::new(ids, []))
    }

    /// Returns the activations of a stretch of at least so many tokens.
    fn run_of_stretch(&self, seed: u64, tokens: usize) -> Result<Arc<Activations>> {
        let is_it = |(of, run): &(u64, Arc<Activations>)| *of == seed && run.positions >= tokens;
        if let Some((_, run)) = lock(&self.stretches).iter().find(|known| is_it(known)) {
            return Ok(run.clone());
        }
        let context = self.model.config.max_position_embeddings;
        let rounded = tokens.next_multiple_of(STEP).min(context).max(tokens);
        let stretch = self.stretch(seed, rounded)?;
        let run = Arc::new(self.activations(&stretch, &[])?);
        let mut known = lock(&self.stretches);
        known.retain(|(of, _)| *of != seed);
        known.insert(0, (seed, run.clone()));
        known.truncate(REMEMBERED);
        Ok(run)
    }

    /// Returns the output of a component at these positions of a text, whatever the size of its
    /// site.
    fn output_in(
        &self,
        text: &Trial,
        component: &Component,
        positions: Range<usize>,
    ) -> Result<Vec<f32>> {
        let (layer, site, columns) = place(component, &self.model.config)
            .ok_or_else(|| Error::request(format!("{component} has no output")))?;
        let at = (layer, site, columns, positions);
        Ok(self.capture(text, vec![(Variant::default(), at)])?.remove(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Model;

    /// Outputs at sites that are too large to be kept are captured by themselves.
    #[test]
    fn what_is_captured_by_itself_is_what_a_whole_run_has() {
        let fixture = |name| format!("{}/tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"));
        for (name, component) in [
            ("olmoe", Component::Expert { layer: 1, expert: 2 }),
            ("mamba2", Component::State { layer: 1, part: Some(1) }),
        ] {
            let model = Model::load(&fixture(name)).unwrap();
            let evaluator = ModelEvaluator::new(&model);
            let (text, skip) = evaluator.averaged().unwrap();
            let n = text.base.len();
            let captured = evaluator.output_in(&text, &component, 0..n).unwrap();
            let mean = mean_of_rows(&captured, captured.len() / n, skip);
            assert_eq!(mean[..], evaluator.mean_output(&component).unwrap()[..], "{name}");
            let stretch = evaluator.stretch(5, 9).unwrap();
            let captured = evaluator.output_in(&stretch, &component, 2..9).unwrap();
            assert!(captured.iter().any(|value| *value != 0.0), "{name}");
            assert_eq!(
                captured[..],
                evaluator.resampled(&component, 5, 2..9).unwrap()[..],
                "{name}"
            );
        }
    }
}
