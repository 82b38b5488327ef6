//! `glitch implicate CASE`: which components carry a case.

use std::path::PathBuf;

use super::model::MODEL_HELP;
use super::subject::{Subject, exists};
use super::{exit, output};
use crate::campaign::read_against;
use crate::case::Case;
use crate::error::{Error, Result};
use crate::implicate::{Carried, ContrastKind, Effect, Implication, Options, Reading, implicate};
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
    let trial = case.trial();
    let mut found = implicate(&evaluator, &trial, &Options { seed: case.control_seed, ..Default::default() })?;
    // What fails is known to the search that found the case alone.
    let known = case.implication.as_ref().and_then(|i| i.reading.as_ref());
    let fails = known.and_then(|reading| reading.contrasts.iter().find(|c| c.kind == ContrastKind::Fails));
    let fails = fails.map(|contrast| trial.with_edits(contrast.edits.clone()));
    read_against(&evaluator, &trial, &mut found, case.control_seed, fails)?;
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

/// Which heads read the replaced tokens, up to which layer they matter in their own place, and what that is in others.
pub fn reading_in_words(reading: &Reading) -> Vec<String> {
    let readers = reading.readers.iter().take(4).map(|e| format!("{} {:.2}", e.component, e.necessity));
    let readers: Vec<String> = readers.collect();
    let share = |c: &Carried| match c.handed_over() {
        Some((from, to)) if from == to => format!("handed over in layer {from}"),
        Some((from, to)) => format!("handed over in layers {from} to {to}"),
        None => "not handed over".to_owned(),
    };
    let line = |name: &str, c: &Carried| {
        let (set, readers, bits) = (c.necessity, c.readers, c.divergence_bits);
        format!("{name}set {set:.2}, readers {readers:.2} of {bits:.3} bits, loss {:.2}, {}", c.loss, share(c))
    };
    let mut lines = vec![format!("read by {}", readers.join(", ")), line("these    ", &reading.carried)];
    lines.extend(reading.contrasts.iter().map(|contrast| {
        let name = match contrast.kind {
            ContrastKind::Random => "random   ",
            ContrastKind::Fails => "fails    ",
        };
        line(name, &contrast.carried)
    }));
    lines
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
    for (i, line) in found.reading.iter().flat_map(reading_in_words).enumerate() {
        output::line(if i == 0 { line } else { format!("  {line}") });
    }
    output::line(format!("calls         {} trials", found.calls));
}
