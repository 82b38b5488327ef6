//! Nothing of a user's is deleted unasked: what stands in a folder or a file before a run stands
//! there after it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::cli::Ran;
use super::made;

/// Runs the program in a folder.
pub fn glitch_in(dir: &Path, args: &[&str]) -> Ran {
    let mut command = command_in(dir, args);
    let output = command.output().unwrap();
    Ran {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

fn command_in(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_glitch"));
    command.args(args).current_dir(dir).stdin(Stdio::null());
    command
}

/// Runs the program and checks its exit code; returns what it said on standard error.
fn run(dir: &Path, args: &[&str], code: i32) -> String {
    let ran = glitch_in(dir, args);
    assert_eq!(ran.code, code, "{args:?}\n{}{}", ran.stdout, ran.stderr);
    assert!(!ran.stderr.contains("panicked"), "{args:?}: {}", ran.stderr);
    ran.stderr
}

/// Every file below a folder, with its content.
fn tree(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.insert(path.clone(), fs::read(path).unwrap());
            }
        }
    }
    found
}

const FUZZ: [&str; 7] = ["fuzz", "--max-evals", "1", "--mutate", "tokens", "--out", "o"];
const SUFFIX: [&str; 14] = [
    "suffix",
    "--prompt",
    "It was",
    "--target",
    " zebra",
    "--steps",
    "1",
    "--length",
    "2",
    "--width",
    "8",
    "--no-implication",
    "--out",
    "o",
];

#[test]
fn a_campaign_that_cannot_start_leaves_the_last_one_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    run(dir, &FUZZ, 0);
    made::case().write(&dir.join("o/cases")).unwrap();
    let before = tree(&dir.join("o"));
    assert!(before.contains_key(&dir.join("o/journal.log")));
    run(dir, &["fuzz", "--model", "/no/such/model", "--out", "o"], 3);
    run(dir, &["fuzz", "--model", "/no/such/model", "--out", "o", "--force"], 3);
    fs::write(dir.join("seeds.toml"), "seeds = [\"none.txt\"]\nout = \"o\"\n").unwrap();
    run(dir, &["fuzz", "seeds.toml"], 2);
    run(dir, &["fuzz", "seeds.toml", "--force"], 2);
    assert_eq!(tree(&dir.join("o")), before);
    assert!(!dir.join("o-2").exists());
}

#[test]
fn a_second_campaign_goes_beside_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    run(dir, &FUZZ, 0);
    made::case().write(&dir.join("o/cases")).unwrap();
    fs::write(dir.join("o/notes"), "mine").unwrap();
    let before = tree(&dir.join("o"));
    let said = run(dir, &FUZZ, 0);
    assert_eq!(said.lines().filter(|line| line.contains("o-2")).count(), 1, "{said}");
    assert_eq!(tree(&dir.join("o")), before);
    assert!(dir.join("o-2/summary.json").exists() && dir.join("o-2/report.html").exists());
    // Forced, the files of the first go, and no others.
    fs::write(dir.join("o/cases/notes.json"), "{\"mine\":1}").unwrap();
    let said = run(dir, &[&FUZZ[..], &["--force"]].concat(), 0);
    assert!(!said.contains("o-3"), "{said}");
    let after = tree(&dir.join("o"));
    assert_eq!(after[&dir.join("o/cases/notes.json")], b"{\"mine\":1}");
    assert_eq!(after[&dir.join("o/notes")], b"mine");
    assert_eq!(after.len(), 5, "{:?}", after.keys());
}

#[test]
fn json_files_that_no_campaign_wrote_are_not_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    fs::create_dir_all(dir.join("o/cases")).unwrap();
    fs::write(dir.join("o/cases/notes.json"), "{\"mine\":1}").unwrap();
    for args in [&FUZZ[..], &[&FUZZ[..], &["--force"]].concat()] {
        run(dir, args, 0);
        assert_eq!(fs::read(dir.join("o/cases/notes.json")).unwrap(), b"{\"mine\":1}");
    }
}

