//! Checks of a trial against a model.

use crate::edit::{Edit, Trial};
use crate::error::{Error, Result};
use crate::model::Model;

/// Times the model's context that a trial may be long: mutations may add a little to a prompt of
/// full length, but far beyond it a forward is a bomb.
const MAX_CONTEXTS: usize = 2;

/// Checks that the model has what an edit speaks of: its token ids, its component, its place in the
/// residual stream.
///
/// # Errors
/// [`Error::Request`] naming the id, the component or the place.
pub fn check_edit(model: &Model, edit: &Edit) -> Result<()> {
    if let Some(component) = edit.component() {
        model.check_component(component)?;
    }
    match edit {
        Edit::Steering { steering, .. } => model.check_steering(steering)?,
        Edit::AttentionKnockout(knockout) => model.check_attention(&knockout.component)?,
        _ => {}
    }
    model.check_ids(&edit.token_ids())
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
