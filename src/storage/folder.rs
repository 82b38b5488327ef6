//! The folder that a campaign, a search or a comparison writes.
//!
//! Results of an earlier run are never emptied: a new run goes into a sibling (`out-2`, `out-3`,
//! ...), unless `--force` says to replace them, and even then only files that this program wrote
//! ([`ours`]) are replaced. A run holds a lock on its folder from before its first write until it
//! ends; the lock is the operating system's, so that one left by a crash is no lock.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use super::atomic::{create_dir, remove, sync_dir};
use super::ours;
use crate::error::{Error, Result};

/// Name of the file that is locked; it holds the process id of the holder.
const LOCK: &str = ".glitch.lock";

/// Files that a run writes into its folder, beside the cases.
const FILES: [&str; 6] = [
    "journal.log",
    "summary.json",
    "suffix.json",
    "report.html",
    "comparison.json",
    "comparison.html",
];

/// The folder of cases in an output folder.
pub const CASES: &str = "cases";

/// Siblings tried before giving up.
const MAX_SIBLINGS: u32 = 10_000;

/// An output folder, locked while this value lives.
#[derive(Debug)]
pub struct OutputDir {
    path: PathBuf,
    /// Held for its lock.
    _lock: File,
    /// Removed again at the end if nothing was written into it.
    created: bool,
}

impl OutputDir {
    /// Checks what can be checked of a folder before the work, and touches nothing.
    ///
    /// # Errors
    /// [`Error::File`] if `wanted` is not a folder, or if another process is writing it.
    pub fn check(wanted: &Path) -> Result<()> {
        match fs::metadata(wanted) {
            Ok(metadata) if !metadata.is_dir() => {
                return Err(Error::file(wanted, "--out", "not a folder"));
            }
            Err(_) if wanted.symlink_metadata().is_ok() => {
                return Err(Error::file(wanted, "--out", "a symbolic link that leads nowhere"));
            }
            _ => {}
        }
        // Opened for reading: nothing is created, and the lock is let go at once.
        if regular(&wanted.join(LOCK))
            && let Ok(lock) = File::open(wanted.join(LOCK))
        {
            try_lock(wanted, &lock)?;
        }
        Ok(())
    }

    /// Opens a folder for a new run and locks it. A folder with results of an earlier run is left
    /// as it is and a sibling is created, whose path [`OutputDir::path`] tells; with `force`, the
    /// earlier results that this program wrote are removed instead.
    ///
    /// # Errors
    /// [`Error::File`] if `wanted` is not a folder, if another process is writing it, or if a file
    /// that this program did not write stands where one has to go.
    pub fn create(wanted: &Path, force: bool) -> Result<Self> {
        Self::check(wanted)?;
        if !force && occupied(wanted)? {
            return Self::sibling(wanted);
        }
        let created = !wanted.is_dir();
        create_dir(wanted)?;
        let dir = Self { path: wanted.to_owned(), _lock: lock(wanted)?, created };
        // Asked again under the lock: another run may have ended in between.
        if !occupied(wanted)? {
            return Ok(dir);
        }
        if !force {
            drop(dir);
            return Self::sibling(wanted);
        }
        let earlier = replaceable(wanted)?;
        earlier.iter().try_for_each(|path| remove(path))?;
        sync_dir(wanted);
        Ok(dir)
    }

    /// Opens the folder of an earlier run to continue in place, and locks it.
    ///
    /// # Errors
    /// [`Error::File`] if another process is writing it, or if a file that this program did not
    /// write stands where one has to go.
    pub fn resume(path: &Path) -> Result<Self> {
        Self::check(path)?;
        let dir = Self { path: path.to_owned(), _lock: lock(path)?, created: false };
        replaceable(path)?;
        Ok(dir)
    }

    /// Creates `NAME-2`, `NAME-3`, ...: the first that does not exist.
    fn sibling(wanted: &Path) -> Result<Self> {
        let Some(name) = wanted.file_name() else {
            let message = "holds earlier results; choose another folder, or replace them with \
                --force";
            return Err(Error::file(wanted, "--out", message));
        };
        for number in 2..MAX_SIBLINGS {
            let mut name = name.to_owned();
            name.push(format!("-{number}"));
            let path = wanted.with_file_name(name);
            match fs::create_dir(&path) {
                Ok(()) => {
                    let lock = lock(&path)?;
                    return Ok(Self { path, _lock: lock, created: true });
                }
                Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
                Err(e) => return Err(Error::io(path, e)),
            }
        }
        Err(Error::file(wanted, "--out", format!("has {MAX_SIBLINGS} siblings already")))
    }

