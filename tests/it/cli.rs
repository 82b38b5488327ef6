//! The program from outside: arguments in, exit code, one line of blame, no panic.

use std::path::Path;
use std::process::{Command, Stdio};

use glitch::case::{Case, Expectation};
use serde_json::{Value, json};

use super::made;

pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_glitch"));
    command.args(args).stdin(Stdio::null());
    command
}

pub fn glitch(args: &[&str]) -> Ran {
    let output = command(args).output().unwrap();
    Ran {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Runs the program and checks its exit code and what it says.
fn check(args: &[&str], code: i32, stdout: &str, stderr: &str) {
    let ran = glitch(args);
    let all = format!("{args:?}: exit {}\n{}{}", ran.code, ran.stdout, ran.stderr);
    assert!(!ran.stderr.contains("panicked"), "{all}");
    assert_eq!(ran.code, code, "{all}");
    assert!(
        ran.stdout.contains(stdout) && ran.stderr.contains(stderr),
        "{all}\nwanted {stdout:?} and {stderr:?}"
    );
    let escapes = |text: &str| text.chars().any(|c| c.is_control() && c != '\n');
    assert!(!escapes(&ran.stdout) && !escapes(&ran.stderr), "{all}");
}

#[test]
fn the_version_is_told() {
    check(&["--version"], 0, "glitch", "");
}

#[test]
fn a_model_that_cannot_be_loaded_is_named() {
    for model in ["/no/such/model", "builtin:none", "hf:no/such", "hf:../..", "/dev/null"] {
        check(&["model", "show", model], 3, "", model);
    }
}

#[test]
fn logits_are_json_for_every_position() {
    let ran = glitch(&["model", "logits", "builtin:dense", "--ids", "1,2,3"]);
    let value: Value = serde_json::from_str(&ran.stdout).unwrap();
    let rows = value["logits"].as_array().unwrap();
    assert_eq!((ran.code, rows.len()), (0, 3));
    let width = rows[0].as_array().unwrap().len();
    assert!(width > 1000 && rows.iter().all(|row| row.as_array().unwrap().len() == width));
}

#[test]
fn a_limited_sweep_of_the_vocabulary_has_the_indicator_of_every_token() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("rows.jsonl");
    let ran =
        glitch(&["sweep", "vocabulary", "--limit", "64", "--out", out.to_str().unwrap(), "--json"]);
    let summary: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(
        (ran.code, &summary["tokens_tested"], &summary["tokens"]),
        (0, &64.into(), &4096.into())
    );
    let rows: Vec<Value> = std::fs::read_to_string(out)
        .unwrap()
        .lines()
        .map(|row| serde_json::from_str(row).unwrap())
        .collect();
    let tested = |row: &Value| !row["echo_probability"].is_null();
    assert_eq!((rows.len(), rows.iter().filter(|row| tested(row)).count()), (4096, 64));
    assert!(rows[..64].iter().all(tested) && rows.iter().all(|row| row["indicator"].is_number()));
    let largest =
        rows[..64].iter().map(|row| row["indicator"].as_f64().unwrap()).fold(0.0, f64::max);
    assert!(
        rows[64..].iter().all(|row| row["indicator"].as_f64().unwrap() >= largest),
        "the most suspect are tested"
    );
    assert!(rows[64..].iter().any(|row| row["verdict"] == "untested"));
}

#[test]
fn a_reader_that_has_gone_is_no_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = made::case().write(dir.path()).unwrap();
    for args in
        [&["model", "show", "builtin:dense"][..], &["--help"], &["replay", path.to_str().unwrap()]]
    {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = command(args).stdout(writer).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {stderr}");
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let code = command(&["replay", "/no/such"])
            .stdout(Stdio::null())
            .stderr(writer)
            .status()
            .unwrap()
            .code();
        assert_eq!(code, Some(2));
    }
}

/// The made case, changed as JSON.
fn changed(change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut value = serde_json::to_value(made::case()).unwrap();
    change(&mut value);
    serde_json::to_vec(&value).unwrap()
}

/// The made case with another content, under the id that belongs to it.
fn other(change: impl FnOnce(&mut Case)) -> Vec<u8> {
    let mut case = made::case().clone();
    change(&mut case);
    case.id = case.compute_id();
    serde_json::to_vec(&case).unwrap()
}

