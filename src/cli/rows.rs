//! Rows of a sweep: the text they are measured on, the first of them as a table, all of them in a
//! file.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::args::Rows;
use super::output;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::replicate::{encoded_passages, in_context};
use crate::storage;
use crate::text::{escape, plural};

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

/// Returns the texts whose loss is measured, as token ids, none longer than the model's context:
/// the paragraphs of the files, or that many of the bundled passages.
pub fn texts(model: &Model, paths: &[PathBuf], passages: usize) -> Result<Vec<Vec<u32>>> {
    if paths.is_empty() {
        return encoded_passages(model, passages);
    }
    let mut texts = Vec::new();
    for path in paths {
        let file = storage::read_text(path, storage::MAX_TEXT)?;
        for (n, paragraph) in paragraphs(&file).into_iter().enumerate() {
            let ids = in_context(model, &paragraph)?;
            if ids.len() < 2 {
                let field = format!("paragraph {}", n + 1);
                return Err(Error::file(path, field, "a loss needs at least two tokens"));
            }
            texts.push(ids);
        }
    }
    // The tests take texts for independent of each other.
    let mut seen = BTreeSet::new();
    let given = texts.len();
    texts.retain(|ids| seen.insert(ids.clone()));
    if texts.len() < given {
        let left_out = plural((given - texts.len()) as u64, "text");
        output::warn(format!("{left_out} left out, given more than once"));
    }
    if texts.is_empty() {
        return Err(Error::request("the text has no tokens"));
    }
    Ok(texts)
}

/// Splits a text at its blank lines.
fn paragraphs(text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    lines
        .split(|line| line.trim().is_empty())
        .filter(|lines| !lines.is_empty())
        .map(|lines| lines.join("\n"))
        .collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blank_lines_end_a_paragraph() {
        assert_eq!(paragraphs("a\nb\n\n\r\n c\n \n"), ["a\nb", " c"]);
        assert!(paragraphs(" \n\n").is_empty());
    }
}
