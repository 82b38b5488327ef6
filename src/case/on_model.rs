//! Checks of a trial against a model.

use crate::edit::{Action, Edit, Trial};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::vocabulary::spelling;

/// Times the model's context that a trial may be long: mutations may add a little to a prompt of
/// full length, but far beyond it a forward is a bomb.
const MAX_CONTEXTS: usize = 2;

/// Checks that the model has what an edit of a trial speaks of: its token ids, its component, its
/// place in the residual stream; and that the pieces of a token have its text.
///
/// # Errors
/// [`Error::Request`] naming the id, the component, the place or the pieces.
pub fn check_edit(model: &Model, trial: &Trial, edit: &Edit) -> Result<()> {
    if let Some(component) = edit.component() {
        model.check_component(component)?;
    }
    match edit {
        Edit::Steering { steering, .. } => model.check_steering(steering)?,
        Edit::Lesion { action: Action::Flip { bit }, .. } => {
            model.flipped(0.0, *bit)?;
        }
        Edit::AttentionKnockout(knockout) => model.check_attention(&knockout.component)?,
        _ => {}
    }
    model.check_ids(&edit.token_ids())?;
    match edit {
        Edit::Retokenize { position, pieces } => check_pieces(model, trial, *position, pieces),
        _ => Ok(()),
    }
}

/// Checks that the texts of the pieces put together are that of the token, to the byte.
fn check_pieces(model: &Model, trial: &Trial, position: usize, pieces: &[u32]) -> Result<()> {
    let token = trial.token(position);
    let named = |id: &u32| format!("`{}` (id {id})", model.token(*id));
    let whole = token.map_or("none".into(), |id| named(&id));
    let Some(text) = token.and_then(|id| spelling(model, id)) else {
        return Err(Error::request(format!("position: {whole} has no text that can be split")));
    };
    let mut joined = String::new();
    for id in pieces {
        match spelling(model, *id) {
            Some(piece) => joined.push_str(&piece),
            None => {
                return Err(Error::request(format!("pieces: {} has no text", named(id))));
            }
        }
    }
    if joined == text {
        return Ok(());
    }
    let pieces: Vec<String> = pieces.iter().map(named).collect();
    Err(Error::request(format!("pieces: {} are not the text of {whole}", pieces.join(" + "))))
}

/// Checks that the edited sequence is not far beyond the model's context.
///
/// # Errors
/// [`Error::Request`] with both lengths.
pub fn check_length(model: &Model, trial: &Trial) -> Result<()> {
    let most = MAX_CONTEXTS * model.config.max_position_embeddings;
    let length = trial.layout().ids.len();
    if length <= most {
        return Ok(());
    }
    Err(Error::request(format!(
        "{length} tokens, more than {MAX_CONTEXTS} times the model's context (at most {most})"
    )))
}
