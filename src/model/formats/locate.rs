//! Names of models: the built-in ones, the local Hugging Face cache, and paths.

use std::path::{Path, PathBuf};

use super::difference::split;
use crate::error::{Error, Result};

/// Returns whether a name is the same on every machine: a built-in model, or one of the Hugging
/// Face cache.
pub fn is_named(spec: &str) -> bool {
    (spec.starts_with("builtin:") || spec.starts_with("hf:")) && split(spec).is_none()
}

fn home() -> Option<PathBuf> {
    let home = PathBuf::from(std::env::var_os("HOME")?);
    (home.is_absolute() && home.parent().is_some()).then_some(home)
}

/// Returns the path of a model that is named by one; a `~` at the beginning is the home folder.
pub fn path_of(spec: &str) -> PathBuf {
    match (spec.strip_prefix("~/"), home()) {
        (Some(rest), Some(home)) if !Path::new(spec).exists() => home.join(rest),
        _ => PathBuf::from(spec),
    }
}

/// Returns the one spelling of a model's name that files get: the absolute path, however the path
/// was spelt, with `~` for the home folder. A file keeps its own name even if it is a link, because
/// the blobs of the Hugging Face cache have no telling names.
pub fn canonical_name(spec: &str) -> String {
    if is_named(spec) {
        return spec.to_owned();
    }
    if let Some((base, file)) = split(spec) {
        return format!("{}+{}", canonical_name(base), canonical_name(file));
    }
    let path = path_of(spec);
    let canonical = match path.file_name() {
        Some(name) if !path.is_dir() => {
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            folder.unwrap_or(Path::new(".")).canonicalize().map(|folder| folder.join(name))
        }
        _ => path.canonicalize(),
    };
    let Ok(canonical) = canonical else { return spec.to_owned() };
    let home = home().and_then(|home| home.canonicalize().ok());
    let below_home = home.and_then(|home| canonical.strip_prefix(home).ok().map(Path::to_owned));
    let name = below_home.map_or(canonical, |rest| Path::new("~").join(rest));
    name.display().to_string()
}

/// Parts of a path that a short name has at most.
const MAX_PARTS: usize = 8;

/// Returns short names for tables: of a path the last part, and as many before it as it takes to
/// tell it from the other names.
pub fn short_names(names: &[&str]) -> Vec<String> {
    let end = |name: &str, parts: usize| -> String {
        if is_named(name) {
            return name.to_owned();
        }
        let all: Vec<&str> = name.split('/').filter(|part| !part.is_empty()).collect();
        all[all.len().saturating_sub(parts)..].join("/")
    };
    let short = |name: &&str| {
        let most = name.split('/').take(MAX_PARTS).count();
        let told_apart = |parts: &usize| {
            names.iter().all(|other| other == name || end(other, *parts) != end(name, *parts))
        };
        end(name, (1..=most).find(told_apart).unwrap_or(most))
    };
    names.iter().map(short).collect()
}

/// Returns the folder of the newest snapshot of `org/name` in the local cache, by the rules of
/// huggingface_hub: `HF_HUB_CACHE`, else `HF_HOME/hub`, else `~/.cache/huggingface/hub`.
///
/// # Errors
/// [`Error::Model`] if the name is not of that form, or the model is not in the cache.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_has_one_spelling() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().canonicalize().unwrap().join("m");
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("x.gguf"), "").unwrap();
        let folder = folder.display().to_string();
        for spelt in ["", "/", "/.", "//", "/../m", "/./../m/"] {
            assert_eq!(canonical_name(&format!("{folder}{spelt}")), folder);
        }
        for spelt in ["/x.gguf", "/../m/./x.gguf"] {
            assert_eq!(canonical_name(&format!("{folder}{spelt}")), format!("{folder}/x.gguf"));
        }
        assert_eq!(canonical_name("builtin:dense"), "builtin:dense");
        assert_eq!(canonical_name("/no/such/m/"), "/no/such/m/");
    }

    #[test]
    fn short_names_tell_models_apart() {
        let names = ["/a/one/m.gguf", "/a/two/m.gguf", "hf:org/m", "~/models/b/", "builtin:moe"];
        let short = ["one/m.gguf", "two/m.gguf", "hf:org/m", "b", "builtin:moe"];
        assert_eq!(short_names(&names), short);
        assert_eq!(short_names(&["/a/m", "/a/m"]), ["m", "m"]);
    }
}
