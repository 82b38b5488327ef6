//! The file formats of models, from which named tensors, configurations and tokenizers are read.

pub mod builtin;
pub mod difference;
pub mod gguf;
pub mod locate;
pub mod pth;
pub mod safetensors;
mod stored;
pub mod tokenizer;

use std::path::Path;

pub use stored::StoredFloat;

use crate::error::{Error, Result};

/// A source of tensors by their Hugging Face names. Each is loaded once, so a source may free it.
pub trait Source {
    /// Returns the name of the file for errors.
    fn path(&self) -> &str;

    /// Returns the shape of a tensor; `None` if there is no such tensor.
    fn shape(&self, name: &str) -> Option<Vec<usize>>;

    /// Returns the values of a tensor, row-major, widened to f32.
    ///
    /// # Errors
    /// [`Error::Model`] for a tensor that is missing or cannot be read.
    fn load(&mut self, name: &str) -> Result<Vec<f32>>;

    /// Returns the format in which the file has the values of a tensor; `None` where they are
    /// quantized, or are not what the file has.
    fn stored(&self, _name: &str) -> Option<StoredFloat> {
        None
    }
}

/// Reads a text file of at most `limit` bytes.
///
/// # Errors
/// [`Error::Model`] for a file that is larger, cannot be read or is not UTF-8.
pub fn read_text(path: &Path, limit: u64) -> Result<String> {
    let unreadable = |e: std::io::Error| Error::model(path.display().to_string(), "file", e);
    let size = std::fs::metadata(path).map_err(unreadable)?.len();
    if size > limit {
        return Err(Error::model(
            path.display().to_string(),
            "size",
            format!("{size} bytes, more than {limit}"),
        ));
    }
    std::fs::read_to_string(path).map_err(unreadable)
}

/// Returns the first line of an error, of candle without its backtrace. Errors may quote a name of
/// any length from the file, so the line is cut at 400 columns.
pub fn first_line(error: &dyn std::fmt::Display) -> String {
    crate::text::fit(error.to_string().lines().next().unwrap_or("unreadable"), 400)
}
