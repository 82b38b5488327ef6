//! `glitch sweep insert`: tokens after which the model says a fixed text.

use std::path::PathBuf;
use std::sync::atomic::Ordering;

use super::args::{ModelArg, RowsArg};
use super::insert_cases::InsertCases;
use super::rows::{SHOWN, more};
use super::{exit, insert_against, interrupt, output};
use crate::edit::Trial;
use crate::error::Result;
use crate::evaluate::{ModelEvaluator, TwoModels};
use crate::model::Model;
use crate::oracle::OracleKind;
use crate::storage::OutputDir;
use crate::sweep::{InsertOptions, InsertRow, InsertSweep, MOST_WORDS};
use crate::text::{count, escape, fit, plural};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArg,
    #[command(flatten)]
    rows: RowsArg,
    /// Compare with this model, of the same vocabulary: find the tokens after which the two predict
    /// different things, in any prompt. Continuations are not made.
    #[arg(long, value_name = "MODEL", conflicts_with_all = ["null", "tokens"])]
    against: Option<String>,
    /// Prompts whose continuations are compared; what is found is measured in as many others.
    #[arg(long, value_name = "N", default_value_t = 8,
        value_parser = clap::value_parser!(u64).range(2..=16))]
    prompts: u64,
    /// Tokens of each continuation.
    #[arg(long, value_name = "N", default_value_t = 8,
        value_parser = clap::value_parser!(u64).range(1..=64))]
    tokens: u64,
    /// Insert N tokens before the end of the prompt instead of at its end.
    #[arg(long, value_name = "N", default_value_t = 0, conflicts_with = "pairs",
        value_parser = clap::value_parser!(u64).range(0..=7))]
    before_end: u64,
    /// Insert only this many tokens, evenly spread over the vocabulary; it takes some 500 to test
    /// them.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Also insert pairs of words. All ordered pairs of N words (2,560 by default) are screened;
    /// those that an MLP reacts to more than to both words separately are run.
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "2560",
        value_parser = clap::value_parser!(u64).range(2..=MOST_WORDS as u64))]
    pairs: Option<u64>,
    /// Also insert triples: every word before each of 256 pairs that an MLP reacts to more than it
    /// does to either word with others.
    #[arg(long, requires = "pairs")]
    triples: bool,
    /// Seed of the prompts.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Confirm, minimize and localize what is flagged, and write one case per row to this folder.
    #[arg(long, value_name = "DIR")]
    cases: Option<PathBuf>,
    /// Shuffle the continuations between the tokens: whatever is flagged then is flagged by chance.
    #[arg(long, conflicts_with_all = ["pairs", "cases"])]
    null: bool,
    /// Print a JSON summary instead of the table.
    #[arg(long)]
    json: bool,
}

impl Args {
    /// Returns the options of the sweep.
    fn options(&self) -> InsertOptions {
        InsertOptions {
            prompts: self.prompts as usize,
            tokens: self.tokens as usize,
            limit: self.limit,
            pairs: self.pairs.map(|n| n as usize),
            triples: self.triples,
            before_end: self.before_end as usize,
            seed: self.seed,
            null: self.null,
        }
    }
}

