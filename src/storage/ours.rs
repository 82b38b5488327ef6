//! Recognizes the files that this program wrote, by their content.
//!
//! A name proves nothing: a folder of the user's may hold a `report.html` or a `cases/notes.json`
//! of their own. Only what is recognized here is ever replaced.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use serde::de::IgnoredAny;

use super::atomic::write_atomic;
use super::journal::HEADER_START;
use crate::error::{Error, Result};

/// Kinds of files that this program writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `journal.log` of a campaign.
    Journal,
    /// An HTML report.
    Page,
    /// A case file.
    Case,
    /// `summary.json` of a campaign.
    Summary,
    /// `suffix.json`, the state of a search.
    Search,
    /// `comparison.json`.
    Comparison,
    /// Rows of a sweep or of transfers, one JSON object a line.
    Rows,
}

/// Largest JSON file that is parsed to recognize it.
const MAX_JSON: u64 = 64 << 20;
/// Bytes at the beginning of a page that hold its title.
const PAGE_HEAD: u64 = 1024;
/// Longest first line of a file of rows.
const MAX_ROW: u64 = 1 << 20;

/// Fields that mark a JSON file, one set a kind.
const JSON: [(Kind, &[&str]); 4] = [
    (Kind::Case, &["schema_version", "id", "model", "base", "continuation", "edits", "verdict"]),
    (Kind::Summary, &["schema_version", "model", "seed", "evaluations", "findings_raw"]),
    (Kind::Search, &["schema_version", "model", "prompts", "goal", "options", "state"]),
    (Kind::Comparison, &["schema_version", "max_evals", "seeds", "models"]),
];

/// Fields that mark the rows of sweeps (tokens, lesions, pairs, sets) and of transfers.
const ROWS: [&[&str]; 7] = [
    &["id", "text", "indicator", "echo_probability", "verdict"],
    &["ids", "text", "said", "agreeing"],
    &["component", "baseline_loss", "perplexity_ratio", "divergence_bits"],
    &["a", "b", "alone_a", "alone_b", "interaction"],
    &["set", "weight", "dead", "surrogate_loss"],
    &["case", "from", "to", "outcome"],
    &["ids", "text", "bits", "bits_elsewhere"],
];

/// Returns the kind of the file at `path` if this program wrote it; `None` for any other file and
/// for what is not a regular file. A symbolic link is not followed.
pub fn kind(path: &Path) -> Option<Kind> {
    let metadata = fs::symlink_metadata(path).ok()?;
    if !metadata.is_file() {
        return None;
    }
    let mut start = Vec::new();
    File::open(path).ok()?.take(PAGE_HEAD).read_to_end(&mut start).ok()?;
    if start.starts_with(HEADER_START.as_bytes()) {
        return Some(Kind::Journal);
    }
    if start.starts_with(b"<!DOCTYPE html>") {
        let title = b"<title>glitch: ";
        return start.windows(title.len()).any(|bytes| bytes == title).then_some(Kind::Page);
    }
    if start.first() != Some(&b'{') {
        return None;
    }
    row(path).or_else(|| if metadata.len() <= MAX_JSON { json(path) } else { None })
}

/// Recognizes a file of rows by its first line.
fn row(path: &Path) -> Option<Kind> {
    let mut line = Vec::new();
    let file = File::open(path).ok()?;
    BufReader::new(file).take(MAX_ROW).read_until(b'\n', &mut line).ok()?;
    let fields = fields(&line)?;
    let has = |names: &&[&str]| names.iter().all(|name| fields.contains_key(*name));
    ROWS.iter().any(has).then_some(Kind::Rows)
}

fn json(path: &Path) -> Option<Kind> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(MAX_JSON).read_to_end(&mut bytes).ok()?;
    let fields = fields(&bytes)?;
    let has = |names: &[&str]| names.iter().all(|name| fields.contains_key(*name));
    JSON.iter().find(|(_, names)| has(names)).map(|(kind, _)| *kind)
}

fn fields(bytes: &[u8]) -> Option<BTreeMap<String, IgnoredAny>> {
    serde_json::from_slice(bytes).ok()
}

/// Like [`write_atomic`], but replaces only a file that this program wrote.
///
/// # Errors
/// [`Error::File`] if another file, or what is not a regular file, stands there.
pub fn replace_ours(path: &Path, bytes: &[u8]) -> Result<()> {
    if path.symlink_metadata().is_ok() && kind(path).is_none() {
        return Err(foreign(path));
    }
    write_atomic(path, bytes)
}

/// The error of a file in the way that this program did not write.
pub(super) fn foreign(path: &Path) -> Error {
    Error::file(path, "--out", "glitch did not write this; move it away or choose another --out")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_known_by_their_content() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        let check = |text: &str, expected| {
            fs::write(&path, text).unwrap();
            assert_eq!(kind(&path), expected, "{text}");
        };
        check("glitch-journal 1\n", Some(Kind::Journal));
        check("<!DOCTYPE html>\n<html><head><title>glitch: m</title>", Some(Kind::Page));
        check("<!DOCTYPE html>\n<html><head><title>holiday</title>", None);
        let row = r#"{"case":"c","from":"a","to":"b","outcome":null}"#;
        check(&format!("{row}\n{row}\n"), Some(Kind::Rows));
        let search = r#"{"schema_version":1,"model":1,"prompts":1,"goal":1,"options":1,"state":1}"#;
        check(search, Some(Kind::Search));
        for foreign in ["", "notes", "{\"mine\":1}", "{", "[]", "{\"schema_version\":1}"] {
            check(foreign, None);
        }
        assert_eq!(kind(dir.path()), None);
        assert_eq!(kind(&dir.path().join("none")), None);
    }

    #[cfg(unix)]
    #[test]
    fn a_link_to_a_file_of_ours_is_not_ours() {
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (dir.path().join("journal.log"), dir.path().join("link"));
        fs::write(&path, "glitch-journal 1\n").unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert_eq!((kind(&path), kind(&link)), (Some(Kind::Journal), None));
    }
}