    /// Returns the folder that is written, which may be a sibling of the one asked for.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Creates the folder of cases and returns its path.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be created.
    pub fn cases(&self) -> Result<PathBuf> {
        let cases = self.path.join(CASES);
        create_dir(&cases)?;
        Ok(cases)
    }
}

impl Drop for OutputDir {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.path.join(LOCK));
        if self.created {
            // Only an empty folder can be removed.
            let _ = fs::remove_dir(&self.path);
        }
    }
}

/// Returns whether a folder holds anything that a run would write, whoever wrote it.
fn occupied(dir: &Path) -> Result<bool> {
    let exists = |name: &str| dir.join(name).symlink_metadata().is_ok();
    let cases = dir.join(CASES);
    let odd_cases = exists(CASES) && !cases.symlink_metadata().is_ok_and(|m| m.is_dir());
    Ok(FILES.iter().any(|name| exists(name)) || odd_cases || !json_files(&cases)?.is_empty())
}

/// Returns the earlier results in a folder that may be replaced: regular files that this program
/// wrote.
///
/// # Errors
/// [`Error::File`] for what stands where a run writes and is not such a file.
fn replaceable(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for path in FILES.map(|name| dir.join(name)) {
        if path.symlink_metadata().is_ok() {
            if ours::kind(&path).is_none() {
                return Err(ours::foreign(&path));
            }
            found.push(path);
        }
    }
    let cases = dir.join(CASES);
    match cases.symlink_metadata() {
        Ok(metadata) if !metadata.is_dir() => return Err(ours::foreign(&cases)),
        _ => {}
    }
    // Other files may stay among the cases: no case has their names.
    found.extend(
        json_files(&cases)?.into_iter().filter(|path| ours::kind(path) == Some(ours::Kind::Case)),
    );
    Ok(found)
}

/// The `.json` entries of a directory; none if there is no such directory.
fn json_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(e) => return Err(Error::io(dir, e)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| Error::io(dir, e))?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            files.push(path);
        }
    }
    Ok(files)
}

fn regular(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|metadata| metadata.is_file())
}

