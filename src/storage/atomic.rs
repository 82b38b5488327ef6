//! Files that are whole or absent: written to a temporary file beside their place, synced, renamed.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Creates a directory and its parents.
pub fn create_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(|e| Error::io(path, e))
}

/// The directory a file is in; a bare name is in the current one.
pub(super) fn parent(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes a rename or a new file in `dir` survive a power cut. Some file systems do not let a
/// directory be synced; what they lose then is the last rename, never a file's integrity.
pub(super) fn sync_dir(dir: &Path) {
    if let Ok(handle) = File::open(dir) {
        let _ = handle.sync_all();
    }
}

/// Creates a temporary file in a directory; it is removed when it is dropped.
pub(super) fn temporary_in(dir: &Path) -> Result<tempfile::NamedTempFile> {
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

/// Removes a file, if there is one.
pub(super) fn remove(path: &Path) -> Result<()> {
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
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(names(path.parent().unwrap()), ["file.json"]);
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
}