#[test]
fn a_campaign_file_deletes_nothing_in_the_folder_it_names() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    fs::create_dir_all(dir.join("p/proj/cases")).unwrap();
    for name in ["cases/a.json", "journal.log", "summary.json", "report.html"] {
        fs::write(dir.join("p/proj").join(name), "mine").unwrap();
    }
    let before = tree(dir);
    fs::write(dir.join("hostile.toml"), "model=\"nope\"\nout=\"p/proj\"\n").unwrap();
    run(dir, &["fuzz", "hostile.toml"], 3);
    let good = "max_evals = 1\nmutate = [\"tokens\"]\nout=\"p/proj\"\n";
    fs::write(dir.join("good.toml"), good).unwrap();
    run(dir, &["fuzz", "good.toml"], 0);
    assert!(run(dir, &["fuzz", "good.toml", "--force"], 2).contains("did not write"));
    for (path, content) in &before {
        assert_eq!(fs::read(path).unwrap(), *content, "{}", path.display());
    }
    assert!(dir.join("p/proj-2/summary.json").exists());
}

#[test]
fn a_search_and_a_campaign_leave_each_other_alone() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    run(dir, &FUZZ, 0);
    made::case().write(&dir.join("o/cases")).unwrap();
    let campaign = tree(&dir.join("o"));
    let said = run(dir, &SUFFIX, 0);
    assert!(said.contains("o-2"), "{said}");
    let search = tree(&dir.join("o-2"));
    assert!(search.contains_key(&dir.join("o-2/suffix.json")));
    // Another search, without --resume, does not replace the first.
    let mut other = SUFFIX;
    (other[2], other[13]) = ("Other", "o-2");
    assert!(run(dir, &other, 0).contains("o-2-2"));
    assert_eq!((tree(&dir.join("o")), tree(&dir.join("o-2"))), (campaign, search));
    // With --resume it goes on in place.
    let mut resumed = SUFFIX.to_vec();
    (resumed[6], resumed[13]) = ("1", "o-2");
    resumed.push("--resume");
    run(dir, &resumed, 0);
    assert!(!dir.join("o-2-3").exists());
}

/// Waits for something to happen in a process that runs.
fn wait(child: &mut Child, happened: impl Fn() -> bool) {
    let started = Instant::now();
    while !happened() {
        assert!(child.try_wait().unwrap().is_none(), "it ended");
        assert!(started.elapsed() < Duration::from_secs(300), "it takes too long");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[cfg(unix)]
fn signal(child: &Child, name: &str) {
    let id = child.id().to_string();
    assert!(Command::new("kill").args([name, &id]).status().unwrap().success());
}

/// A campaign that goes on until it is told to end.
fn running(dir: &Path) -> Child {
    let args = ["fuzz", "--max-time", "10m", "--mutate", "tokens", "--out", "o"];
    let mut command = command_in(dir, &args);
    hears_hangups(&mut command);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait(&mut child, || dir.join("o/journal.log").exists());
    child
}

/// Undoes the `nohup` that the tests themselves may run under.
#[cfg(unix)]
fn hears_hangups(command: &mut Command) {
    use std::os::unix::process::CommandExt as _;
    let restore = || {
        // SAFETY: a plain system call, which is safe between fork and exec.
        unsafe { libc::signal(libc::SIGHUP, libc::SIG_DFL) };
        Ok(())
    };
    // SAFETY: as above.
    unsafe { command.pre_exec(restore) };
}

#[cfg(not(unix))]
fn hears_hangups(_: &mut Command) {}

#[cfg(unix)]
#[test]
fn two_campaigns_never_write_one_folder() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut first = running(dir);
    let holder = format!("in use by process {}", first.id());
    for args in [&FUZZ[..], &[&FUZZ[..], &["--force"]].concat(), &SUFFIX] {
        let said = run(dir, args, 2);
        assert!(said.contains(&holder), "{args:?}: {said}");
    }
    signal(&first, "-TERM");
    assert_eq!(first.wait().unwrap().code(), Some(130));
    assert!(dir.join("o/summary.json").exists() && !dir.join("o-2").exists());
    // A process that was killed outright holds nothing.
    fs::write(dir.join("o/.glitch.lock"), format!("{}\n", first.id())).unwrap();
    assert!(run(dir, &FUZZ, 0).contains("o-2"));
}

#[cfg(unix)]
#[test]
fn a_campaign_that_is_terminated_or_hung_up_writes_its_report() {
    for name in ["-TERM", "-HUP"] {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let mut child = running(dir);
        signal(&child, name);
        assert_eq!(child.wait().unwrap().code(), Some(130), "{name}");
        let summary = fs::read(dir.join("o/summary.json")).unwrap();
        let summary: serde_json::Value = serde_json::from_slice(&summary).unwrap();
        assert_eq!(summary["stopped_by"], "interrupted", "{name}");
        assert!(dir.join("o/report.html").is_file(), "{name}");
        run(dir, &["report", "o"], 0);
    }
}

#[cfg(unix)]
#[test]
fn a_campaign_under_nohup_ignores_a_hangup() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let program = env!("CARGO_BIN_EXE_glitch");
    let script = "trap '' HUP; exec \"$0\" fuzz --max-time 10m --mutate tokens --out o";
    let mut command = Command::new("sh");
    command.args(["-c", script, program]).current_dir(dir).stdin(Stdio::null());
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait(&mut child, || dir.join("o/journal.log").exists());
    signal(&child, "-HUP");
    std::thread::sleep(Duration::from_millis(500));
    assert!(child.try_wait().unwrap().is_none(), "it ended");
    signal(&child, "-TERM");
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

const SWEEP: [&str; 3] = ["sweep", "mlps", "--out"];

fn sweep_to(file: &str) -> Vec<&str> {
    [&SWEEP[..], &[file, "--passages", "2"]].concat()
}

#[test]
fn rows_of_a_sweep_replace_no_file_unasked() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    fs::write(dir.join("mine"), "mine").unwrap();
    for args in [sweep_to("mine"), [&sweep_to("mine")[..], &["--force"]].concat()] {
        let ran = glitch_in(dir, &args);
        assert_eq!((ran.code, ran.stdout.as_str()), (2, ""), "{}", ran.stderr);
        assert_eq!(fs::read_to_string(dir.join("mine")).unwrap(), "mine");
    }
    run(dir, &sweep_to("rows"), 0);
    let rows = fs::read(dir.join("rows")).unwrap();
    assert!(run(dir, &sweep_to("rows"), 2).contains("--force"));
    assert_eq!(fs::read(dir.join("rows")).unwrap(), rows);
    run(dir, &[&sweep_to("rows")[..], &["--force"]].concat(), 0);
    run(dir, &sweep_to("."), 2);
}

