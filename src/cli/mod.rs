//! The command line: one file a subcommand; the only place that prints.

pub mod exit;
mod model;
mod output;
mod sweep;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Fuzz a language model for glitches: find, minimise, explain, replay, keep.
///
/// Without a model of your own, start with `glitch fuzz`: it fuzzes a small built-in model for a
/// minute and shows what it found.
#[derive(Parser)]
#[command(version, max_term_width = 100, after_help = exit::HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Model(model::Args),
    Sweep(sweep::Args),
}

/// Parses, runs, and says in one line what went wrong.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { exit::USAGE } else { exit::OK });
        }
    };
    let result = match cli.command {
        Command::Model(args) => model::run(args),
        Command::Sweep(args) => sweep::run(args),
    };
    ExitCode::from(result.unwrap_or_else(|error| {
        eprintln!("glitch: {}", crate::text::escape(&error.to_string()));
        exit::of(&error)
    }))
}
