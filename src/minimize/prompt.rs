//! The phases that shorten a prompt: token by token, or so that what is left is text.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::PromptReduction;
use super::trial::{Minimizer, usable};
use crate::edit::{Edit, Trial};
use crate::error::Result;

/// The first pass spends at most one in this many calls on neutral tokens, so that a short budget
/// is not used up before anything is deleted (which also makes every later call cheaper).
const NEUTRAL_SHARE: u64 = 3;

impl Minimizer<'_> {
    /// Shortens the prompt; returns true if the result is certified.
    pub(super) fn prompt(&mut self, singles_only: bool) -> Result<bool> {
        match self.options.prompt {
            PromptReduction::Tokens { neutral } => {
                let neutral = match neutral {
                    Some(neutral) => self.neutral(neutral, singles_only)?,
                    None => true,
                };
                Ok(self.deletion(singles_only)? && neutral)
            }
            PromptReduction::Text { token } => {
                let sentences = self.sentences(singles_only, token)?;
                Ok(self.beginning(token)? && sentences)
            }
        }
    }

    /// Deletes whole sentences and lines.
    fn sentences(&mut self, singles_only: bool, token: &dyn Fn(u32) -> String) -> Result<bool> {
        let trial = self.trial.clone();
        let free = self.free();
        let mut sentences: Vec<Vec<usize>> = vec![Vec::new()];
        for (position, &id) in trial.base.iter().enumerate() {
            if let Some(last) = sentences.last_mut() {
                last.push(position);
            }
            if ends_sentence(&token(id)) {
                sentences.push(Vec::new());
            }
        }
        // One that holds an edit stays, and so does what is protected.
        sentences.retain(|s| !s.is_empty() && s.iter().all(|p| free.contains(p)));
        self.reduce(sentences.len(), self.left(), singles_only, &|kept| {
            let mut keep = vec![true; trial.base.len()];
            for (sentence, _) in sentences.iter().zip(kept).filter(|(_, kept)| !**kept) {
                sentence.iter().for_each(|&position| keep[position] = false);
            }
            delete_base(&trial, &keep).and_then(usable)
        })
    }

    /// Cuts the prompt from its beginning, to the shortest that still fails; what is left starts
    /// with a word.
    fn beginning(&mut self, token: &dyn Fn(u32) -> String) -> Result<bool> {
        let trial = self.trial.clone();
        let first = self.options.keep_first.min(trial.base.len());
        // Nothing that is edited is cut, and nothing protected.
        let mut end = trial.base.len().saturating_sub(self.options.keep_last);
        for position in trial.edits.iter().flat_map(Edit::positions).filter(|at| *at >= first) {
            end = end.min(position);
        }
        let mut starts: Vec<usize> = (first + 1..=end.min(trial.base.len().saturating_sub(1)))
            .filter(|&position| starts_word(&token(trial.base[position])))
            .collect();
        starts.reverse();
        // Length `i` keeps the prompt from `starts[i]` on; the last of all is the whole.
        let (starts, count) = (&starts, starts.len());
        self.shortest(0, count, &|length| {
            let mut keep = vec![true; trial.base.len()];
            keep[first..*starts.get(length)?].fill(false);
            delete_base(&trial, &keep).and_then(usable)
        })
    }

    /// Returns the base positions that may be replaced or deleted: no edit names them, and the
    /// options do not protect them.
    fn free(&self) -> Vec<usize> {
        // An insertion is in the gap before a token, not at the token.
        let edits = self.trial.edits.iter().filter(|edit| !matches!(edit, Edit::Insert { .. }));
        let taken: BTreeSet<usize> = edits.flat_map(Edit::positions).collect();
        let end = self.trial.base.len().saturating_sub(self.options.keep_last);
        (self.options.keep_first..end).filter(|position| !taken.contains(position)).collect()
    }

    /// Replaces base tokens by the neutral one.
    fn neutral(&mut self, neutral: u32, singles_only: bool) -> Result<bool> {
        let trial = self.trial.clone();
        let positions: Vec<usize> =
            self.free().into_iter().filter(|&p| trial.base[p] != neutral).collect();
        let max_calls = if singles_only { self.left() } else { self.left() / NEUTRAL_SHARE };
        self.reduce(positions.len(), max_calls, singles_only, &|kept| {
            let mut base = trial.base.to_vec();
            for (&position, _) in positions.iter().zip(kept).filter(|(_, kept)| !**kept) {
                base[position] = neutral;
            }
            Some(Trial { base: base.into(), ..trial.clone() })
        })
    }

    /// Deletes base tokens.
    fn deletion(&mut self, singles_only: bool) -> Result<bool> {
        let trial = self.trial.clone();
        let positions = self.free();
        self.reduce(positions.len(), self.left(), singles_only, &|kept| {
            let mut keep = vec![true; trial.base.len()];
            for (&position, &kept) in positions.iter().zip(kept) {
                keep[position] = kept;
            }
            delete_base(&trial, &keep).and_then(usable)
        })
    }
}

