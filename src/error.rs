//! The library's error: one line each, naming the file and the field or component at fault.

use std::path::PathBuf;

/// What can go wrong, by who can mend it; `cli::exit` maps each variant to an exit code.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A model file (weights, configuration, tokenizer) cannot be used.
    #[error("model {path}: {field}: {message}")]
    Model { path: String, field: String, message: String },

    /// A case, campaign or corpus file cannot be used.
    #[error("{path}: {field}: {message}")]
    File { path: PathBuf, field: String, message: String },

    /// What was asked makes no sense for this model or these inputs (a head that does not exist, an
    /// id beyond the vocabulary).
    #[error("{0}")]
    Request(String),

    /// A case was made on another model.
    #[error(
        "{path}: fingerprint: made on model {expected}, this is {got} (pass --model to replay on \
        it anyway)"
    )]
    Fingerprint { path: String, expected: String, got: String },

    /// Reading or writing failed.
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },

    /// The tensor library refused an operation: a bug or a lack of memory, not a bad input.
    #[error("tensor operation: {0}")]
    Tensor(#[from] candle_core::Error),

    /// The run was interrupted (Ctrl-C) after everything found so far was written.
    #[error("interrupted; everything found so far is saved")]
    Interrupted,
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub fn model(
        path: impl Into<String>,
        field: impl Into<String>,
        message: impl ToString,
    ) -> Self {
        Self::Model { path: path.into(), field: field.into(), message: message.to_string() }
    }

    pub fn file(
        path: impl Into<PathBuf>,
        field: impl Into<String>,
        message: impl ToString,
    ) -> Self {
        Self::File { path: path.into(), field: field.into(), message: message.to_string() }
    }

    pub fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io { path: path.into(), source }
    }

    pub fn request(message: impl ToString) -> Self {
        Self::Request(message.to_string())
    }
}
