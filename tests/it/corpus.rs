//! The regression cases of this repository, replayed on the built-in model.

use std::path::Path;

use glitch::corpus::{REGRESSIONS, entries};

use super::cli::glitch;

#[test]
fn every_regression_case_is_as_expected() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join(REGRESSIONS);
    let cases: Vec<_> = entries(&dir).unwrap().collect();
    assert!(!cases.is_empty(), "{} holds no case", dir.display());
    for entry in cases {
        let case = entry.case.unwrap();
        assert_eq!(
            case.model.name,
            "builtin:dense",
            "{}: cases of other models cannot be replayed here",
            entry.path.display()
        );
    }
    let dir = dir.to_str().unwrap();
    let replayed = glitch(&["replay", dir]);
    assert_eq!(replayed.code, 0, "{}{}", replayed.stdout, replayed.stderr);
    assert_eq!(glitch(&["corpus", "--dir", dir, "verify"]).code, 0);
}
