//! Attribution of the replaced tokens, compared with other tokens in their place: a section of the
//! card.

use std::fmt::Write;

use super::format::{number, percent, prose};
use super::{svg, words};
use crate::localize::{ComparisonKind, Mediation, TokenAttribution};

/// Most heads that get a column of their own.
const ATTENDING: usize = 4;

/// Writes the sentence, the curves by layer, and the table of these tokens and the others.
pub fn section(out: &mut String, attribution: &TokenAttribution) {
    let rows: Vec<(&str, &Mediation)> = std::iter::once(("these", &attribution.mediation))
        .chain(attribution.comparisons.iter().map(|comparison| {
            let name = match comparison.kind {
                ComparisonKind::Random => "random tokens",
                ComparisonKind::Fails => "tokens that fail",
            };
            (name, &comparison.mediation)
        }))
        .collect();
    out.push_str("<h3>Attribution of the replaced tokens</h3>");
    if let Some(sentence) = words::attribution(attribution) {
        let _ = write!(out, "<p>{}</p>", prose(&sentence));
    }
    let lines: Vec<(&str, &[f64])> =
        rows.iter().map(|(name, mediation)| (*name, &mediation.layerwise[..])).collect();
    let label = "share of the effect that still depends on the replaced positions, by layer; \
        solid: these tokens, dashed: others";
    let _ = write!(
        out,
        "<div class=\"pair\"><figure><figcaption>Effect that still depends on the replaced \
        positions, by layer (dashed: other tokens)</figcaption>{}</figure>",
        svg::by_layer(label, &lines)
    );
    out.push_str(
        "<div class=\"scroll\"><table><thead><tr><th>tokens</th><th \
        class=\"n\">loss</th><th class=\"n\">bits</th>",
    );
    out.push_str("<th class=\"n\">set removes</th><th class=\"n\">heads remove</th>");
    for head in attribution.attending.iter().take(ATTENDING) {
        let _ = write!(out, "<th class=\"n\">{head}</th>");
    }
    out.push_str("</tr></thead><tbody>");
    for (name, mediation) in rows {
        let shares = [mediation.necessity, mediation.attending];
        let shares = shares
            .iter()
            .chain(mediation.attending_each.iter().take(ATTENDING))
            .map(|share| percent(*share));
        let cells =
            [number(mediation.loss), number(mediation.divergence_bits)].into_iter().chain(shares);
        let cells: String = cells.map(|cell| format!("<td class=\"n\">{cell}</td>")).collect();
        let _ = write!(out, "<tr><td>{name}</td>{cells}</tr>");
    }
    out.push_str("</tbody></table></div></div>");
}
