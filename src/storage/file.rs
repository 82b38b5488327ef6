//! A single output file that the user names: `--out FILE`.
//!
//! It is opened before the work begins, so that a mistake is told at once. A device, a pipe or a
//! terminal is written to; a symbolic link is followed; a regular file that holds anything is
//! replaced with `--force` alone, and only if this program wrote it.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use super::atomic::{create_dir, parent, temporary_in, write_atomic};
use super::ours;
use crate::error::{Error, Result};

/// Links followed before a path counts as a loop.
const MAX_LINKS: u32 = 40;

/// A file that can be written, but has not been yet.
#[derive(Debug)]
pub struct OutputFile {
    named: PathBuf,
    target: Target,
}

#[derive(Debug)]
enum Target {
    /// Written in place: a device, a pipe, an empty file.
    Open(File),
    /// Written whole or not at all.
    Whole(PathBuf),
}

impl OutputFile {
    /// Opens `path` for writing. Nothing is changed by it but for missing folders, which are
    /// created.
    ///
    /// # Errors
    /// [`Error::File`] for a folder, and for a regular file that may not be replaced;
    /// [`Error::Io`] for what cannot be written.
    pub fn open(path: &Path, force: bool) -> Result<Self> {
        let named = path.to_owned();
        let metadata = match fs::metadata(path) {
            Ok(metadata) => metadata,
            Err(_) => {
                let target = resolved(path)?;
                create_dir(parent(&target))?;
                temporary_in(parent(&target))?;
                return Ok(Self { named, target: Target::Whole(target) });
            }
        };
        if metadata.is_dir() {
            return Err(Error::file(path, "--out", "a folder, not a file"));
        }
        // `/dev/stdout` may lead to a regular file that is already open and must not be replaced.
        let system = path.starts_with("/dev") || path.starts_with("/proc");
        if !metadata.is_file() || system || metadata.len() == 0 {
            let mut options = OpenOptions::new();
            let file = options.append(true).open(path).map_err(|e| Error::io(path, e))?;
            return Ok(Self { named, target: Target::Open(file) });
        }
        if !force {
            return Err(Error::file(path, "--out", "exists already; --force replaces it"));
        }
        let target = resolved(path)?;
        if ours::kind(&target).is_none() {
            return Err(ours::foreign(path));
        }
        temporary_in(parent(&target))?;
        Ok(Self { named, target: Target::Whole(target) })
    }

    /// Returns the path as the user gave it.
    pub fn path(&self) -> &Path {
        &self.named
    }

    /// Writes what there is so far, whole, in the place of what an earlier call wrote; nothing to a
    /// device, a pipe or an empty file, which are written once.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be written.
    pub fn keep(&self, bytes: &[u8]) -> Result<()> {
        match &self.target {
            Target::Open(_) => Ok(()),
            Target::Whole(path) => write_atomic(path, bytes),
        }
    }

    /// Writes the content.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be written.
    pub fn write(self, bytes: &[u8]) -> Result<()> {
        match self.target {
            Target::Open(mut file) => file
                .write_all(bytes)
                .and_then(|()| file.flush())
                .map_err(|e| Error::io(self.named, e)),
            Target::Whole(path) => write_atomic(&path, bytes),
        }
    }
}

/// Follows symbolic links to the file itself, which need not exist.
fn resolved(path: &Path) -> Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        match fs::read_link(&path) {
            Ok(target) => path = parent(&path).join(target),
            Err(_) => return Ok(path),
        }
    }
    Err(Error::file(path, "--out", "a loop of symbolic links"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROW: &str = "{\"case\":\"c\",\"from\":\"a\",\"to\":\"b\",\"outcome\":null}\n";

    #[test]
    fn a_file_is_replaced_only_if_forced_and_ours() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/rows.jsonl");
        let write = |force| OutputFile::open(&path, force)?.write(ROW.as_bytes());
        write(false).unwrap();
        assert!(write(false).unwrap_err().to_string().contains("--force"));
        write(true).unwrap();
        fs::write(&path, "mine").unwrap();
        assert!(write(true).unwrap_err().to_string().contains("did not write"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
        // A file that mktemp made holds nothing to lose.
        fs::write(&path, "").unwrap();
        write(false).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), ROW);
        assert!(OutputFile::open(dir.path(), true).is_err());
    }

    #[test]
    fn rows_so_far_are_kept_and_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.jsonl");
        let file = OutputFile::open(&path, false).unwrap();
        for kept in ["a\n", "a\nb\n"] {
            file.keep(kept.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), kept);
        }
        file.write(b"c\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "c\n");
        // What is written in place is written once.
        fs::write(&path, "").unwrap();
        let file = OutputFile::open(&path, false).unwrap();
        file.keep(b"a\n").unwrap();
        file.write(b"b\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "b\n");
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_and_stay_links() {
        let dir = tempfile::tempdir().unwrap();
        let (real, link) = (dir.path().join("real"), dir.path().join("link"));
        std::os::unix::fs::symlink("real", &link).unwrap();
        OutputFile::open(&link, false).unwrap().write(b"new").unwrap();
        assert_eq!(fs::read_to_string(&real).unwrap(), "new");
        assert!(link.symlink_metadata().unwrap().is_symlink());
        assert!(OutputFile::open(&link, false).is_err());
    }
}
