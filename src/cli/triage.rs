//! `glitch triage DIR...`: the kinds of glitch in folders of cases, each with the case that shows
//! it best.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::args::exists;
use super::{exit, output};
use crate::case::Case;
use crate::corpus;
use crate::error::Result;
use crate::species::{self, IgnoreList, Species};
use crate::storage::{MAX_TEXT, read_text};
use crate::text::{escape, fit, plural};

/// The list that is read where none is named, if it exists.
const IGNORE: &str = "fuzz/ignore.toml";

/// Group cases by kind: what fails, by which kind of edit, at which tokens and places.
///
/// Twins (another token of the same class, another head of the same layer) are counted and not
/// listed. Worst first: what holds in new prompts, then by how many times the score exceeds the
/// threshold.
#[derive(clap::Args)]
pub struct Args {
    /// Folders of cases, such as those of campaigns; the same case in two of them is one.
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// Leave out the kinds and cases of this list [default: fuzz/ignore.toml, if there is one].
    #[arg(long, value_name = "FILE")]
    ignore: Option<PathBuf>,
    /// Also list the other cases of each kind.
    #[arg(long)]
    members: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> Result<u8> {
    let ignored = ignore_list(args.ignore.as_deref())?;
    let (mut cases, mut files, mut bad) = (Vec::new(), BTreeMap::new(), 0);
    for path in &args.paths {
        exists(path)?;
        for entry in corpus::entries(path)? {
            match entry.case {
                Ok(case) => {
                    files.entry(case.id.clone()).or_insert(entry.path);
                    cases.push(case);
                }
                Err(error) => {
                    output::warn(format!("left out: {error}"));
                    bad += 1;
                }
            }
        }
    }
    if cases.is_empty() && bad == 0 {
        return Ok(output::no_cases());
    }
    let distinct = files.len();
    cases.retain(|case| !ignored.has(case));
    let shown = species::group(&cases);
    let left_out = distinct - shown.iter().map(|species| species.members.len()).sum::<usize>();
    if args.json {
        let all: Vec<_> = shown.iter().map(|species| as_json(species, &files)).collect();
        output::json(&json!({ "cases": distinct, "ignored": left_out, "bad": bad, "kinds": all }))?;
    } else {
        let models: BTreeSet<&str> = shown.iter().map(|species| species.fingerprint).collect();
        print(&shown, &files, models.len() > 1, args.members);
        let kinds = plural(shown.len() as u64, "kind");
        let cases = plural(distinct as u64, "case");
        let note = match left_out {
            0 => String::new(),
            _ => format!("; {} ignored", plural(left_out as u64, "case")),
        };
        output::line(format!("{cases}, {kinds}{note}"));
    }
    Ok(if bad == 0 { exit::OK } else { exit::INTERNAL })
}

/// Reads the list that was named, or the one in its usual place.
fn ignore_list(named: Option<&Path>) -> Result<IgnoreList> {
    let path = match named {
        Some(path) => path,
        None if Path::new(IGNORE).is_file() => Path::new(IGNORE),
        None => return Ok(IgnoreList::default()),
    };
    IgnoreList::parse(&read_text(path, MAX_TEXT)?, path)
}

fn print(shown: &[Species], files: &BTreeMap<String, PathBuf>, several: bool, members: bool) {
    for (i, species) in shown.iter().enumerate() {
        output::line(fit(&format!("{}. {}", i + 1, species.title()), 100));
        let model = match several {
            true => format!(" on {}", fit(&species.face.model.name, 40)),
            false => String::new(),
        };
        output::line(format!("   {}{model}", counts(species)));
        output::line(format!("   {}", fit(&species.face.comment.title, 97)));
        output::line(format!("   glitch replay {}", place(species.face, files)));
        let others = species.members.iter().filter(|case| case.id != species.face.id);
        for case in others.filter(|_| members) {
            output::line(format!("   - {}", fit(&case.comment.title, 95)));
            output::line(format!("     {}", place(case, files)));
        }
        output::line("");
    }
}

fn counts(species: &Species) -> String {
    let cases = plural(species.members.len() as u64, "case");
    let prompts = plural(species.prompts as u64, "prompt");
    let tried = species.members.iter().filter(|case| case.replication.is_some()).count();
    match tried {
        0 => format!("{cases} in {prompts}; none could be put into new prompts"),
        _ => format!(
            "{cases} in {prompts}; {} of {tried} consistent in new prompts",
            species.consistent
        ),
    }
}

fn place(case: &Case, files: &BTreeMap<String, PathBuf>) -> String {
    files.get(&case.id).map_or_else(String::new, |path| escape(&path.display().to_string()))
}

fn as_json(species: &Species, files: &BTreeMap<String, PathBuf>) -> serde_json::Value {
    let path = |case: &Case| files.get(&case.id).map(|path| path.display().to_string());
    let members: Vec<_> = species
        .members
        .iter()
        .map(|case| json!({ "id": case.id, "path": path(case), "score": case.verdict.score }))
        .collect();
    json!({
        "model": species.face.model.name, "fingerprint": species.fingerprint,
        "kind": species.descriptor, "title": species.title(), "deficits": species.deficits,
        "mediator": species.mediator,
        "face": {
            "id": species.face.id, "path": path(species.face),
            "title": species.face.comment.title,
        },
        "prompts": species.prompts, "consistent": species.consistent, "members": members,
    })
}
