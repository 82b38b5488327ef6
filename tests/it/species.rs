//! Kinds of findings against the judgement of a reader.
//!
//! `tests/fixtures/species.json` has the 83 cases of short campaigns on the built-in models and on
//! SmolLM2, cut to what kinds are told by, and 40 pairs of them drawn at random, 28 of which are of
//! the same sort of edit. Each pair was judged by a reader who saw the cards of both (edits,
//! prompt, what the model writes before and after, score) and not how the program groups them: one
//! entry of a catalogue, or two? The rules were settled before, on 40 other pairs.

use std::collections::BTreeMap;
use std::path::Path;

use glitch::case::Case;
use glitch::species;
use serde::Deserialize;

#[derive(Deserialize)]
struct Judged {
    cases: Vec<serde_json::Value>,
    pairs: Vec<Pair>,
}

#[derive(Deserialize)]
struct Pair {
    a: String,
    b: String,
    same: bool,
    because: String,
}

#[test]
fn kinds_are_those_that_a_reader_tells() {
    let text = std::fs::read("tests/fixtures/species.json").unwrap();
    let judged: Judged = serde_json::from_slice(&text).unwrap();
    let read = |case: &serde_json::Value| {
        Case::parse(Path::new("species.json"), case.to_string().as_bytes()).unwrap()
    };
    let cases: Vec<Case> = judged.cases.iter().map(read).collect();
    let species = species::group(&cases);
    let kind_of: BTreeMap<&str, usize> = (species.iter().enumerate())
        .flat_map(|(kind, species)| species.members.iter().map(move |case| (&case.id[..], kind)))
        .collect();
    assert_eq!((kind_of.len(), judged.pairs.len()), (cases.len(), 40));
    let wrong: Vec<String> = (judged.pairs.iter())
        .filter(|pair| (kind_of[&pair.a[..]] == kind_of[&pair.b[..]]) != pair.same)
        .map(|pair| format!("{} {} {} {}", pair.a, pair.b, pair.same, pair.because))
        .collect();
    assert!(wrong.len() <= 3, "{} are wrong:\n{}", wrong.len(), wrong.join("\n"));
    // Neither everything in one kind nor each case by itself would do.
    let same = judged.pairs.iter().filter(|pair| pair.same).count();
    assert_eq!(same, 11);
}
