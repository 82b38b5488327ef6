//! A case on a model: what `replay`, `minimize` and `implicate` share.

use std::path::Path;

use crate::case::Case;
use crate::corpus;
use crate::edit::Trial;
use crate::error::{Error, Result};
use crate::evaluate::{Evaluator, ModelEvaluator};
use crate::model::Model;
use crate::oracle::Judge;
use crate::oracle::{ModelJudge, Verdict};
use crate::vocabulary::Vocabulary;

/// A model that cases are judged on.
pub struct Subject {
    pub model: Model,
    vocabulary: Vocabulary,
}

impl Subject {
    pub fn load(spec: &str) -> Result<Self> {
        Ok(Self::new(Model::load(spec)?))
    }

    pub fn new(model: Model) -> Self {
        let vocabulary = Vocabulary::of(&model);
        Self { model, vocabulary }
    }

    /// The model that a case names, which must be the one it was made on, or the one the user asks
    /// for, which may be any.
    pub fn of(path: &Path, case: &Case, asked: Option<&str>) -> Result<Self> {
        let subject = match asked {
            Some(spec) => Self::load(spec)?,
            None => Self::new(corpus::load_model(&case.model, &[path])?),
        };
        if asked.is_none() {
            subject.check_fingerprint(path, case)?;
        }
        subject.check(path, case)?;
        Ok(subject)
    }

    /// # Errors
    /// [`Error::Fingerprint`] for a case that was made on another model.
    pub fn check_fingerprint(&self, path: &Path, case: &Case) -> Result<()> {
        if case.model.fingerprint == self.model.fingerprint {
            return Ok(());
        }
        // A fingerprint in a file may be megabytes long.
        let short = |fingerprint: &str| fingerprint.chars().take(16).collect();
        let (expected, got) = (short(&case.model.fingerprint), short(&self.model.fingerprint));
        Err(Error::Fingerprint { path: path.display().to_string(), expected, got })
    }

    /// Checks that this model has the tokens and components that the case names.
    ///
    /// # Errors
    /// [`Error::File`] naming the field.
    pub fn check(&self, path: &Path, case: &Case) -> Result<()> {
        let bad = |field: String, error: Error| Error::file(path, field, error);
        self.model.check_ids(&case.base).map_err(|e| bad("base".into(), e))?;
        self.model.check_ids(&case.continuation).map_err(|e| bad("continuation".into(), e))?;
        for (index, edit) in case.edits.iter().enumerate() {
            let component = edit.component().map_or(Ok(()), |c| self.model.check_component(c));
            let checked = component.and_then(|()| self.model.check_ids(&edit.token_ids()));
            checked.map_err(|e| bad(format!("edits[{index}]"), e))?;
        }
        // Mutations may add a little to a prompt of full length; far beyond it a forward is a bomb.
        let (length, most) =
            (case.trial().layout().ids.len(), 2 * self.model.config.max_position_embeddings);
        if length > most {
            return Err(Error::file(
                path,
                "base",
                format!("{length} tokens, more than twice the model's context ({most})"),
            ));
        }
        Ok(())
    }

    /// The judge that made the case's verdict.
    pub fn judge<'a>(&'a self, evaluator: &'a dyn Evaluator, case: &Case) -> ModelJudge<'a> {
        let v = &case.verdict;
        ModelJudge::new(
            evaluator,
            &self.model.config,
            &self.vocabulary,
            v.oracle,
            case.control_seed,
            v.noise_floor,
        )
        .with_controls(v.controls.len())
    }

    /// An ordinary token, to put in the place of those that do not matter.
    pub fn neutral(&self) -> Option<u32> {
        self.vocabulary.ordinary.last().copied()
    }

    pub fn evaluator(&self) -> ModelEvaluator<'_> {
        ModelEvaluator::new(&self.model)
    }
}

/// Judges every trial by itself, as a finding is confirmed.
pub struct Alone<'a>(pub &'a ModelJudge<'a>);

impl Judge for Alone<'_> {
    fn judge(&self, trials: &[Trial]) -> Result<Vec<Verdict>> {
        trials.iter().map(|trial| self.0.judge_alone(trial)).collect()
    }
}

/// # Errors
/// [`Error::File`] for a path on the command line that leads nowhere.
pub fn exists(path: &Path) -> Result<()> {
    match path.exists() {
        true => Ok(()),
        false => Err(Error::file(path, "path", "no such file or folder")),
    }
}

/// A score in few columns, whatever a file says it is.
pub fn figure(value: f64) -> String {
    if value.abs() < 1e5 { format!("{value:.4}") } else { format!("{value:.3e}") }
}
