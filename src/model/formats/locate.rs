//! Models that are named and not pathed: the built-in ones and the local Hugging Face cache.

use std::path::PathBuf;

use super::safetensors;
use crate::error::{Error, Result};
use crate::model::{Config, Model, Tokenizer};

/// The files of one of them.
macro_rules! files {
    ($name:literal) => {
        (
            $name,
            include_str!(concat!("../../../corpus/models/", $name, "/config.json")),
            include_bytes!(concat!("../../../corpus/models/", $name, "/model.safetensors")),
            include_bytes!(concat!("../../../corpus/models/", $name, "/tokenizer.json")),
        )
    };
}

/// The built-in models: name, config.json, model.safetensors, tokenizer.json. They are part of the
/// program, so that its first command works from any directory.
const BUILTIN: [(&str, &str, &[u8], &[u8]); 4] =
    [files!("dense"), files!("moe"), files!("mamba"), files!("rwkv")];

pub fn builtin(spec: &str, name: &str) -> Result<Model> {
    let Some((_, config, weights, tokenizer)) = BUILTIN.iter().find(|b| b.0 == name) else {
        let names: Vec<String> = BUILTIN.iter().map(|b| format!("builtin:{}", b.0)).collect();
        return Err(Error::model(
            spec,
            "name",
            format!("no such built-in model; there are: {}", names.join(", ")),
        ));
    };
    let config = Config::from_json(spec, config)?;
    let tokenizer = Tokenizer::from_bytes(spec, tokenizer)?;
    Model::assemble(spec, config, &mut safetensors::Buffer::open(spec, weights)?, Some(tokenizer))
}

/// The newest snapshot of `org/name` in the local cache, by the rules of huggingface_hub:
/// `HF_HUB_CACHE`, else `HF_HOME/hub`, else `~/.cache/huggingface/hub`.
pub fn hf_cache(repository: &str) -> Result<PathBuf> {
    let valid = repository.split('/').count() == 2
        && repository.split('/').all(|p| !p.is_empty() && p != "." && p != "..")
        && repository.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c));
    let spec = format!("hf:{repository}");
    if !valid {
        return Err(Error::model(spec, "name", "expected hf:org/name"));
    }
    let cache = std::env::var_os("HF_HUB_CACHE")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HF_HOME").map(|home| PathBuf::from(home).join("hub")))
        .or_else(|| {
            std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/huggingface/hub"))
        })
        .unwrap_or_default();
    let folder = cache.join(format!("models--{}", repository.replace('/', "--")));
    let missing = || {
        let message = format!(
            "not in the Hugging Face cache {}; run: hf download {repository}",
            cache.display()
        );
        Error::model(&spec, "cache", message)
    };
    // refs/main names the snapshot; without it, the only snapshot there is (first by name if
    // several).
    if let Ok(revision) = std::fs::read_to_string(folder.join("refs/main")) {
        let snapshot = folder.join("snapshots").join(revision.trim());
        if !revision.contains(['/', '.']) && snapshot.join("config.json").is_file() {
            return Ok(snapshot);
        }
    }
    let entries = std::fs::read_dir(folder.join("snapshots")).map_err(|_| missing())?;
    let mut snapshots: Vec<PathBuf> =
        entries.flatten().map(|e| e.path()).filter(|p| p.join("config.json").is_file()).collect();
    snapshots.sort();
    snapshots.into_iter().next().ok_or_else(missing)
}
