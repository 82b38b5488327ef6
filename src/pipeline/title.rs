//! The title of a case: one line that says what is done and what happens.

use crate::edit::{Edit, Trial};
use crate::model::Model;
use crate::oracle::OracleKind;

/// Returns one line: the edits of the trial and their effect, as the oracle measured it.
pub(super) fn title(model: &Model, trial: &Trial, oracle: OracleKind, score: f64) -> String {
    let effect = oracle.oracle().effect(score, &model.decode(&trial.continuation));
    let appended: Option<Vec<u32>> = trial.edits.iter().map(|edit| at_end(trial, edit)).collect();
    if let Some(ids) = appended.filter(|ids| !ids.is_empty()) {
        return format!("`{}` at the end {effect}", model.decode(&ids));
    }
    // An echo case edits the same token in several places; saying so once is enough.
    let one_token = oracle.oracle().edits_one_token();
    let count = trial.edits.len();
    let said = match count {
        _ if one_token => 1,
        0..=3 => 3,
        _ => 2,
    };
    let edits = trial.edits.iter().take(said);
    let mut what: Vec<String> = edits.map(|edit| edit_in_words(model, trial, edit)).collect();
    if !one_token && count > said {
        what.push(format!("{} more edits", count - said));
    }
    format!("{} {effect}", what.join(" plus "))
}

/// Returns the token that is inserted at the end of the prompt. What comes after it is the
/// continuation, which is no part of the edits.
fn at_end(trial: &Trial, edit: &Edit) -> Option<u32> {
    match edit {
        Edit::Insert { position, id } if *position == trial.base.len() => Some(*id),
        _ => None,
    }
}

fn edit_in_words(model: &Model, trial: &Trial, edit: &Edit) -> String {
    let quoted = |id: u32| format!("`{}`", model.token(id));
    if let Some(id) = at_end(trial, edit) {
        return format!("{} at the end", quoted(id));
    }
    let at = |position: usize| trial.token(position).map_or("the end".into(), quoted);
    edit.title(&quoted, &at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edit::{Action, Component};

    #[test]
    fn a_title_says_what_is_done_and_what_happens() {
        let model = Model::load("builtin:dense").unwrap();
        let ids = model.encode(" the house was old").unwrap();
        let said = model.encode(" bread and").unwrap()[1..].to_vec();
        let of = |edits: &[Edit], oracle, score| {
            let trial = Trial::new(ids.clone(), said.clone()).with_edits(edits.to_vec());
            title(&model, &trial, oracle, score)
        };
        let zeroed = |layer| Edit::lesion(Component::Mlp { layer }, Action::Zero);
        let lesions: Vec<Edit> = (0..4).map(zeroed).collect();
        let divergence = |edits| of(edits, OracleKind::Divergence, 0.5);
        let shifts = "shifts the next-token distributions by 0.50 bits";
        assert_eq!(divergence(&lesions[..1]), format!("zeroing L0.mlp {shifts}"));
        let three = format!("zeroing L0.mlp plus zeroing L1.mlp plus zeroing L2.mlp {shifts}");
        assert_eq!(divergence(&lesions[..3]), three);
        let four = format!("zeroing L0.mlp plus zeroing L1.mlp plus 2 more edits {shifts}");
        assert_eq!(divergence(&lesions), four);
        // What is put at the end is followed by what the model says.
        let end = Edit::Insert { position: ids.len(), id: said[0] };
        let constant = of(std::slice::from_ref(&end), OracleKind::ConstantAnswer, 0.5);
        let answers = "makes 50% more of the answer the same after other prompts";
        assert_eq!(constant, format!("` bread` at the end {answers}"));
        let inside = Edit::Replace { position: 1, id: said[0] };
        let both = of(&[inside, end], OracleKind::ConstantAnswer, 0.5);
        assert_eq!(both, format!("` bread` for ` the` plus ` bread` at the end {answers}"));
    }
}
