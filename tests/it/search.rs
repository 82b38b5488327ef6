//! The search for kinds against the search by score that campaigns had before, on a real model; and
//! a campaign on two models.

use glitch::case::Case;
use glitch::edit::Component;
use glitch::oracle::OracleKind;
use serde_json::Value;

use super::cli::glitch;

/// Runs a campaign and returns the number of its kinds.
fn kinds(search: &str, seed: u64) -> usize {
    let dir = tempfile::tempdir().unwrap();
    let (definition, out) = (dir.path().join("campaign.toml"), dir.path().join("out"));
    let text = format!(
        "search = \"{search}\"\nseed = {seed}\nmax_evals = 4096\nmax_findings = 10\nminimize_calls \
        = 40\n"
    );
    std::fs::write(&definition, text).unwrap();
    let (definition, out) = (definition.to_str().unwrap(), out.to_str().unwrap());
    let ran = glitch(&["fuzz", definition, "--out", out]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let triaged = glitch(&["triage", out, "--json"]);
    let triaged: Value = serde_json::from_str(&triaged.stdout).unwrap();
    triaged["kinds"].as_array().unwrap().len()
}

#[test]
fn a_campaign_compares_two_models() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/organisms");
    let model = format!("builtin:dense+{folder}/quantized-0.safetensors");
    let against = ["--against", "builtin:dense", "--max-evals", "2000", "--seed", "4"];
    let ran = glitch(&[&["fuzz", &model, "--out", out.to_str().unwrap()], &against[..]].concat());
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stdout.contains("Compared with builtin:dense"), "{}", ran.stdout);
    let cases: Vec<Case> = std::fs::read_dir(out.join("cases"))
        .unwrap()
        .map(|file| Case::read(&file.unwrap().path()).unwrap())
        .collect();
    assert!(!cases.is_empty(), "{}", ran.stdout);
    for case in &cases {
        assert_eq!(case.verdict.oracle, OracleKind::Disagreement);
        assert!(case.edits.iter().all(|edit| edit.is_token_edit()), "{:?}", case.edits);
        // The fault is in one MLP, and every finding is localized to it.
        let first = &case.against.as_ref().unwrap().swaps[0];
        assert_eq!(first.component, Component::Mlp { layer: 2 });
        assert!(first.necessity > 0.99 && first.sufficiency > 0.99, "{first:?}");
    }
    let replayed = glitch(&["replay", out.join("cases").to_str().unwrap()]);
    assert_eq!(replayed.code, 0, "{}", replayed.stdout);
}

#[test]
fn the_search_for_kinds_finds_twice_the_kinds_of_a_search_by_score() {
    let (by_kind, by_score) = (kinds("kinds", 1), kinds("score", 1));
    assert!(by_score >= 1 && by_kind >= 2 * by_score, "{by_kind} and {by_score}");
}
