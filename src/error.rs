//! The library's error: one line each, naming the file and the field or component at fault.
//!
//! Parts of the line may come from a file and be megabytes long; they are cut here, where the line
//! is made.

use std::path::PathBuf;

use crate::text::shorten;

/// An error, by who can fix it; `cli::exit` maps each variant to an exit code.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A model file (weights, configuration, tokenizer) cannot be used.
    #[error("model {}: {}: {}", shorten(.path), shorten(.field), shorten(.message))]
    Model {
        /// The model or file, as the user named it.
        path: String,
        /// Field of the file, tensor, or part of the name that is at fault.
        field: String,
        /// The fault.
        message: String,
    },

    /// A case, campaign or corpus file cannot be used.
    #[error("{}: {}: {}", name(.path), shorten(.field), shorten(.message))]
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
    #[error("{}", shorten(.0))]
    Request(String),

    /// A broken invariant: a bug in this program, whatever the input was.
    #[error("internal error: {}; this is a bug in glitch, please report it", shorten(.0))]
    Internal(String),

    /// A case was made on another model.
    #[error(
        "{}: fingerprint: made on model {}, this is {} (pass --model to replay on it anyway)",
        shorten(.path), shorten(.expected), shorten(.got)
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
    #[error("{}: {source}", name(.path))]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },

    /// The tensor library refused an operation: a bug or a lack of memory, not a bad input.
    #[error("tensor operation: {0}")]
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

fn name(path: &std::path::Path) -> String {
    shorten(&path.display().to_string()).into_owned()
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
}