#[test]
fn a_hostile_case_is_named_and_set_aside() {
    use glitch::edit::{Action, Component, Edit};
    let whole = changed(|_| {});
    let deep = "[".repeat(100_000).into_bytes();
    let nan = String::from_utf8(whole.clone())
        .unwrap()
        .replacen("\"score\":", "\"score\":NaN,\"x\":", 1)
        .into_bytes();
    let lesion = |component| Edit::lesion(component, Action::Zero);
    let hostile: Vec<(&str, Vec<u8>)> = vec![
        ("empty", vec![]),
        ("truncated", whole[..whole.len() / 2].to_vec()),
        ("bytes", vec![0xff, 0xfe, 0, 1, 2]),
        ("deep", deep),
        ("nan", nan),
        ("infinite", changed(|v| v["verdict"]["threshold"] = json!(null))),
        ("version", changed(|v| v["schema_version"] = json!(999))),
        ("no version", changed(|v| drop(v.as_object_mut().unwrap().remove("schema_version")))),
        ("unknown field", changed(|v| v["\u{1b}[31mred"] = json!(1))),
        ("position", changed(|v| v["edits"][0]["position"] = json!(1_000_000_000))),
        ("negative", changed(|v| v["edits"][0]["position"] = json!(-1))),
        ("empty prompt", changed(|v| v["base"] = json!([]))),
        ("other id", changed(|v| v["id"] = json!("../../../../tmp/x"))),
        ("edit", changed(|v| v["edits"][0] = json!({ "edit": "explode" }))),
        ("token", other(|c| c.edits = vec![Edit::Replace { position: 1, id: u32::MAX }])),
        ("base token", other(|c| c.base[0] = 4_000_000_000)),
        (
            "layer",
            other(|c| c.edits = vec![lesion(Component::Head { layer: usize::MAX, head: 0 })]),
        ),
        (
            "neuron",
            other(|c| c.edits = vec![lesion(Component::Neuron { layer: 0, neuron: usize::MAX })]),
        ),
        (
            "nothing left",
            other(|c| {
                c.edits = (0..c.base.len()).map(|position| Edit::Delete { position }).collect()
            }),
        ),
        ("long", other(|c| c.base = vec![5; 60_000])),
    ];
    let dir = tempfile::tempdir().unwrap();
    let place = |name: &str| dir.path().join(format!("{name}.json"));
    let good = made::case().write(dir.path()).unwrap();
    for (name, bytes) in &hostile {
        std::fs::write(place(name), bytes).unwrap();
        let path = place(name);
        let ran = glitch(&["replay", path.to_str().unwrap()]);
        assert_eq!(
            (ran.code, ran.stderr.lines().count()),
            (100, 1),
            "{name}: {}{}",
            ran.stdout,
            ran.stderr
        );
        assert!(
            ran.stderr.contains(&format!("{name}.json")) && !ran.stderr.contains("panicked"),
            "{name}: {}",
            ran.stderr
        );
        assert!(
            !ran.stderr.contains('\u{1b}') && ran.stderr.len() < 2000,
            "{name}: {}",
            ran.stderr
        );
        let code = glitch(&["minimize", path.to_str().unwrap()]).code;
        assert_eq!(code, 2, "{name}");
    }
    std::fs::create_dir(place("folder")).unwrap();
    // All of them together do not hide the good one.
    let ran = glitch(&["replay", dir.path().to_str().unwrap()]);
    assert_eq!((ran.code, ran.stderr.lines().count()), (100, hostile.len()), "{}", ran.stderr);
    assert!(ran.stdout.contains("1 replayed: 1 reproduced"), "{}", ran.stdout);
    // The corpus lists them, and moves what is no case at all out of the way.
    let path = dir.path().to_str().unwrap();
    check(&["corpus", "--dir", path, "list"], 100, "cases,", "version");
    check(&["corpus", "--dir", path, "verify", "--quarantine"], 100, "1 good", "moved to");
    check(&["corpus", "--dir", path, "verify"], 0, "1 good, 0 bad", "");
    check(&["replay", path], 0, "1 replayed: 1 reproduced", "");
    assert!(good.exists());
}

