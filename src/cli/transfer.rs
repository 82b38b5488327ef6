//! `glitch transfer CASE...`: cases on other models.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::args::RowsArg;
use super::args::exists;
use super::{exit, output};
use crate::case::Case;
use crate::corpus;
use crate::error::Result;
use crate::model::{Model, short_names};
use crate::stats;
use crate::text::fit;
use crate::transfer::{By, Destination, Outcome};

/// Try cases on other models: a matrix of how many hold there, by the model they come from.
#[derive(clap::Args)]
pub struct Args {
    /// Case files, or folders that hold them at any depth.
    #[arg(required = true, value_name = "CASE|DIR")]
    cases: Vec<PathBuf>,
    /// The models: folders, GGUF files, builtin:NAME, hf:org/name; separated by commas.
    #[arg(long, alias = "model", value_delimiter = ',', required = true)]
    models: Vec<String>,
    #[command(flatten)]
    rows: RowsArg,
    /// Print the matrix as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(serde::Serialize)]
struct Row<'a> {
    case: &'a str,
    from: &'a str,
    to: &'a str,
    outcome: Option<Outcome>,
}

/// Counts of cases that hold on a model.
#[derive(Default)]
struct Cell {
    reached: u64,
    of: u64,
    by_text: u64,
}

pub fn run(args: Args) -> Result<u8> {
    let file = args.rows.open()?;
    let mut cases = Vec::new();
    for path in &args.cases {
        exists(path)?;
        for path in corpus::files(path)? {
            cases.push((Case::read(&path)?, path));
        }
    }
    if cases.is_empty() {
        return Ok(output::no_cases());
    }
    let models: Vec<Model> =
        args.models.iter().map(|spec| Model::load(spec)).collect::<Result<_>>()?;
    // A case that is transferred as text needs a model with its tokenizer to decode the ids.
    let mut others: BTreeMap<&str, Option<Model>> = BTreeMap::new();
    for (case, path) in &cases {
        if !models.iter().any(|model| reads(model, case))
            && !others.contains_key(case.model.name.as_str())
        {
            others.insert(
                &case.model.name,
                corpus::load_model(&case.model, &[path]).ok().filter(|model| reads(model, case)),
            );
        }
    }
    let mut rows = Vec::new();
    let mut cells: BTreeMap<(&str, usize), Cell> = BTreeMap::new();
    let bar = output::Progress::bar((models.len() * cases.len()) as u64, "cases");
    for (to, model) in models.iter().enumerate() {
        let destination = Destination::new(model)?;
        for (case, path) in &cases {
            let source = models.iter().find(|model| reads(model, case));
            let source = source.or_else(|| others.get(case.model.name.as_str())?.as_ref());
            let outcome = destination.try_on(path, case, source)?;
            if let Some(outcome) = &outcome {
                let cell = cells.entry((&case.model.name, to)).or_default();
                cell.reached += u64::from(outcome.reached);
                cell.of += 1;
                cell.by_text += u64::from(outcome.by == By::Text);
            }
            rows.push(Row { case: &case.id, from: &case.model.name, to: &model.name, outcome });
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    let mut from: Vec<&str> = cases.iter().map(|(case, _)| case.model.name.as_str()).collect();
    from.sort_unstable();
    from.dedup();
    if args.json {
        output::json(&matrix(&from, &models, &cells))?;
        file.write(&rows)?;
        return Ok(exit::OK);
    }
    output::line(
        "cases that hold on another model, of those that mean something there; 95% intervals \
        (Wilson)\n",
    );
    let to: Vec<String> = models.iter().map(|model| model.reference().name).collect();
    let all: Vec<&str> = from.iter().copied().chain(to.iter().map(String::as_str)).collect();
    let names: Vec<String> = short_names(&all).iter().map(|name| fit(name, 30)).collect();
    let (from_names, to_names) = names.split_at(from.len());
    for (from, from_name) in from.into_iter().zip(from_names) {
        for (to, to_name) in to_names.iter().enumerate() {
            let figure = cells.get(&(from, to)).map_or("mean nothing there".to_owned(), |cell| {
                let (low, high) = stats::wilson(cell.reached, cell.of, 1.96);
                let how = match cell.by_text {
                    0 => "by ids",
                    n if n == cell.of => "by text",
                    _ => "by ids and text",
                };
                let (low, high) = (100.0 * low, 100.0 * high);
                format!(
                    "{:>4} of {:<4} {:>3.0}% ({low:.0}% to {high:.0}%), {how}",
                    cell.reached,
                    cell.of,
                    100.0 * cell.reached as f64 / cell.of as f64
                )
            });
            output::line(format!("{from_name:<30} on {to_name:<30} {figure}"));
        }
    }
    file.write(&rows)?;
    Ok(exit::OK)
}

fn reads(model: &Model, case: &Case) -> bool {
    case.model.tokenizer.is_some() && model.tokenizer_fingerprint == case.model.tokenizer
}

fn matrix(
    from: &[&str],
    models: &[Model],
    cells: &BTreeMap<(&str, usize), Cell>,
) -> serde_json::Value {
    let row = |from: &&str| {
        let cell = |(to, model): (usize, &Model)| {
            let cell = cells.get(&(*from, to));
            let (reached, of, by_text) = cell.map_or((0, 0, 0), |c| (c.reached, c.of, c.by_text));
            let (low, high) = stats::wilson(reached, of.max(1), 1.96);
            serde_json::json!({
                "to": model.name, "reached": reached, "of": of, "by_text": by_text, "low": low,
                "high": high,
            })
        };
        serde_json::json!({
            "from": from, "on": models.iter().enumerate().map(cell).collect::<Vec<_>>(),
        })
    };
    serde_json::Value::Array(from.iter().map(row).collect())
}
