//! Cases written by hand: `glitch case new`.

use glitch::case::{Case, Expectation};
use glitch::edit::Edit;

use super::cli::glitch;

const PROMPT: &str = "It was a dark and stormy night; the rain fell in torrents";

fn new(edits: &[&str], more: &[&str]) -> super::cli::Ran {
    let mut args = vec!["case", "new", "--prompt", PROMPT];
    edits.iter().for_each(|edit| args.extend(["--edit", edit]));
    args.extend(more);
    glitch(&args)
}

#[test]
fn positions_are_printed_without_an_edit() {
    let ran = new(&[], &[]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stdout.contains("nothing to judge"), "{}", ran.stdout);
    let model = glitch::model::Model::load("builtin:dense").unwrap();
    for (position, id) in model.encode(PROMPT).unwrap().into_iter().enumerate() {
        let entry = format!("{position} '{}'", glitch::text::escape(&model.token(id)));
        assert!(ran.stdout.contains(&entry), "{entry} in {}", ran.stdout);
    }
}

#[test]
fn a_hypothesis_is_judged_and_written_whether_or_not_it_fails() {
    let dir = tempfile::tempdir().unwrap();
    let judge = |edits: [&str; 2], name: &str| {
        let file = dir.path().join(name);
        let file = file.to_str().unwrap();
        let prompt = ": \" great: \"";
        let ran = glitch(&[
            "case",
            "new",
            "--prompt",
            prompt,
            "--continuation",
            " great",
            "--edit",
            edits[0],
            "--edit",
            edits[1],
            "--oracle",
            "echo",
            "--out",
            file,
        ]);
        assert_eq!(ran.code, 0, "{}{}", ran.stdout, ran.stderr);
        // A replay finds it as it was, whether or not it fails.
        let replayed = glitch(&["replay", file]);
        assert_eq!(replayed.code, 0, "{}{}", replayed.stdout, replayed.stderr);
        (ran.stdout, Case::read(std::path::Path::new(file)).unwrap())
    };
    // What a campaign finds in its first seconds, by hand: the same case.
    let (said, case) = judge(["replace 3 3943", "replace 6 3943"], "fails.json");
    assert!(said.contains("It fails: echo scores 18.3 bits, above the threshold"), "{said}");
    assert!(case.verdict.fails() && case.expectation == Expectation::Reproduces);
    assert_eq!(case.id, "a0a63cf0521ba271");
    let (said, case) = judge(["replace 3 ' time'", "replace 6 ' time'"], "ordinary.json");
    assert!(said.contains("It does not fail: echo scores "), "{said}");
    assert!(!case.verdict.fails() && case.expectation == Expectation::Gone);
}

#[test]
fn a_split_of_a_token_is_judged_against_other_splits() {
    let out = tempfile::tempdir().unwrap();
    let model = glitch::model::Model::load("builtin:dense").unwrap();
    let ids = model.encode(PROMPT).unwrap();
    let splits = glitch::vocabulary::Splits::of(&model);
    let position = (0..ids.len()).rfind(|at| splits.of_token(ids[*at], 2).count() > 0).unwrap();
    let pieces = splits.of_token(ids[position], 2).nth(0).unwrap();
    let edit = Edit::Retokenize { position, pieces };
    let file = out.path().join("split.json");
    let ran = new(&[&edit.to_text()], &["--out", file.to_str().unwrap()]);
    assert_eq!(ran.code, 0, "{}{}", ran.stdout, ran.stderr);
    let case = Case::read(&file).unwrap();
    assert_eq!((&case.edits[..], case.comment.prompt), (&[edit][..], case.comment.edited_prompt));
    assert!(case.comment.title.contains("` + `"), "{}", case.comment.title);
    assert!(case.verdict.controls.len() >= 8, "{:?}", case.verdict);
    let replayed = glitch(&["replay", file.to_str().unwrap()]);
    assert_eq!(replayed.code, 0, "{}{}", replayed.stdout, replayed.stderr);
}

