//! The text that a model's fingerprint begins with, and the fingerprint itself, of every family:
//! stored cases name their model by it, so neither may change from version to version.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use glitch::model::{Config, FAMILIES, Model};

use super::parity::fixtures;

/// `NAME`, its fingerprint and the text of its configuration, for every model of the fixtures and
/// every built-in one. `BLESS=1 cargo test --test it identity` writes it anew; only entries of new
/// models may then differ.
const GOLDEN: &str = include_str!("../fixtures/identities.txt");

fn sorted(dir: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

fn name(path: &Path) -> &str {
    path.strip_prefix(fixtures()).unwrap().to_str().unwrap()
}

/// An entry of the golden file for every model that the fixtures hold, in the order of their names.
fn entries(families: &mut BTreeSet<String>) -> Vec<String> {
    let mut entries = Vec::new();
    let mut push = |name: &str, fingerprint: &str, config: &Config| {
        families.insert(config.model_type.clone());
        entries.push(format!("{name}\n{fingerprint}\n{}\n", config.identity()));
    };
    let mut load = |name: &str, spec: &str| {
        let model = Model::load(spec).unwrap();
        push(name, &model.fingerprint, &model.config);
    };
    for builtin in ["dense", "mamba", "moe", "rwkv"] {
        let spec = format!("builtin:{builtin}");
        load(&spec, &spec);
    }
    let files: Vec<PathBuf> = sorted(&fixtures()).iter().filter(|p| p.is_dir()).cloned().collect();
    for dir in &files {
        if dir.join("config.json").is_file() {
            load(name(dir), dir.to_str().unwrap());
        }
        for file in sorted(dir) {
            let extension = file.extension().and_then(|e| e.to_str());
            if matches!(extension, Some("gguf" | "pth")) {
                load(name(&file), file.to_str().unwrap());
            }
        }
    }
    // Other spellings of a configuration, of which there are no tensors.
    for file in files.iter().flat_map(|dir| sorted(dir)) {
        let base = file.file_name().unwrap().to_str().unwrap();
        if base.starts_with("config.") && base.ends_with(".json") && base != "config.json" {
            let text = std::fs::read_to_string(&file).unwrap();
            push(name(&file), "-", &Config::from_json(base, &text).unwrap());
        }
    }
    entries
}

#[test]
fn the_identity_of_every_family_is_as_it_was() {
    let mut families = BTreeSet::new();
    let entries = entries(&mut families);
    if std::env::var_os("BLESS").is_some() {
        let text: String = entries.iter().map(|entry| format!("{entry}\n")).collect();
        return std::fs::write(fixtures().join("identities.txt"), text).unwrap();
    }
    for (got, want) in entries.iter().zip(GOLDEN.split_inclusive("\n\n")) {
        assert_eq!(format!("{got}\n"), want);
    }
    assert_eq!(entries.len(), GOLDEN.split_inclusive("\n\n").count());
    let known: BTreeSet<String> = FAMILIES.iter().map(|family| (*family).to_owned()).collect();
    assert_eq!(families, known, "every family has a fixture");
}
