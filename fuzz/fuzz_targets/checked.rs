//! The check that all targets share: a refusal is one short line without control characters.

use std::fmt::Display;

/// Panics where an error is not fit for a terminal.
pub fn refusal(error: &dyn Display) {
    let text = error.to_string();
    assert!(!text.contains('\n') && text.len() < 2000, "not one short line: {text:?}");
    assert!(!text.chars().any(char::is_control), "a control character: {text:?}");
}

/// Loads a model from a file of this name with these bytes, beside the given others.
#[allow(dead_code)]
pub fn load(name: &str, data: &[u8], beside: &[(&str, &[u8])], folder: bool) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    for (name, data) in beside.iter().chain([&(name, data)]) {
        std::fs::write(dir.path().join(name), data).expect("a temporary file");
    }
    let path = if folder { dir.path().to_owned() } else { dir.path().join(name) };
    if let Err(error) = glitch::model::Model::load(path.to_str().expect("a plain path")) {
        refusal(&error);
    }
}
