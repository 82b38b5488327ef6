//! `glitch implicate CASE`: localizes a case to the components that mediate it.

use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, TensorView};

use super::args::{MODEL_HELP, exists};
use super::{exit, output};
use crate::case::Case;
use crate::corpus::ModelUnderTest;
use crate::error::{Error, Result};
use crate::localize::{ComparisonKind, Direction};
use crate::pipeline::{attribute_replaced_tokens, localize_against_controls};
use crate::report;
use crate::storage::{self, OutputDir};
use crate::text::escape;

/// Localize a case: find the components that mediate it, by activation patching in both directions.
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
}

pub fn run(args: Args) -> Result<u8> {
    exists(&args.case)?;
    args.out.as_deref().map_or(Ok(()), OutputDir::check)?;
    let mut case = Case::read(&args.case)?;
    let under_test = ModelUnderTest::for_case(&args.case, &case, args.model.as_deref())?;
    let evaluator = under_test.evaluator();
    let trial = case.trial();
    let new_prompts = under_test.new_prompts_for(&evaluator, &trial)?;
    let new_prompts = Some((&new_prompts, case.verdict.oracle));
    let mut found = localize_against_controls(&evaluator, &trial, new_prompts, case.control_seed)?;
    // What fails is known to the search that found the case alone.
    let known = case.localization.as_ref().and_then(|i| i.attribution.as_ref());
    let fails = known.and_then(|attribution| {
        attribution.comparisons.iter().find(|c| c.kind == ComparisonKind::Fails)
    });
    let fails = fails.map(|comparison| trial.with_edits(comparison.edits.clone()));
    let seed = case.control_seed;
    attribute_replaced_tokens(&evaluator, &trial, &mut found, seed, fails.as_ref())?;
    if args.json {
        output::json(&found)?;
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
                output::line(format!("direction     {}", escape(&path.display().to_string())));
            }
        }
    }
    Ok(exit::OK)
}

/// Writes a direction beside its case, as the tensor `direction`, `[d_model]`.
fn write_direction(case: &Path, direction: &Direction, force: bool) -> Result<PathBuf> {
    let path = case.with_extension("direction.safetensors");
    let bytes: Vec<u8> = direction.values.iter().flat_map(|x| x.to_le_bytes()).collect();
    let shape = vec![direction.values.len()];
    let tensor = TensorView::new(Dtype::F32, shape, &bytes)
        .and_then(|tensor| safetensors::serialize([("direction", tensor)], None))
        .map_err(|error| Error::file(&path, "direction", error.to_string()))?;
    if force {
        storage::write_atomic(&path, &tensor)?;
    } else if !storage::write_new(&path, &tensor)? {
        return Err(Error::file(path, "--out", "exists already; --force replaces it"));
    }
    Ok(path)
}
