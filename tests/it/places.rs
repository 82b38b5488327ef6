//! Where cases and their models lie: in folders of any depth, and under any spelling of a path.

use std::fs;
use std::path::{Path, PathBuf};

use glitch::case::Case;
use glitch::edit::Edit;
use glitch::model::Model;
use glitch::oracle::OracleKind;

use super::made;
use super::safety::glitch_in;

fn run(dir: &Path, args: &[&str], code: i32) -> (String, String) {
    let ran = glitch_in(dir, args);
    assert_eq!(ran.code, code, "{args:?}\n{}{}", ran.stdout, ran.stderr);
    (ran.stdout, ran.stderr)
}

#[test]
fn cases_in_folders_below_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let case = made::case().write(&dir.join("all/quick/cases")).unwrap();
    fs::write(dir.join("all/quick/summary.json"), "{}").unwrap();
    assert!(run(dir, &["replay", "all"], 0).0.contains("1 replayed: 1 reproduced"));
    assert!(run(dir, &["corpus", "--dir", "all", "verify"], 0).0.contains("1 good, 0 bad"));
    assert!(run(dir, &["corpus", "--dir", "all", "list"], 0).0.contains("1 cases, 0 bad"));
    let (stdout, _) = run(dir, &["corpus", "add", "all", "--dir", "kept"], 0);
    assert!(stdout.contains("added kept/"), "{stdout}");
    let name = case.file_name().unwrap();
    assert_eq!(fs::read(dir.join("kept").join(name)).unwrap(), fs::read(case).unwrap());
    run(dir, &["transfer", "all", "--models", "builtin:dense"], 0);
}

#[test]
fn a_folder_without_cases_is_no_success() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    fs::create_dir_all(dir.join("empty/cases")).unwrap();
    for args in [
        &["replay", "empty"][..],
        &["replay", "empty", "--json"],
        &["corpus", "--dir", "empty", "verify"],
        &["corpus", "--dir", "empty", "list"],
        &["corpus", "add", "empty", "--dir", "kept"],
        &["transfer", "empty", "--models", "builtin:dense"],
        &["triage", "empty"],
    ] {
        assert!(run(dir, args, 4).1.contains("no case"), "{args:?}");
    }
}

#[test]
fn twins_in_several_folders_are_one_kind_and_can_be_ignored() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let case = made::case();
    let mut twin = case.clone();
    twin.base.reverse();
    twin.id = twin.compute_id();
    case.write(&dir.join("a/cases")).unwrap();
    case.write(&dir.join("b/cases")).unwrap();
    twin.write(&dir.join("b/cases")).unwrap();
    let shown = run(dir, &["triage", "a", "b"], 0).0;
    assert!(
        shown.contains("2 cases in 2 prompts") && shown.ends_with("2 cases, 1 kind\n"),
        "{shown}"
    );
    assert!(!shown.contains("   - "), "{shown}");
    assert!(run(dir, &["triage", "a", "b", "--members"], 0).0.contains("   - "));
    let oracle = case.verdict.oracle.name();
    fs::create_dir(dir.join("fuzz")).unwrap();
    let list = format!("[[ignore]]\ncase = \"{}\"\n", twin.id);
    fs::write(dir.join("fuzz/ignore.toml"), &list).unwrap();
    let shown = run(dir, &["triage", "b"], 0).0;
    assert!(shown.ends_with("2 cases, 1 kind; 1 case ignored\n"), "{shown}");
    fs::write(dir.join("other.toml"), format!("[[ignore]]\noracle = \"{oracle}\"\n")).unwrap();
    let json = run(dir, &["triage", "a", "--ignore", "other.toml", "--json"], 0).0;
    assert!(json.contains("\"ignored\":1,\"kinds\":[]"), "{json}");
    fs::write(dir.join("other.toml"), "[[ignore]]\n").unwrap();
    let (_, stderr) = run(dir, &["triage", "a", "--ignore", "other.toml"], 2);
    assert!(stderr.contains("other.toml: ignore[0]: names no oracle"), "{stderr}");
    fs::write(dir.join("b/cases/bad.json"), "{").unwrap();
    assert!(run(dir, &["triage", "b"], 1).1.contains("bad.json"));
    run(dir, &["triage", "nowhere"], 2);
}

#[test]
fn a_report_that_leaves_out_a_case_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    run(dir, &["fuzz", "--max-evals", "1", "--mutate", "tokens", "--out", "o"], 0);
    run(dir, &["report", "o"], 0);
    fs::write(dir.join("o/cases/bad.json"), "{").unwrap();
    let (stdout, stderr) = run(dir, &["report", "o", "--out", "page.html"], 1);
    assert!(stderr.contains("bad.json"), "{stderr}");
    assert!(stdout.contains("page.html") && dir.join("page.html").exists(), "{stdout}");
    // The page of somebody else is not replaced, one of ours is.
    run(dir, &["report", "o", "--out", "page.html"], 1);
    fs::write(dir.join("page.html"), "<!DOCTYPE html><title>holiday</title>").unwrap();
    run(dir, &["report", "o", "--out", "page.html"], 2);
}

