//! Transfer: judges a case on a model other than the one it was made on.

use std::path::Path;

use serde::Serialize;

use crate::case::{Case, check_edit};
use crate::edit::{Edit, Trial};
use crate::error::{Error, Result};
use crate::evaluate::{Evaluator as _, ModelEvaluator};
use crate::model::Model;
use crate::oracle::{self, ModelJudge, baseline_request};
use crate::vocabulary::Vocabulary;

/// The form in which a case is put to another model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum By {
    /// As the token ids that it is made of: both have the same tokenizer. Judged like a replay,
    /// against controls.
    Ids,
    /// As the text of these, which the other tokenizer cuts in its own way: edits and controls have
    /// no place there any more, so the oracle's own minimum is the threshold.
    Text,
}

/// One case on one model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    /// The form in which the case was put to the model.
    pub by: By,
    /// Score in the unit of the case's oracle.
    pub score: f64,
    /// Score that must be exceeded.
    pub threshold: f64,
    /// True if the case fails on the other model too.
    pub reached: bool,
}

/// A model that cases are transferred to.
pub struct Destination<'m> {
    /// The model.
    pub model: &'m Model,
    evaluator: ModelEvaluator<'m>,
    vocabulary: Vocabulary,
    noise_floor: f64,
}

impl<'m> Destination<'m> {
    /// # Errors
    /// Those of measuring the noise floor.
    pub fn new(model: &'m Model) -> Result<Self> {
        let evaluator = ModelEvaluator::new(model);
        let noise_floor = evaluator.score_noise_floor()?;
        Ok(Self { model, vocabulary: Vocabulary::of(model), evaluator, noise_floor })
    }

    /// A case on this model; `source` is one with the tokenizer that the case was made with. `None`
    /// where the case has no meaning here: a lesion of what the model does not have, or of anything
    /// where only text gets across.
    ///
    /// # Errors
    /// [`Error::File`] for a case that cannot be read as text, for want of `source`.
    pub fn try_on(
        &self,
        path: &Path,
        case: &Case,
        source: Option<&Model>,
    ) -> Result<Option<Outcome>> {
        if case.against.is_some() {
            return Ok(None);
        }
        let trial = case.trial();
        let same = case.model.tokenizer.is_some()
            && case.model.tokenizer == self.model.tokenizer_fingerprint;
        if same {
            let layout = trial.layout();
            let fits = self.model.check_ids(&layout.ids).is_ok()
                && layout.ids.len() <= self.model.config.max_position_embeddings;
            let components = trial.edits.iter().all(|edit| match edit.lesioned() {
                Some(_) => check_edit(self.model, &trial, edit).is_ok(),
                None => edit.is_token_edit(),
            });
            if !fits || !components || !case.verdict.oracle.applies(&self.model.config) {
                return Ok(None);
            }
            let config = &self.model.config;
            let (oracle, seed) = (case.verdict.oracle, case.control_seed);
            let judge = ModelJudge::new(
                &self.evaluator,
                config,
                &self.vocabulary,
                oracle,
                seed,
                self.noise_floor,
            )
            .with_controls(case.verdict.controls.len());
            let verdict = judge.judge_alone(&trial)?;
            let reached = verdict.fails();
            return Ok(Some(Outcome {
                by: By::Ids,
                score: verdict.score,
                threshold: verdict.threshold,
                reached,
            }));
        }
        if !trial.edits.iter().all(Edit::changes_text)
            || !case.verdict.oracle.applies(&self.model.config)
        {
            return Ok(None);
        }
        let unknown = || {
            Error::file(
                path,
                "model",
                "neither it nor another model with its tokenizer is at hand to read the ids",
            )
        };
        self.by_text(&trial, case, source.ok_or_else(unknown)?).map(Some)
    }

    fn by_text(&self, trial: &Trial, case: &Case, source: &Model) -> Result<Outcome> {
        // A text begins without the other's BOS, and gets this one's.
        let text = |ids: &[u32]| {
            let bos = usize::from(
                source.config.bos_token_id.is_some()
                    && ids.first().copied() == source.config.bos_token_id,
            );
            source.decode(&ids[bos..])
        };
        let layout = trial.layout();
        let (prompt, continuation) = layout.ids.split_at(layout.prompt_len);
        let continuation = match &self.model.tokenizer {
            Some(tokenizer) => tokenizer.encode(&text(continuation))?,
            None => {
                return Err(Error::request(format!(
                    "{} has no tokenizer to read a case with",
                    self.model.name
                )));
            }
        };
        let oracle = case.verdict.oracle;
        let baseline = Trial::new(self.model.encode(&text(&trial.base))?, &continuation[..]);
        let baseline = self.evaluator.observe_alone(&baseline_request(&[oracle], &baseline))?;
        let edited = Trial::new(self.model.encode(&text(prompt))?, &continuation[..]);
        let request = oracle::request(&[oracle], &edited, baseline.distributions.as_ref());
        let score = oracle.oracle().score(&self.evaluator.observe_alone(&request)?, &baseline);
        let threshold = oracle.oracle().minimum();
        Ok(Outcome {
            by: By::Text,
            score,
            threshold,
            reached: score - threshold > self.noise_floor,
        })
    }
}
