//! The residual map of a case, drawn: positions from left to right, layers from bottom to top, as
//! in its graph; each cell as dark as the share of the effect that patching it removes.

use std::fmt::Write;

use super::format::{percent, quoted};
use super::svg::WIDTH;
use crate::localize::{Localization, MapPosition, ResidualMap};
use crate::text;

/// Room at the left, for the names of the layers.
const LEFT: f64 = 34.0;
/// Height of a character of a token, which is written at an angle of 65 degrees.
const CHARACTER: f64 = 6.4;
/// Columns of a token that are shown.
const MOST_TEXT: usize = 10;
/// The share below which a cell is the field itself, so that a page with many maps stays small.
const LEAST: f64 = 0.03;

/// Writes the figure of a case's map, or nothing if it has none.
pub fn figure(out: &mut String, found: &Localization) {
    let predicts = found.symptom.as_ref().map(|symptom| symptom.position);
    let Some(svg) = found.residual_map.as_ref().and_then(|map| svg(map, predicts)) else { return };
    let _ = write!(
        out,
        "<figure><figcaption>Removed by patching in the clean residual stream at one position, \
        before a layer. In bold: where the symptom is predicted</figcaption>{svg}</figure>"
    );
}

/// Draws a map; `None` if it has no cells. The position `bold` stands out.
fn svg(map: &ResidualMap, bold: Option<usize>) -> Option<String> {
    let (rows, columns) = (map.layers.len(), map.positions.len());
    if rows == 0 || columns == 0 {
        return None;
    }
    let wide = ((WIDTH - LEFT - 4.0) / columns as f64).min(44.0);
    let high = if rows <= 12 { 20.0 } else { 14.0 };
    let bottom = 4.0 + rows as f64 * high;
    let label =
        |at: &MapPosition| format!("{} {}", quoted(&text::fit(&at.text, MOST_TEXT)), at.position);
    let longest = map.positions.iter().map(|at| text::width(&label(at))).max().unwrap_or(0);
    let scale = bottom + 18.0 + CHARACTER * longest as f64;
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {:.0}\" role=\"img\" aria-label=\"share of the effect removed \
        by patching the residual stream at each position and layer\"><rect class=\"field\" \
        x=\"{LEFT}\" y=\"4\" width=\"{:.1}\" height=\"{:.1}\"/>",
        scale + 12.0,
        columns as f64 * wide,
        bottom - 4.0
    );
    for (row, (layer, shares)) in map.layers.iter().zip(&map.necessity).enumerate() {
        let y = bottom - (row + 1) as f64 * high;
        let _ = write!(
            svg,
            r#"<text x="{:.1}" y="{:.1}" class="end">L{layer}</text>"#,
            LEFT - 5.0,
            y + high / 2.0 + 4.0
        );
        for (column, (at, share)) in map.positions.iter().zip(shares).enumerate() {
            if *share < LEAST {
                continue;
            }
            let x = LEFT + column as f64 * wide;
            let class = if share.is_nan() { "odd" } else { "hot" };
            let opacity = if share.is_nan() { 1.0 } else { share.min(1.0) };
            let token = quoted(&text::fit(&at.text, MOST_TEXT));
            let title =
                format!("L{layer}, {token} at position {}: {}", at.position, percent(*share));
            let _ = write!(
                svg,
                "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" \
                height=\"{:.1}\" opacity=\"{opacity:.2}\"><title>{}</title></rect>",
                wide - 1.0,
                high - 1.0,
                text::html(&title)
            );
        }
    }
    for (column, at) in map.positions.iter().enumerate() {
        let (x, y) = (LEFT + (column as f64 + 0.5) * wide + 4.0, bottom + 12.0);
        let strong = if bold == Some(at.position) { " strong" } else { "" };
        let _ = write!(
            svg,
            "<text x=\"{x:.1}\" y=\"{y:.1}\" class=\"end{strong}\" transform=\"rotate(-65 {x:.1} \
            {y:.1})\">{}</text>",
            text::html(&label(at))
        );
    }
    legend(&mut svg, scale);
    svg += "</svg>";
    Some(svg)
}

/// Writes the scale: from nothing to all of the effect.
fn legend(svg: &mut String, y: f64) {
    let _ = write!(svg, r#"<text x="{LEFT}" y="{:.1}">0%</text>"#, y + 9.0);
    for step in 0..=4 {
        let x = LEFT + 26.0 + 16.0 * f64::from(step);
        let opacity = f64::from(step) / 4.0;
        let _ = write!(
            svg,
            "<rect class=\"field\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"15\" height=\"9\"/><rect \
            class=\"hot\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"15\" height=\"9\" \
            opacity=\"{opacity:.2}\"/>"
        );
    }
    let _ = write!(
        svg,
        r#"<text x="{:.1}" y="{:.1}">100% of the effect</text>"#,
        LEFT + 112.0,
        y + 9.0
    );
}
