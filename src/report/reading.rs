//! Attribution of the replaced tokens, compared with other tokens in their place: a section of the
//! card.

use std::fmt::Write;

use super::format::{number, percent};
use super::{svg, words};
use crate::localize::{Carried, ContrastKind, Reading};
use crate::text;

/// Most heads that get a column of their own.
const READERS: usize = 4;

/// Writes the sentence, the curves by layer, and the table of these tokens and the others.
pub fn section(out: &mut String, reading: &Reading) {
    let rows: Vec<(&str, &Carried)> = std::iter::once(("these", &reading.carried))
        .chain(reading.contrasts.iter().map(|contrast| {
            let name = match contrast.kind {
                ContrastKind::Random => "random tokens",
                ContrastKind::Fails => "tokens that fail",
            };
            (name, &contrast.carried)
        }))
        .collect();
    out.push_str("<h3>Attribution of the replaced tokens</h3>");
    if let Some(sentence) = words::attribution(reading) {
        let _ = write!(out, "<p>{}</p>", text::html(&sentence));
    }
    let lines: Vec<(&str, &[f64])> =
        rows.iter().map(|(name, carried)| (*name, &carried.handover[..])).collect();
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
    for reader in reading.readers.iter().take(READERS) {
        let _ = write!(out, "<th class=\"n\">{reader}</th>");
    }
    out.push_str("</tr></thead><tbody>");
    for (name, carried) in rows {
        let shares = [carried.necessity, carried.readers];
        let shares =
            shares.iter().chain(carried.each.iter().take(READERS)).map(|share| percent(*share));
        let cells =
            [number(carried.loss), number(carried.divergence_bits)].into_iter().chain(shares);
        let cells: String = cells.map(|cell| format!("<td class=\"n\">{cell}</td>")).collect();
        let _ = write!(out, "<tr><td>{name}</td>{cells}</tr>");
    }
    out.push_str("</tbody></table></div></div>");
}
