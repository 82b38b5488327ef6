//! Edits in words: a verb in two forms and what it acts on.

use std::fmt;

/// An edit as a plain imperative ("replace the token at 5 by id 4091"), which can also become the
/// subject of a sentence ("replacing the token at 5 by id 4091").
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Phrase {
    /// The verb as an imperative.
    pub verb: &'static str,
    /// The verb's -ing form.
    pub gerund: &'static str,
    /// Everything after the verb.
    pub object: String,
}

impl Phrase {
    /// Joins the two forms of a verb and its object.
    pub fn new(verb: &'static str, gerund: &'static str, object: String) -> Self {
        Self { verb, gerund, object }
    }

    /// Says that it is done at one position alone, if it is.
    pub(super) fn at(mut self, position: Option<usize>) -> Self {
        if let Some(position) = position {
            self.object.push_str(&format!(", at {position} alone"));
        }
        self
    }
}

impl fmt::Display for Phrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.verb, self.object)
    }
}
