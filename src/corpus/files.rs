//! Finds the case files in a folder, however deep they lie.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use super::{Entry, QUARANTINE};
use crate::case::Case;
use crate::error::{Error, Result};
use crate::storage::CASES;

/// Folders below the one named that are looked into.
const MAX_DEPTH: usize = 16;
/// Entries looked at before giving up.
const MAX_ENTRIES: usize = 1_000_000;
/// Bytes of a file in which the marks of a case are looked for.
const HEAD: u64 = 64 << 10;

/// Returns the case files of a folder, sorted by path; a path that is a file stands for itself.
///
/// The folder itself counts with every `.json` file in it, and so does every folder called `cases`.
/// If there are cases in `cases`, the other files beside it are a campaign's own. In folders
/// further down, a `.json` file counts only if it is named or begins like a case: a model's
/// configuration is no broken case. Links to folders are not followed, and `quarantine` and hidden
/// folders are left out.
///
/// # Errors
/// [`Error::File`] for a path that does not exist or a folder too large to search; [`Error::Io`]
/// for one that cannot be read.
pub fn files(path: &Path) -> Result<Vec<PathBuf>> {
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => {}
        Ok(_) => return Ok(vec![path.to_path_buf()]),
        Err(_) => return Err(Error::file(path, "path", "no such file or folder")),
    }
    let mut search = Search { top: path, files: Vec::new(), entries: 0 };
    search.folder(path, !path.join(CASES).is_dir(), MAX_DEPTH)?;
    search.files.sort();
    Ok(search.files)
}

struct Search<'a> {
    top: &'a Path,
    files: Vec<PathBuf>,
    entries: usize,
}

impl Search<'_> {
    /// Looks into a folder; with `all`, every `.json` file in it counts as a case.
    fn folder(&mut self, dir: &Path, all: bool, depth: usize) -> Result<()> {
        let io = |e| Error::io(dir, e);
        for entry in std::fs::read_dir(dir).map_err(io)? {
            let entry = entry.map_err(io)?;
            self.entries += 1;
            if self.entries > MAX_ENTRIES {
                let message = format!("more than {MAX_ENTRIES} files and folders; name one below");
                return Err(Error::file(self.top, "path", message));
            }
            let (path, name) = (entry.path(), entry.file_name());
            let hidden = name.as_encoded_bytes().starts_with(b".");
            // The type of the entry itself, not of what a link leads to.
            if entry.file_type().map_err(io)?.is_dir() {
                if depth > 0 && name != QUARANTINE && !hidden {
                    self.folder(&path, name == CASES, depth - 1)?;
                }
            } else if path.extension().is_some_and(|extension| extension == "json")
                && !path.is_dir()
                && (all || like_a_case(&path))
            {
                self.files.push(path);
            }
        }
        Ok(())
    }
}

/// Returns whether a file is named or begins like a case.
fn like_a_case(path: &Path) -> bool {
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    if stem.len() == 16 && stem.chars().all(|c| c.is_ascii_hexdigit()) {
        return true;
    }
    // A pipe would block.
    if !path.metadata().is_ok_and(|metadata| metadata.is_file()) {
        return false;
    }
    let mut head = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(HEAD).read_to_end(&mut head));
    let has = |mark: &[u8]| head.windows(mark.len()).any(|bytes| bytes == mark);
    read.is_ok()
        && [&b"\"schema_version\""[..], b"\"fingerprint\"", b"\"base\""].into_iter().all(has)
}

/// Reads every case of a folder (or the one file), one after the other; a bad one is an entry with
/// its error and does not keep the others from being read.
///
/// # Errors
/// Those of [`files`].
pub fn entries(path: &Path) -> Result<impl Iterator<Item = Entry>> {
    Ok(files(path)?.into_iter().map(|path| Entry { case: Case::read(&path), path }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::tests::example;

    #[test]
    fn cases_are_found_however_deep_they_lie() {
        let root = tempfile::tempdir().unwrap();
        let place = |name: &str, text: &str| {
            let path = root.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, text).unwrap();
            path
        };
        let case = serde_json::to_string(&example()).unwrap();
        let mut expected = vec![
            place("a/b/renamed.json", &case),
            place("a/0123456789abcdef.json", "{"),
            place("quick/cases/x.json", "no case, and told so"),
            place("top.json", "{}"),
        ];
        for other in [
            "quick/summary.json",
            "models/config.json",
            "quarantine/0123456789abcdef.json",
            ".git/0123456789abcdef.json",
            "a/notes.txt",
        ] {
            place(other, "{\"schema_version\":1}");
        }
        expected.sort();
        assert_eq!(files(root.path()).unwrap(), expected);
        let quick = root.path().join("quick");
        assert_eq!(files(&quick).unwrap(), [quick.join("cases/x.json")]);
        assert!(files(&root.path().join("none")).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn a_loop_of_links_ends() {
        let root = tempfile::tempdir().unwrap();
        let inner = root.path().join("a/b");
        std::fs::create_dir_all(&inner).unwrap();
        std::os::unix::fs::symlink(root.path(), inner.join("up")).unwrap();
        let case = example().write(&inner).unwrap();
        assert_eq!(files(root.path()).unwrap(), [case]);
    }
}
