//! The files that models come in: where named tensors, configurations and tokenizers are read from.

pub mod builtin;
pub mod gguf;
pub mod locate;
pub mod pth;
pub mod safetensors;
pub mod tokenizer;

use std::path::Path;

use crate::error::{Error, Result};

/// Where tensors come from, by Hugging Face names. Each is asked for once, so a source may free it.
pub trait Source {
    /// How errors name the file.
    fn path(&self) -> &str;

    /// Shape of a tensor, `None` if there is no such tensor.
    fn shape(&self, name: &str) -> Option<Vec<usize>>;

    /// The values, widened to f32, row-major.
    fn load(&mut self, name: &str) -> Result<Vec<f32>>;
}

/// Reads a text file of at most `limit` bytes.
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

/// An error of candle without its backtrace. It may quote a name of any length out of the file.
pub fn first_line(error: &candle_core::Error) -> String {
    crate::text::fit(error.to_string().lines().next().unwrap_or("unreadable"), 400)
}
