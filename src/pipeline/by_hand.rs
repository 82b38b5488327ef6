//! Cases written by hand: a hypothesis about a model, judged like any finding.

use std::path::Path;

use super::explain::describe;
use crate::case::{Case, Comment, Expectation, Lineage, SCHEMA_VERSION, check_edit, check_length};
use crate::edit::{Edit, Lookup, Trial};
use crate::error::{Error, Result};
use crate::evaluate::ModelEvaluator;
use crate::model::Model;
use crate::oracle::{ModelJudge, OracleKind};
use crate::storage;
use crate::vocabulary::Vocabulary;

/// Name of the mutator, and of the parent, in the lineage of a case written by hand.
const BY_HAND: &str = "by hand";

/// Options for judging a trial written by hand.
#[derive(Debug, Clone, Copy)]
pub struct Judgement {
    /// Detector that scores it.
    pub oracle: OracleKind,
    /// Matched controls that it is compared with.
    pub controls: usize,
    /// Seed from which these are drawn.
    pub seed: u64,
}

/// Resolves what an edit refers to: tokens of a model, vectors in files.
struct OfModel<'a>(&'a Model);

impl Lookup for OfModel<'_> {
    fn token_id(&self, text: &str) -> Result<u32, String> {
        token_id(self.0, text)
    }

    fn vector(&self, file: &str) -> Result<Vec<f32>, String> {
        storage::read_vector(Path::new(file)).map_err(|error| error.to_string())
    }
}

/// Reads an edit as [`Edit::parse`] does; quoted texts are tokens of the model, vectors are read
/// from their files.
///
/// # Errors
/// [`Error::Request`] naming the edit and what was expected.
pub fn parse_edit(model: &Model, text: &str) -> Result<Edit> {
    Edit::parse(text, &OfModel(model)).map_err(Error::request)
}

/// Finds the id of a text that is one token.
fn token_id(model: &Model, text: &str) -> Result<u32, String> {
    let Some(tokenizer) = &model.tokenizer else {
        return Err(format!("{} has no tokenizer: give the token's id", model.name));
    };
    match tokenizer.encode(text).map_err(|error| error.to_string())?[..] {
        [id] => Ok(id),
        [] => Err("the text is empty; expected one token".into()),
        ref ids => {
            let shown: Vec<String> =
                ids.iter().take(4).map(|id| format!("{id} '{}'", model.token(*id))).collect();
            let more = if ids.len() > 4 { ", ..." } else { "" };
            Err(format!(
                "'{text}' is {} tokens ({}{more}); expected one",
                ids.len(),
                shown.join(", ")
            ))
        }
    }
}

/// Judges a trial alone against its matched controls and makes a case of it, whether or not it
/// fails: one that does not is expected to stay away ([`Expectation::Gone`]), so that a replay
/// finds it as it was.
///
/// # Errors
/// [`Error::Request`] for edits that the model or the trial has no place for, and for an oracle
/// that cannot judge the trial; what the evaluator refuses.
pub fn case_by_hand(
    evaluator: &ModelEvaluator,
    trial: &Trial,
    judgement: &Judgement,
) -> Result<Case> {
    let model = evaluator.model;
    check(model, trial, judgement.oracle)?;
    let vocabulary = Vocabulary::of(model);
    let Judgement { oracle, controls, seed } = *judgement;
    let floor = evaluator.score_noise_floor()?;
    let verdict = ModelJudge::new(evaluator, &model.config, &vocabulary, oracle, seed, floor)
        .with_controls(controls)
        .judge_alone(trial)?;
    let expectation = if verdict.fails() { Expectation::Reproduces } else { Expectation::Gone };
    let mut case = Case {
        schema_version: SCHEMA_VERSION,
        id: String::new(),
        model: model.reference(),
        base: trial.base.to_vec(),
        continuation: trial.continuation.to_vec(),
        edits: trial.edits.clone(),
        verdict,
        control_seed: seed,
        search: None,
        replication: None,
        sampled: None,
        deficits: None,
        against: None,
        expectation,
        minimization: None,
        localization: None,
        lineage: Lineage {
            seed,
            evaluation: 0,
            mutators: vec![BY_HAND.into()],
            parent: BY_HAND.into(),
        },
        top_before: Vec::new(),
        top_after: Vec::new(),
        comment: Comment::default(),
    };
    describe(evaluator, &mut case)?;
    case.id = case.compute_id();
    Ok(case)
}

fn check(model: &Model, trial: &Trial, oracle: OracleKind) -> Result<()> {
    if !oracle.applies(&model.config) {
        return Err(Error::request(format!(
            "oracle {oracle} has no meaning for {}: the model lacks what it looks at",
            model.name
        )));
    }
    if oracle.oracle().needs_other_model() {
        return Err(Error::request(format!(
            "oracle {oracle} compares two models; `glitch sweep insert --against` does"
        )));
    }
    if oracle.oracle().needs_continuation() && trial.continuation.is_empty() {
        return Err(Error::request(format!(
            "oracle {oracle} reads a continuation, and none is given"
        )));
    }
    for edit in &trial.edits {
        let named =
            |message: String| Error::request(format!("edit `{}`: {message}", edit.to_text()));
        edit.check(trial.len(), usize::MAX)
            .map_err(|(field, message)| named(format!("{field}: {message}")))?;
        if let Edit::AttentionKnockout(knockout) = edit
            && trial.layout().edges(knockout).is_none()
        {
            return Err(named("its key or its query is deleted".into()));
        }
        check_edit(model, trial, edit).map_err(|error| named(error.to_string()))?;
    }
    if trial.layout().prompt_len == 0 {
        return Err(Error::request("no token of the prompt is left"));
    }
    check_length(model, trial)
}
