//! Finds the model of a case.
//!
//! A case names its model by a path that was right where the case was made. Elsewhere, the end of
//! that path is looked for near the case and near the current folder, and what is found is the
//! model only if its fingerprint is.

use std::path::{Component, Path, PathBuf};

use crate::error::{Error, Result};
use crate::model::{Model, ModelRef, is_named, split_difference};

/// Models that are loaded at most to compare their fingerprints.
const MAX_LOADED: usize = 8;

/// Parts at the end of a name that are looked for.
const MAX_PARTS: usize = 8;

/// Loads the model that a case was made on: the one of that name, or one that lies near the case
/// (in a folder above it) or near the current folder under the end of that name. `near` are the
/// files of cases that name it. Where no model found has the fingerprint, the first that can be
/// loaded is returned: telling the difference is the caller's.
///
/// # Errors
/// [`Error::Model`] if there is no model of that name, or it cannot be loaded.
pub fn load_model(reference: &ModelRef, near: &[&Path]) -> Result<Model> {
    let mut first = Model::load(&reference.name);
    if is_named(&reference.name) || is_it(&first, reference) {
        return first;
    }
    // Of a difference, the file is looked for; its base has to be where it was.
    let (base, name) = match split_difference(&reference.name) {
        Some((base, file)) => (format!("{base}+"), file),
        None => (String::new(), &reference.name[..]),
    };
    for path in candidates(name, near).into_iter().take(MAX_LOADED) {
        let found = Model::load(&format!("{base}{}", path.display()));
        if is_it(&found, reference) {
            return found;
        }
        if first.is_err() && found.is_ok() {
            first = found;
        }
    }
    first.map_err(|error| match error {
        Error::Model { path, field, message } if field == "path" => {
            let message = format!("{message}; pass --model to name it");
            Error::Model { path, field, message }
        }
        other => other,
    })
}

fn is_it(model: &Result<Model>, reference: &ModelRef) -> bool {
    model.as_ref().is_ok_and(|model| model.fingerprint == reference.fingerprint)
}

/// Paths that exist and end as `name` does: below every folder above the cases, and below the
/// current folder and those above it; the longest ends first.
fn candidates(name: &str, near: &[&Path]) -> Vec<PathBuf> {
    // `..` and `.` say nothing of where to look.
    let parts: Vec<_> = Path::new(name)
        .components()
        .filter_map(|part| match part {
            Component::Normal(part) if part != "~" => Some(part),
            _ => None,
        })
        .collect();
    // The name is from a file: it may have any number of parts.
    let parts = &parts[parts.len().saturating_sub(MAX_PARTS)..];
    let here = std::env::current_dir().unwrap_or_default();
    let mut places: Vec<PathBuf> = Vec::new();
    for start in near.iter().map(|path| here.join(path)).chain([here.join("x")]) {
        for above in start.ancestors().skip(1) {
            if !places.iter().any(|known| known == above) {
                places.push(above.to_owned());
            }
        }
    }
    let mut found: Vec<PathBuf> = Vec::new();
    for start in 0..parts.len() {
        let end: PathBuf = parts[start..].iter().collect();
        for path in places.iter().map(|place| place.join(&end)) {
            if path.exists() && !found.contains(&path) {
                found.push(path);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_name_is_looked_for_above_the_case() {
        let root = tempfile::tempdir().unwrap();
        let place = |name: &str| {
            let path = root.path().join(name);
            std::fs::create_dir_all(&path).unwrap();
            path
        };
        let case = place("project/out/cases").join("x.json");
        let found = |name: &str| candidates(name, &[&case]);
        assert_eq!(found("/home/somebody/models/m-8f2c"), [] as [PathBuf; 0]);
        let (near, far) = (place("project/m-8f2c"), place("models/m-8f2c"));
        assert_eq!(found("/home/somebody/models/m-8f2c"), [far, near.clone()]);
        for name in ["../m-8f2c", "~/m-8f2c"] {
            assert_eq!(found(name), std::slice::from_ref(&near));
        }
    }
}
