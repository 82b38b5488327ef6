//! Regression cases in a directory: add, list, verify, set aside.

mod files;
mod locate;
mod replay;
mod under_test;

pub use files::{entries, files};
pub use locate::load_model;
pub use replay::{Outcome, Status, holds_under, replay};
pub use under_test::{ModelUnderTest, judged_by};

use std::path::{Path, PathBuf};

use crate::case::Case;
use crate::error::{Error, Result};
use crate::storage;

/// Where the regression cases of a checkout are.
pub const REGRESSIONS: &str = "corpus/regressions";

/// Name of the directory, inside a corpus, for what could not be read.
pub const QUARANTINE: &str = "quarantine";

/// A file of a corpus and what reading it gave.
#[derive(Debug)]
pub struct Entry {
    /// The file.
    pub path: PathBuf,
    /// Its case, or why it is none.
    pub case: Result<Case>,
}

/// A case that could not be read.
#[derive(Debug)]
pub struct Bad {
    /// The file.
    pub path: PathBuf,
    /// The fault.
    pub error: Error,
    /// Where it was moved, if it was.
    pub moved: Option<PathBuf>,
}

/// The files of a corpus, sorted into cases and others.
#[derive(Debug)]
pub struct Verified {
    /// Files that are a case under its own name.
    pub good: Vec<(PathBuf, Case)>,
    /// All other files.
    pub bad: Vec<Bad>,
}

/// Copies a case into the corpus under its id, as the very bytes that were validated. One that is
/// there already is refused.
pub fn add(file: &Path, corpus: &Path) -> Result<PathBuf> {
    let bytes = storage::read_bounded(file, storage::MAX_FILE)?;
    let case = Case::parse(file, &bytes)?;
    let target = corpus.join(format!("{}.json", case.id));
    match storage::write_new(&target, &bytes)? {
        true => Ok(target),
        false => Err(Error::file(
            file,
            "id",
            format!("{} is in the corpus already: {}", case.id, target.display()),
        )),
    }
}

/// Reads all cases; bad ones are reported and, if `quarantine`, moved to `quarantine/` in the
/// corpus. A case under another name than its id's is bad too: it would be a duplicate nobody
/// notices.
pub fn verify(corpus: &Path, quarantine: bool) -> Result<Verified> {
    let mut verified = Verified { good: Vec::new(), bad: Vec::new() };
    for Entry { path, case } in entries(corpus)? {
        let error = match case {
            Ok(case) if path.file_stem().is_some_and(|stem| stem == case.id.as_str()) => {
                verified.good.push((path, case));
                continue;
            }
            Ok(case) => Error::file(
                &path,
                "id",
                format!("the file of this case is to be named {}.json", case.id),
            ),
            Err(error) => error,
        };
        // One that cannot be moved stays, reported all the same.
        let dir = if corpus.is_dir() { corpus } else { corpus.parent().unwrap_or(Path::new("")) };
        let moved =
            if quarantine { storage::move_into(&path, &dir.join(QUARANTINE)).ok() } else { None };
        verified.bad.push(Bad { path, error, moved });
    }
    Ok(verified)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::tests::example;

    #[test]
    fn a_case_is_added_once_under_its_id() {
        let dir = tempfile::tempdir().unwrap();
        let (from, corpus) = (dir.path().join("x.json"), dir.path().join("corpus/regressions"));
        let case = example();
        std::fs::write(&from, serde_json::to_vec(&case).unwrap()).unwrap();
        let added = add(&from, &corpus).unwrap();
        assert_eq!(added, corpus.join(format!("{}.json", case.id)));
        assert_eq!(std::fs::read(&added).unwrap(), std::fs::read(&from).unwrap());
        assert!(add(&from, &corpus).unwrap_err().to_string().contains("in the corpus already"));
        assert_eq!(files(&corpus).unwrap(), [added]);
        std::fs::write(&from, "{}").unwrap();
        assert!(add(&from, &corpus).is_err());
    }

    #[test]
    fn a_bad_case_is_set_aside_and_the_others_stay() {
        let dir = tempfile::tempdir().unwrap();
        let good = example().write(dir.path()).unwrap();
        std::fs::write(dir.path().join("0.json"), "{").unwrap();
        std::fs::copy(&good, dir.path().join("z.json")).unwrap();
        std::fs::write(dir.path().join("notes.txt"), "no case").unwrap();
        let names = |verified: &Verified| -> Vec<String> {
            verified
                .bad
                .iter()
                .map(|b| b.path.file_name().unwrap().to_string_lossy().into_owned())
                .collect()
        };
        for quarantine in [false, true] {
            let verified = verify(dir.path(), quarantine).unwrap();
            assert_eq!(verified.good.len(), 1);
            assert_eq!(names(&verified), ["0.json", "z.json"]);
            assert!(verified.bad.iter().all(|bad| bad.moved.is_some() == quarantine));
            assert!(verified.bad[0].error.to_string().contains("0.json"));
        }
        assert!(verify(dir.path(), true).unwrap().bad.is_empty());
        assert!(dir.path().join("quarantine/0.json").exists());
        assert!(verify(&dir.path().join("none"), false).is_err());
    }
}
