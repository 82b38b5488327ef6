//! `glitch implicate CASE`: localizes a case to the components that mediate it.

use std::path::PathBuf;

use super::args::MODEL_HELP;
use super::subject::{Subject, exists};
use super::{exit, output};
use crate::campaign::attribute_against;
use crate::case::Case;
use crate::error::Result;
use crate::localize::{
    ComparisonKind, Effect, Localization, LocalizeOptions, Mediation, TokenAttribution, localize,
};
use crate::storage::OutputDir;
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
    let subject = Subject::of(&args.case, &case, args.model.as_deref())?;
    let evaluator = subject.evaluator();
    let trial = case.trial();
    let mut found = localize(
        &evaluator,
        &trial,
        &LocalizeOptions { seed: case.control_seed, ..Default::default() },
    )?;
    // What fails is known to the search that found the case alone.
    let known = case.localization.as_ref().and_then(|i| i.attribution.as_ref());
    let fails = known.and_then(|attribution| {
        attribution.comparisons.iter().find(|c| c.kind == ComparisonKind::Fails)
    });
    let fails = fails.map(|comparison| trial.with_edits(comparison.edits.clone()));
    attribute_against(&evaluator, &trial, &mut found, case.control_seed, fails)?;
    if args.json {
        output::json(&found)?;
    } else {
        print(&case, &found, args.top);
    }
    if let Some(dir) = args.out {
        case.model = subject.model.reference();
        case.localization = Some(found);
        case.id = case.compute_id();
        let written = case.write_new(&dir, args.force)?;
        if !args.json {
            output::line(format!("written       {}", escape(&written.display().to_string())));
        }
    }
    Ok(exit::OK)
}

/// Returns the set of components and its figures in one line.
pub fn in_words(found: &Localization) -> String {
    if found.set.is_empty() {
        return "nothing: the edits do not change the distributions".into();
    }
    let set: Vec<String> = found.set.iter().map(ToString::to_string).collect();
    let emergence = found.emergence.map(|e| format!(", emergence {e:.2}")).unwrap_or_default();
    let routing =
        found.routing.map(|r| format!(", {:.0}% through routing", 100.0 * r)).unwrap_or_default();
    format!(
        "{}: necessity {:.2}, sufficiency {:.2}{emergence}{routing}",
        set.join(" "),
        found.necessity,
        found.sufficiency
    )
}

/// Attending heads with a column of their own, which makes a table of 78 columns.
const ATTENDING: usize = 3;

/// Returns the attribution of the replaced tokens as a table. Its rows are these tokens, ordinary
/// tokens (means), and tokens that fail; its columns the share of the effect that is removed by
/// patching the set, all heads that attend to the tokens, and the strongest of them alone.
pub fn attribution_table(attribution: &TokenAttribution) -> Vec<String> {
    let row = |name: &str, all: &[&Mediation]| {
        let mean = |of: &dyn Fn(&Mediation) -> f64| {
            all.iter().map(|c| of(c)).sum::<f64>() / all.len() as f64
        };
        let layers: Vec<(usize, usize)> = all.iter().filter_map(|c| c.transfer_layers()).collect();
        let first = layers.iter().map(|l| l.0).min().unwrap_or(0);
        let last = layers.iter().map(|l| l.1).max().unwrap_or(0);
        let attending_each = (0..attribution.attending.len().min(ATTENDING))
            .map(|i| format!(" {:>10.2}", mean(&|c| c.attending_each[i])));
        let (loss, bits) = (mean(&|c| c.loss), mean(&|c| c.divergence_bits));
        let (set, attending) = (mean(&|c| c.necessity), mean(&|c| c.attending));
        let layers = format!("{first} to {last}");
        format!(
            "{name:<9} {loss:>5.2} {bits:>5.3} {layers:>8} {set:>5.2} {attending:>8.2}{}",
            attending_each.collect::<String>()
        )
    };
    let of = |kind: ComparisonKind| -> Vec<&Mediation> {
        attribution.comparisons.iter().filter(|c| c.kind == kind).map(|c| &c.mediation).collect()
    };
    let heads = attribution
        .attending
        .iter()
        .take(ATTENDING)
        .map(|head| format!(" {:>10}", head.to_string()));
    let head = format!(
        "{:<9} {:>5} {:>5} {:>8} {:>5} {:>8}",
        "tokens", "loss", "bits", "layers", "set", "readers"
    );
    let mut lines =
        vec![head + &heads.collect::<String>(), row("these", &[&attribution.mediation])];
    let (random, fails) = (of(ComparisonKind::Random), of(ComparisonKind::Fails));
    lines.extend((!random.is_empty()).then(|| row(&format!("{} random", random.len()), &random)));
    lines.extend((!fails.is_empty()).then(|| row("fails", &fails)));
    lines
}

fn print(case: &Case, found: &Localization, top: usize) {
    output::line(format!("case          {}  {}", escape(&case.id), escape(&case.comment.title)));
    output::line(format!("localized to  {}", in_words(found)));
    if let (Some(low), Some(high)) = (found.controls.first(), found.controls.last()) {
        output::line(format!(
            "random sets   necessity {low:.2} to {high:.2} ({} sets of the same kinds)",
            found.controls.len()
        ));
    }
    let mut effects: Vec<&Effect> = found.effects.iter().collect();
    effects.sort_by(|a, b| (b.necessity + b.sufficiency).total_cmp(&(a.necessity + a.sufficiency)));
    if !effects.is_empty() && top > 0 {
        output::line(format!("{:<18} necessity  sufficiency", "component"));
    }
    for effect in effects.into_iter().take(top) {
        output::line(format!(
            "{:<18} {:>9.3}  {:>11.3}",
            effect.component.to_string(),
            effect.necessity,
            effect.sufficiency
        ));
    }
    if !found.positions.is_empty() && top > 0 {
        output::line(format!("{:<18} necessity  sufficiency", "at one position"));
    }
    for effect in found.positions.iter().take(top) {
        let place = format!("{} @{}", effect.component, effect.position);
        output::line(format!(
            "{place:<18} {:>9.3}  {:>11.3}  token {}",
            effect.necessity, effect.sufficiency, effect.id
        ));
    }
    if let Some(attribution) = &found.attribution {
        output::line(
            "attribution of the replaced tokens: layers that read them, and the share of the \
            effect that is removed by patching the set, or the heads that attend to them",
        );
        attribution_table(attribution)
            .into_iter()
            .for_each(|line| output::line(format!("  {line}")));
    }
    output::line(format!("calls         {} trials", found.calls));
}