/// Creates the lock file of a folder if there is none, locks it, and writes this process's id.
fn lock(dir: &Path) -> Result<File> {
    let path = dir.join(LOCK);
    let io = |e| Error::io(&path, e);
    loop {
        if path.symlink_metadata().is_ok() && !regular(&path) {
            return Err(ours::foreign(&path));
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let mut file = options.open(&path).map_err(io)?;
        try_lock(dir, &file)?;
        // The holder before may have removed the file between the two calls: then this lock is on
        // a file that nobody else will find.
        if !same_file(&path, &file) {
            continue;
        }
        let mut found = String::new();
        let read = Read::by_ref(&mut file).take(64).read_to_string(&mut found);
        if read.is_err() || !found.trim().chars().all(|c| c.is_ascii_digit()) {
            return Err(ours::foreign(&path));
        }
        file.set_len(0).map_err(io)?;
        std::io::Seek::rewind(&mut file).map_err(io)?;
        file.write_all(format!("{}\n", std::process::id()).as_bytes()).map_err(io)?;
        return Ok(file);
    }
}

/// Takes the lock of a folder, or says which process has it. File systems without locks are let
/// pass.
fn try_lock(dir: &Path, lock: &File) -> Result<()> {
    // Somebody who only looks ([`OutputDir::check`]) lets go at once.
    for _ in 0..5 {
        if !matches!(lock.try_lock(), Err(fs::TryLockError::WouldBlock)) {
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let holder = fs::read_to_string(dir.join(LOCK)).unwrap_or_default();
    let holder = match holder.trim().parse::<u32>() {
        Ok(pid) => format!("process {pid}"),
        Err(_) => "another process".to_owned(),
    };
    let message = format!("in use by {holder}; wait for it or choose another --out");
    Err(Error::file(dir, "--out", message))
}

#[cfg(unix)]
fn same_file(path: &Path, file: &File) -> bool {
    use std::os::unix::fs::MetadataExt;
    let id = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    let (named, opened) = (fs::metadata(path).map(id), file.metadata().map(id));
    named.is_ok_and(|named| opened.is_ok_and(|opened| named == opened))
}

/// An open file cannot be removed here.
#[cfg(not(unix))]
fn same_file(_: &Path, _: &File) -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUMMARY: &str =
        r#"{"schema_version":1,"model":1,"seed":1,"evaluations":1,"findings_raw":1}"#;

    #[test]
    fn earlier_results_stay_and_a_sibling_is_written() {
        let root = tempfile::tempdir().unwrap();
        let out = root.path().join("out");
        for expected in ["out", "out-2", "out-3"] {
            let dir = OutputDir::create(&out, false).unwrap();
            assert_eq!(dir.path(), root.path().join(expected));
            fs::write(dir.path().join("journal.log"), "glitch-journal 1\n").unwrap();
        }
        // Files that no run writes are no earlier results.
        let notes = root.path().join("notes");
        fs::create_dir(&notes).unwrap();
        fs::write(notes.join("README"), "mine").unwrap();
        assert_eq!(OutputDir::create(&notes, false).unwrap().path(), notes);
        // Other people's cases are.
        fs::create_dir(notes.join(CASES)).unwrap();
        fs::write(notes.join("cases/notes.json"), "{\"mine\":1}").unwrap();
        assert_ne!(OutputDir::create(&notes, false).unwrap().path(), notes);
    }

    #[test]
    fn force_replaces_files_of_ours_and_no_others() {
        let root = tempfile::tempdir().unwrap();
        let out = root.path();
        fs::create_dir(out.join(CASES)).unwrap();
        let place = |name: &str, text: &str| fs::write(out.join(name), text).unwrap();
        place("journal.log", "glitch-journal 1\n");
        place("summary.json", SUMMARY);
        place("cases/notes.json", "{\"mine\":1}");
        place("README", "mine");
        drop(OutputDir::create(out, true).unwrap());
        assert!(!out.join("journal.log").exists() && !out.join("summary.json").exists());
        assert!(out.join("cases/notes.json").exists() && out.join("README").exists());
        // A file of somebody else's where one has to go: nothing at all is removed.
        place("journal.log", "glitch-journal 1\n");
        place("report.html", "<!DOCTYPE html>\n<title>holiday</title>");
        let error = OutputDir::create(out, true).unwrap_err().to_string();
        assert!(error.contains("report.html") && error.contains("did not write"), "{error}");
        assert!(out.join("journal.log").exists());
    }

    #[cfg(unix)]
    #[test]
    fn nothing_is_removed_through_links() {
        use std::os::unix::fs::symlink;
        let root = tempfile::tempdir().unwrap();
        let (out, theirs) = (root.path().join("out"), root.path().join("theirs"));
        fs::create_dir(&out).unwrap();
        fs::create_dir(&theirs).unwrap();
        fs::write(theirs.join("summary.json"), SUMMARY).unwrap();
        symlink(&theirs, out.join(CASES)).unwrap();
        assert!(OutputDir::create(&out, true).is_err());
        fs::remove_file(out.join(CASES)).unwrap();
        symlink(theirs.join("summary.json"), out.join("summary.json")).unwrap();
        assert!(OutputDir::create(&out, true).is_err());
        assert_ne!(OutputDir::create(&out, false).unwrap().path(), out);
        fs::remove_file(out.join("summary.json")).unwrap();
        symlink(theirs.join("summary.json"), out.join(LOCK)).unwrap();
        assert!(OutputDir::create(&out, false).is_err());
        assert_eq!(fs::read_to_string(theirs.join("summary.json")).unwrap(), SUMMARY);
    }

    #[test]
    fn a_folder_has_one_writer_and_the_error_names_it() {
        let root = tempfile::tempdir().unwrap();
        let out = root.path().join("out");
        let first = OutputDir::create(&out, false).unwrap();
        let holder = format!("in use by process {}", std::process::id());
        let fails = |result: Result<OutputDir>| {
            let error = result.unwrap_err().to_string();
            assert!(error.contains(&holder), "{error}");
        };
        fails(OutputDir::create(&out, false));
        fails(OutputDir::create(&out, true));
        fails(OutputDir::resume(&out));
        assert!(OutputDir::check(&out).is_err());
        drop(first);
        assert!(!out.exists(), "nothing was written");
        // A lock file that a crash left behind locks nothing.
        fs::create_dir(&out).unwrap();
        fs::write(out.join(LOCK), "4242\n").unwrap();
        OutputDir::create(&out, false).unwrap();
    }

    #[test]
    fn a_file_is_no_folder() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("plain");
        fs::write(&path, "").unwrap();
        let error = OutputDir::create(&path, true).unwrap_err().to_string();
        assert!(error.contains("not a folder"), "{error}");
    }
}