fn replays(change: impl FnOnce(&mut Case), args: &[&str], code: i32, stdout: &str, stderr: &str) {
    let dir = tempfile::tempdir().unwrap();
    let path: &Path = &dir.path().join("case.json");
    std::fs::write(path, other(change)).unwrap();
    let args: Vec<&str> =
        ["replay", path.to_str().unwrap()].into_iter().chain(args.iter().copied()).collect();
    check(&args, code, stdout, stderr);
}

#[test]
fn a_replay_says_what_became_of_a_case() {
    replays(|_| {}, &[], 0, "reproduced", "");
    replays(|_| {}, &["--json"], 0, "\"status\":\"reproduced\"", "");
    replays(
        |_| {},
        &["--model", "builtin:dense"],
        0,
        "1 replayed: 1 reproduced, 0 gone, 0 changed; 0 not as expected",
        "",
    );
    replays(|c| c.verdict.score += 1.0, &[], 100, "changed", "");
    replays(|c| c.verdict.noise_floor = 1000.0, &[], 100, "gone", "");
    replays(|c| c.expectation = Expectation::Gone, &[], 100, "NOT AS EXPECTED (gone)", "");
    replays(
        |c| (c.expectation, c.verdict.noise_floor) = (Expectation::Gone, 1000.0),
        &[],
        0,
        "gone",
        "",
    );
    replays(|c| c.edits.clear(), &[], 100, "gone", "");
    let foreign = |c: &mut Case| c.model.fingerprint = "ab".repeat(32);
    replays(foreign, &[], 103, "0 replayed", "made on model abab");
    replays(foreign, &["--model", "builtin:dense"], 0, "reproduced", "");
    replays(|c| c.model.name = "/no/such/model".into(), &[], 3, "", "/no/such/model");
    replays(|c| c.comment.title = "\u{1b}]0;x\u{7}\n\u{202e}".into(), &[], 0, "\\x1b]0;x", "");
}

#[test]
fn a_case_is_minimized_implicated_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let case = made::case().write(&dir.path().join("campaign/cases")).unwrap();
    let (case, campaign) = (case.to_str().unwrap(), dir.path().join("campaign"));
    check(&["replay", campaign.to_str().unwrap()], 0, "reproduced", "");
    check(&["implicate", case], 0, "localized to", "");
    let ran = glitch(&["implicate", case, "--json"]);
    assert!(serde_json::from_str::<Value>(&ran.stdout).unwrap()["set"].is_array());

    let small = dir.path().join("small");
    let small = small.to_str().unwrap();
    check(&["minimize", case, "--out", small, "--max-calls", "300"], 0, "trials judged", "");
    check(&["replay", small], 0, "1 replayed: 1 reproduced", "");

    let kept = dir.path().join("kept");
    let kept = kept.to_str().unwrap();
    check(&["corpus", "add", case, "--dir", kept], 0, "added", "");
    check(&["corpus", "add", case, "--dir", kept], 2, "", "in the corpus already");
    check(&["corpus", "list", "--dir", kept], 0, "1 cases, 0 bad", "");
    check(&["corpus", "list", "--json", "--dir", kept], 0, "\"oracle\":\"echo\"", "");
    check(&["corpus", "show", &made::case().id, "--dir", kept], 0, "fingerprint", "");
}

/// A campaign that is interrupted writes everything it has and says so by its exit code.
#[cfg(unix)]
#[test]
fn ctrl_c_ends_a_campaign_with_everything_written() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let mut child =
        command(&["fuzz", "--max-time", "10m", "--seed", "3", "--out", out.to_str().unwrap()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
    // The first case is on disk; there is time for ten minutes more of them.
    let found = |dir: &Path| std::fs::read_dir(dir).is_ok_and(|mut files| files.next().is_some());
    let started = std::time::Instant::now();
    while !found(&out.join("cases"))
        && started.elapsed().as_secs() < 300
        && child.try_wait().unwrap().is_none()
    {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    assert!(
        Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success()
    );
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let summary: Value =
        serde_json::from_slice(&std::fs::read(out.join("summary.json")).unwrap()).unwrap();
    assert_eq!(summary["stopped_by"], "interrupted");
    assert!(out.join("report.html").is_file());
    let cases = summary["cases"].as_array().unwrap().len();
    assert!(cases > 0);
    check(
        &["replay", out.join("cases").to_str().unwrap()],
        0,
        &format!("{cases} replayed: {cases} reproduced"),
        "",
    );
}
