//! The command line: one file a subcommand; the only place that prints.

mod args;
mod case;
mod compare;
mod completions;
mod corpus;
mod emergence;
pub mod exit;
mod fuzz;
mod implicate;
mod insert;
mod insert_against;
mod insert_cases;
mod interrupt;
mod lesions;
mod minimize;
mod model;
mod output;
mod pairs;
mod replay;
mod report;
mod rows;
mod suffix;
mod sweep;
mod transfer;
mod triage;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

/// Fuzz a language model for glitches: find, minimize, explain, replay, keep.
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
    Fuzz(fuzz::FuzzArgs),
    Minimize(minimize::Args),
    Implicate(implicate::Args),
    Replay(replay::Args),
    Case(case::Args),
    Corpus(corpus::Args),
    Model(model::Args),
    Sweep(sweep::Args),
    Emergence(emergence::Args),
    Suffix(suffix::Args),
    Transfer(transfer::Args),
    Compare(compare::Args),
    Triage(triage::Args),
    Report(report::Args),
    Completions(completions::CompletionsArgs),
    Man(completions::ManArgs),
}

/// Parses the command line, runs the command, and says in one line what went wrong.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() => {
            let _ = error.print();
            return ExitCode::from(exit::USAGE);
        }
        Err(help) => {
            output::print(&help.to_string());
            return ExitCode::from(written(exit::OK));
        }
    };
    let result = match cli.command {
        Command::Fuzz(args) => fuzz::run_command(args),
        Command::Minimize(args) => minimize::run(args),
        Command::Implicate(args) => implicate::run(args),
        Command::Replay(args) => replay::run(args),
        Command::Case(args) => case::run(args),
        Command::Corpus(args) => corpus::run(args),
        Command::Model(args) => model::run(args),
        Command::Sweep(args) => sweep::run(args),
        Command::Emergence(args) => emergence::run(&args),
        Command::Suffix(args) => suffix::run(args),
        Command::Transfer(args) => transfer::run(args),
        Command::Compare(args) => compare::run(args),
        Command::Triage(args) => triage::run(args),
        Command::Report(args) => report::run(args),
        Command::Completions(args) => completions::completions(args, Cli::command()),
        Command::Man(args) => completions::man(args, Cli::command()),
    };
    ExitCode::from(match result {
        Ok(code) => written(code),
        Err(error) => {
            output::warn(error.to_string());
            exit::of(&error)
        }
    })
}

/// Returns the exit code of a command that went well, unless what it printed was lost.
fn written(code: u8) -> u8 {
    match output::lost() {
        None => code,
        Some(error) => {
            output::warn(format!("standard output: {error}"));
            exit::INTERNAL
        }
    }
}
