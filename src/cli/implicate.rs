//! `glitch implicate CASE`: localizes a case to the components that mediate it.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::args::{MODEL_HELP, exists};
use super::{exit, output};
use crate::case::Case;
use crate::corpus::{self, ModelUnderTest};
use crate::deficits::{self, Deficits};
use crate::edit::Edit;
use crate::error::{Error, Result};
use crate::evaluate::ModelEvaluator;
use crate::localize::{self, ComparisonKind, Direction, DirectionAt, Localization};
use crate::oracle::OracleKind;
use crate::pipeline::{attribute_replaced_tokens, localize_against_controls};
use crate::report;
use crate::storage::{self, OutputDir};
use crate::text::escape;

/// Localize a case: find the components that mediate it, by activation patching in both directions,
/// and measure what the model's own writing loses (its deficits).
#[derive(clap::Args)]
pub struct Args {
    /// A case file.
    case: PathBuf,
    #[arg(
        long,
        help = format!("Patch this model, whichever one the case was made on. {MODEL_HELP}"),
    )]
    model: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Write the case with what was found into this folder.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Replace a case of the same id there.
    #[arg(long, requires = "out")]
    force: bool,
    /// Components listed, strongest first.
    #[arg(long, value_name = "N", default_value_t = 10)]
    top: usize,
    /// Also measure which heads read the replaced tokens, and in which layers, against other tokens
    /// in their place. Cases of `suffix` always get this.
    #[arg(long)]
    attribution: bool,
}

/// The JSON output.
#[derive(Serialize)]
struct Found<'a> {
    #[serde(flatten)]
    localization: &'a Localization,
    deficits: Option<&'a Deficits>,
}

pub fn run(args: Args) -> Result<u8> {
    exists(&args.case)?;
    args.out.as_deref().map_or(Ok(()), OutputDir::check)?;
    let mut case = Case::read(&args.case)?;
    let under_test = ModelUnderTest::for_case(&args.case, &case, args.model.as_deref())?;
    let evaluator = under_test.evaluator();
    if case.against.is_some() {
        return between_models(&args, case, &under_test, &evaluator);
    }
    let trial = case.trial();
    let vocabulary = &under_test.vocabulary;
    let new_prompts = under_test.new_prompts()?;
    let new_prompts = (&new_prompts, case.verdict.oracle);
    let seed = case.control_seed;
    let mut found =
        localize_against_controls(&evaluator, vocabulary, &trial, Some(new_prompts), seed)?;
    let model = (&under_test.model.config, vocabulary);
    let (deficits, calls) = deficits::measure(&evaluator, model, &trial, new_prompts, seed)?;
    case.deficits = Some(deficits);
    found.calls += calls;
    let known = case.localization.as_ref().and_then(|i| i.attribution.as_ref());
    if args.attribution || known.is_some() || case.verdict.oracle == OracleKind::Target {
        // What fails is known to the search that found the case alone.
        let fails = known.and_then(|attribution| {
            attribution.comparisons.iter().find(|c| c.kind == ComparisonKind::Fails)
        });
        let fails = fails.map(|comparison| trial.with_edits(comparison.edits.clone()));
        let fails = fails.as_ref();
        attribute_replaced_tokens(&evaluator, vocabulary, &trial, &mut found, seed, fails)?;
    }
    if args.json {
        output::json(&Found { localization: &found, deficits: case.deficits.as_ref() })?;
    } else {
        let lines = report::localization(&case, &found, args.top);
        lines.into_iter().for_each(output::line);
    }
    let direction = found.generalization.as_ref().and_then(|tried| tried.direction.clone());
    if let Some(dir) = args.out {
        case.model = under_test.model.reference();
        case.localization = Some(found);
        case.id = case.compute_id();
        let written = case.write_new(&dir, args.force)?;
        if !args.json {
            output::line(format!("written       {}", escape(&written.display().to_string())));
        }
        if let Some(direction) = direction {
            let path = write_direction(&written, &direction, args.force)?;
            if !args.json {
                let site = direction.site(&under_test.model.config);
                let file = escape(&path.display().to_string());
                output::line(format!("direction     {file}"));
                let symptom = case.localization.as_ref().and_then(|found| found.symptom.as_ref());
                let positions: Vec<usize> = match direction.at {
                    DirectionAt::Edits => trial.edits.iter().filter_map(Edit::position).collect(),
                    DirectionAt::Symptom => {
                        symptom.map(|token| token.position).into_iter().collect()
                    }
                };
                for position in positions {
                    let edit = format!("add 1 '{file}' {site} at {position}");
                    output::line(format!("as an edit    {edit}"));
                }
            }
        }
    }
    Ok(exit::OK)
}

/// Localizes a case about two models to the components whose weights make the difference.
fn between_models(
    args: &Args,
    mut case: Case,
    under_test: &ModelUnderTest,
    evaluator: &ModelEvaluator,
) -> Result<u8> {
    let found = corpus::judged_by(&args.case, &case, evaluator, |_, both| {
        both.map(|models| localize::swaps(models, &case.trial())).transpose()
    })?;
    if let (Some(against), Some(swaps)) = (&mut case.against, found) {
        against.swaps = swaps;
    }
    if args.json {
        output::json(&case.against)?;
    } else {
        output::line(format!("case  {}  {}", escape(&case.id), escape(&case.comment.title)));
        report::two_models(&case).into_iter().for_each(output::line);
    }
    if let Some(dir) = &args.out {
        case.model = under_test.model.reference();
        case.id = case.compute_id();
        let written = case.write_new(dir, args.force)?;
        if !args.json {
            output::line(format!("written  {}", escape(&written.display().to_string())));
        }
    }
    Ok(exit::OK)
}

/// Writes a direction beside its case, as the tensor `direction`, `[d_model]`.
fn write_direction(case: &Path, direction: &Direction, force: bool) -> Result<PathBuf> {
    let path = case.with_extension("direction.safetensors");
    let file = storage::vector_file(&path, &direction.values)?;
    if force {
        storage::write_atomic(&path, &file)?;
    } else if !storage::write_new(&path, &file)? {
        return Err(Error::file(path, "--out", "exists already; --force replaces it"));
    }
    Ok(path)
}
