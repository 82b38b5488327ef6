//! `glitch implicate CASE`: which components carry a case.

use std::path::PathBuf;

use super::model::MODEL_HELP;
use super::subject::{Subject, exists};
use super::{exit, output};
use crate::case::Case;
use crate::error::{Error, Result};
use crate::implicate::{Effect, Implication, Options, implicate};
use crate::text::escape;

/// Find the components that carry a case, by patching activations in both directions.
#[derive(clap::Args)]
pub struct Args {
    /// A case file.
    case: PathBuf,
    #[arg(long, help = format!("Patch this model, whichever one the case was made on. {MODEL_HELP}"))]
    model: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Write the case with what was found into this folder.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Components listed, strongest first.
    #[arg(long, value_name = "N", default_value_t = 10)]
    top: usize,
}

pub fn run(args: Args) -> Result<u8> {
    exists(&args.case)?;
    let mut case = Case::read(&args.case)?;
    let subject = Subject::of(&args.case, &case, args.model.as_deref())?;
    let evaluator = subject.evaluator();
    let found = implicate(&evaluator, &case.trial(), &Options { seed: case.control_seed, ..Default::default() })?;
    if args.json {
        output::line(serde_json::to_string(&found).map_err(|e| Error::file(&args.case, "implication", e))?);
    } else {
        print(&case, &found, args.top);
    }
    if let Some(dir) = args.out {
        case.model = subject.model.reference();
        case.implication = Some(found);
        case.id = case.compute_id();
        let written = case.write(&dir)?;
        if !args.json {
            output::line(format!("written       {}", escape(&written.display().to_string())));
        }
    }
    Ok(exit::OK)
}

/// The named set and what it does, in one line.
pub fn in_words(found: &Implication) -> String {
    if found.set.is_empty() {
        return "nothing: the edits do not change the distributions".into();
    }
    let set: Vec<String> = found.set.iter().map(ToString::to_string).collect();
    let emergence = found.emergence.map(|e| format!(", emergence {e:.2}")).unwrap_or_default();
    let routing = found.routing.map(|r| format!(", {:.0}% through routing", 100.0 * r)).unwrap_or_default();
    format!("{}: necessity {:.2}, sufficiency {:.2}{emergence}{routing}", set.join(" "), found.necessity, found.sufficiency)
}

fn print(case: &Case, found: &Implication, top: usize) {
    output::line(format!("case          {}  {}", escape(&case.id), escape(&case.comment.title)));
    output::line(format!("carried by    {}", in_words(found)));
    if let (Some(low), Some(high)) = (found.controls.first(), found.controls.last()) {
        output::line(format!("random sets   necessity {low:.2} to {high:.2} ({} sets of the same kinds)", found.controls.len()));
    }
    let mut effects: Vec<&Effect> = found.effects.iter().collect();
    effects.sort_by(|a, b| (b.necessity + b.sufficiency).total_cmp(&(a.necessity + a.sufficiency)));
    if !effects.is_empty() && top > 0 {
        output::line(format!("{:<18} necessity  sufficiency", "component"));
    }
    for effect in effects.into_iter().take(top) {
        output::line(format!("{:<18} {:>9.3}  {:>11.3}", effect.component.to_string(), effect.necessity, effect.sufficiency));
    }
    if !found.positions.is_empty() && top > 0 {
        output::line(format!("{:<18} necessity  sufficiency", "at one position"));
    }
    for effect in found.positions.iter().take(top) {
        let place = format!("{} @{}", effect.component, effect.position);
        output::line(format!("{place:<18} {:>9.3}  {:>11.3}  token {}", effect.necessity, effect.sufficiency, effect.id));
    }
    output::line(format!("calls         {} trials", found.calls));
}
