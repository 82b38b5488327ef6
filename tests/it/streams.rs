//! Standard output and standard error: what is lost is told, what a file says is escaped, and
//! nothing is said without need.

use std::process::{Command, Stdio};

use serde_json::Value;

use super::cli::glitch;
use super::{made, safety};

#[cfg(target_os = "linux")]
#[test]
fn output_that_cannot_be_written_is_an_error_in_every_command() {
    let dir = tempfile::tempdir().unwrap();
    let case = made::case().write(dir.path()).unwrap();
    let case = case.to_str().unwrap();
    let folder = dir.path().to_str().unwrap();
    let commands: &[&[&str]] = &[
        &["--help"],
        &["--version"],
        &["fuzz", "--help"],
        &["model", "show", "builtin:dense"],
        &["model", "logits", "builtin:dense", "--ids", "1,2,3"],
        &["model", "complete", "builtin:dense", "It was", "--tokens", "1"],
        &["fuzz", "--max-evals", "1", "--mutate", "tokens", "--out", "o", "--json"],
        &["fuzz", "--max-evals", "1", "--mutate", "tokens", "--out", "p"],
        &["sweep", "mlps", "--passages", "6"],
        &["sweep", "mlps", "--passages", "6", "--json"],
        &["replay", case],
        &["replay", case, "--json"],
        &["corpus", "--dir", folder, "list"],
        &["corpus", "--dir", folder, "verify"],
        &["corpus", "show", case],
        &["transfer", case, "--models", "builtin:dense"],
        &["report", "p"],
    ];
    for args in commands {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_glitch"));
        command.args(*args).current_dir(dir.path()).stdin(Stdio::null()).stdout(full);
        let output = command.output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{args:?}: {stderr}");
        assert!(stderr.contains("standard output: "), "{args:?}: {stderr}");
    }
}

#[test]
fn json_has_no_raw_terminal_controls() {
    let hostile = "\u{9b}31m\u{85} \u{202e}x\u{2066}\u{200b} \u{7f}";
    let dir = tempfile::tempdir().unwrap();
    let mut case = made::case().clone();
    case.comment.title = hostile.into();
    case.write(dir.path()).unwrap();
    let folder = dir.path().to_str().unwrap();
    for args in [&["replay", folder, "--json"][..], &["corpus", "--dir", folder, "list", "--json"]]
    {
        let ran = glitch(args);
        let raw = |c: char| c.is_control() && c != '\n' || "\u{202e}\u{2066}\u{200b}".contains(c);
        assert!(!ran.stdout.contains(raw), "{args:?}: {}", ran.stdout);
        assert!(ran.stdout.contains("\\u009b31m"), "{args:?}: {}", ran.stdout);
        let value: Value = serde_json::from_str(&ran.stdout).unwrap();
        assert_eq!(value["cases"][0]["title"], hostile, "{args:?}");
    }
}

#[test]
fn a_title_is_cut_on_the_screen_and_not_in_json() {
    let dir = tempfile::tempdir().unwrap();
    let mut case = made::case().clone();
    case.comment.title = "long ".repeat(100);
    case.write(dir.path()).unwrap();
    let folder = dir.path().to_str().unwrap();
    for args in [&["replay", folder][..], &["corpus", "--dir", folder, "list"]] {
        assert!(!glitch(args).stdout.contains(&case.comment.title), "{args:?}");
        let ran = glitch(&[args, &["--json"]].concat());
        assert!(ran.stdout.contains(&case.comment.title), "{args:?}: {}", ran.stdout);
    }
}

#[test]
fn nothing_is_said_on_the_way_in_less_than_a_minute() {
    let dir = tempfile::tempdir().unwrap();
    let suffix = "suffix --prompt It --target a --steps 1 --length 2 --width 8 --no-implication";
    for args in [
        &["fuzz", "--max-evals", "1", "--mutate", "tokens", "--out", "o"][..],
        &suffix.split(' ').chain(["--out", "s"]).collect::<Vec<_>>(),
        &["sweep", "mlps", "--passages", "6"],
    ] {
        let ran = safety::glitch_in(dir.path(), args);
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{args:?}");
    }
}
