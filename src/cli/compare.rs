//! `glitch compare`.

use std::path::PathBuf;

use super::{exit, output};
use crate::campaign::CampaignConfig;
use crate::compare::{Comparison, SCHEMA_VERSION, measure};
use crate::error::Result;
use crate::report::comparison;
use crate::storage::{self, OutputDir};

/// Run the same campaign on several models and put what they show side by side.
#[derive(clap::Args)]
pub struct Args {
    /// The models: folders, GGUF files, builtin:NAME, hf:org/name.
    #[arg(value_name = "MODEL", required_unless_present = "models")]
    arguments: Vec<String>,
    /// The same, separated by commas.
    #[arg(long, alias = "model", value_delimiter = ',', conflicts_with = "arguments")]
    models: Vec<String>,
    /// Trials of each campaign.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1000,
        value_parser = clap::value_parser!(u64).range(1..),
    )]
    max_evals: u64,
    /// Seeds: each model is fuzzed once with every one of 1 to N, for the intervals.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 3,
        value_parser = clap::value_parser!(u64).range(1..=13),
    )]
    seeds: u64,
    /// Bundled passages on which sets of blocks are zeroed, as by `glitch emergence`; 0 leaves that
    /// out. By default 12, or 4 where sets are drawn because there are too many to run all.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(..=32))]
    passages: Option<u64>,
    /// Where comparison.json and comparison.html go.
    #[arg(long, value_name = "DIR", default_value = "fuzz/compare")]
    out: PathBuf,
    /// Replace an earlier comparison in that folder; without it, it stays, and a folder beside it
    /// is written (`compare-2`, ...).
    #[arg(long)]
    force: bool,
    /// Print the JSON instead of the table.
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> Result<u8> {
    let interrupted = super::interrupt::flag();
    OutputDir::check(&args.out)?;
    let mut config = CampaignConfig::quick()?;
    (config.max_evals, config.max_time) = (Some(args.max_evals), None);
    // Every finding is followed up: a campaign cut short at some number of them would find as many
    // on every model.
    config.max_findings = usize::MAX;
    let seeds: Vec<u64> = (1..=args.seeds).collect();
    let passages = args.passages.map(|passages| passages as usize);
    let bar = output::Progress::bar(0, "steps");
    let mut models = Vec::new();
    for spec in args.arguments.iter().chain(&args.models) {
        let progress = |what: &str| bar.set_message(what.to_owned());
        models.push(measure(spec, &config, &seeds, passages, interrupted, &progress)?);
    }
    bar.finish_and_clear();
    let all =
        Comparison { schema_version: SCHEMA_VERSION, max_evals: args.max_evals, seeds, models };
    let dir = OutputDir::create(&args.out, args.force)?;
    let out = dir.path();
    output::moved(&args.out, out);
    storage::write_json(&out.join("comparison.json"), &all)?;
    storage::write_atomic(&out.join("comparison.html"), comparison::page(&all).as_bytes())?;
    if args.json {
        output::json(&all)?;
    } else {
        output::print(&comparison::terminal(&all, output::columns()));
        let page = out.join("comparison.html").display().to_string();
        output::line(format!("\n{}", crate::text::escape(&page)));
    }
    Ok(exit::OK)
}
