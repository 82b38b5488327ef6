//! `glitch case new`: writes a case by hand and judges it.

use std::path::{Path, PathBuf};

use super::args::{DEFAULT_MODEL, MODEL_HELP};
use super::{exit, output};
use crate::campaign::config::parse_oracle;
use crate::case::Case;
use crate::edit::{Edit, Trial};
use crate::error::{Error, Result};
use crate::evaluate::ModelEvaluator;
use crate::model::Model;
use crate::oracle::{LEAST_CONTROLS, OracleKind, judge::CONTROLS_PER_TRIAL};
use crate::pipeline::{Judgement, case_by_hand, parse_edit};
use crate::report::judged;
use crate::storage;
use crate::text::escape;

/// Write cases by hand.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    New(NewArgs),
}

/// Test a hypothesis: judge edits of your own against matched controls, and write them as a case.
///
/// An edit is one of: `replace POSITION TOKEN`, `insert POSITION TOKEN`, `delete POSITION`,
/// `retokenize POSITION TOKEN TOKEN...` (the same text in other tokens); `zero`, `mean`, `resample`
/// (as in another text), `mask` or `force COMPONENT`, `promote LOGIT COMPONENT`, `scale FACTOR
/// COMPONENT`, `noise STRENGTH COMPONENT`, `flip BIT WEIGHT`, each with `at POSITION` for one
/// position alone; `embedding POSITION noise STRENGTH`, `embedding POSITION towards TOKEN
/// STRENGTH`; `add STRENGTH VECTOR SITE`, `remove VECTOR SITE`, `clamp VALUE VECTOR SITE` for a
/// direction of the residual stream (SITE: L3.resid_post; VECTOR: a safetensors file, as `glitch
/// implicate --out` writes one, or `random NORM`); `knockout HEAD to POSITION`, which keeps a head
/// (or a block: L3.attn) from attending to a token. A token is an id or text in quotes (' garden').
/// Positions count the tokens of prompt and continuation from 0; they are printed with their
/// tokens, and without --edit nothing else happens.
#[derive(clap::Args)]
struct NewArgs {
    #[arg(long, help = MODEL_HELP, default_value = DEFAULT_MODEL)]
    model: String,
    /// The prompt before the edits.
    #[arg(long, value_name = "TEXT")]
    prompt: String,
    /// The text that follows it, whose prediction is measured; without it, the next token's is.
    #[arg(long, value_name = "TEXT", default_value = "")]
    continuation: String,
    /// An edit, such as "replace 4 ' garden'" or "zero L3.head1 at 2"; may be given several times.
    #[arg(long, value_name = "EDIT", allow_hyphen_values = true)]
    edit: Vec<String>,
    /// The oracle that judges.
    #[arg(long, value_name = "NAME", default_value = "divergence", value_parser = parse_oracle)]
    oracle: OracleKind,
    /// Matched controls to compare with.
    #[arg(
        long,
        value_name = "N",
        default_value_t = CONTROLS_PER_TRIAL as u64,
        value_parser = clap::value_parser!(u64).range(LEAST_CONTROLS as u64..=1024)
    )]
    controls: u64,
    /// Seed of the controls.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// A folder for the case (as ID.json), or the file to write; one that exists is never replaced.
    #[arg(long, value_name = "FILE|DIR", default_value = ".")]
    out: PathBuf,
    /// Print the case as JSON instead of text.
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> Result<u8> {
    match args.command {
        Command::New(args) => new(&args),
    }
}

fn new(args: &NewArgs) -> Result<u8> {
    refuse_existing(&args.out)?;
    let model = Model::load(&args.model)?;
    let evaluator = ModelEvaluator::new(&model);
    let prompt = model.encode(&args.prompt)?;
    let continuation = match &model.tokenizer {
        Some(tokenizer) => tokenizer.encode(&args.continuation)?,
        None => Vec::new(),
    };
    let edits: Vec<Edit> =
        args.edit.iter().map(|text| parse_edit(&model, text)).collect::<Result<_>>()?;
    let trial = Trial::new(prompt, continuation).with_edits(edits);
    if trial.edits.is_empty() {
        print_tokens(&model, &trial);
        output::line("no --edit: nothing to judge");
        return Ok(exit::OK);
    }
    let judgement =
        Judgement { oracle: args.oracle, controls: args.controls as usize, seed: args.seed };
    let case = case_by_hand(&evaluator, &trial, &judgement)?;
    let written = write(&case, &args.out)?;
    if args.json {
        output::json(&case)?;
        return Ok(exit::OK);
    }
    let columns = output::columns();
    print_tokens(&model, &trial);
    for edit in &args.edit {
        output::line(format!("edit      {}", escape(edit.trim())));
    }
    for (index, line) in judged::verdict_in_words(&case.verdict).into_iter().enumerate() {
        output::line(format!("{:<10}{line}", if index == 0 { "verdict" } else { "" }));
    }
    judged::generated(&case, columns).into_iter().for_each(output::line);
    output::line(judged::heading(&case, columns));
    output::line(format!("written   {}", escape(&written.display().to_string())));
    Ok(exit::OK)
}

/// Prints the tokens of prompt and continuation with their positions, those of edits marked.
fn print_tokens(model: &Model, trial: &Trial) {
    let edited: Vec<usize> = trial.edits.iter().flat_map(Edit::positions).collect();
    let ids = trial.base.iter().chain(trial.continuation.iter());
    let texts: Vec<String> = ids.map(|id| model.token(*id)).collect();
    let columns = output::columns().saturating_sub(10);
    let lines = judged::tokens_by_position(&texts, &edited, columns);
    for (index, line) in lines.into_iter().enumerate() {
        output::line(format!("{:<10}{line}", if index == 0 { "tokens" } else { "" }));
    }
}

/// Fails where `--out` names a file that exists, before a model is loaded.
fn refuse_existing(out: &Path) -> Result<()> {
    match out.exists() && !out.is_dir() {
        true => Err(exists_already(out)),
        false => Ok(()),
    }
}

fn exists_already(path: &Path) -> Error {
    Error::file(path, "--out", "exists already, and is not replaced")
}

/// Writes the case to a new file: `ID.json` in a folder, or the file named.
fn write(case: &Case, out: &Path) -> Result<PathBuf> {
    let is_file = out.extension().is_some_and(|extension| extension == "json") && !out.is_dir();
    let path = if is_file { out.to_owned() } else { out.join(format!("{}.json", case.id)) };
    case.validate(&path)?;
    match storage::write_new(&path, &storage::pretty_json(&path, case)?)? {
        true => Ok(path),
        false => Err(exists_already(&path)),
    }
}
