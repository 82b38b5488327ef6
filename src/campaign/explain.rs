//! From a confirmed, minimized finding to a case: what carries it, and what a reader sees.

use super::events::Follow;
use super::finding::Finding;
use crate::case::{Case, Comment, Expectation, SCHEMA_VERSION, TokenProbability};
use crate::edit::{Edit, Trial};
use crate::error::Result;
use crate::evaluate::{Evaluator as _, ModelEvaluator, Observation, Request};
use crate::localize::{self, ComparisonKind, Localization, comparable};
use crate::model::Model;
use crate::model::ModelRef;
use crate::oracle::{OracleKind, controls};
use crate::vocabulary::Vocabulary;

/// Explains findings on a model.
pub struct Explain<'a, 'm> {
    pub evaluator: &'a ModelEvaluator<'m>,
    pub model: &'a ModelRef,
}

/// Tokens generated for the reader.
const GENERATED: usize = 16;

/// Trials with random tokens in the place of a case's that its attribution is compared with.
const COMPARISONS: usize = 4;

/// Adds the attribution of the replaced tokens to a localization, compared with ordinary tokens in
/// their place, drawn as the verdict's controls are, and with `fails`, a trial of the same kind that
/// does not reach the goal. Does nothing if the trial is not made of replacements.
///
/// # Errors
/// What the evaluator refuses.
pub fn attribute_against(
    evaluator: &ModelEvaluator,
    trial: &Trial,
    localization: &mut Localization,
    seed: u64,
    fails: Option<Trial>,
) -> Result<()> {
    let vocabulary = Vocabulary::of(evaluator.model);
    let random = controls::draw(trial, COMPARISONS, seed, &evaluator.model.config, &vocabulary);
    let mut comparisons: Vec<(ComparisonKind, Trial)> =
        random.into_iter().map(|trial| (ComparisonKind::Random, trial)).collect();
    comparisons.extend(fails.map(|trial| (ComparisonKind::Fails, trial)));
    if let Some((attribution, calls)) =
        localize::attribute_tokens(evaluator, trial, localization, &comparisons)?
    {
        localization.attribution = Some(attribution);
        localization.calls += calls;
    }
    Ok(())
}

impl Follow for Explain<'_, '_> {
    fn follow(&self, finding: &Finding, implicate: bool) -> Result<(Case, u64)> {
        let options =
            localize::LocalizeOptions { seed: finding.control_seed, ..Default::default() };
        let implicate = implicate && comparable(&finding.trial);
        let localization = implicate
            .then(|| localize::localize(self.evaluator, &finding.trial, &options))
            .transpose()?;
        let calls = localization.as_ref().map_or(0, |i| i.calls) + 2;
        let mut case = Case {
            schema_version: SCHEMA_VERSION,
            id: String::new(),
            model: self.model.clone(),
            base: finding.trial.base.to_vec(),
            continuation: finding.trial.continuation.to_vec(),
            edits: finding.trial.edits.clone(),
            verdict: finding.verdict.clone(),
            control_seed: finding.control_seed,
            expectation: Expectation::Reproduces,
            minimization: finding.minimization.clone(),
            localization,
            lineage: finding.lineage.clone(),
            top_before: Vec::new(),
            top_after: Vec::new(),
            comment: Comment::default(),
        };
        describe(self.evaluator, &mut case)?;
        case.id = case.compute_id();
        Ok((case, calls))
    }
}

/// Fills in what a reader sees: top tokens, texts, title.
pub fn describe(evaluator: &ModelEvaluator, case: &mut Case) -> Result<()> {
    let model = evaluator.model;
    let trial = case.trial();
    let baseline = trial.baseline();
    let before = evaluator.observe_alone(&Request::new(baseline.clone()).generating(GENERATED))?;
    let after = evaluator.observe_alone(&Request::new(trial.clone()).generating(GENERATED))?;
    case.top_before = top(model, &before);
    case.top_after = top(model, &after);
    let layout = trial.layout();
    case.comment = Comment {
        prompt: model.decode(&case.base),
        edited_prompt: model.decode(&layout.ids[..layout.prompt_len]),
        continuation: model.decode(&case.continuation),
        generated_before: model.decode(&before.generated),
        generated_after: model.decode(&after.generated),
        title: title(model, &trial, case.verdict.oracle, case.verdict.score),
    };
    Ok(())
}

fn top(model: &Model, observation: &Observation) -> Vec<TokenProbability> {
    let first = observation.top.first().map(Vec::as_slice).unwrap_or_default();
    first
        .iter()
        .map(|(id, p)| TokenProbability {
            id: *id,
            text: model.token(*id),
            probability: f64::from(p.exp()),
        })
        .collect()
}

/// One line: what is done and what happens.
fn title(model: &Model, trial: &Trial, oracle: OracleKind, score: f64) -> String {
    let what: Vec<String> =
        trial.edits.iter().take(2).map(|edit| edit_in_words(model, trial, edit)).collect();
    let more = if trial.edits.len() > 2 {
        format!(" and {} more edits", trial.edits.len() - 2)
    } else {
        String::new()
    };
    let effect = oracle.oracle().effect(score, &model.decode(&trial.continuation));
    // An echo case edits the same token in several places; saying so once is enough.
    let what = if oracle.oracle().edits_one_token() {
        what.into_iter().take(1).collect::<Vec<_>>().join("")
    } else {
        what.join(", ") + &more
    };
    format!("{what} {effect}")
}

fn edit_in_words(model: &Model, trial: &Trial, edit: &Edit) -> String {
    let quoted = |id: u32| format!("`{}`", model.token(id));
    let at = |position: usize| {
        trial
            .base
            .iter()
            .chain(trial.continuation.iter())
            .nth(position)
            .map_or("the end".into(), |id| quoted(*id))
    };
    edit.title(&quoted, &at)
}
