//! The logit lens of a case: lines on the page, a table on the terminal.

use std::fmt::Write;

use super::format::{number, quoted};
use super::svg::{Axis, WIDTH, round_up};
use crate::localize::{Localization, LogitLens};
use crate::text;

/// Columns of a token that are shown.
const MOST_TEXT: usize = 16;

/// One line: a name, log-probabilities by layer, and the most probable tokens where there are some.
struct Line<'a> {
    name: String,
    log_probs: Vec<f64>,
    texts: &'a [String],
}

fn lines(lens: &LogitLens) -> Vec<Line<'_>> {
    let mut lines: Vec<Line> = [("clean", &lens.clean), ("corrupted", &lens.corrupted)]
        .map(|(name, run)| Line {
            name: name.into(),
            log_probs: run.log_probs.clone(),
            texts: &run.texts,
        })
        .into();
    if !lens.controls.is_empty() {
        let name = match lens.controls.len() {
            1 => "control".into(),
            n => format!("{n} controls, mean"),
        };
        lines.push(Line { name, log_probs: lens.mean_of_controls(), texts: &[] });
    }
    lines
}

/// Writes the figure of a case's logit lens, or nothing if it has none.
pub fn figure(out: &mut String, found: &Localization) {
    let Some((lens, symptom)) = found.logit_lens.as_ref().zip(found.symptom.as_ref()) else {
        return;
    };
    if lens.layers.is_empty() {
        return;
    }
    let _ = write!(
        out,
        "<figure><figcaption>Logit lens: log-probability of {} after each layer, at position {}, \
        nats</figcaption>{}</figure>",
        text::html(&quoted(&text::fit(&symptom.text, MOST_TEXT))),
        lens.position,
        svg(lens)
    );
}

/// Draws the runs as lines; points have the top tokens as tooltips.
fn svg(lens: &LogitLens) -> String {
    let (left, right, top, bottom) = (46.0, WIDTH - 12.0, 12.0, 150.0);
    let lines = lines(lens);
    let values = lines.iter().flat_map(|line| &line.log_probs);
    let lowest = round_up(values.filter(|v| v.is_finite()).fold(0.0, |low, v| v.min(low)).abs());
    let (first, last) = (
        lens.layers.first().copied().unwrap_or(0) as f64,
        lens.layers.last().copied().unwrap_or(0) as f64,
    );
    let (x, y) = (Axis::new(first, last, left, right), Axis::new(-lowest, 0.0, bottom, top));
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} 206\" role=\"img\" aria-label=\"log-probability of the \
        symptom's token after each layer\">"
    );
    for share in [0.0, 0.5, 1.0] {
        let (value, at) = (-lowest * share, y.at(-lowest * share));
        let _ = write!(
            svg,
            "<path class=\"grid\" d=\"M{left} {at:.1}H{right}\"/><text x=\"{:.1}\" y=\"{:.1}\" \
            class=\"end\">{}</text>",
            left - 6.0,
            at + 4.0,
            number(value)
        );
    }
    let step = lens.layers.len().div_ceil(8).max(1);
    for layer in lens.layers.iter().rev().step_by(step) {
        let _ = write!(
            svg,
            r#"<text x="{:.1}" y="166" class="mid">L{layer}</text>"#,
            x.at(*layer as f64)
        );
    }
    for (i, line) in lines.iter().enumerate() {
        let mut path = String::new();
        for (layer, log_prob) in lens.layers.iter().zip(&line.log_probs) {
            let command = if path.is_empty() { 'M' } else { 'L' };
            let _ = write!(path, "{command}{:.1} {:.1}", x.at(*layer as f64), y.at(*log_prob));
        }
        let name = text::html(&line.name);
        if !path.is_empty() {
            let _ = write!(svg, "<path class=\"line line{i}\" d=\"{path}\"/>");
        }
        for (at, (layer, log_prob)) in lens.layers.iter().zip(&line.log_probs).enumerate() {
            let said = line.texts.get(at).map_or(String::new(), |said| {
                format!(", top token {}", quoted(&text::fit(said, MOST_TEXT)))
            });
            let title = format!("L{layer}, {}: {} nats{said}", line.name, number(*log_prob));
            svg += &mark(i, x.at(*layer as f64), y.at(*log_prob), &title);
        }
        // The key: a piece of the line with its mark.
        let start = [14.0, 92.0, 192.0].get(i).copied().unwrap_or(left);
        let _ = write!(
            svg,
            "<path class=\"line line{i}\" d=\"M{start:.1} 190H{:.1}\"/>{}<text x=\"{:.1}\" \
            y=\"194\">{name}</text>",
            start + 24.0,
            mark(i, start + 12.0, 190.0, &line.name),
            start + 30.0
        );
    }
    svg += "</svg>";
    svg
}

