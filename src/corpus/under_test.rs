//! The model that cases are judged on.

use std::path::Path;

use super::locate::load_model;
use crate::case::{Case, check_edit, check_length};
use crate::error::{Error, Result};
use crate::evaluate::{Evaluator, ModelEvaluator, TwoModels};
use crate::model::{Model, ModelRef};
use crate::oracle::ModelJudge;
use crate::replicate::NewPrompts;
use crate::vocabulary::Vocabulary;

/// Characters of a fingerprint that an error repeats; one in a file may be megabytes long.
const SHOWN: usize = 16;

/// Checks that a model is the one that a case names.
fn is_model(path: &Path, named: &ModelRef, model: &Model) -> Result<()> {
    if named.fingerprint == model.fingerprint {
        return Ok(());
    }
    let short = |fingerprint: &str| fingerprint.chars().take(SHOWN).collect();
    let (expected, got) = (short(&named.fingerprint), short(&model.fingerprint));
    Err(Error::Fingerprint { path: path.display().to_string(), expected, got })
}

/// Calls `with` with the evaluator that a case is judged by: that of the model under test, or of a
/// case about two models both side by side. The second one is loaded here.
///
/// # Errors
/// Those of loading it, [`Error::Fingerprint`] if it is not the one that the case names, and those
/// of `with`.
pub fn judged_by<R>(
    path: &Path,
    case: &Case,
    evaluator: &ModelEvaluator,
    with: impl FnOnce(&dyn Evaluator, Option<&TwoModels>) -> Result<R>,
) -> Result<R> {
    let Some(against) = &case.against else { return with(evaluator, None) };
    let other = load_model(&against.model, &[path]).map_err(|error| match error {
        Error::Model { path, field, message } => {
            let message = message.trim_end_matches("; pass --model to name it");
            let message = format!("{message}; the case compares with this model");
            Error::Model { path, field, message }
        }
        other => other,
    })?;
    is_model(path, &against.model, &other)?;
    let other = ModelEvaluator::new(&other);
    let both = TwoModels::new(evaluator, &other)?;
    with(&both, Some(&both))
}

/// A model under test, with its vocabulary.
pub struct ModelUnderTest {
    /// The model.
    pub model: Model,
    /// Its tokens.
    pub vocabulary: Vocabulary,
}

impl ModelUnderTest {
    /// Takes a loaded model.
    pub fn new(model: Model) -> Self {
        let vocabulary = Vocabulary::of(&model);
        Self { model, vocabulary }
    }

    /// Loads a model by name: a folder, a GGUF file, `builtin:NAME` or `hf:org/name`.
    ///
    /// # Errors
    /// [`Error::Model`] for a model that cannot be loaded.
    pub fn load(spec: &str) -> Result<Self> {
        Ok(Self::new(Model::load(spec)?))
    }

    /// Loads the model of a case, which must be the one it was made on, or the one that is `asked`
    /// for, which may be any; and checks the case against it. `path` is the case's file.
    ///
    /// # Errors
    /// [`Error::Model`], and those of [`check_fingerprint`](Self::check_fingerprint) and
    /// [`check`](Self::check).
    pub fn for_case(path: &Path, case: &Case, asked: Option<&str>) -> Result<Self> {
        let loaded = match asked {
            Some(spec) => Self::load(spec)?,
            None => {
                let found = Self::new(load_model(&case.model, &[path])?);
                found.check_fingerprint(path, case)?;
                found
            }
        };
        loaded.check(path, case)?;
        Ok(loaded)
    }

    /// Checks that this is the model the case was made on.
    ///
    /// # Errors
    /// [`Error::Fingerprint`] if it is another.
    pub fn check_fingerprint(&self, path: &Path, case: &Case) -> Result<()> {
        is_model(path, &case.model, &self.model)
    }

    /// Checks that the model has everything the case speaks of: token ids, components, room for the
    /// sequence.
    ///
    /// # Errors
    /// [`Error::File`] naming the field.
    pub fn check(&self, path: &Path, case: &Case) -> Result<()> {
        let bad = |field: String, error: Error| Error::file(path, field, error);
        self.model.check_ids(&case.base).map_err(|e| bad("base".into(), e))?;
        self.model.check_ids(&case.continuation).map_err(|e| bad("continuation".into(), e))?;
        let trial = case.trial();
        for (index, edit) in trial.edits.iter().enumerate() {
            check_edit(&self.model, &trial, edit).map_err(|e| bad(format!("edits[{index}]"), e))?;
        }
        check_length(&self.model, &trial).map_err(|e| bad("base".into(), e))
    }

    /// Returns a judge like the one that made the case's verdict: its oracle, controls and noise
    /// floor.
    pub fn judge<'a>(&'a self, evaluator: &'a dyn Evaluator, case: &Case) -> ModelJudge<'a> {
        let verdict = &case.verdict;
        ModelJudge::new(
            evaluator,
            &self.model.config,
            &self.vocabulary,
            verdict.oracle,
            case.control_seed,
            verdict.noise_floor,
        )
        .with_controls(verdict.controls.len())
    }

    /// Makes prompts that no search has used.
    ///
    /// # Errors
    /// Those of [`NewPrompts::new`].
    pub fn new_prompts(&self) -> Result<NewPrompts> {
        NewPrompts::new(&self.model, &self.vocabulary, &[])
    }

    /// Makes an evaluator of the model.
    pub fn evaluator(&self) -> ModelEvaluator<'_> {
        ModelEvaluator::new(&self.model)
    }
}