/// Returns whether a text ends here: with a full stop, a question, an exclamation, or a line.
fn ends_sentence(token: &str) -> bool {
    let text = token.trim_end_matches(['"', '\'', ')', ' ', '\u{201d}']);
    token.contains('\n') || text.ends_with(['.', '!', '?'])
}

/// Returns whether a token begins a word (or a line), and is no end of one.
fn starts_word(token: &str) -> bool {
    let mut characters = token.chars();
    match characters.next() {
        Some(space) if space.is_whitespace() => {
            characters.next().is_some_and(char::is_alphanumeric)
        }
        Some(first) => first.is_uppercase(),
        None => false,
    }
}

/// Returns the trial with only the marked base tokens, and the edits moved with the tokens they are
/// at; `None` if an edit loses its token.
pub(super) fn delete_base(trial: &Trial, keep: &[bool]) -> Option<Trial> {
    // The number of kept tokens before each position, the end of the base included.
    let mut before = vec![0; keep.len() + 1];
    for (position, &kept) in keep.iter().enumerate() {
        before[position + 1] = before[position] + usize::from(kept);
    }
    let moved = |position: usize| match position.checked_sub(keep.len()) {
        None => before[position],
        Some(after) => before[keep.len()] + after,
    };
    let mut edits = trial.edits.clone();
    // Insertions that meet at one place keep the order of the places they come from, which the
    // order of the list alone would not give: they are sorted among the slots that insertions have
    // in the list.
    let slots: Vec<usize> =
        (0..edits.len()).filter(|&i| matches!(edits[i], Edit::Insert { .. })).collect();
    let mut inserts: Vec<Edit> = slots.iter().map(|&i| edits[i].clone()).collect();
    inserts.sort_by_key(Edit::position);
    for (slot, insert) in slots.into_iter().zip(inserts) {
        edits[slot] = insert;
    }
    for edit in &mut edits {
        let inserts = matches!(edit, Edit::Insert { .. });
        for position in edit.positions_mut() {
            if !inserts && keep.get(*position) == Some(&false) {
                return None;
            }
            *position = moved(*position);
        }
    }
    let base: Arc<[u32]> =
        trial.base.iter().zip(keep).filter(|(_, kept)| **kept).map(|(&id, _)| id).collect();
    Some(Trial { base, continuation: trial.continuation.clone(), edits })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_and_words_begin_and_end() {
        for end in [".", ".\"", "?", "!)", ".\n", "\n", "end.\u{201d}"] {
            assert!(ends_sentence(end), "{end:?}");
        }
        for (token, starts) in [
            (" house", true),
            ("The", true),
            ("ing", false),
            (",", false),
            (" (", false),
            ("", false),
        ] {
            assert!(!ends_sentence(token));
            assert_eq!(starts_word(token), starts, "{token:?}");
        }
    }
}
