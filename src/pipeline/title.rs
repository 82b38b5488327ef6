//! The title of a case: one line that says what is done and what happens.

use crate::edit::{Edit, Trial};
use crate::model::Model;
use crate::oracle::OracleKind;

/// Returns one line: the edits of the trial and their effect, as the oracle measured it.
pub(super) fn title(model: &Model, trial: &Trial, oracle: OracleKind, score: f64) -> String {
    // What comes after an insertion at the end is the continuation, which is no part of the edits.
    let at_end = |edit: &Edit| match edit {
        Edit::Insert { position, id } if *position == trial.base.len() => Some(*id),
        _ => None,
    };
    let appended: Option<Vec<u32>> = trial.edits.iter().map(at_end).collect();
    if let Some(ids) = appended.filter(|ids| !ids.is_empty()) {
        let effect = oracle.oracle().effect(score, &model.decode(&trial.continuation));
        return format!("`{}` at the end {effect}", model.decode(&ids));
    }
    let what: Vec<String> =
        trial.edits.iter().take(2).map(|edit| edit_in_words(model, trial, edit)).collect();
    let more = if trial.edits.len() > 2 {
        format!(" and {} more edits", trial.edits.len() - 2)
    } else {
        String::new()
    };
    let effect = oracle.oracle().effect(score, &model.decode(&trial.continuation));
    // An echo case edits the same token in several places; saying so once is enough.
    let what = if oracle.oracle().edits_one_token() {
        what.into_iter().take(1).collect::<Vec<_>>().join("")
    } else {
        what.join(", ") + &more
    };
    format!("{what} {effect}")
}

fn edit_in_words(model: &Model, trial: &Trial, edit: &Edit) -> String {
    let quoted = |id: u32| format!("`{}`", model.token(id));
    let at = |position: usize| trial.token(position).map_or("the end".into(), quoted);
    edit.title(&quoted, &at)
}
