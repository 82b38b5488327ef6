//! The page and the terminal table of `glitch compare`.

use std::fmt::Write;

use super::format::{count, number, percent};
use super::html::head;
use super::spectrum;
use crate::compare::{Comparison, Estimate, HARMFUL, ModelFigures, Share, Spread};
use crate::model::short_names;
use crate::text;

/// One row: a name, its meaning, and one cell per model.
struct Row {
    name: String,
    meaning: String,
    cells: Vec<String>,
}

impl Row {
    fn new(
        name: &str,
        meaning: &str,
        models: &[ModelFigures],
        cell: &dyn Fn(&ModelFigures) -> String,
    ) -> Self {
        let cells = models.iter().map(cell).collect();
        Self { name: name.to_owned(), meaning: meaning.to_owned(), cells }
    }
}

fn estimate(e: &Estimate) -> String {
    format!("{} ({} to {})", number(e.mean), number(e.low.max(0.0)), number(e.high))
}

fn share(s: &Share) -> String {
    format!(
        "{} ({} to {}; {} of {})",
        percent(s.share),
        percent(s.low),
        percent(s.high),
        count(s.count),
        count(s.total)
    )
}

fn spread(s: &Spread, what: &str) -> String {
    match s.n {
        0 => "–".into(),
        n => format!(
            "{} ({} to {}; {n} {what})",
            number(s.median),
            number(s.lower_quartile),
            number(s.upper_quartile)
        ),
    }
}

fn of_cases(s: &Spread) -> String {
    spread(s, "cases")
}

/// Returns every figure of the comparison, in the order of the page.
fn rows(all: &Comparison) -> Vec<Row> {
    let row = |name: &str, meaning: &str, cell: &dyn Fn(&ModelFigures) -> String| {
        Row::new(name, meaning, &all.models, cell)
    };
    let none = || "does not apply".to_owned();
    let mut rows = vec![
        row("family", "", &|m| m.model_type.clone()),
        row("parameters", "tied embeddings counted once", &|m| count(m.parameters as u64)),
        row("loss", "on the reference text, nats per token", &|m| number(m.loss)),
        row("findings", "confirmed and minimized, per 1,000 evaluations", &|m| {
            estimate(&m.all_findings)
        }),
    ];
    let mut kinds: Vec<&String> = all.models.iter().flat_map(|m| m.findings.keys()).collect();
    kinds.sort_unstable();
    kinds.dedup();
    for kind in kinds {
        rows.push(row(
            &format!("of these {}", kind.replace('_', " ")),
            "per 1,000 evaluations",
            &|m| m.findings.get(kind).map_or_else(none, estimate),
        ));
    }
    rows.push(row(
        "controls flagged",
        "ordinary controls that exceed the thresholds of \
        findings",
        &|m| share(&m.controls_flagged),
    ));
    rows.push(row("glitch tokens", "tested tokens that the model cannot repeat", &|m| {
        m.glitch_tokens.as_ref().map_or_else(none, share)
    }));
    rows.push(row(
        "something specific",
        "cases compared with controls in which some component mediates more than in any of them",
        &|m| m.with_specific.as_ref().map_or_else(none, share),
    ));
    rows.push(row(
        "places of a graph",
        "components at single positions that make most of a case's effect when they are alone, \
        where a small graph does",
        &|m| m.graph_places.as_ref().map_or_else(none, of_cases),
    ));
    rows.push(row(
        "no small graph",
        "cases of which no graph of at most 12 places makes 80%",
        &|m| m.without_graph.as_ref().map_or_else(none, share),
    ));
    rows.push(row(
        "in sets of components",
        "share of what a case's strongest components do that they do only in pairs and larger sets",
        &|m| m.joint.as_ref().map_or_else(none, of_cases),
    ));
    rows.push(row("through routing", "share of a case's effect", &|m| {
        m.routing.as_ref().map_or_else(none, of_cases)
    }));
    rows.push(row(
        "interaction",
        "of two blocks zeroed together, relative to the larger single effect",
        &|m| spread(&m.interaction, "pairs"),
    ));
    rows.push(row(
        "redundant pairs",
        "pairs of blocks that are worse together than the sum",
        &|m| share(&m.redundant),
    ));
    // Comparisons of earlier versions have none.
    if all.models.iter().any(|m| m.spectrum.is_some()) {
        for figure in spectrum::figures() {
            rows.push(row(&figure.name, figure.meaning, &|m| {
                m.spectrum.as_ref().map_or_else(none, |spectrum| (figure.cell)(spectrum))
            }));
        }
    }
    let mut kinds: Vec<&String> = all.models.iter().flat_map(|m| m.harmful.keys()).collect();
    kinds.sort_unstable();
    kinds.dedup();
    for kind in kinds {
        let meaning = format!("single lesions that raise the loss by {HARMFUL} nats per token");
        rows.push(row(&format!("harmful: {kind}"), &meaning, &|m| {
            m.harmful.get(kind).map_or_else(none, share)
        }));
    }
    rows
}

