//! From a confirmed, minimized finding to a case: the components it is localized to, and what a
//! reader sees.

use super::finding::Finding;
use super::title::title;
use crate::case::{Against, Case, Comment, Expectation, SCHEMA_VERSION, TokenProbability};
use crate::deficits;
use crate::edit::{Edit, Trial};
use crate::error::Result;
use crate::evaluate::{Evaluator as _, ModelEvaluator, Observation, Request, TwoModels};
use crate::localize::{self, ComparisonKind, Localization, PutIn, comparable};
use crate::model::{Model, ModelRef};
use crate::oracle::{OracleKind, controls};
use crate::replicate::NewPrompts;
use crate::rng;
use crate::vocabulary::Vocabulary;

/// Turns a finding into a case.
pub trait Explainer {
    /// Returns the case, and how many trials it took to make it. Localization costs most of them;
    /// without `localize` the case has none.
    ///
    /// # Errors
    /// Those of the evaluator.
    fn explain(&self, finding: &Finding, localize: bool) -> Result<(Case, u64)>;
}

/// Explains findings on a model.
pub struct ModelExplainer<'a, 'm> {
    /// The model that the findings were made on.
    pub evaluator: &'a ModelEvaluator<'m>,
    /// The model's tokens.
    pub vocabulary: &'a Vocabulary,
    /// The model's name and fingerprint, as the case has them.
    pub model: &'a ModelRef,
    /// The prompts in which an explanation is tried and deficits are measured; `None`: neither.
    pub new_prompts: Option<&'a NewPrompts>,
    /// The second model of findings that are about two: they are localized to the components whose
    /// weights make the difference.
    pub against: Option<&'a TwoModels<'a, 'm>>,
    /// Adds to a localization how the replaced tokens are read; `None`: without.
    pub attribution: Option<Attribution<'a>>,
}

/// The token replacements that those of a finding are compared with.
#[derive(Debug, Clone, Copy, Default)]
pub struct Attribution<'a> {
    /// A trial of the same kind as the finding that does not fail, compared with besides ordinary
    /// tokens.
    pub fails: Option<&'a Trial>,
}

/// Controls that are drawn for a localization. Some have no effect to compare with.
const CONTRASTED: usize = 32;

/// Prompts in which an explanation is tried.
const ELSEWHERE: usize = 20;

/// Localizes a trial, tries what is found in new prompts, and compares what it is localized to with
/// its controls, drawn as those of the verdict are. Controls of lesions are another matter: those
/// of the verdict act at other places of the model, so noise takes the place of the lesions here.
/// Trials that have lesions and other edits have no controls.
///
/// # Errors
/// Those of [`localize::localize`].
pub fn localize_against_controls(
    evaluator: &ModelEvaluator,
    vocabulary: &Vocabulary,
    trial: &Trial,
    new_prompts: Option<(&NewPrompts, OracleKind)>,
    seed: u64,
) -> Result<Localization> {
    let config = &evaluator.model.config;
    let acts_inside = |edit: &Edit| edit.lesioned().is_some() || *edit == Edit::FreezeRouting;
    let controls = match trial.edits.iter().any(acts_inside) {
        true => localize::noise_controls(evaluator, trial, CONTRASTED, seed)?,
        false => controls::draw(trial, CONTRASTED, seed, config, vocabulary),
    };
    let mut elsewhere = Vec::new();
    if let Some((prompts, oracle)) = new_prompts {
        let mut rng = rng::stream(seed, "prompts of an explanation");
        let (bos, rng) = (config.bos_token_id, &mut rng);
        let chosen = prompts.choose(evaluator, trial, oracle, bos, ELSEWHERE, rng)?;
        elsewhere.extend(chosen.into_iter().map(|(_, trial)| trial));
    }
    let options = localize::LocalizeOptions { seed, ..Default::default() };
    let found = localize::localize(evaluator, trial, &controls, &elsewhere, &options)?;
    Ok(Localization { tokens: put_in(evaluator.model, vocabulary, trial), ..found })
}

