//! The library's error: one line each, naming the file and the field or component at fault.
//!
//! Parts of the line may come from a file, be megabytes long and hold what a terminal obeys; they
//! are cut and escaped here, where the line is made.

use std::path::PathBuf;

use crate::text::{escape, shorten};

/// An error, by who can fix it; `cli::exit` maps each variant to an exit code.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A model file (weights, configuration, tokenizer) cannot be used.
    #[error("model {}: {}: {}", part(.path), part(.field), part(.message))]
    Model {
        /// The model or file, as the user named it.
        path: String,
        /// Field of the file, tensor, or part of the name that is at fault.
        field: String,
        /// The fault.
        message: String,
    },

    /// A case, campaign or corpus file cannot be used.
    #[error("{}: {}: {}", name(.path), part(.field), part(.message))]
    File {
        /// The file or folder.
        path: PathBuf,
        /// Field of the file, place in it, or option that named it.
        field: String,
        /// The fault.
        message: String,
    },

    /// A request that makes no sense for this model or these inputs (a head that does not exist,
    /// an id beyond the vocabulary).
    #[error("{}", part(.0))]
    Request(String),

    /// A broken invariant: a bug in this program, whatever the input was.
    #[error("internal error: {}; this is a bug in glitch, please report it", part(.0))]
    Internal(String),

    /// A case was made on another model.
    #[error(
        "{}: fingerprint: made on model {}, this is {} (pass --model to replay on it anyway)",
        part(.path), part(.expected), part(.got)
    )]
    Fingerprint {
        /// The case file.
        path: String,
        /// Fingerprint in the case, or its beginning.
        expected: String,
        /// Fingerprint of the model, or its beginning.
        got: String,
    },

    /// Reading or writing failed.
    #[error("{}: {}", name(.path), part(&.source.to_string()))]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },

    /// The tensor library refused an operation: a bug or a lack of memory, not a bad input.
    #[error("tensor operation: {}", part(&.0.to_string()))]
    Tensor(#[from] candle_core::Error),

    /// The run was interrupted (Ctrl-C, SIGTERM or SIGHUP) and has nothing to show for it.
    #[error("interrupted")]
    Interrupted,
}

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Returns an [`Error::Model`].
    pub fn model(
        path: impl Into<String>,
        field: impl Into<String>,
        message: impl ToString,
    ) -> Self {
        Self::Model { path: path.into(), field: field.into(), message: message.to_string() }
    }

    /// Returns an [`Error::File`].
    pub fn file(
        path: impl Into<PathBuf>,
        field: impl Into<String>,
        message: impl ToString,
    ) -> Self {
        Self::File { path: path.into(), field: field.into(), message: message.to_string() }
    }

    /// Returns an [`Error::Io`].
    pub fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io { path: path.into(), source }
    }

    /// Returns an [`Error::Request`].
    pub fn request(message: impl ToString) -> Self {
        Self::Request(message.to_string())
    }

    /// Returns an [`Error::Internal`]; `message` says which invariant is broken.
    pub fn internal(message: impl ToString) -> Self {
        Self::Internal(message.to_string())
    }
}

/// Makes a part of the line of any text.
fn part(text: &str) -> String {
    escape(&shorten(text))
}

fn name(path: &std::path::Path) -> String {
    part(&path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_repeats_no_value_at_full_length() {
        let long = "x".repeat(1 << 20);
        let errors = [
            Error::model(&long, &long, &long),
            Error::file(&long, &long, &long),
            Error::request(&long),
            Error::internal(&long),
            Error::io(&long, std::io::Error::other("full")),
            Error::Fingerprint { path: long.clone(), expected: long.clone(), got: long.clone() },
        ];
        for error in errors {
            assert!(error.to_string().len() < 2000, "{}", error.to_string().len());
        }
    }

    /// `cargo fuzz run case` found a field name with a DEL in it.
    #[test]
    fn an_error_is_one_line_without_control_characters() {
        let odd = "suf\u{7f}fi\u{1b}[2J\nci\u{202e}ency";
        let errors = [
            Error::model(odd, odd, odd),
            Error::file(odd, odd, odd),
            Error::request(odd),
            Error::internal(odd),
            Error::io(odd, std::io::Error::other(odd)),
            Error::Fingerprint { path: odd.into(), expected: odd.into(), got: odd.into() },
            Error::Tensor(candle_core::Error::Msg(odd.into())),
        ];
        for error in errors {
            let line = error.to_string();
            assert!(!line.contains(|c: char| c.is_control() || c == '\u{202e}'), "{line:?}");
        }
    }
}
