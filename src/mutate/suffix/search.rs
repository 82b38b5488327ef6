//! A search as a file: its problem, options and state.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Algorithm, Goal, Problem, Prompt, SearchState, Step, SuffixOptions, beast, gcg, soft};
use crate::error::{Error, Result};
use crate::model::{Model, ModelRef};
use crate::storage;

/// Version of the schema of `suffix.json`.
pub const SCHEMA_VERSION: u32 = 1;

/// A search: its problem, its options and its state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Search {
    /// Version of the schema, `SCHEMA_VERSION`.
    pub schema_version: u32,
    /// Model that is searched on.
    pub model: ModelRef,
    /// Prompts that one suffix is searched for.
    pub prompts: Vec<Prompt>,
    /// Behaviour that is searched for.
    pub goal: Goal,
    /// Options of the search.
    pub options: SuffixOptions,
    /// State after the last step.
    pub state: SearchState,
    /// Success on held-out prompts; set when the search is over, if there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_out: Option<HeldOut>,
}

/// Success of the best suffix on held-out prompts, which the search did not see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeldOut {
    /// Prompts in which it reaches the goal.
    pub reached: u64,
    /// All held-out prompts.
    #[serde(rename = "of")]
    pub prompts: u64,
}

impl Search {
    /// Begins a search.
    ///
    /// # Errors
    /// Those of the evaluator.
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

    /// Takes one step of the algorithm.
    ///
    /// # Errors
    /// Those of the evaluator.
    pub fn advance(&mut self, problem: &Problem) -> Result<Step> {
        let (state, options) = (&mut self.state, &self.options);
        match options.algorithm {
            Algorithm::Gcg => gcg::advance(state, problem, options),
            Algorithm::Beast => beast::advance(state, problem, options),
            Algorithm::Soft => soft::advance(state, problem),
        }
    }

    /// Writes the search to a file.
    ///
    /// # Errors
    /// Those of writing.
    pub fn write(&self, path: &Path) -> Result<()> {
        storage::write_json(path, self)
    }

    /// Reads a search without checking it against a model.
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
        if let Some(HeldOut { reached, prompts }) =
            found.held_out.filter(|held| held.prompts == 0 || held.reached > held.prompts)
        {
            return Err(Error::file(path, "held_out", format!("{reached} reached of {prompts}")));
        }
        Ok(found)
    }

    /// Reads a search to be continued on `model`. `self` is the same search before its first step.
    ///
    /// # Errors
    /// [`Error::File`] naming the field that differs from `self` or is inconsistent.
    pub fn resume(self, path: &Path, model: &Model) -> Result<Self> {
        let found = Self::read(path)?;
        let differs = |field: &str| {
            Err(Error::file(
                path,
                field,
                "is of another search: give the same arguments, or another --out",
            ))
        };
        // The name may be another path to the same model.
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
        // Held-out prompts are tested again when the continued search ends.
        Ok(Self { held_out: None, ..found })
    }
}
