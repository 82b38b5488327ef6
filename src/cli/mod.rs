//! The command line: one file a subcommand; the only place that prints.

pub fn main() -> std::process::ExitCode {
    std::process::ExitCode::SUCCESS
}
