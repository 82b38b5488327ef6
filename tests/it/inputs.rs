//! Input of the user: texts, file names, models, oracles. Mistakes are told before the work, with
//! exit code 2, and marks that an editor leaves in a file are not read as text.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::made;
use super::safety::glitch_in;

/// Runs the program and returns what it says on both streams.
fn run(dir: &Path, args: &[&str], code: i32) -> (String, String) {
    let ran = glitch_in(dir, args);
    assert_eq!(ran.code, code, "{args:?}\n{}{}", ran.stdout, ran.stderr);
    (ran.stdout, ran.stderr)
}

/// Runs a command that must be refused in one line that says why.
fn refused(dir: &Path, args: &[&str], why: &str) {
    let (stdout, stderr) = run(dir, args, 2);
    assert!(stdout.is_empty() && stderr.lines().count() == 1, "{args:?}\n{stdout}{stderr}");
    assert!(stderr.contains(why), "{args:?}: {stderr}");
}

#[test]
fn a_byte_order_mark_and_windows_line_ends_are_not_read_as_text() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let text = "The king\nwas here and he said it.\n";
    let windows = format!("\u{feff}{}", text.replace('\n', "\r\n"));
    fs::write(dir.join("unix.txt"), text).unwrap();
    fs::write(dir.join("windows.txt"), &windows).unwrap();
    let loss = |file: &str| {
        let args = ["sweep", "mlps", "--json", "--text", file];
        let value: Value = serde_json::from_str(&run(dir, &args, 0).0).unwrap();
        (value["tokens"].clone(), value["baseline_loss"].clone())
    };
    assert_eq!(loss("unix.txt"), loss("windows.txt"));

    // The same seeds, and the same campaign file, are the same campaign.
    let seeds = "The king was here and he said it to the people of England.\n\nShe went to the \
        garden and saw the flowers there with him.\n";
    let file = "max_evals = 40\nmutate = [\"tokens\"]\nseeds = [\"seeds.txt\"]\n";
    let summary = |seeds: &str, file: &str, out: &str| {
        fs::write(dir.join("seeds.txt"), seeds).unwrap();
        fs::write(dir.join("campaign.toml"), file).unwrap();
        run(dir, &["fuzz", "campaign.toml", "--out", out], 0);
        let bytes = fs::read(dir.join(out).join("summary.json")).unwrap();
        let mut summary: Value = serde_json::from_slice(&bytes).unwrap();
        summary["timing"] = Value::Null;
        summary
    };
    let marked = |text: &str| format!("\u{feff}{}", text.replace('\n', "\r\n"));
    let plain = summary(seeds, file, "plain");
    assert_eq!(summary(&marked(seeds), &marked(file), "marked"), plain);

    // Prompts of a search: the state in suffix.json begins with their ids.
    let prompts = |text: &str, out: &str| {
        fs::write(dir.join("prompts.txt"), text).unwrap();
        let search = "suffix --prompt prompts.txt --target a --steps 1 --length 2 --width 8";
        let args: Vec<&str> = search.split(' ').chain(["--no-implication", "--out", out]).collect();
        run(dir, &args, 0);
        let bytes = fs::read(dir.join(out).join("suffix.json")).unwrap();
        serde_json::from_slice::<Value>(&bytes).unwrap()["prompts"].clone()
    };
    assert_eq!(prompts("One\nTwo\n", "p"), prompts("\u{feff}One\r\nTwo\r\n", "q"));
}

/// The tests of a sweep take its texts for independent: one given twice counts once.
#[test]
fn texts_of_a_sweep_are_paragraphs_and_count_once() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    fs::write(dir.join("a.txt"), "The king was here.\n\nThe queen\nwas there.\n\n").unwrap();
    fs::write(dir.join("b.txt"), "The king was here.\n").unwrap();
    let args = ["sweep", "mlps", "--json", "--text", "a.txt", "--text", "b.txt"];
    let (stdout, stderr) = run(dir, &args, 0);
    let value: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((&value["texts"], &value["flagged"]), (&2.into(), &0.into()));
    assert!(stderr.contains("1 text left out, given more than once"), "{stderr}");
    fs::write(dir.join("d.txt"), "\n \n").unwrap();
    refused(dir, &["sweep", "mlps", "--text", "d.txt"], "the text has no tokens");
    let (_, stderr) = run(dir, &["sweep", "mlps", "--passages", "33"], 2);
    assert!(stderr.contains("33 is not in 1..=32"), "{stderr}");
}

#[test]
fn bytes_that_are_not_utf8_are_named_with_their_offset() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    fs::write(dir.join("bad.txt"), b"abc\xff").unwrap();
    fs::write(dir.join("bad.toml"), b"seed = 1\n#\xff").unwrap();
    refused(dir, &["sweep", "mlps", "--text", "bad.txt"], "bad.txt: byte 3: not UTF-8");
    let suffix = ["suffix", "--prompt", "bad.txt", "--target", "a"];
    refused(dir, &suffix, "bad.txt: byte 3: not UTF-8");
    refused(dir, &["fuzz", "bad.toml"], "bad.toml: byte 10: not UTF-8");
    fs::write(dir.join("good.toml"), "seeds = [\"bad.txt\"]").unwrap();
    refused(dir, &["fuzz", "good.toml"], "bad.txt: byte 3: not UTF-8");
}

