//! Files that others wrote, read within bounds: texts of the user (prompts, seeds, campaign files),
//! and anything that may be hostile.
//!
//! Editors leave a byte-order mark and Windows line ends in them, which a model would read as
//! tokens. Every such file is read here: bounded, as UTF-8, without the mark, with `\n` alone.

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::Path;

use crate::error::{Error, Result};

/// Largest text that is read for a prompt, a loss or a campaign file.
pub const MAX_TEXT: u64 = 1 << 20;

/// Reads a text of at most `max_bytes`: the byte-order mark is dropped, `\r\n` becomes `\n`. Pipes
/// and devices are read too, up to the same bound.
///
/// # Errors
/// [`Error::File`] for a file that is missing, too large, or not UTF-8 (with the offset of the
/// first bad byte).
pub fn read_text(path: &Path, max_bytes: u64) -> Result<String> {
    let file = File::open(path).map_err(|e| unreadable(path, e))?;
    let mut bytes = Vec::new();
    file.take(max_bytes + 1).read_to_end(&mut bytes).map_err(|e| unreadable(path, e))?;
    if bytes.len() as u64 > max_bytes {
        let message = format!("more than {max_bytes} bytes, which is as much as is read");
        return Err(Error::file(path, "(whole file)", message));
    }
    let text = String::from_utf8(bytes).map_err(|e| {
        let offset = e.utf8_error().valid_up_to();
        Error::file(path, format!("byte {offset}"), "not UTF-8 text")
    })?;
    Ok(text.strip_prefix('\u{feff}').unwrap_or(&text).replace("\r\n", "\n"))
}

/// Reads a file that may be hostile: a larger one, or one that is no regular file, is refused
/// before anything is allocated, and one that grows while it is read is refused then.
pub fn read_bounded(path: &Path, max_bytes: u64) -> Result<Vec<u8>> {
    // Asked before opening: opening a FIFO blocks until somebody writes to it.
    let metadata = fs::metadata(path).map_err(|e| unreadable(path, e))?;
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
    let file = File::open(path).map_err(|e| unreadable(path, e))?;
    let mut bytes = Vec::with_capacity(metadata.len() as usize);
    file.take(max_bytes + 1).read_to_end(&mut bytes).map_err(|e| Error::io(path, e))?;
    if bytes.len() as u64 > max_bytes {
        return Err(too_large(bytes.len() as u64));
    }
    Ok(bytes)
}

/// The error of a file that a user named and that cannot be opened or read.
fn unreadable(path: &Path, error: std::io::Error) -> Error {
    match error.kind() {
        ErrorKind::NotFound => Error::file(path, "path", "no such file or folder"),
        ErrorKind::IsADirectory => Error::file(path, "path", "a folder, not a file"),
        ErrorKind::PermissionDenied => Error::file(path, "path", "permission denied"),
        _ => Error::io(path, error),
    }
}

/// A value that may be a text itself or the name of a file with texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextOrFile<'a> {
    /// The text itself.
    Text(&'a str),
    /// An existing file.
    File(&'a Path),
}

/// File name extensions of texts; a sentence may end in one of the others.
const TEXTS: [&str; 3] = ["txt", "text", "md"];
const OTHERS: [&str; 6] = ["markdown", "json", "jsonl", "csv", "tsv", "toml"];

impl<'a> TextOrFile<'a> {
    /// Tells the name of a file from a text. What exists is a file. What does not exist is a text,
    /// unless it looks like a file name: it ends in `.txt`, `.text` or `.md`, or it has no spaces
    /// and contains a `/` or ends in another extension of texts. A value with `{suffix}` in it is
    /// always a text.
    ///
    /// # Errors
    /// [`Error::File`] for what looks like the name of a file that does not exist.
    pub fn parse(value: &'a str, option: &str) -> Result<Self> {
        let path = Path::new(value);
        if !value.is_empty() && path.exists() && !path.is_dir() {
            return Ok(Self::File(path));
        }
        if looks_like_a_file(value) {
            let message = "no such file (a text that looks like a file name can be put in a file)";
            return Err(Error::file(path, option, message));
        }
        Ok(Self::Text(value))
    }
}

fn looks_like_a_file(value: &str) -> bool {
    let extension = value.rsplit_once('.').map_or("", |(_, extension)| extension);
    let ends_in = |known: &[&str]| known.iter().any(|known| extension.eq_ignore_ascii_case(known));
    let spaces = value.contains(char::is_whitespace);
    !value.contains("{suffix}")
        && (ends_in(&TEXTS) || !spaces && (ends_in(&OTHERS) || value.contains('/')))
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn marks_and_windows_line_ends_are_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.txt");
        let check = |bytes: &[u8], expected: &str| {
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(read_text(&path, 16).unwrap(), expected);
        };
        check(b"a\nb", "a\nb");
        check(b"\xef\xbb\xbfa\r\nb\r\n", "a\nb\n");
        check("a\rb\u{feff}".as_bytes(), "a\rb\u{feff}");
        let fails = |bytes: &[u8], expected: &str| {
            std::fs::write(&path, bytes).unwrap();
            let error = read_text(&path, 16).unwrap_err().to_string();
            assert!(error.contains("x.txt") && error.contains(expected), "{error}");
        };
        fails(b"abc\xff", "byte 3: not UTF-8");
        fails(&[b'a'; 17], "more than 16 bytes");
        assert!(read_text(dir.path(), 16).unwrap_err().to_string().contains("a folder"));
        assert!(read_text(&dir.path().join("no"), 16).unwrap_err().to_string().contains("no such"));
    }

    #[test]
    fn a_mistyped_file_name_is_no_text() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.txt");
        std::fs::write(&path, "x").unwrap();
        let name = path.to_str().unwrap();
        assert_eq!(TextOrFile::parse(name, "--prompt").unwrap(), TextOrFile::File(&path));
        let texts = [
            "It was",
            "either/or is fine",
            "/ is the root",
            "Write it as .json",
            "http://x/{suffix}",
            "one\\ntwo",
            "Hello.",
            "",
        ];
        for text in texts {
            assert_eq!(TextOrFile::parse(text, "--prompt").unwrap(), TextOrFile::Text(text));
        }
        for name in ["no.txt", "NO.TXT", "a/b", "/a", "my prompts.md", "no.json"] {
            let error = TextOrFile::parse(name, "--prompt").unwrap_err().to_string();
            assert!(error.contains("no such file"), "{error}");
        }
    }
}
