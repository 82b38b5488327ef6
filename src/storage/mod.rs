//! The only place that writes files.
//!
//! A reader of our files sees an old version or a new one, never half of either: files are
//! replaced atomically, and the journal, which only grows, carries a length and a checksum per
//! record so that a tail torn by a crash or a full disk is recognized and cut. Nothing that a user
//! may want is replaced unasked: see [`OutputDir`] and [`OutputFile`].

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};

mod file;
mod folder;
mod input;
mod journal;
pub mod ours;
pub use file::OutputFile;
pub use folder::{CASES, OutputDir};
pub use input::{MAX_TEXT, TextOrFile, read_text};
pub use journal::{Journal, Opened, Torn};

/// Largest file that [`read_json`] and the case reader accept; a case is kilobytes.
pub const MAX_FILE: u64 = 16 * 1024 * 1024;

/// Creates a directory and its parents.
pub fn create_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(|e| Error::io(path, e))
}

/// The directory a file is in; a bare name is in the current one.
fn parent(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes a rename or a new file in `dir` survive a power cut. Some file systems do not let a
/// directory be synced; what they lose then is the last rename, never a file's integrity.
fn sync_dir(dir: &Path) {
    if let Ok(handle) = File::open(dir) {
        let _ = handle.sync_all();
    }
}

/// Creates a temporary file in a directory; it is removed when it is dropped.
fn temporary_in(dir: &Path) -> Result<tempfile::NamedTempFile> {
    tempfile::Builder::new()
        .prefix(".glitch-")
        .suffix(".tmp")
        .tempfile_in(dir)
        .map_err(|e| Error::io(dir, e))
}

fn write_temporary(path: &Path, bytes: &[u8]) -> Result<tempfile::NamedTempFile> {
    let dir = parent(path);
    create_dir(dir)?;
    // In the same directory: a rename across file systems is a copy, and no longer atomic.
    let mut temporary = temporary_in(dir)?;
    #[cfg(unix)]
    {
        // tempfile makes them private to the user; results are shared as any other file is.
        use std::os::unix::fs::PermissionsExt;
        let _ = temporary.as_file().set_permissions(fs::Permissions::from_mode(0o644));
    }
    temporary.write_all(bytes).map_err(|e| Error::io(path, e))?;
    temporary.as_file().sync_all().map_err(|e| Error::io(path, e))?;
    Ok(temporary)
}

/// Writes a file whole or not at all, replacing what was there. Makes the directories it needs.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    write_temporary(path, bytes)?.persist(path).map_err(|e| Error::io(path, e.error))?;
    sync_dir(parent(path));
    Ok(())
}

/// Like [`write_atomic`], but never replaces: `false` when a file of that name exists.
pub fn write_new(path: &Path, bytes: &[u8]) -> Result<bool> {
    match write_temporary(path, bytes)?.persist_noclobber(path) {
        Ok(_) => {
            sync_dir(parent(path));
            Ok(true)
        }
        Err(e) if e.error.kind() == std::io::ErrorKind::AlreadyExists => Ok(false),
        Err(e) => Err(Error::io(path, e.error)),
    }
}

/// Like [`write_atomic`], but replaces only a file that this program wrote.
///
/// # Errors
/// [`Error::File`] if another file, or what is not a regular file, stands there.
pub fn replace_ours(path: &Path, bytes: &[u8]) -> Result<()> {
    if path.symlink_metadata().is_ok() && ours::kind(path).is_none() {
        return Err(folder::foreign(path));
    }
    write_atomic(path, bytes)
}

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

/// Removes a file, if there is one.
fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(path, e)),
        _ => Ok(()),
    }
}

/// Moves a file to another directory under its own name, or, where that is taken, under the name
/// with a number added. Returns where it went.
pub fn move_into(path: &Path, dir: &Path) -> Result<PathBuf> {
    create_dir(dir)?;
    let name = path.file_name().ok_or_else(|| Error::file(path, "name", "not a file name"))?;
    for number in 0..10_000u32 {
        let mut candidate = name.to_owned();
        if number > 0 {
            candidate.push(format!(".{number}"));
        }
        let target = dir.join(candidate);
        // `exists` follows links; a dangling link is a taken name too.
        if target.symlink_metadata().is_err() {
            fs::rename(path, &target).map_err(|e| Error::io(path, e))?;
            sync_dir(dir);
            sync_dir(parent(path));
            return Ok(target);
        }
    }
    Err(Error::file(path, "name", format!("{} holds 10,000 files of this name", dir.display())))
}

/// Reads a file that may be hostile: a larger one, or one that is no regular file, is refused
/// before anything is allocated, and one that grows while it is read is refused then.
pub fn read_bounded(path: &Path, max_bytes: u64) -> Result<Vec<u8>> {
    // Asked before opening: opening a FIFO blocks until somebody writes to it.
    let metadata = fs::metadata(path).map_err(|e| input::unreadable(path, e))?;
    if !metadata.is_file() {
        return Err(Error::file(path, "(whole file)", "not a regular file"));
    }
    let too_large = |bytes: u64| {
        Error::file(
            path,
            "(whole file)",
            format!("{bytes} bytes or more, at most {max_bytes} are read"),
        )
    };
    if metadata.len() > max_bytes {
        return Err(too_large(metadata.len()));
    }
    let file = File::open(path).map_err(|e| input::unreadable(path, e))?;
    let mut bytes = Vec::with_capacity(metadata.len() as usize);
    file.take(max_bytes + 1).read_to_end(&mut bytes).map_err(|e| Error::io(path, e))?;
    if bytes.len() as u64 > max_bytes {
        return Err(too_large(bytes.len() as u64));
    }
    Ok(bytes)
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

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn files_are_replaced_whole_and_leave_nothing_beside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/file.json");
        write_atomic(&path, b"one").unwrap();
        write_atomic(&path, b"two").unwrap();
        assert!(!write_new(&path, b"three").unwrap());
        assert_eq!(read_bounded(&path, 3).unwrap(), b"two");
        assert_eq!(names(path.parent().unwrap()), ["file.json"]);
    }

    #[test]
    fn what_is_too_large_or_no_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("large");
        fs::write(&path, b"1234").unwrap();
        assert!(read_bounded(&path, 3).unwrap_err().to_string().contains("at most 3 are read"));
        assert!(
            read_bounded(dir.path(), 3).unwrap_err().to_string().contains("not a regular file")
        );
        assert!(
            read_bounded(&dir.path().join("none"), 3).unwrap_err().to_string().contains("none")
        );
    }

    #[test]
    fn moving_never_replaces() {
        let dir = tempfile::tempdir().unwrap();
        let aside = dir.path().join("aside");
        for expected in ["x.json", "x.json.1", "x.json.2"] {
            let path = dir.path().join("x.json");
            fs::write(&path, expected).unwrap();
            assert_eq!(move_into(&path, &aside).unwrap(), aside.join(expected));
        }
        assert_eq!(names(&aside).len(), 3);
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