/// Returns the page: one HTML file without scripts or external resources.
pub fn page(all: &Comparison) -> String {
    let mut out = String::new();
    head(&mut out, "comparison");
    let seeds = all.seeds.len();
    let _ = write!(
        out,
        "<header><h1>The same campaign on {} models</h1><p class=\"soft\">{} evaluations per \
        campaign · {seeds} seeds · ranges are 95% intervals (Student's t over \
        seeds for means, Wilson for shares of a number, bootstraps over passages for \
        shares of variance; quartiles for medians)</p></header>",
        all.models.len(),
        count(all.max_evals)
    );
    out.push_str("<section><h2>Findings per 1,000 evaluations</h2>");
    let names = names(all);
    let bars: Vec<(&str, &Estimate)> =
        names.iter().map(String::as_str).zip(all.models.iter().map(|m| &m.all_findings)).collect();
    let _ = write!(
        out,
        "<figure>{}</figure></section>",
        super::svg::intervals("findings per 1,000 evaluations", &bars)
    );
    out.push_str("<section><h2>All figures</h2><div class=\"scroll\"><table><thead><tr><th></th>");
    for (model, name) in all.models.iter().zip(&names) {
        let (full, name) = (text::html(&model.model.name), text::html(name));
        let _ = write!(out, "<th title=\"{full}\">{name}</th>");
    }
    out.push_str("</tr></thead><tbody>");
    for row in rows(all) {
        let _ = write!(
            out,
            "<tr><td><b>{}</b><br><span class=\"soft\">{}</span></td>",
            text::html(&row.name),
            text::html(&row.meaning)
        );
        for cell in row.cells {
            let _ = write!(out, "<td>{}</td>", text::html(&cell));
        }
        out.push_str("</tr>");
    }
    out.push_str("</tbody></table></div></section><section><h2>What does not apply</h2><ul>");
    for model in all.models.iter().filter(|m| !m.not_applicable.is_empty()) {
        let what = model.not_applicable.join(", ").replace('_', " ");
        let _ = write!(out, "<li>{}: {}</li>", text::html(&model.model.name), text::html(&what));
    }
    out.push_str("</ul></section></main></body></html>\n");
    out
}

/// Returns the models' names, as short as possible while still distinct.
fn names(all: &Comparison) -> Vec<String> {
    short_names(&all.models.iter().map(|m| m.model.name.as_str()).collect::<Vec<_>>())
}

