//! Rows of a sweep: the text they are measured on, the first of them as a table, all of them in a
//! file.

use std::path::Path;

use super::args::Rows;
use super::output;
use crate::error::Result;
use crate::model::Model;
use crate::storage;
use crate::text::escape;

/// Most rows of a table in the terminal.
pub const SHOWN: usize = 20;

/// Writes the rows and says below the table, of which `shown` rows were printed, where all of them
/// are.
pub fn more<T: serde::Serialize>(rows: Rows, all: &[T], shown: usize) -> Result<()> {
    let path = rows.path().map(|path| escape(&path.display().to_string()));
    rows.write(all)?;
    match path {
        Some(path) => output::line(format!("all {} rows: {path}", all.len())),
        None if all.len() > shown => {
            let left = all.len() - shown;
            output::line(format!("... {left} more; --out FILE keeps them all"));
        }
        None => {}
    }
    Ok(())
}

/// Returns the text whose loss is measured, as token ids, no longer than the model's context.
pub fn lesion_text(model: &Model, path: Option<&Path>) -> Result<Vec<u32>> {
    let text = match path {
        Some(path) => storage::read_text(path, storage::MAX_TEXT)?,
        None => crate::evaluate::REFERENCE_TEXT.trim_end().to_owned(),
    };
    let mut ids = model.encode(&text)?;
    ids.truncate(model.config.max_position_embeddings);
    Ok(ids)
}
