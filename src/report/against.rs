//! What a case about two models shows: which model it is compared with, and the components whose
//! weights make the difference.

use std::fmt::Write as _;

use crate::case::{Against, Case};
use crate::localize::Effect;
use crate::text::{self, percent};

/// Components that a table shows.
const SHOWN: usize = 8;
/// The share of the disagreement below which a component has no part in it.
const LEAST_SHARE: f64 = 0.05;

/// Returns what is said of the second model of a case, if it has one.
pub fn sentences(case: &Case) -> Vec<String> {
    let Some(Against { model, swaps }) = &case.against else { return Vec::new() };
    let mut sentences = vec![format!("Compared with {}.", model.name)];
    if swaps.is_empty() {
        sentences.push("It is not localized: the two are built differently, or agree.".into());
    }
    if let Some(first) = swaps.first() {
        let share = |share: f64| percent(share.clamp(0.0, 1.0));
        let Effect { component, necessity, sufficiency } = first;
        sentences.push(match necessity.max(*sufficiency) >= LEAST_SHARE {
            true => format!(
                "The weights of {component} make the difference: putting the other model's in \
                their place removes {} of the disagreement, and putting them into the other model \
                {}.",
                share(*necessity),
                share(*sufficiency)
            ),
            false => "No mixer, MLP or head makes the difference by its weights alone.".into(),
        });
    }
    sentences
}

/// Returns the components that have a part in the disagreement, strongest first.
fn parts(against: &Against) -> impl Iterator<Item = &Effect> {
    let has_part = |effect: &&Effect| effect.necessity.max(effect.sufficiency) >= LEAST_SHARE;
    against.swaps.iter().filter(has_part).take(SHOWN)
}

/// Returns a table of the components for the terminal; nothing where none has a part.
pub fn table(against: &Against) -> Vec<String> {
    let mut lines: Vec<String> = parts(against)
        .map(|effect| {
            let component = effect.component.to_string();
            format!("{component:<12} {:>9.3} {:>12.3}", effect.necessity, effect.sufficiency)
        })
        .collect();
    if !lines.is_empty() {
        lines.insert(0, format!("{:<12} {:>9} {:>12}", "weights of", "removed", "in the other"));
    }
    lines
}

/// Writes the section of a card.
pub fn section(out: &mut String, case: &Case) {
    let shown = case.against.as_ref().filter(|against| parts(against).next().is_some());
    let Some(against) = shown else { return };
    let _ = write!(
        out,
        "<h3>Weights swapped</h3><p>Each model gets the weights that the other ({}) has in one \
        component. Shares of the disagreement that this removes:</p><div class=\"scroll\"><table>\
        <thead><tr><th>component</th><th class=\"n\">in the model</th><th class=\"n\">in the \
        other</th></tr></thead><tbody>",
        text::html(&against.model.name)
    );
    for effect in parts(against) {
        let _ = write!(
            out,
            "<tr><td>{}</td><td class=\"n\">{:.3}</td><td class=\"n\">{:.3}</td></tr>",
            effect.component, effect.necessity, effect.sufficiency
        );
    }
    out.push_str("</tbody></table></div>");
}