#[test]
fn a_file_that_exists_is_never_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("mine.json");
    std::fs::write(&file, "mine").unwrap();
    let ran = new(&["delete 2"], &["--out", file.to_str().unwrap()]);
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    assert!(ran.stderr.contains("exists already"), "{}", ran.stderr);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "mine");
    // In a folder, the case has its id's name, and is written once.
    let folder = dir.path().to_str().unwrap();
    assert_eq!(new(&["delete 2"], &["--out", folder]).code, 0);
    assert_eq!(new(&["delete 2"], &["--out", folder]).code, 2);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
}

#[test]
fn errors_name_the_edit() {
    let out = tempfile::tempdir().unwrap();
    let out = out.path().to_str().unwrap();
    for (edit, more, expected) in [
        ("repalce 4 5", &[][..], "edit `repalce 4 5`: `repalce` is no edit; expected replace"),
        ("replace 4 ' gardens and houses'", &[], "' gardens and houses' is "),
        ("replace 400 5", &[], "edit `replace 400 5`: position: 400, but prompt and continuation"),
        ("replace 4 999999", &[], "token id 999999 is beyond the vocabulary"),
        ("embedding 4 towards 999999 1", &[], "token id 999999 is beyond the vocabulary"),
        ("retokenize 4 5", &[], "fewer than two; a token is split"),
        ("retokenize 4 5 6", &[], "edit `retokenize 4 5 6`: pieces: `"),
        ("retokenize 4 5 0", &[], "pieces: `<|endoftext|>` (id 0) has no text"),
        ("retokenize 400 5 6", &[], "position: 400, but prompt and continuation"),
        ("zero L99.head0", &[], "has no component L99.head0"),
        ("knockout L1.head0 to 400", &[], "key: 400, but there are only"),
        ("knockout L1.head0 to 2", &["--edit", "delete 2"], "its key or its query is deleted"),
        ("delete 2", &["--oracle", "loss_blowup"], "reads a continuation"),
        ("delete 2", &["--oracle", "state_blowup"], "has no meaning for"),
        ("delete 2", &["--oracle", "vibes"], "no oracle `vibes`; there are divergence"),
    ] {
        let ran = new(&[edit], &[more, &["--out", out]].concat());
        assert_eq!(ran.code, 2, "{edit}: {}{}", ran.stdout, ran.stderr);
        assert!(ran.stderr.contains(expected), "{edit}: {}", ran.stderr);
    }
    assert_eq!(std::fs::read_dir(out).unwrap().count(), 0);
}

/// A direction that `implicate` wrote, used as an edit: added to the clean run, it does more than
/// its controls, random directions of its length.
#[test]
fn a_direction_of_a_case_is_an_edit() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (prompt, file) = (": \" great: \"", path("found.json"));
    let mut args =
        vec!["case", "new", "--prompt", prompt, "--out", &file, "--oracle", "divergence"];
    args.extend(["--edit", "replace 3 3943"]);
    assert_eq!(glitch(&args).code, 0);
    let out = path("explained");
    let ran = glitch(&["implicate", &file, "--out", &out]);
    assert_eq!(ran.code, 0, "{}{}", ran.stdout, ran.stderr);
    // The line that says how to use it.
    let hint = ran.stdout.lines().find_map(|line| line.strip_prefix("as an edit    "));
    let edit = hint.expect("a direction");
    let steered = path("steered.json");
    let args = ["case", "new", "--prompt", prompt, "--edit", edit, "--out", &steered];
    let ran = glitch(&args);
    assert_eq!(ran.code, 0, "{}{}", ran.stdout, ran.stderr);
    let case = Case::read(std::path::Path::new(&steered)).unwrap();
    let most = case.verdict.controls.iter().copied().fold(0.0, f64::max);
    assert!(case.verdict.score > most, "{:?}", case.verdict);
    let replayed = glitch(&["replay", &steered]);
    assert_eq!(replayed.code, 0, "{}{}", replayed.stdout, replayed.stderr);
    // A file that is none is named.
    let args =
        ["case", "new", "--prompt", prompt, "--edit", "remove gone.safetensors L1.resid_mid"];
    let ran = glitch(&args);
    assert!(ran.code != 0 && ran.stderr.contains("gone.safetensors"), "{}", ran.stderr);
}
