//! Arguments that several commands share.

use std::path::{Path, PathBuf};

use clap::ValueEnum;

use super::output;
use crate::error::{Error, Result};
use crate::storage::OutputFile;
use crate::sweep::Target;

/// Names a model, in every command's help.
pub const MODEL_HELP: &str = "A Hugging Face folder, a GGUF file, a .pth file of RWKV, \
    builtin:NAME (dense, moe, mamba, rwkv), or hf:org/name from the local cache";

/// The model that is used where none is named.
pub const DEFAULT_MODEL: &str = "builtin:dense";

/// A model, as an argument or as `--model`.
#[derive(Debug, Clone, clap::Args)]
pub struct ModelArg {
    #[arg(value_name = "MODEL", help = format!("{MODEL_HELP} [default: {DEFAULT_MODEL}]"))]
    argument: Option<String>,
    #[arg(
        long = "model",
        value_name = "MODEL",
        conflicts_with = "argument",
        help = "The same as the argument MODEL"
    )]
    option: Option<String>,
}

impl ModelArg {
    /// Returns the name of the model: the one given, or the default.
    pub fn name(&self) -> &str {
        self.option.as_deref().or(self.argument.as_deref()).unwrap_or(DEFAULT_MODEL)
    }
}

/// Kinds of components that are lesioned in sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Of {
    /// Attention (state space, time mixing) and MLP of every layer.
    Blocks,
    Heads,
    Mlps,
    Experts,
    /// Recurrent states, one a head or channel.
    States,
}

impl Of {
    /// Returns the kind as sweeps name it.
    pub fn target(self) -> Target {
        match self {
            Self::Blocks => Target::Blocks,
            Self::Heads => Target::Heads,
            Self::Mlps => Target::Mlps,
            Self::Experts => Target::Experts,
            Self::States => Target::States,
        }
    }
}

/// Where the rows of a sweep go.
#[derive(Debug, Clone, clap::Args)]
pub struct RowsArg {
    /// Write one JSON row each to this file (a device or a pipe is written to, not replaced).
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Replace that file if an earlier sweep wrote it.
    #[arg(long, requires = "out")]
    force: bool,
}

impl RowsArg {
    /// Opens the file, if one is asked for: before the work, so that a mistake is told at once.
    ///
    /// # Errors
    /// Those of [`OutputFile::open`].
    pub fn open(&self) -> Result<Rows> {
        let open = |path: &PathBuf| OutputFile::open(path, self.force);
        self.out.as_ref().map(open).transpose().map(Rows)
    }
}

/// A file of rows that is open, or none.
pub struct Rows(Option<OutputFile>);

impl Rows {
    /// Returns the path, as the user gave it.
    pub fn path(&self) -> Option<&Path> {
        self.0.as_ref().map(OutputFile::path)
    }

    /// Writes the rows that there are so far to a regular file, in the place of those of the last
    /// call. A device or a pipe gets the final rows alone.
    ///
    /// # Errors
    /// [`crate::Error::Io`] if they cannot be written.
    pub fn keep<T: serde::Serialize>(&self, rows: &[T]) -> Result<()> {
        match &self.0 {
            Some(file) => file.keep(lines(rows)?.as_bytes()),
            None => Ok(()),
        }
    }

    /// Writes the rows, one a line. Called after the table is printed: a full disk must not take
    /// the table too.
    ///
    /// # Errors
    /// [`crate::Error::Io`] if they cannot be written.
    pub fn write<T: serde::Serialize>(self, rows: &[T]) -> Result<()> {
        match self.0 {
            Some(file) => file.write(lines(rows)?.as_bytes()),
            None => Ok(()),
        }
    }
}

/// Returns the rows as JSON, one a line.
fn lines<T: serde::Serialize>(rows: &[T]) -> Result<String> {
    let mut text = String::new();
    for row in rows {
        text.push_str(&output::json_line(row)?);
        text.push('\n');
    }
    Ok(text)
}

/// Checks that a path of the command line leads somewhere.
///
/// # Errors
/// [`Error::File`] for a path on the command line that leads nowhere.
pub fn exists(path: &Path) -> Result<()> {
    match path.exists() {
        true => Ok(()),
        false => Err(Error::file(path, "path", "no such file or folder")),
    }
}