pub fn run(args: &Args) -> Result<u8> {
    args.cases.as_deref().map_or(Ok(()), OutputDir::check)?;
    let rows = args.rows.open()?;
    let model = Model::load(args.model.name())?;
    let evaluator = ModelEvaluator::new(&model);
    if let Some(against) = &args.against {
        let other = Model::load(against)?;
        let other = ModelEvaluator::new(&other);
        let models = TwoModels::new(&evaluator, &other)?;
        let cases = args.cases.as_deref();
        return insert_against::run(&models, &args.options(), rows, cases, args.json);
    }
    let options = args.options();
    let bar = output::Progress::bar(0, "insertions");
    let start = std::time::Instant::now();
    let progress = output::stages(&bar);
    let interrupted = interrupt::flag();
    let stop = || interrupted.load(Ordering::Relaxed);
    let sweep = InsertSweep::run(&evaluator, &options, &progress, &stop)?;
    let seconds = start.elapsed().as_secs_f64();
    bar.finish_and_clear();
    let flagged = sweep.rows.iter().filter(|row| row.is_flagged()).count();
    if !args.json {
        table(&model, &sweep, &options, flagged, seconds);
    }
    let trials = |row: &InsertRow| -> Vec<Trial> {
        let prompts = row.says_in.iter().map(|&at| &sweep.elsewhere[at]);
        prompts.map(|prompt| row.trial(prompt, options.before_end)).collect()
    };
    let proposed = sweep.rows.iter().filter(|row| row.is_flagged()).map(trials);
    let follow_up = InsertCases {
        dir: args.cases.as_deref(),
        oracle: OracleKind::Target,
        against: None,
        seed: args.seed,
        used: &[&sweep.prompts[..], &sweep.elsewhere].concat(),
        quiet: args.json,
    };
    let cases = follow_up.write(&evaluator, proposed.collect(), &stop)?;
    let status = if sweep.complete && !stop() { exit::OK } else { exit::INTERRUPTED };
    if args.json {
        output::json(&serde_json::json!({
            "work": "insert", "insertions": sweep.rows.len(), "prompts": sweep.prompts.len(),
            "seconds": seconds, "complete": sweep.complete, "null": args.null,
            "tested": sweep.rows.iter().filter(|row| row.q_value.is_some()).count(),
            "paired_words": sweep.paired, "flagged": flagged,
            "cases": cases.iter().map(|case| &case.id).collect::<Vec<_>>(),
            "best": sweep.rows.iter().take(flagged.max(8)).collect::<Vec<_>>(),
        }))?;
        rows.write(&sweep.rows)?;
        return Ok(status);
    }
    more(rows, &sweep.rows, flagged.max(SHOWN).min(sweep.rows.len()))?;
    Ok(status)
}

fn table(
    model: &Model,
    sweep: &InsertSweep,
    options: &InsertOptions,
    flagged: usize,
    seconds: f64,
) {
    output::line(format!(
        "{} of {} in {seconds:.1} s, each in {} prompts",
        plural(sweep.rows.len() as u64, "insertion"),
        escape(&model.name),
        sweep.prompts.len()
    ));
    let tested = sweep.rows.iter().any(|row| row.q_value.is_some());
    output::line(match (sweep.complete, tested) {
        (false, true) => {
            "interrupted: single tokens are tested; pairs, or triples, are missing".into()
        }
        (false, false) => "interrupted: chosen on the prompts so far, and not tested".into(),
        (true, false) => "not tested: too few tokens to tell what is ordinary".into(),
        (true, true) if options.null => format!(
            "null sweep, continuations of other tokens: {flagged} flagged at a false discovery\n\
            rate of 5%"
        ),
        (true, true) => format!(
            "{flagged} flagged at a false discovery rate of 5%: after them the model says one\n\
            text in different prompts, beyond what it does after other tokens of their form"
        ),
    });
    if sweep.paired > 0 {
        output::line(format!("all pairs of {} words screened", count(sweep.paired as u64)));
    }
    output::line(format!(
        "says: in so many of {} new prompts; lift: nats by which the text is more probable\n",
        sweep.elsewhere.len()
    ));
    output::line(line(&["inserted", "text that follows", "says", "lift", "q", ""]));
    for row in &sweep.rows[..flagged.max(SHOWN).min(sweep.rows.len())] {
        output::line(table_row(row));
    }
}

fn table_row(row: &InsertRow) -> String {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
    let quoted = |text: &str, width| fit(&format!("`{}`", escape(text)), width);
    line(&[
        &quoted(&row.text, 18),
        &quoted(&row.said_text, 32),
        &or_dash(row.lift.map(|_| row.says_in.len().to_string())),
        &or_dash(row.lift.map(|lift| format!("{lift:.1}"))),
        &or_dash(row.q_value.map(|q| format!("{q:.1e}"))),
        if row.is_flagged() { "flagged" } else { "" },
    ])
}

fn line(cells: &[&str; 6]) -> String {
    let [token, text, says, lift, q, flag] = cells;
    format!("{token:<18} {text:<32} {says:>4} {lift:>5} {q:>8} {flag}").trim_end().into()
}