#[test]
fn what_is_missing_is_a_usage_error() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    fs::create_dir(dir.join("empty")).unwrap();
    refused(dir, &["fuzz", "nofile.toml"], "nofile.toml: path: no such file");
    refused(dir, &["sweep", "heads", "--text", "nofile"], "nofile: path: no such file");
    refused(dir, &["report", "nodir"], "nodir: path: no such file or folder");
    refused(dir, &["report", "empty"], "summary.json: path: no such file");
    refused(dir, &["corpus", "add", "nodir", "--dir", "kept"], "nodir: path: no such file");
}

#[test]
fn an_endless_campaign_file_is_refused() {
    if cfg!(target_os = "linux") {
        let dir = tempfile::tempdir().unwrap();
        refused(dir.path(), &["fuzz", "/dev/zero"], "/dev/zero: (whole file): more than");
    }
}

#[test]
fn a_prompt_that_is_a_mistyped_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let search = |prompt: &'static str| {
        let rest = "--target a --steps 1 --length 2 --width 8 --no-implication --out o";
        ["suffix", "--prompt", prompt].into_iter().chain(rest.split(' ')).collect::<Vec<_>>()
    };
    refused(dir, &search("nosuchfile.txt"), "nosuchfile.txt: --prompt: no such file");
    refused(dir, &search("prompts/two"), "prompts/two: --prompt: no such file");
    refused(dir, &search("A {suffix} b {suffix}"), "{suffix} stands there more than once");
    fs::write(dir.join("two.txt"), "One\nA {suffix} b {suffix}\n").unwrap();
    refused(dir, &search("two.txt"), "two.txt: line 2: {suffix} stands there more than once");
    assert!(!dir.join("o").exists());
    run(dir, &search("either/or is fine"), 0);
}

#[test]
fn an_oracle_that_would_score_nothing_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for (text, why) in [
        ("oracles = [\"target\"]", "oracles: `target` would score nothing: no mutator"),
        ("oracles = [\"echo\"]\nmutate = [\"lesions\"]", "oracles: `echo` would score nothing"),
        ("oracles = [\"routing_collapse\"]", "oracles: `routing_collapse` would score nothing"),
        ("oracles = [\"state_memory\"]", "oracles: `state_memory` would score nothing"),
    ] {
        fs::write(dir.join("x.toml"), text).unwrap();
        refused(dir, &["fuzz", "x.toml", "--out", "o"], why);
        assert!(!dir.join("o").exists(), "{text}");
    }
}

#[test]
fn a_model_is_an_argument_or_an_option_in_every_command() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for words in [
        "model show MODEL --json",
        "model logits MODEL --ids 1,2",
        "model complete MODEL It --tokens 1",
        "model bench MODEL --batch 1 --length 4",
        "sweep mlps MODEL --passages 2",
        "sweep weights MODEL --limit 8 --passages 2",
        "sweep pairs MODEL --of mlps --limit 4 --controls 8",
        "fuzz MODEL --max-evals 1 --mutate tokens",
        "suffix MODEL --prompt It --target a --steps 1 --length 2 --width 8 --no-implication",
    ] {
        let model = "builtin:dense";
        let with = |model: &[&'static str]| -> Vec<&str> {
            let words = words.split(' ');
            words.flat_map(|w| if w == "MODEL" { model.to_vec() } else { vec![w] }).collect()
        };
        let (argument, _) = run(dir, &with(&[model]), 0);
        let (option, _) = run(dir, &with(&["--model", model]), 0);
        if words.contains("logits") || words.contains("complete") || words.contains("show") {
            assert_eq!(argument, option, "{words}");
        }
        run(dir, &with(&[model, "--model", model]), 2);
    }
    run(dir, &["model", "logits", "--ids", "1"], 2);
    run(dir, &["model", "complete", "It"], 2);
}

/// The made case, changed and written under its new id.
fn changed(dir: &Path, change: impl FnOnce(&mut glitch::case::Case)) -> String {
    let mut case = made::case().clone();
    change(&mut case);
    case.id = case.compute_id();
    let path = dir.join("changed.json");
    fs::write(&path, serde_json::to_vec(&case).unwrap()).unwrap();
    path.display().to_string()
}

#[test]
fn a_small_case_cannot_ask_for_endless_work() {
    let dir = tempfile::tempdir().unwrap();
    let path = changed(dir.path(), |case| {
        case.base = vec![5; 490];
        case.verdict.controls = vec![0.0; 65_536];
    });
    let started = std::time::Instant::now();
    let (_, stderr) = run(dir.path(), &["replay", &path], 100);
    assert!(stderr.contains("verdict.controls: 65536 controls of 49"), "{stderr}");
    assert!(started.elapsed().as_secs() < 10, "{:?}", started.elapsed());
}

#[test]
fn an_error_repeats_no_value_of_a_file_at_full_length() {
    let dir = tempfile::tempdir().unwrap();
    let path = changed(dir.path(), |case| case.model.name = "x".repeat(1 << 20));
    for args in [&["replay", &path][..], &["replay", &path, "--json"], &["implicate", &path]] {
        let (stdout, stderr) = run(dir.path(), args, 3);
        assert!(stderr.len() < 2000 && stdout.len() < 2000, "{} {}", stdout.len(), stderr.len());
    }
}
