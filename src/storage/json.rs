//! JSON files: written readable, parsed with the field that is wrong.

use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::atomic::write_atomic;
use super::input::read_bounded;
use crate::error::{Error, Result};

/// Largest file that [`read_json`] and the case reader accept; a case is kilobytes.
pub const MAX_FILE: u64 = 16 * 1024 * 1024;

/// Returns a value as pretty JSON with a final newline; `path` is for the error.
pub fn pretty_json<T: Serialize>(path: &Path, value: &T) -> Result<Vec<u8>> {
    let mut bytes =
        serde_json::to_vec_pretty(value).map_err(|e| Error::file(path, "(whole file)", e))?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// Writes pretty JSON with a final newline, atomically.
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    write_atomic(path, &pretty_json(path, value)?)
}

/// Parses JSON that came out of `path`; an error names the field by its path (`edits[3].position`)
/// where the parser knows it, and the line.
pub fn parse_json<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T> {
    let mut parser = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut parser).map_err(|e| field_error(path, e))?;
    parser.end().map_err(|e| Error::file(path, "(end of file)", e))?;
    Ok(value)
}

/// As [`parse_json`], from a parsed value (an older schema, migrated).
pub fn from_value<T: DeserializeOwned>(path: &Path, value: serde_json::Value) -> Result<T> {
    serde_path_to_error::deserialize(value).map_err(|e| field_error(path, e))
}

fn field_error(path: &Path, error: serde_path_to_error::Error<serde_json::Error>) -> Error {
    let field = match error.path().to_string() {
        // `.` is the path library's word for the top.
        top if top == "." => "(top level)".to_string(),
        field => field,
    };
    Error::file(path, field, error.into_inner())
}

/// Reads and parses a JSON file of at most [`MAX_FILE`] bytes.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    parse_json(path, &read_bounded(path, MAX_FILE)?)
}

/// Checks the `schema_version` of a file against the newest that this program knows.
///
/// # Errors
/// [`Error::File`] for a later version.
pub fn check_version(path: &Path, version: u32, newest: u32) -> Result<()> {
    if version <= newest {
        return Ok(());
    }
    let message = format!("{version} is newer than this program");
    Err(Error::file(path, "schema_version", message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_version_is_refused() {
        assert!(check_version(Path::new("x.json"), 2, 2).is_ok());
        let error = check_version(Path::new("x.json"), 3, 2).unwrap_err().to_string();
        assert_eq!(error, "x.json: schema_version: 3 is newer than this program");
    }

    #[test]
    fn json_errors_name_the_field() {
        #[derive(Debug, serde::Deserialize)]
        struct Outer {
            #[serde(rename = "inner")]
            _inner: Vec<u8>,
        }
        for (text, field) in [
            (r#"{"inner":[1,-2]}"#, "inner[1]"),
            (r#"{}"#, "(top level)"),
            (r#"{"inner":[1]} x"#, "(end of file)"),
            (r#"{"inner":[1"#, "inner"),
        ] {
            match parse_json::<Outer>(Path::new("f.json"), text.as_bytes()).unwrap_err() {
                Error::File { field: found, .. } => {
                    assert!(found.starts_with(field), "{text}: {found}")
                }
                other => panic!("{text}: {other}"),
            }
        }
    }
}