#[cfg(unix)]
#[test]
fn devices_pipes_and_links_are_written_to_and_not_replaced() {
    use std::os::unix::fs::FileTypeExt;
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    // A link to a device: as root, replacing the device itself would succeed.
    std::os::unix::fs::symlink("/dev/null", dir.join("null")).unwrap();
    run(dir, &sweep_to("null"), 0);
    assert!(fs::symlink_metadata(dir.join("null")).unwrap().is_symlink());
    assert!(fs::metadata("/dev/null").unwrap().file_type().is_char_device());

    let pipe = dir.join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let reader = std::thread::spawn({
        let pipe = pipe.clone();
        move || fs::read_to_string(pipe).unwrap()
    });
    run(dir, &sweep_to("pipe"), 0);
    assert!(fs::symlink_metadata(&pipe).unwrap().file_type().is_fifo());
    let read = reader.join().unwrap();
    assert!(read.lines().all(|row| row.contains("perplexity_ratio")) && read.lines().count() > 1);

    fs::write(dir.join("real"), "").unwrap();
    std::os::unix::fs::symlink("real", dir.join("link")).unwrap();
    run(dir, &sweep_to("link"), 0);
    assert!(fs::symlink_metadata(dir.join("link")).unwrap().is_symlink());
    assert_eq!(fs::read_to_string(dir.join("real")).unwrap(), read);
}

#[test]
fn a_sweep_says_at_once_that_its_rows_cannot_be_written() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    fs::write(dir.join("plain"), "x").unwrap();
    // A folder that is a file: not even root can write into it.
    let ran = glitch_in(dir, &["sweep", "vocabulary", "--out", "plain/rows.jsonl"]);
    assert!(ran.code == 1 && ran.stdout.is_empty(), "{}: {}", ran.code, ran.stderr);
}

#[cfg(target_os = "linux")]
#[test]
fn a_sweep_prints_its_table_where_its_rows_cannot_be_written() {
    let dir = tempfile::tempdir().unwrap();
    let ran = glitch_in(dir.path(), &sweep_to("/dev/full"));
    assert_eq!((ran.code, ran.stderr.lines().count()), (1, 1), "{}", ran.stderr);
    assert!(ran.stdout.contains("L3.mlp"), "{}", ran.stdout);
}

#[test]
fn a_folder_of_results_that_is_a_file_is_a_usage_error() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    fs::write(dir.join("o"), "mine").unwrap();
    let compare = ["compare", "--models", "builtin:dense", "--max-evals", "1", "--out", "o"];
    for args in [&FUZZ[..], &SUFFIX, &compare] {
        assert!(run(dir, args, 2).contains("not a folder"), "{args:?}");
    }
    assert_eq!(fs::read_to_string(dir.join("o")).unwrap(), "mine");
}
