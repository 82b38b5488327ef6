//! `glitch corpus add|list|verify|show`.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde_json::json;

use super::args::exists;
use super::output::figure;
use super::{exit, output};
use crate::case::Case;
use crate::corpus::{self, REGRESSIONS};
use crate::error::{Error, Result};
use crate::model::short_names;
use crate::text::{escape, fit};

/// Keep cases as regression tests: add them, list them, check the files.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
    /// Folder of the corpus.
    #[arg(long, global = true, default_value = REGRESSIONS)]
    dir: PathBuf,
}

#[derive(Subcommand)]
enum Command {
    /// Copy cases into the corpus, each under its id.
    Add {
        /// Case files, or folders that hold them at any depth.
        #[arg(required = true, value_name = "CASE|DIR")]
        cases: Vec<PathBuf>,
    },
    /// List the cases, one line each.
    List {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Check that every file is a case under its own name; exit 100 when one is not.
    Verify {
        /// Move files that fail the check to quarantine/ in the corpus.
        #[arg(long)]
        quarantine: bool,
    },
    /// Show one case in full.
    Show {
        /// A file, or the id of a case in the corpus.
        #[arg(value_name = "CASE")]
        case: PathBuf,
    },
}

pub fn run(args: Args) -> Result<u8> {
    match args.command {
        Command::Add { cases } => Ok(add(&cases, &args.dir)),
        Command::List { json } => list(&args.dir, json),
        Command::Verify { quarantine } => verify(&args.dir, quarantine),
        Command::Show { case } => show(&case, &args.dir),
    }
}

/// Adds what can be added; the exit code is that of the first that could not.
fn add(paths: &[PathBuf], dir: &Path) -> u8 {
    let (mut code, mut found) = (exit::OK, 0);
    let mut failed = |error: Error| {
        output::warn(format!("not added: {error}"));
        code = if code == exit::OK { exit::of(&error) } else { code };
    };
    for path in paths {
        let files = match corpus::files(path) {
            Ok(files) => files,
            Err(error) => {
                found += 1;
                failed(error);
                continue;
            }
        };
        found += files.len();
        for file in files {
            match corpus::add(&file, dir) {
                Ok(target) => {
                    output::line(format!("added {}", escape(&target.display().to_string())));
                }
                Err(error) => failed(error),
            }
        }
    }
    if found == 0 { output::no_cases() } else { code }
}

fn list(dir: &Path, as_json: bool) -> Result<u8> {
    exists(dir)?;
    let (mut rows, mut count, mut bad) = (Vec::new(), 0, 0);
    for entry in corpus::entries(dir)? {
        let case = match entry.case {
            Ok(case) => case,
            Err(error) => {
                output::warn(format!("set aside: {error}"));
                bad += 1;
                continue;
            }
        };
        count += 1;
        let v = &case.verdict;
        if as_json {
            rows.push(json!({
                "path": entry.path.display().to_string(), "id": case.id, "model": case.model.name,
                "fingerprint": case.model.fingerprint, "oracle": v.oracle, "score": v.score,
                "threshold": v.threshold,
                "margin": v.margin, "expectation": case.expectation, "title": case.comment.title,
            }));
        } else {
            output::line(format!(
                "{}  {:<11}  score {}  margin {}  {}  {}  {}",
                escape(&case.id),
                v.oracle.name(),
                figure(v.score),
                figure(v.margin),
                expectation(&case),
                fit(&short_names(&[&case.model.name])[0], 40),
                fit(&case.comment.title, 100)
            ));
        }
    }
    if as_json {
        output::json(&json!({ "cases": rows, "bad": bad }))?;
    } else {
        output::line(format!("{count} cases, {bad} bad"));
    }
    if count + bad == 0 {
        return Ok(output::no_cases());
    }
    Ok(if bad == 0 { exit::OK } else { exit::REGRESSION })
}

fn verify(dir: &Path, quarantine: bool) -> Result<u8> {
    exists(dir)?;
    let verified = corpus::verify(dir, quarantine)?;
    for bad in &verified.bad {
        let moved = bad
            .moved
            .as_ref()
            .map(|to| format!(" (moved to {})", to.display()))
            .unwrap_or_default();
        output::warn(format!("bad: {}{moved}", bad.error));
    }
    output::line(format!("{} good, {} bad", verified.good.len(), verified.bad.len()));
    if verified.good.is_empty() && verified.bad.is_empty() {
        return Ok(output::no_cases());
    }
    Ok(if verified.bad.is_empty() { exit::OK } else { exit::REGRESSION })
}

fn expectation(case: &Case) -> &'static str {
    match case.expectation {
        crate::case::Expectation::Reproduces => "expected to reproduce",
        crate::case::Expectation::Gone => "expected to be gone",
    }
}

fn show(named: &Path, dir: &Path) -> Result<u8> {
    let in_corpus = dir.join(format!("{}.json", named.display()));
    let path = if !named.exists() && in_corpus.exists() { in_corpus } else { named.to_owned() };
    exists(&path)?;
    let case = Case::read(&path)?;
    let v = &case.verdict;
    let mut rows: Vec<(&str, String)> = vec![
        ("id", case.id.clone()),
        ("title", case.comment.title.clone()),
        ("model", case.model.name.clone()),
        ("fingerprint", case.model.fingerprint.clone()),
        ("oracle", format!("{}, {}", v.oracle, expectation(&case))),
        (
            "score",
            format!(
                "{}, threshold {}, margin {}, noise floor {:.1e}, {} controls, p {:.3}",
                figure(v.score),
                figure(v.threshold),
                figure(v.margin),
                v.noise_floor,
                v.controls.len(),
                v.p_value
            ),
        ),
        ("prompt", case.comment.prompt.clone()),
        ("edited", case.comment.edited_prompt.clone()),
        ("continues", case.comment.continuation.clone()),
        ("before", case.comment.generated_before.clone()),
        ("after", case.comment.generated_after.clone()),
    ];
    for edit in &case.edits {
        rows.push((
            "edit",
            serde_json::to_string(edit).map_err(|e| Error::file(&path, "edits", e))?,
        ));
    }
    if let Some(m) = &case.minimization {
        let certificate = if m.one_minimal { "1-minimal" } else { "not certified" };
        rows.push((
            "minimized",
            format!(
                "{} to {} elements in {} calls, {certificate}",
                m.elements_before, m.elements_after, m.calls
            ),
        ));
    }
    if let Some(localization) = &case.localization {
        rows.push(("localized", crate::report::set_in_words(localization)));
    }
    let l = &case.lineage;
    rows.push((
        "lineage",
        format!(
            "seed {}, evaluation {}, {} from {}",
            l.seed,
            l.evaluation,
            l.mutators.join("+"),
            l.parent
        ),
    ));
    for (name, value) in rows {
        output::line(format!("{name:<12} {}", escape(&value)));
    }
    Ok(exit::OK)
}
