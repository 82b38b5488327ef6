//! The search for kinds against the search by score that campaigns had before, on a real model.

use serde_json::Value;

use super::cli::glitch;

/// Runs a campaign and returns the number of its kinds.
fn kinds(search: &str, seed: u64) -> usize {
    let dir = tempfile::tempdir().unwrap();
    let (definition, out) = (dir.path().join("campaign.toml"), dir.path().join("out"));
    let text = format!(
        "search = \"{search}\"\nseed = {seed}\nmax_evals = 2000\nmax_findings = 10\nminimize_calls \
        = 60\n"
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
fn the_search_for_kinds_finds_twice_the_kinds_of_a_search_by_score() {
    let (by_kind, by_score) = (kinds("kinds", 1), kinds("score", 1));
    assert!(by_score >= 1 && by_kind >= 2 * by_score, "{by_kind} and {by_score}");
}
