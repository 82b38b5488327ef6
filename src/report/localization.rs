//! A localization as tables for the terminal.

use super::words::of_controls;
use crate::case::Case;
use crate::localize::{ComparisonKind, Effect, Localization, Mediation, TokenAttribution};
use crate::text::escape;

/// Returns the named set and its figures, in one line.
pub fn set_in_words(found: &Localization) -> String {
    if found.set.is_empty() {
        return match (found.relay(), found.effects.is_empty()) {
            (_, true) => "nothing: the edits do not change the distributions".into(),
            (Some(relay), _) => format!("nothing beyond relaying by {}", relay.component),
            _ if found.contrasts.is_empty() => {
                "nothing: no set does much, or too few controls have an effect to compare with"
                    .into()
            }
            (None, false) => "nothing that sets it apart from its controls".into(),
        };
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

/// Heads that have a column, which leaves a table of 78 columns.
const ATTENDING: usize = 3;

/// Returns the attribution of the replaced tokens as a table. Its rows are these tokens, ordinary
/// tokens (means), and tokens that fail; its columns loss, divergence, the layers where the effect
/// leaves the tokens' own positions, and the share of the effect that is removed by patching the
/// set, all heads that attend to the tokens, and the strongest of them alone.
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
        "tokens", "loss", "bits", "layers", "set", "heads"
    );
    let mut lines =
        vec![head + &heads.collect::<String>(), row("these", &[&attribution.mediation])];
    let (random, fails) = (of(ComparisonKind::Random), of(ComparisonKind::Fails));
    lines.extend((!random.is_empty()).then(|| row(&format!("{} random", random.len()), &random)));
    lines.extend((!fails.is_empty()).then(|| row("fails", &fails)));
    lines
}

/// Lists what a localization found: the set, the strongest `top` components alone and at one
/// position, and the attribution of replaced tokens.
pub fn localization(case: &Case, found: &Localization, top: usize) -> Vec<String> {
    let mut lines = vec![
        format!("case          {}  {}", escape(&case.id), escape(&case.comment.title)),
        format!("localized to  {}", set_in_words(found)),
    ];
    if let (Some(low), Some(high)) = (found.controls.first(), found.controls.last()) {
        lines.push(format!(
            "random sets   necessity {low:.2} to {high:.2} ({} sets of the same kinds)",
            found.controls.len()
        ));
    }
    if let Some(first) = found.contrasts.first().filter(|_| top > 0) {
        let controls = format!("in {} controls", first.controls.len());
        lines.push(format!("{:<18} necessity  {controls:>14}  {:>7}  role", "component", "p"));
    }
    for contrast in found.contrasts.iter().take(top) {
        lines.push(format!(
            "{:<18} {:>9.3}  {:>14}  {:>7.2}  {}",
            contrast.component.to_string(),
            contrast.necessity,
            of_controls(contrast),
            contrast.p_value,
            contrast.role.name()
        ));
    }
    let mut effects: Vec<&Effect> = found.effects.iter().collect();
    effects.sort_by(|a, b| (b.necessity + b.sufficiency).total_cmp(&(a.necessity + a.sufficiency)));
    if !effects.is_empty() && top > 0 {
        lines.push(format!("{:<18} necessity  sufficiency", "component"));
    }
    for effect in effects.into_iter().take(top) {
        lines.push(format!(
            "{:<18} {:>9.3}  {:>11.3}",
            effect.component.to_string(),
            effect.necessity,
            effect.sufficiency
        ));
    }
    if !found.positions.is_empty() && top > 0 {
        lines.push(format!("{:<18} necessity  sufficiency", "at one position"));
    }
    for effect in found.positions.iter().take(top) {
        let place = format!("{} @{}", effect.component, effect.position);
        lines.push(format!(
            "{place:<18} {:>9.3}  {:>11.3}  token {}",
            effect.necessity, effect.sufficiency, effect.id
        ));
    }
    if let Some(attribution) = &found.attribution {
        lines.push(
            "attribution of the replaced tokens: layers that read them, and the share of the \
            effect that is removed by patching the set, or the heads that attend to them"
                .to_owned(),
        );
        lines.extend(attribution_table(attribution).into_iter().map(|line| format!("  {line}")));
    }
    lines.push(format!("calls         {} trials", found.calls));
    lines
}
