//! `glitch report DIR`: writes the page of a campaign, of a search for a suffix or of a comparison,
//! from what it left in its folder.

use std::path::{Path, PathBuf};

use super::{exit, output};
use crate::campaign::Summary;
use crate::case::Case;
use crate::compare::Comparison;
use crate::mutate::suffix::Search;
use crate::storage::{OutputFile, ours};
use crate::{Error, Result, report, storage, text};

/// Write the report of a campaign, of a search for a suffix or of a comparison as one HTML page.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder that `glitch fuzz` or `glitch suffix` wrote (summary.json or suffix.json, and
    /// cases/), or `glitch compare` (comparison.json).
    dir: PathBuf,
    /// Where to write the page [default: DIR/report.html, of a comparison DIR/comparison.html].
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Replace that file if glitch wrote it; an earlier page is always replaced.
    #[arg(long, requires = "out")]
    force: bool,
}

pub fn run(args: Args) -> Result<u8> {
    super::args::exists(&args.dir)?;
    let [campaign, search, comparison] =
        ["summary.json", "suffix.json", "comparison.json"].map(|name| args.dir.join(name));
    let (page, name, bad) = if search.exists() && !campaign.exists() {
        let (cases, bad) = cases(&args.dir)?;
        (report::suffix_page(&Search::read(&search)?, &cases), "report.html", bad)
    } else if comparison.exists() && !campaign.exists() {
        (report::comparison::page(&Comparison::read(&comparison)?), "comparison.html", 0)
    } else {
        let (summary, cases, bad) = read(&args.dir)?;
        (report::page(&summary, &cases), "report.html", bad)
    };
    let path = args.out.unwrap_or_else(|| args.dir.join(name));
    // A page follows from the folder: replacing one loses nothing.
    let earlier = ours::kind(&path) == Some(ours::Kind::Page);
    OutputFile::open(&path, args.force || earlier)?.write(page.as_bytes())?;
    output::line(text::escape(&path.display().to_string()));
    if bad > 0 {
        output::warn(format!("{bad} of the cases could not be read and are not on the page"));
        return Ok(exit::INTERNAL);
    }
    Ok(exit::OK)
}

/// Returns the summary and every readable case of a campaign's folder, and the number of cases that
/// could not be read.
///
/// # Errors
/// [`Error::File`] for a summary that is missing or cannot be read.
pub fn read(dir: &Path) -> Result<(Summary, Vec<Case>, usize)> {
    let path = dir.join("summary.json");
    let summary: Summary = storage::read_json(&path)?;
    storage::check_version(&path, summary.schema_version, crate::campaign::SCHEMA_VERSION)?;
    let (cases, bad) = cases(dir)?;
    Ok((summary, cases, bad))
}

/// Returns every readable case of a folder, and the number of bad ones. A bad case is named and
/// left out: it must not hide the others.
fn cases(dir: &Path) -> Result<(Vec<Case>, usize)> {
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
    let (mut cases, mut bad) = (Vec::with_capacity(files.len()), 0);
    for file in files {
        match Case::read(&file) {
            Ok(case) => cases.push(case),
            Err(e) => {
                output::warn(format!("left out: {e}"));
                bad += 1;
            }
        }
    }
    Ok((cases, bad))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::sample;

    #[test]
    fn a_bad_case_does_not_hide_the_campaign() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let args = |out: Option<&str>| Args {
            dir: dir.path().to_owned(),
            out: out.map(path),
            force: false,
        };
        assert!(run(args(None)).is_err(), "a folder without a summary");

        std::fs::write(path("summary.json"), serde_json::to_vec(&sample::campaign().0).unwrap())
            .unwrap();
        assert_eq!(run(args(None)).unwrap(), 0, "a campaign that found nothing");
        std::fs::create_dir(path("cases")).unwrap();
        std::fs::write(path("cases/bad.json"), b"{\"schema_version\":").unwrap();
        assert_eq!(run(args(Some("page.html"))).unwrap(), exit::INTERNAL);
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
