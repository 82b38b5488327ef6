//! `glitch completions SHELL` and `glitch man`: what a package installs beside the program, written
//! from the same definitions that parse the command line.

use std::path::{Path, PathBuf};

use clap::Command;
use clap_complete::Shell;

use crate::{Error, Result, storage, text};

/// Print a completion script for a shell.
///
/// For bash: `glitch completions bash > ~/.local/share/bash-completion/completions/glitch`.
#[derive(Debug, clap::Args)]
pub struct CompletionsArgs {
    /// The shell to complete commands and options in.
    shell: Shell,
}

/// Print the manual page, or write a page for every command into a folder.
///
/// Read it at once with `glitch man | man -l -`.
#[derive(Debug, clap::Args)]
pub struct ManArgs {
    /// Folder to write glitch.1, glitch-fuzz.1, ... into. Files that are not manual pages of glitch
    /// are not replaced.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

pub fn completions(args: CompletionsArgs, mut command: Command) -> Result<u8> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "glitch", &mut script);
    super::output::print(&String::from_utf8_lossy(&script));
    Ok(0)
}

pub fn man(args: ManArgs, mut command: Command) -> Result<u8> {
    // Fills in the full name of every subcommand: `glitch sweep heads`.
    command.build();
    let Some(dir) = args.out else {
        super::output::print(&page(command)?);
        return Ok(0);
    };
    for page in pages(&command)? {
        let path = dir.join(&page.file);
        write(&path, &page.text)?;
        super::output::line(text::escape(&path.display().to_string()));
    }
    Ok(0)
}

/// A manual page and the name of its file.
struct Page {
    file: String,
    text: String,
}

/// Renders the pages of a command and of all its subcommands but `help`.
fn pages(command: &Command) -> Result<Vec<Page>> {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name());
    let mut all = vec![Page { file: format!("{name}.1"), text: page(command.clone())? }];
    for subcommand in command.get_subcommands().filter(|c| c.get_name() != "help") {
        all.extend(pages(subcommand)?);
    }
    Ok(all)
}

/// Renders the manual page of one command.
fn page(command: Command) -> Result<String> {
    let mut roff = Vec::new();
    let page = clap_mangen::Man::new(command);
    page.render(&mut roff).map_err(|e| Error::io("(manual page)", e))?;
    Ok(String::from_utf8_lossy(&roff).into_owned())
}

/// Writes a page, replacing only what is a manual page of glitch.
fn write(path: &Path, page: &str) -> Result<()> {
    if storage::write_new(path, page.as_bytes())? {
        return Ok(());
    }
    let there = storage::read_bounded(path, storage::MAX_FILE)?;
    if !String::from_utf8_lossy(&there).contains("\n.TH glitch") {
        return Err(Error::Request(format!(
            "{} exists and is not a manual page of glitch; it is left as it is",
            path.display()
        )));
    }
    storage::write_atomic(path, page.as_bytes())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn built() -> Command {
        let mut command = super::super::Cli::command();
        command.build();
        command
    }

    #[test]
    fn the_command_line_is_consistent() {
        super::super::Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_a_manual_page() {
        let pages = pages(&built()).unwrap();
        let files: Vec<&str> = pages.iter().map(|page| page.file.as_str()).collect();
        for file in ["glitch.1", "glitch-fuzz.1", "glitch-corpus-add.1", "glitch-man.1"] {
            assert!(files.contains(&file), "{files:?}");
        }
        for page in &pages {
            let name = page.file.strip_suffix(".1").unwrap();
            assert!(page.text.contains(&format!("\n.TH {name} 1")), "{}", page.text);
            assert!(page.text.contains("\n.SH SYNOPSIS"), "{name}");
        }
    }

    #[test]
    fn only_manual_pages_of_glitch_are_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("glitch.1");
        let first = page(built()).unwrap();
        write(&path, &first).unwrap();
        write(&path, &format!("{first}.\\\" newer\n")).unwrap();
        assert!(std::fs::read_to_string(&path).unwrap().ends_with("newer\n"));
        std::fs::write(&path, "notes").unwrap();
        let error = write(&path, &first).unwrap_err().to_string();
        assert!(error.contains("not a manual page"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "notes");
    }
}
