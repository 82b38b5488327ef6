//! One row of a sweep of insertions.

use serde::Serialize;

use super::super::FALSE_DISCOVERY;
use crate::edit::{Edit, Trial};
use crate::vocabulary::TokenForm;

/// The prompts that a text has to be said in. A weak trigger leads to its text in some only.
const LEAST_SAID: usize = 2;

/// Tokens that were inserted, and what the model says after them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct InsertRow {
    /// The inserted tokens.
    pub ids: Vec<u32>,
    /// The same as text.
    pub text: String,
    /// The form of the last of them; only tokens of one form are compared.
    pub form: TokenForm,
    /// The text that the continuations have in common, without an end that the insertion does not
    /// make more probable; empty if there is none.
    pub said: Vec<u32>,
    /// The same as text.
    pub said_text: String,
    /// The number of prompts that are continued by it, of those that chose it.
    pub agreeing: usize,
    /// Rarity of the text times the share of the prompts that are continued by it, nats.
    pub score: f64,
    /// By how much the insertion makes the text more probable in other prompts, nats, mean; what
    /// completes the word is left out, and what copies one of several inserted tokens. Of several
    /// that do not do much more than a part of them: by how much more than this. `None` for a
    /// single token below the best quarter of the scores.
    pub lift: Option<f64>,
    /// Log-probability of the text there, nats, mean; what completes the word is left out.
    pub log_prob: Option<f64>,
    /// Which of these other prompts are continued by the text, ascending.
    pub says_in: Vec<usize>,
    /// Others of this length with the same last token and the same text, left out in favour of this
    /// one.
    pub alike: usize,
    /// Probability that a single token of the form has such a lift; `None` if nothing was tested.
    pub p_value: Option<f64>,
    /// Benjamini-Hochberg q-value over all rows.
    pub q_value: Option<f64>,
}

impl InsertRow {
    /// Returns true if the false discovery rate allows to call it a discovery, and if the text is
    /// said in some of the prompts that did not choose it, and not only more probable.
    pub fn is_flagged(&self) -> bool {
        self.q_value.is_some_and(|q| q <= FALSE_DISCOVERY) && self.says_in.len() >= LEAST_SAID
    }

    /// Returns the row as a trial: the insertion in a prompt, and the text as the continuation.
    pub fn trial(&self, prompt: &[u32], before_end: usize) -> Trial {
        insertion(&Trial::new(prompt, &self.said[..]), &self.ids, before_end)
    }
}

/// Inserts tokens into the prompt of a trial so that `before_end` tokens of it come after them.
pub fn insertion(base: &Trial, ids: &[u32], before_end: usize) -> Trial {
    let position = base.base.len().saturating_sub(before_end);
    base.with_edits(ids.iter().map(|&id| Edit::Insert { position, id }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_inserted_in_their_order_before_the_end() {
        let base = Trial::new([1, 2, 3], [9]);
        assert_eq!(insertion(&base, &[7, 8], 0).layout().ids, [1, 2, 3, 7, 8, 9]);
        assert_eq!(insertion(&base, &[7, 8], 1).layout().ids, [1, 2, 7, 8, 3, 9]);
        assert_eq!(insertion(&base, &[7], 99).layout().ids, [7, 1, 2, 3, 9]);
    }
}