/// Draws the mark of a line: a circle, a square or a diamond.
fn mark(line: usize, x: f64, y: f64, title: &str) -> String {
    let shape = match line {
        0 => format!("M{:.1} {y:.1}a3 3 0 1 0 6 0a3 3 0 1 0 -6 0z", x - 3.0),
        1 => format!("M{:.1} {:.1}h6v6h-6z", x - 3.0, y - 3.0),
        _ => format!("M{x:.1} {:.1}l4 4l-4 4l-4 -4z", y - 4.0),
    };
    format!(
        "<path class=\"line line{line} dot\" d=\"{shape}\"><title>{}</title></path>",
        text::html(title)
    )
}

/// Lists the lens layer by layer for the terminal, at most 78 columns wide.
pub fn table(found: &Localization) -> Vec<String> {
    let Some(lens) = &found.logit_lens else { return Vec::new() };
    let controls = lens.mean_of_controls();
    // A column of its own, where there is something to put into it.
    let column = |text: String| if controls.is_empty() { text } else { format!("  {text:>8}") };
    let mut table = vec![format!(
        "{:<18} {:>9}  {:>9}{}  top token, corrupted",
        "logit lens, nats",
        "clean",
        "corrupted",
        column(if controls.is_empty() { "" } else { "controls" }.into())
    )];
    let runs = lens.clean.log_probs.iter().zip(&lens.corrupted.log_probs);
    for (at, (layer, (clean, corrupted))) in lens.layers.iter().zip(runs).enumerate() {
        // A file may hold anything: a column has room for these.
        let fixed = |value: f64| format!("{:.2}", value.clamp(-9999.0, 9999.0));
        let (clean, corrupted) = (fixed(*clean), fixed(*corrupted));
        let control = column(controls.get(at).map(|mean| fixed(*mean)).unwrap_or_default());
        let said = lens.corrupted.texts.get(at).map_or("", String::as_str);
        let layer = format!("after L{layer}");
        table.push(format!(
            "{layer:<18} {clean:>9}  {corrupted:>9}{control}  {}",
            text::fit(&quoted(said), 26)
        ));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::Case;
    use crate::testing::sample;

    #[test]
    fn the_table_is_narrow_whatever_a_file_holds() {
        let (_, cases) = sample::saying("\u{1b}[31m a very long token, 漢字漢字漢字漢字漢字漢字");
        let explained = |case: Case| case.localization.filter(|found| found.logit_lens.is_some());
        let mut found = cases.into_iter().find_map(explained).unwrap();
        let rows = table(&found);
        let lens = found.logit_lens.as_mut().unwrap();
        assert_eq!(rows.len(), 1 + lens.layers.len());
        assert!(
            rows[1].starts_with("after L0              -11.20     -11.00    -11.20  `\\x1b[31m")
        );
        lens.corrupted.log_probs[1] = -1e300;
        lens.controls.clear();
        let without = table(&found);
        assert!(without[0].len() < rows[0].len());
        for row in rows.iter().chain(&without) {
            assert!(text::width(row) <= 78, "{row}");
        }
    }
}
