//! `glitch sweep insert --against MODEL`: tokens after which two models predict different things.

use std::path::Path;
use std::sync::atomic::Ordering;

use super::args::Rows;
use super::insert_cases::InsertCases;
use super::rows::{SHOWN, more};
use super::{exit, interrupt, output};
use crate::edit::Trial;
use crate::error::Result;
use crate::evaluate::TwoModels;
use crate::oracle::OracleKind;
use crate::sweep::{AgainstRow, AgainstSweep, InsertOptions};
use crate::text::{count, escape, fit, plural};

/// Runs the sweep, writes the cases into the folder `cases` if there is one, and prints a table or
/// JSON.
pub fn run(
    models: &TwoModels,
    options: &InsertOptions,
    rows: Rows,
    cases: Option<&Path>,
    json: bool,
) -> Result<u8> {
    let bar = output::Progress::bar(0, "insertions");
    let start = std::time::Instant::now();
    let progress = output::stages(&bar);
    let interrupted = interrupt::flag();
    let stop = || interrupted.load(Ordering::Relaxed);
    let sweep = AgainstSweep::run(models, options, &progress, &stop)?;
    let seconds = start.elapsed().as_secs_f64();
    bar.finish_and_clear();
    let flagged = sweep.rows.iter().filter(|row| row.is_flagged()).count();
    let shown = flagged.max(SHOWN).min(sweep.rows.len());
    if !json {
        table(models, &sweep, flagged, shown, seconds);
    }
    let trials = |row: &AgainstRow| -> Vec<Trial> {
        sweep.elsewhere.iter().map(|prompt| row.trial(prompt, options.before_end)).collect()
    };
    let proposed = sweep.rows.iter().filter(|row| row.is_flagged()).map(trials);
    let follow_up = InsertCases {
        dir: cases,
        oracle: OracleKind::Disagreement,
        against: Some(models),
        seed: options.seed,
        used: &[&sweep.prompts[..], &sweep.elsewhere].concat(),
        quiet: json,
    };
    let cases = follow_up.write(models.evaluator, proposed.collect(), &stop)?;
    let status = if sweep.complete && !stop() { exit::OK } else { exit::INTERRUPTED };
    if json {
        output::json(&serde_json::json!({
            "work": "insert", "against": models.against.model.name,
            "insertions": sweep.rows.len(), "prompts": sweep.prompts.len(),
            "seconds": seconds, "complete": sweep.complete,
            "tested": sweep.rows.iter().filter(|row| row.q_value.is_some()).count(),
            "paired_words": sweep.paired, "flagged": flagged,
            "cases": cases.iter().map(|case| &case.id).collect::<Vec<_>>(),
            "best": sweep.rows.iter().take(flagged.max(8)).collect::<Vec<_>>(),
        }))?;
        rows.write(&sweep.rows)?;
        return Ok(status);
    }
    more(rows, &sweep.rows, shown)?;
    Ok(status)
}

fn table(models: &TwoModels, sweep: &AgainstSweep, flagged: usize, shown: usize, seconds: f64) {
    output::line(format!(
        "{} of {}\nagainst {} in {seconds:.1} s, each in {} prompts",
        plural(sweep.rows.len() as u64, "insertion"),
        escape(&models.evaluator.model.name),
        escape(&models.against.model.name),
        sweep.prompts.len()
    ));
    let tested = sweep.rows.iter().any(|row| row.q_value.is_some());
    output::line(match (sweep.complete, tested) {
        (false, _) => "interrupted: what is missing is not tested".into(),
        (true, false) => "not tested: too few tokens, or the models agree after all of them".into(),
        (true, true) => format!(
            "{flagged} flagged at a false discovery rate of 5%: after them the models disagree,\n\
            further than after other tokens of their form"
        ),
    });
    if sweep.paired > 0 {
        output::line(format!("all pairs of {} words screened", count(sweep.paired as u64)));
    }
    output::line("bits: Jensen-Shannon divergence of the next token in new prompts, mean\n");
    output::line(line(&["inserted", "bits", "q", "says", "the other says", ""]));
    sweep.rows[..shown].iter().for_each(|row| output::line(table_row(row)));
}

fn table_row(row: &AgainstRow) -> String {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
    let quoted = |text: &str| match text {
        "" => String::new(),
        text => fit(&format!("`{}`", escape(text)), 18),
    };
    line(&[
        &quoted(&row.text),
        &or_dash(row.bits_elsewhere.map(|bits| format!("{bits:.4}"))),
        &or_dash(row.q_value.map(|q| format!("{q:.1e}"))),
        &quoted(&row.says),
        &quoted(&row.other_says),
        if row.is_flagged() { "flagged" } else { "" },
    ])
}

fn line(cells: &[&str; 6]) -> String {
    let [token, bits, q, says, other, flag] = cells;
    format!("{token:<18} {bits:>6} {q:>8} {says:<18} {other:<18} {flag}").trim_end().into()
}