/// Returns the figures for a terminal: side by side, or one block per model where the columns do
/// not fit.
pub fn terminal(all: &Comparison, columns: usize) -> String {
    let rows = rows(all);
    let names: Vec<String> = names(all).iter().map(|name| text::escape(name)).collect();
    let first = rows.iter().map(|r| r.name.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..names.len())
        .map(|i| {
            rows.iter()
                .map(|r| r.cells[i].chars().count())
                .chain([names[i].chars().count()])
                .max()
                .unwrap_or(0)
        })
        .collect();
    let mut out = String::new();
    if first + widths.iter().map(|w| w + 2).sum::<usize>() <= columns {
        let mut line = |name: &str, cells: &[String]| {
            let _ = write!(out, "{name:<first$}");
            for (cell, width) in cells.iter().zip(&widths) {
                let _ = write!(out, "  {cell:<width$}");
            }
            out.truncate(out.trim_end().len());
            out.push('\n');
        };
        line("", &names);
        rows.iter().for_each(|row| line(&row.name, &row.cells));
        return out;
    }
    for (i, name) in names.iter().enumerate() {
        let _ = writeln!(out, "{}{name}", if i == 0 { "" } else { "\n" });
        for row in &rows {
            let _ = writeln!(
                out,
                "  {:<first$}  {}",
                row.name,
                text::fit(&row.cells[i], columns.saturating_sub(first + 4))
            );
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ModelRef;

    fn model(name: &str) -> ModelFigures {
        ModelFigures {
            model: ModelRef { name: name.into(), fingerprint: "f".into(), tokenizer: None },
            model_type: "mamba".into(),
            parameters: 1_300_000,
            loss: 3.4,
            findings: [("divergence".to_owned(), Estimate::new(vec![3.0, 4.0, 5.0]))].into(),
            all_findings: Estimate::new(vec![3.0, 4.0, 5.0]),
            controls_flagged: Share::new(1, 400),
            glitch_tokens: None,
            with_specific: Some(Share::new(3, 9)),
            graph_places: Some(Spread::new(&[1.0, 2.0, 3.0])),
            without_graph: Some(Share::new(2, 9)),
            concentration: None,
            diffuse: None,
            joint: Some(Spread::new(&[])),
            emergence: None,
            spectrum: Some(spectrum::tests::sample()),
            routing: None,
            interaction: Spread::new(&[0.2, 0.5, 2.0]),
            redundant: Share::new(11, 28),
            harmful: [("states".to_owned(), Share::new(7, 1536))].into(),
            not_applicable: vec!["heads".into(), "routing_collapse".into()],
        }
    }

    #[test]
    fn a_comparison_without_a_spectrum_has_no_rows_of_it() {
        let earlier = ModelFigures { spectrum: None, ..model("builtin:moe") };
        let mut all = Comparison {
            schema_version: 1,
            max_evals: 1000,
            seeds: vec![1],
            models: vec![earlier.clone()],
        };
        assert!(!page(&all).contains("sum of its parts"));
        // Beside a model that has one, it does not apply.
        all.models.push(model("builtin:mamba"));
        assert!(page(&all).contains("sum of its parts?</b>"));
        let row = rows(&all).into_iter().find(|row| row.name == "loss: singles").unwrap();
        assert_eq!(row.cells, ["does not apply", "67.8% (62.8 to 71.8)"]);
    }

    #[test]
    fn pages_and_tables_have_every_figure_and_nothing_raw() {
        let all = Comparison {
            schema_version: 1,
            max_evals: 2000,
            seeds: vec![1, 2, 3],
            models: vec![model("builtin:mamba"), model("<script>\u{1b}[2J")],
        };
        let page = page(&all);
        assert!(!page.contains("<script>") && !page.contains('\u{1b}'), "escaped");
        for text in [
            "places of a graph",
            "does not apply",
            "routing collapse",
            "harmful: states",
            "7 of 1,536",
            "0.50 (0.35 to 1.25; 3 pairs)",
            "all 162 of 1 to 4 of 8 blocks, 72 dead",
            "12 (1,918 tokens)",
            "no: 29.0 points less (24.5 to 34.1)",
        ] {
            assert!(page.contains(text), "{text} is not on the page");
        }
        for columns in [40, 80, 200] {
            let table = terminal(&all, columns);
            assert!(!table.contains('\u{1b}') && table.contains("glitch tokens"));
            let widest = table.lines().map(|l| l.chars().count()).max().unwrap();
            assert!(widest <= columns.max(60), "{widest} at {columns}:\n{table}");
        }
    }
}
