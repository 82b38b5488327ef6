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

#[test]
fn a_replay_by_the_library_refuses_what_the_model_does_not_have() {
    use glitch::case::Case;
    use glitch::corpus::{ModelUnderTest, Status, replay};
    use glitch::edit::{Action, Component, Edit};

    let model = ModelUnderTest::load("builtin:dense").unwrap();
    let evaluator = model.evaluator();
    let path = Path::new("x.json");
    let good = super::made::case();
    let outcome = replay(path, good, &model, &evaluator, false).unwrap();
    assert_eq!(outcome.status, Status::Reproduced);
    let beyond = u32::try_from(model.model.config.vocab_size).unwrap();
    let refused = |change: &dyn Fn(&mut Case), any_model: bool, expected: &str| {
        let mut case = good.clone();
        change(&mut case);
        let error = replay(path, &case, &model, &evaluator, any_model).unwrap_err().to_string();
        assert!(error.starts_with("x.json: ") && error.contains(expected), "{error}");
    };
    refused(&|case| case.base[0] = beyond, false, "base: token id");
    refused(&|case| case.continuation.push(beyond), false, "continuation: token id");
    let replace = Edit::Replace { position: 1, id: beyond };
    refused(&|case| case.edits.push(replace.clone()), false, "is beyond the vocabulary");
    let lesion = Edit::lesion(Component::Head { layer: 99, head: 0 }, Action::Zero);
    refused(&|case| case.edits.push(lesion.clone()), true, "has no component L99.head0");
    refused(&|case| case.model.fingerprint = "another".into(), false, "made on model another");
    let mut other = good.clone();
    other.model.fingerprint = "another".into();
    assert_eq!(replay(path, &other, &model, &evaluator, true).unwrap(), outcome);
}
