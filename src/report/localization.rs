//! A localization as tables for the terminal.

use super::explanation::{generalizes, of_controls, sentences};
use super::logit_lens;
use super::terminal::wrapped;
use super::{against, deficits};
use crate::case::Case;
use crate::localize::{
    ComparisonKind, Effect, Graph, Interactions, Localization, Mediation, TokenAttribution,
};
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
    let routing =
        found.routing.map(|r| format!(", {:.0}% through routing", 100.0 * r)).unwrap_or_default();
    format!(
        "{}: necessity {:.2}, sufficiency {:.2}{routing}",
        set.join(" "),
        found.necessity,
        found.sufficiency
    )
}

/// Columns of a paragraph.
const COLUMNS: usize = 78;

/// Sources of a node that are listed.
const MOST_SOURCES: usize = 3;

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

/// Lists the nodes of a graph, and what each gets from the others directly.
fn graph_table(graph: &Graph) -> Vec<String> {
    let mut lines = vec![format!(
        "{:<18} necessity   direct  gets directly",
        format!("graph: {:.2} alone", graph.faithfulness)
    )];
    for (index, node) in graph.nodes.iter().enumerate() {
        let sources: Vec<String> = (graph.edges.iter().filter(|edge| edge.to == index))
            .filter_map(|edge| {
                let from = match edge.from {
                    None => "edits".to_owned(),
                    Some(from) => graph.nodes.get(from)?.component.to_string(),
                };
                Some(format!("{from} {:.2}", edge.effect))
            })
            .take(MOST_SOURCES)
            .collect();
        let place = format!("{} @{}", node.component, node.position);
        let (necessity, direct) = (node.necessity, node.direct);
        let line = format!("{place:<18} {necessity:>9.3}  {direct:>7.3}  {}", sources.join(", "));
        lines.push(line.trim_end().to_owned());
    }
    lines
}

/// Lists pairs of the strongest components.
fn pair_table(interactions: &Interactions, top: usize) -> Vec<String> {
    if interactions.pairs.is_empty() || top == 0 {
        return Vec::new();
    }
    let mut lines =
        vec![format!("{:<28} kind      necessity        sufficiency      direct", "pair")];
    for pair in interactions.pairs.iter().take(top) {
        let shares = |s: [f64; 3]| format!("{:.2} {:.2} {:.2}", s[0], s[1], s[2]);
        lines.push(format!(
            "{:<28} {:<9} {:<16} {:<16} {:.2}",
            format!("{}, {}", pair.components[0], pair.components[1]),
            pair.kind.name(),
            shares(pair.necessity),
            shares(pair.sufficiency),
            pair.direct
        ));
    }
    lines
}

/// Returns what is said of the second model of a case, and the components whose weights make the
/// difference, in lines for the terminal.
pub fn two_models(case: &Case) -> Vec<String> {
    let mut lines = wrapped(&against::sentences(case).join(" "), COLUMNS);
    lines.extend(case.against.iter().flat_map(against::table));
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
    let sentences: Vec<String> = generalizes(found).into_iter().chain(sentences(found)).collect();
    if !sentences.is_empty() {
        lines.extend(wrapped(&sentences.join(" "), COLUMNS));
    }
    if let Some(graph) = &found.graph {
        lines.extend(graph_table(graph));
    }
    if top > 0 {
        lines.extend(logit_lens::table(found));
    }
    if let Some(interactions) = &found.interactions {
        lines.extend(pair_table(interactions, top));
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
    if let Some(found) = &case.deficits {
        lines.extend(deficits::sentence(case).iter().flat_map(|said| wrapped(said, COLUMNS)));
        if top > 0 {
            lines.extend(deficits::table(found));
        }
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
