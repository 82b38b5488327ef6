//! `glitch report DIR`: writes the page of a campaign, or of a search for a suffix, from what it
//! left in its folder.

use std::path::{Path, PathBuf};

use crate::campaign::Summary;
use crate::case::Case;
use crate::mutate::suffix::Search;
use crate::{Error, Result, report, storage, text};

/// Write the report of a campaign, or of a search for a suffix, as one HTML page.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder that `glitch fuzz` or `glitch suffix` wrote (summary.json or suffix.json, and
    /// cases/).
    dir: PathBuf,
    /// Where to write the page [default: DIR/report.html].
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

pub fn run(args: Args) -> Result<u8> {
    let search = args.dir.join("suffix.json");
    let page = if search.exists() && !args.dir.join("summary.json").exists() {
        report::suffix_page(&Search::read(&search)?, &cases(&args.dir)?)
    } else {
        let (summary, cases) = read(&args.dir)?;
        report::page(&summary, &cases)
    };
    let out = args.out.unwrap_or_else(|| args.dir.join("report.html"));
    storage::write_atomic(&out, page.as_bytes())?;
    super::output::line(text::escape(&out.display().to_string()));
    Ok(0)
}

/// The summary and every readable case of a campaign's folder.
pub fn read(dir: &Path) -> Result<(Summary, Vec<Case>)> {
    let path = dir.join("summary.json");
    let summary: Summary = storage::read_json(&path)?;
    if summary.schema_version > crate::campaign::SCHEMA_VERSION {
        return Err(Error::file(
            path,
            "schema_version",
            format!("{} is newer than this program", summary.schema_version),
        ));
    }
    Ok((summary, cases(dir)?))
}

/// Every readable case of a folder. A bad case is named and left out: it must not hide the others.
fn cases(dir: &Path) -> Result<Vec<Case>> {
    let folder = dir.join("cases");
    let mut files = Vec::new();
    match std::fs::read_dir(&folder) {
        Ok(entries) => {
            for entry in entries {
                let path = entry.map_err(|e| Error::io(&folder, e))?.path();
                if path.extension().is_some_and(|e| e == "json") {
                    files.push(path);
                }
            }
        }
        // A campaign that found nothing has no such folder.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(Error::io(folder, e)),
    }
    files.sort();
    let mut cases = Vec::with_capacity(files.len());
    for file in files {
        match Case::read(&file) {
            Ok(case) => cases.push(case),
            Err(e) => super::output::warn(format!("left out: {e}")),
        }
    }
    Ok(cases)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::sample;

    #[test]
    fn a_bad_case_does_not_hide_the_campaign() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let args = |out: Option<&str>| Args { dir: dir.path().to_owned(), out: out.map(path) };
        assert!(run(args(None)).is_err(), "a folder without a summary");

        std::fs::write(path("summary.json"), serde_json::to_vec(&sample::campaign().0).unwrap())
            .unwrap();
        assert_eq!(run(args(None)).unwrap(), 0, "a campaign that found nothing");
        std::fs::create_dir(path("cases")).unwrap();
        std::fs::write(path("cases/bad.json"), b"{\"schema_version\":").unwrap();
        assert_eq!(run(args(Some("page.html"))).unwrap(), 0);
        assert_eq!(
            std::fs::read(path("report.html")).unwrap(),
            std::fs::read(path("page.html")).unwrap()
        );
    }

    #[test]
    fn a_newer_summary_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let mut summary = sample::campaign().0;
        summary.schema_version = crate::campaign::SCHEMA_VERSION + 1;
        std::fs::write(dir.path().join("summary.json"), serde_json::to_vec(&summary).unwrap())
            .unwrap();
        let error = read(dir.path()).unwrap_err().to_string();
        assert!(error.contains("summary.json: schema_version: 2 is newer"), "{error}");
    }
}