/// The comparison of the repository has figures that are missing, which JSON holds as `null`.
#[test]
fn the_page_of_a_comparison_is_written_again() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("reports/comparison/comparison.json");
    let json = fs::read_to_string(from).unwrap();
    assert!(json.contains("null"));
    fs::write(dir.join("comparison.json"), &json).unwrap();
    run(dir, &["report", "."], 0);
    let page = fs::read_to_string(dir.join("comparison.html")).unwrap();
    assert!(page.contains("builtin:mamba") && !page.contains("NaN"), "{page}");
    fs::write(dir.join("comparison.json"), json.replace("\"seeds\"", "\"sedes\"")).unwrap();
    let (_, stderr) = run(dir, &["report", "."], 2);
    assert!(stderr.contains("comparison.json: sedes: unknown field"), "{stderr}");
}

/// A copy of a small model.
fn copy_model(to: &Path) {
    fs::create_dir_all(to).unwrap();
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/llama-tok");
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        fs::copy(from.join(name), to.join(name)).unwrap();
    }
}

/// A case of the model in a folder, which names it as it is told to.
fn case_of(folder: &Path, name: &str) -> Case {
    let mut case = made::case().clone();
    case.model = Model::load(folder.to_str().unwrap()).unwrap().reference();
    case.model.name = name.into();
    (case.base, case.continuation) = (vec![1, 2, 3, 4], vec![5, 6]);
    case.edits = vec![Edit::Replace { position: 1, id: 7 }];
    case.verdict.oracle = OracleKind::Divergence;
    (case.localization, case.minimization) = (None, None);
    case.id = case.compute_id();
    case
}

#[test]
fn a_case_finds_its_model_from_any_folder() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    let model = root.join("project/models/m");
    copy_model(&model);
    let cases = root.join("project/out/cases");
    let elsewhere = root.join("elsewhere");
    fs::create_dir_all(&elsewhere).unwrap();
    for name in ["models/m", "./models/m/", "../models/m", "/home/somebody/models/m"] {
        let path = case_of(&model, name).write(&cases).unwrap();
        let path = path.to_str().unwrap();
        for dir in [root, &elsewhere, &cases] {
            // Replayed, whatever it scores: the model was found.
            let ran = glitch_in(dir, &["replay", path]);
            assert!(ran.stdout.contains("1 replayed"), "{name}: {}{}", ran.stdout, ran.stderr);
        }
        fs::remove_file(path).unwrap();
    }
    // What has the name and not the fingerprint is passed over.
    fs::create_dir_all(cases.join("m")).unwrap();
    let path = case_of(&model, "models/m").write(&cases).unwrap();
    let ran = glitch_in(&elsewhere, &["implicate", path.to_str().unwrap()]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    // Nowhere at all.
    let path = case_of(&model, "gone/no-such-model-8f2c").write(&cases).unwrap();
    run(&elsewhere, &["replay", path.to_str().unwrap()], 3);
}

#[test]
fn a_case_is_the_same_however_the_path_of_its_model_was_spelt() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path().canonicalize().unwrap();
    copy_model(&root.join("models/m"));
    let case = case_of(&root.join("models/m"), "anything").write(&root).unwrap();
    let case = case.to_str().unwrap();
    let absolute = root.join("models/m").display().to_string();
    let mut written: Vec<PathBuf> = Vec::new();
    for (dir, spelt) in [
        ("", "models/m"),
        ("", "./models/m/"),
        ("models", "m"),
        ("models/m", "."),
        ("models", "../models//m"),
        ("", absolute.as_str()),
    ] {
        let out = root.join(format!("out-{}", written.len()));
        let args = ["implicate", case, "--model", spelt, "--out", out.to_str().unwrap()];
        run(&root.join(dir), &args, 0);
        let files = fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().path());
        let is_case = |path: &PathBuf| path.extension().is_some_and(|ending| ending == "json");
        let (cases, beside): (Vec<PathBuf>, Vec<PathBuf>) = files.partition(is_case);
        let [case] = &cases[..] else { panic!("{cases:?}") };
        // The direction of the explanation is beside the case, as the case says it is.
        let case_read = Case::read(case).unwrap();
        let tried = case_read.localization.unwrap().generalization.unwrap();
        assert_eq!(beside, [case.with_extension("direction.safetensors")]);
        let tensors = candle_core::safetensors::load(&beside[0], &candle_core::Device::Cpu);
        let values = tensors.unwrap()["direction"].to_vec1::<f32>().unwrap();
        let norm = values.iter().map(|x| x * x).sum::<f32>().sqrt();
        let expected = tried.direction.unwrap().norm;
        assert!((f64::from(norm) - expected).abs() < 1e-3 * expected, "{norm} {expected}");
        written.push(case.clone());
    }
    let first = fs::read(&written[0]).unwrap();
    for path in &written {
        assert_eq!(fs::read(path).unwrap(), first, "{}", path.display());
    }
    // The absolute path, with `~` for the home folder.
    let expected = Model::load(&absolute).unwrap().reference().name;
    assert_eq!(Case::read(&written[0]).unwrap().model.name, expected);
    assert!(expected == absolute || expected.starts_with("~/"), "{expected}");
}
