//! A search as a file: what was asked, and all there is to go on from.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Algorithm, Goal, Problem, Prompt, SearchState, Step, SuffixOptions, beast, gcg, soft};
use crate::error::{Error, Result};
use crate::model::{Model, ModelRef};
use crate::storage;

/// Version of `suffix.json`.
pub const SCHEMA_VERSION: u32 = 1;

/// What was asked and how far it went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Search {
    pub schema_version: u32,
    pub model: ModelRef,
    pub prompts: Vec<Prompt>,
    pub goal: Goal,
    pub options: SuffixOptions,
    pub state: SearchState,
    /// Once the search is over, where prompts were left out of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_out: Option<HeldOut>,
}

/// What the best suffix does to prompts that the search never saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeldOut {
    pub reached: u64,
    pub of: u64,
}

impl Search {
    /// The beginning of a search.
    ///
    /// # Errors
    /// What the evaluator refuses.
    pub fn new(problem: &Problem, options: SuffixOptions) -> Result<Self> {
        let state = SearchState::new(problem, &options)?;
        let (model, prompts, goal) =
            (problem.evaluator.model.reference(), problem.prompts.clone(), problem.goal.clone());
        Ok(Self {
            schema_version: SCHEMA_VERSION,
            model,
            prompts,
            goal,
            options,
            state,
            held_out: None,
        })
    }

    /// Takes one step.
    ///
    /// # Errors
    /// What the evaluator refuses.
    pub fn advance(&mut self, problem: &Problem) -> Result<Step> {
        let (state, options) = (&mut self.state, &self.options);
        match options.algorithm {
            Algorithm::Gcg => gcg::advance(state, problem, options),
            Algorithm::Beast => beast::advance(state, problem, options),
            Algorithm::Soft => soft::advance(state, problem),
        }
    }

    pub fn write(&self, path: &Path) -> Result<()> {
        storage::write_json(path, self)
    }

    /// Reads a search to look at.
    ///
    /// # Errors
    /// [`Error::File`] naming what is wrong.
    pub fn read(path: &Path) -> Result<Self> {
        let found: Self = storage::read_json(path)?;
        if found.schema_version != SCHEMA_VERSION {
            return Err(Error::file(
                path,
                "schema_version",
                format!("{}, known: {SCHEMA_VERSION}", found.schema_version),
            ));
        }
        if let Some(HeldOut { reached, of }) =
            found.held_out.filter(|held| held.of == 0 || held.reached > held.of)
        {
            return Err(Error::file(path, "held_out", format!("{reached} reached of {of}")));
        }
        Ok(found)
    }

    /// Reads a search that is to go on as it was asked for: `self` is how it would begin
    /// on `model`.
    ///
    /// # Errors
    /// [`Error::File`] naming the field that is another than asked for, or makes no sense.
    pub fn resume(self, path: &Path, model: &Model) -> Result<Self> {
        let found = Self::read(path)?;
        let differs = |field: &str| {
            Err(Error::file(
                path,
                field,
                "is of another search: give the same arguments, or another --out",
            ))
        };
        // The name is a path, and may be another way to the same model.
        if found.model.fingerprint != self.model.fingerprint
            || found.model.tokenizer != self.model.tokenizer
        {
            return differs("model");
        }
        if found.prompts != self.prompts {
            return differs("prompts");
        }
        if found.goal != self.goal {
            return differs("goal");
        }
        if found.options != self.options {
            return differs("options");
        }
        // A beam search makes its suffix longer token by token; what reached a goal on the way is
        // shorter.
        let beams = self.options.algorithm == Algorithm::Beast;
        let state = &found.state;
        let fits = |suffix: &Vec<u32>| {
            suffix.len() == self.options.length
                || beams && (suffix.len() <= state.step && suffix.len() < self.options.length)
        };
        let entries = || state.buffer.iter().chain([&state.best]).chain(&state.fails);
        let suffixes =
            || entries().map(|e| &e.suffix).chain(state.reached.iter().map(|r| &r.suffix));
        if state.buffer.is_empty()
            || suffixes().any(|suffix| !fits(suffix))
            || entries().any(|e| !e.loss.is_finite())
        {
            return Err(Error::file(
                path,
                "state",
                format!("expected suffixes of {} tokens with finite losses", self.options.length),
            ));
        }
        suffixes()
            .try_for_each(|suffix| model.check_ids(suffix))
            .map_err(|e| Error::file(path, "state", e))?;
        if state
            .soft
            .as_ref()
            .is_some_and(|soft| !soft.fits(self.options.length * model.config.hidden_size))
        {
            return Err(Error::file(
                path,
                "state.soft",
                "expected as many values as the embeddings of the suffix have",
            ));
        }
        if !(1..=self.prompts.len()).contains(&state.prompts) || state.step != state.trace.len() {
            return Err(Error::file(path, "state", "counts that do not fit together"));
        }
        // It goes on, so that what was left out is asked again at its end.
        Ok(Self { held_out: None, ..found })
    }
}
