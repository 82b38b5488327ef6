//! The deficits of a case: which of them are shown, in a sentence; every measure beside its
//! controls, as a table for the terminal and for the page.

use std::fmt::Write as _;

use super::format::list;
use crate::case::Case;
use crate::deficits::{Deficits, Measure, Measured};
use crate::oracle::LEAST_CONTROLS;
use crate::text::{self, number};

/// Returns what is said of the deficits of a case: those that are shown, with their figures.
pub fn sentence(case: &Case) -> Option<String> {
    let deficits = case.deficits.as_ref()?;
    let controls = deficits.controls();
    if deficits.measures.is_empty() {
        return Some("Deficits were not measured: no prompt leaves room to write.".to_owned());
    }
    if controls < LEAST_CONTROLS {
        let controls = text::plural(controls as u64, "control");
        return Some(format!(
            "Deficits were not judged: there are {controls}, and it takes {LEAST_CONTROLS}."
        ));
    }
    let place = if deficits.new_prompts { "in new prompts" } else { "in this prompt" };
    let shown: Vec<String> = deficits
        .shown()
        .map(|(deficit, measured)| {
            let unit = measured.measure.unit();
            format!(
                "{} ({} from {} to {}{unit})",
                deficit.words(),
                name(measured.measure),
                number(measured.before()),
                number(measured.after())
            )
        })
        .collect();
    Some(match shown.is_empty() {
        true => format!("What the model writes {place} shows no deficit beyond those of controls."),
        false => format!("What the model writes {place} shows {}.", list(&shown, shown.len())),
    })
}

/// Returns whether a case shows a deficit.
pub fn any_shown(case: &Case) -> bool {
    case.deficits.as_ref().is_some_and(|deficits| deficits.shown().next().is_some())
}

/// Returns the name of a measure in a sentence.
fn name(measure: Measure) -> &'static str {
    match measure {
        Measure::Repetition => "repeated 4-grams",
        Measure::Missing => "share not written",
        Measure::Copying => "tokens copied",
        Measure::Entropy => "entropy",
        Measure::PromptAgreement => "information about the prompt",
        Measure::Fragments => "bytes and fragments",
        Measure::SameText => "4-grams shared between prompts",
    }
}

/// Returns the cells of a row: without the edits, with them, the change, the controls' changes.
fn cells(measured: &Measured) -> [String; 4] {
    let (before, after, change) = (measured.before(), measured.after(), measured.change());
    let extremes = |better: fn(f64, f64) -> f64| measured.controls.iter().copied().reduce(better);
    let controls = match (extremes(f64::min), extremes(f64::max)) {
        (Some(low), Some(high)) => format!("{low:+.2} to {high:+.2}"),
        _ => "-".to_owned(),
    };
    [format!("{before:.2}"), format!("{after:.2}"), format!("{change:+.2}"), controls]
}

/// Returns whether a deficit is read from a measure here.
fn is_shown(deficits: &Deficits, measured: &Measured) -> bool {
    deficits.shown().any(|(_, shown)| shown.measure == measured.measure)
}

/// Returns a table for the terminal; nothing where nothing was measured.
pub fn table(deficits: &Deficits) -> Vec<String> {
    let mut lines: Vec<String> = (deficits.measures.iter())
        .map(|measured| {
            let [before, after, change, controls] = cells(measured);
            let mark = if is_shown(deficits, measured) { " *" } else { "" };
            let name = name(measured.measure);
            format!("{name:<30} {before:>7} {after:>7} {change:>7}  {controls}{mark}")
        })
        .collect();
    if !lines.is_empty() {
        let (prompts, generated) = (prompts(deficits), deficits.generated);
        let head = format!("{generated} tokens in {prompts}");
        lines.insert(0, format!("{head:<30} before   after  change  by controls"));
    }
    lines
}

fn prompts(deficits: &Deficits) -> String {
    let count = deficits.measures.first().map_or(0, |measured| measured.baseline.len());
    match deficits.new_prompts {
        true => text::plural(count as u64, "new prompt"),
        false => "its own prompt".to_owned(),
    }
}

/// Says how many controls show a deficit.
fn chance(deficits: &Deficits) -> String {
    match deficits.controls_showing() {
        (0, _) => String::new(),
        (controls, showing) => format!(
            " Judged in the same way against the others, {showing} of {} {} one.",
            text::plural(controls as u64, "control"),
            if showing == 1 { "shows" } else { "show" }
        ),
    }
}

/// Writes the section of a card.
pub fn section(out: &mut String, case: &Case) {
    let Some(deficits) = case.deficits.as_ref().filter(|found| !found.measures.is_empty()) else {
        return;
    };
    let _ = write!(
        out,
        "<h3>What it can no longer do</h3><div class=\"scroll\"><table><thead><tr><th>measure</th>\
        <th class=\"n\">before</th><th class=\"n\">after</th><th class=\"n\">change</th><th \
        class=\"n\">change by controls</th><th>deficit</th></tr></thead><tbody>"
    );
    for measured in &deficits.measures {
        let [before, after, change, controls] = cells(measured);
        let shown = deficits.shown().find(|(_, shown)| shown.measure == measured.measure);
        let _ = write!(
            out,
            "<tr><td>{}{}</td><td class=\"n\">{before}</td><td class=\"n\">{after}</td><td \
            class=\"n\">{change}</td><td class=\"n\">{controls}</td><td>{}</td></tr>",
            name(measured.measure),
            measured.measure.unit().replacen(' ', ", ", 1),
            shown.map_or("", |(deficit, _)| deficit.words())
        );
    }
    let _ = write!(
        out,
        "</tbody></table></div><p class=\"soft\">Means over {}, in each of which the model writes \
        {} tokens. A deficit is shown where the change is bad, large enough to notice, and beyond \
        that of every control.{}</p>",
        prompts(deficits),
        deficits.generated,
        chance(deficits)
    );
}
