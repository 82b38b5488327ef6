//! `glitch minimize CASE`: reduces a case further, or again on another model.

use std::path::{Path, PathBuf};

use super::args::{MODEL_HELP, exists};
use super::output::figure;
use super::{exit, output};
use crate::case::Case;
use crate::corpus::{self, ModelUnderTest};
use crate::edit::Trial;
use crate::error::Result;
use crate::evaluate::{Evaluator, ModelEvaluator, TwoModels};
use crate::minimize;
use crate::oracle::Verdict;
use crate::oracle::judge::CONTROLS_PER_TRIAL;
use crate::pipeline::{Explanation, Finding, FollowUp, Followed, ModelExplainer, Steps};
use crate::replicate::Replicator;
use crate::storage::OutputDir;
use crate::text::{escape, fit};

/// Reduce a case until no single element can go, explain what is left, and write it as a case.
#[derive(clap::Args)]
pub struct Args {
    /// A case file.
    case: PathBuf,
    #[arg(
        long,
        help = format!("Minimize on this model, whichever one the case was made on. {MODEL_HELP}"),
    )]
    model: Option<String>,
    /// Where to write the new case [default: beside the old one].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Replace a case of the same id there.
    #[arg(long)]
    force: bool,
    /// Trials that the reduction may judge.
    #[arg(long, value_name = "N", default_value_t = minimize::MinimizeOptions::default().max_calls)]
    max_calls: u64,
}

/// Forwards in one batch, controls included.
const BATCH: usize = 96;

pub fn run(args: Args) -> Result<u8> {
    exists(&args.case)?;
    args.out.as_deref().map_or(Ok(()), OutputDir::check)?;
    let case = Case::read(&args.case)?;
    let under_test = ModelUnderTest::for_case(&args.case, &case, args.model.as_deref())?;
    let evaluator = under_test.evaluator();
    corpus::judged_by(&args.case, &case, &evaluator, |judged_by, both| {
        minimize_on(&args, case.clone(), &under_test, &evaluator, judged_by, both)
    })
}

/// Reduces a case, judged by `judged_by`, which compares with a second model where there is one.
fn minimize_on(
    args: &Args,
    case: Case,
    under_test: &ModelUnderTest,
    evaluator: &ModelEvaluator,
    judged_by: &dyn Evaluator,
    against: Option<&TwoModels>,
) -> Result<u8> {
    // A confirmed case has more controls than each step of a reduction needs.
    let controls = case.verdict.controls.len().min(CONTROLS_PER_TRIAL);
    let judge = under_test.judge(judged_by, &case).with_controls(controls);
    let trial = case.trial();
    let token = |id| under_test.model.token(id);
    let new_prompts = under_test.new_prompts()?;
    let options = minimize::MinimizeOptions {
        max_calls: args.max_calls,
        batch: (BATCH / (judge.controls_per_trial + 1)).max(4),
        prompt: minimize::PromptReduction::Text { token: &token },
        keep_first: trial.first_editable(under_test.model.config.bos_token_id),
        ..Default::default()
    };
    let reference = under_test.model.reference();
    let explainer = ModelExplainer {
        evaluator,
        vocabulary: &under_test.vocabulary,
        model: &reference,
        new_prompts: Some(&new_prompts),
        against,
        attribution: None,
    };
    let mut before = Before::default();
    let replicator = Some(Replicator { prompts: &new_prompts, null: false });
    let followed = FollowUp { judge: &judge, options, replicator, explainer: &explainer }.run(
        trial.clone(),
        case.search.clone(),
        case.lineage.clone(),
        &mut before,
    )?;
    let before = before.verdict.as_ref().map(scores).unwrap_or_default();
    let Followed::Case { case: mut new, others, .. } = followed else {
        output::line(format!("gone  {}  nothing to minimize: {before}", escape(&case.id)));
        return Ok(exit::REGRESSION);
    };
    new.expectation = case.expectation;
    let spent = new.minimization.take();
    new.minimization = match &spent {
        Some(spent) => Some(spent.clone().after(case.minimization.as_ref())),
        None => {
            output::warn("the reduced case does not hold alone: the case stays as it was");
            case.minimization
        }
    };
    let beside = args.case.parent().map_or_else(|| Path::new(".").to_owned(), Path::to_owned);
    let dir = args.out.clone().unwrap_or(beside);
    output::line(format!("before   {}  {}  {before}", escape(&case.id), size(&trial)));
    output::line(format!("after    {}  {}  {}", new.id, size(&new.trial()), scores(&new.verdict)));
    output::line(format!("         {}", fit(&new.comment.title, 100)));
    let certificate = match &spent {
        Some(spent) if spent.one_minimal => "no single element can go",
        _ => "not certified to be minimal",
    };
    let others = match others.len() {
        0 => String::new(),
        n => format!("; {n} other failures met on the way"),
    };
    let judged = spent.map(|spent| format!("{} trials judged, ", spent.calls)).unwrap_or_default();
    output::line(format!("calls    {judged}{} evaluated; {certificate}{others}", judge.calls()));
    // Nothing was removed: the file that was read holds this case already.
    let place = dir.join(format!("{}.json", new.id));
    let same = |path: &Path| path.canonicalize().ok();
    if !args.force && place.exists() && same(&place) == same(&args.case) {
        let place = escape(&place.display().to_string());
        output::line(format!("kept     {place}: nothing could go (--force writes it anew)"));
        return Ok(exit::OK);
    }
    let written = new.write_new(&dir, args.force)?;
    output::line(format!("written  {}", escape(&written.display().to_string())));
    Ok(exit::OK)
}

/// Keeps the verdict of the case as it was, and has what is left of it localized.
#[derive(Default)]
struct Before {
    verdict: Option<Verdict>,
}

impl Steps for Before {
    fn confirmed(&mut self, verdict: &Verdict, _: bool) -> Result<()> {
        self.verdict = Some(verdict.clone());
        Ok(())
    }

    fn minimized(&mut self, _: &Finding) -> Result<Explanation> {
        Ok(Explanation::Localized)
    }
}

fn size(trial: &Trial) -> String {
    format!(
        "{} edits, {} prompt tokens, {} continued",
        trial.edits.len(),
        trial.base.len(),
        trial.continuation.len()
    )
}

fn scores(verdict: &Verdict) -> String {
    format!(
        "score {}  threshold {}  margin {}",
        figure(verdict.score),
        figure(verdict.threshold),
        figure(verdict.margin)
    )
}
