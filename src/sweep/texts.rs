//! The texts of a sweep of lesions.

use crate::edit::Trial;
use crate::error::{Error, Result};

/// One text with the intact model's loss on it.
pub struct Text {
    /// The first token as the prompt, the rest as the continuation.
    pub trial: Trial,
    /// The loss, nats per token.
    pub loss: f64,
}

impl Text {
    /// Returns the token ids.
    pub fn ids(&self) -> Vec<u32> {
        self.trial.layout().ids
    }
}

/// Returns the texts as trials: the first token is the prompt, and the loss is that of the rest.
pub fn trials(texts: &[Vec<u32>]) -> Result<Vec<Trial>> {
    if texts.is_empty() {
        return Err(Error::request("a sweep of lesions needs a text"));
    }
    texts
        .iter()
        .map(|text| match &text[..] {
            [] => Err(Error::request("the text has no tokens")),
            [_] => Err(Error::request("the text needs at least two tokens")),
            [first, rest @ ..] => Ok(Trial::new([*first], rest)),
        })
        .collect()
}