/// Returns the tokens that the edits put in, each once.
fn put_in(model: &Model, vocabulary: &Vocabulary, trial: &Trial) -> Vec<PutIn> {
    let mut tokens: Vec<PutIn> = Vec::new();
    for edit in trial.edits.iter().filter(|edit| edit.is_token_edit()) {
        for id in edit.token_ids() {
            if tokens.iter().all(|token| token.id != id) {
                let (text, class) = (model.token(id), vocabulary.kind(id));
                tokens.push(PutIn { id, text, class });
            }
        }
    }
    tokens
}

/// Trials with random tokens in the place of a case's, with which its attribution is compared.
const COMPARISONS: usize = 4;

/// Adds the attribution of the replaced tokens to a localization, compared with ordinary tokens in
/// their place, drawn as the verdict's controls are, and with `fails`, a trial of the same kind
/// that does not reach the goal. Does nothing if the trial is not made of replacements.
///
/// # Errors
/// Those of the evaluator.
pub fn attribute_replaced_tokens(
    evaluator: &ModelEvaluator,
    vocabulary: &Vocabulary,
    trial: &Trial,
    localization: &mut Localization,
    seed: u64,
    fails: Option<&Trial>,
) -> Result<()> {
    let random = controls::draw(trial, COMPARISONS, seed, &evaluator.model.config, vocabulary);
    let mut comparisons: Vec<(ComparisonKind, Trial)> =
        random.into_iter().map(|trial| (ComparisonKind::Random, trial)).collect();
    comparisons.extend(fails.map(|trial| (ComparisonKind::Fails, trial.clone())));
    if let Some((attribution, calls)) =
        localize::attribute_tokens(evaluator, trial, localization, &comparisons)?
    {
        localization.attribution = Some(attribution);
        localization.calls += calls;
    }
    Ok(())
}

impl Explainer for ModelExplainer<'_, '_> {
    fn explain(&self, finding: &Finding, localize: bool) -> Result<(Case, u64)> {
        let Finding { trial, verdict, control_seed, search, .. } = finding;
        let against = self.against.map(|models| -> Result<Against> {
            let swaps = if localize { localize::swaps(models, trial)? } else { Vec::new() };
            Ok(Against { model: models.against.model.reference(), swaps })
        });
        let against = against.transpose()?;
        let mut localization = (localize && against.is_none() && comparable(trial))
            .then(|| {
                let new_prompts = self.new_prompts.map(|prompts| (prompts, verdict.oracle));
                localize_against_controls(
                    self.evaluator,
                    self.vocabulary,
                    trial,
                    new_prompts,
                    *control_seed,
                )
            })
            .transpose()?;
        if let (Some(localization), Some(Attribution { fails })) =
            (&mut localization, self.attribution)
        {
            attribute_replaced_tokens(
                self.evaluator,
                self.vocabulary,
                trial,
                localization,
                *control_seed,
                fails,
            )?;
        }
        let mut calls = localization.as_ref().map_or(0, |i| i.calls) + 2;
        let mut deficits = None;
        if let Some(prompts) = self.new_prompts {
            let (found, ran) = deficits::measure(
                self.evaluator,
                (&self.evaluator.model.config, self.vocabulary),
                trial,
                (prompts, verdict.oracle),
                *control_seed,
            )?;
            calls += ran;
            deficits = Some(found);
        }
        let mut case = Case {
            schema_version: SCHEMA_VERSION,
            id: String::new(),
            model: self.model.clone(),
            base: trial.base.to_vec(),
            continuation: trial.continuation.to_vec(),
            edits: trial.edits.clone(),
            verdict: verdict.clone(),
            control_seed: *control_seed,
            search: search.clone(),
            replication: finding.replication.clone(),
            sampled: finding.sampled,
            deficits,
            against,
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
///
/// # Errors
/// Those of the evaluator.
pub fn describe(evaluator: &ModelEvaluator, case: &mut Case) -> Result<()> {
    let model = evaluator.model;
    let trial = case.trial();
    let baseline = trial.baseline();
    // As much as any oracle judges.
    let tokens = OracleKind::Collapse.oracle().generate();
    let before = evaluator.observe_alone(&Request::new(baseline.clone()).generating(tokens))?;
    let after = evaluator.observe_alone(&Request::new(trial.clone()).generating(tokens))?;
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
