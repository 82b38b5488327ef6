//! The edits of a trial, moved into another prompt.

use crate::echo::EchoPrompt;
use crate::edit::{Edit, Trial};

/// Puts the edits of `trial` into another prompt, each (and the key of a knockout) at the same
/// distance from the end of it; lesions without a position act everywhere as before, and a key that
/// is the first of all positions remains the first, which is attended to because of its place.
/// `None` if one has no place there: the prompt is too short, or (a deletion) it is about a token
/// that the other prompt does not have. `first` is the first position that may be edited.
///
/// A retokenization is about a token too, but of this one nothing is taken away: the token is put
/// into the prompt, so that the trial and its baseline have the same text there as well, and the
/// controls split other tokens of it.
pub fn transplant(trial: &Trial, prompt: &Trial, first: usize) -> Option<Trial> {
    let mut edits = trial.edits.clone();
    let mut base = prompt.base.to_vec();
    for edit in &mut edits {
        if matches!(edit, Edit::Delete { .. }) {
            return None;
        }
        let end = prompt.len() + usize::from(matches!(edit, Edit::Insert { .. }));
        let is_split = matches!(edit, Edit::Retokenize { .. });
        let first_key = matches!(edit, Edit::AttentionKnockout(knockout) if knockout.key == 0);
        // The key is the last of the positions.
        let to_move = edit.positions().count() - usize::from(first_key);
        let first = first.max(usize::from(first_key));
        for position in edit.positions_mut().take(to_move) {
            let moved = (prompt.base.len() + *position).checked_sub(trial.base.len())?;
            if moved < first || moved >= end {
                return None;
            }
            if is_split {
                *base.get_mut(moved)? = trial.token(*position)?;
            }
            *position = moved;
        }
    }
    Some(Trial { base: base.into(), continuation: prompt.continuation.clone(), edits })
}

/// Returns the token that the edits of an echo trial show and ask for; `None` if they do anything
/// else.
pub(super) fn echoed(trial: &Trial) -> Option<u32> {
    let mut tokens = trial.edits.iter().map(|edit| match edit {
        Edit::Replace { id, .. } => Some(*id),
        _ => None,
    });
    let first = tokens.next()??;
    tokens.all(|token| token == Some(first)).then_some(first)
}

/// Puts the token of an echo trial into another echo prompt.
pub(super) fn transplant_echo(trial: &Trial, prompt: &EchoPrompt) -> Option<Trial> {
    echoed(trial).map(|id| prompt.with_token(id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edit::{Action, Component};

    #[test]
    fn edits_keep_their_distance_from_the_end_of_the_prompt() {
        use Edit::*;
        let head = Component::Head { layer: 0, head: 0 };
        let lesion = |position| Lesion { component: head, action: Action::Zero, position };
        let knockout = |position, key| {
            AttentionKnockout(crate::edit::AttentionKnockout { component: head, position, key })
        };
        let trial = Trial::new([1, 2, 3, 4], [5, 6]).with_edits(vec![
            Replace { position: 3, id: 9 },
            Insert { position: 4, id: 8 },
            Replace { position: 5, id: 7 },
            lesion(None),
            lesion(Some(2)),
            knockout(Some(3), 1),
            knockout(None, 2),
        ]);
        let prompt = Trial::new([11, 12, 13, 14, 15, 16], [17, 18]);
        let moved = transplant(&trial, &prompt, 1).unwrap();
        let expect = [
            Replace { position: 5, id: 9 },
            Insert { position: 6, id: 8 },
            Replace { position: 7, id: 7 },
            lesion(None),
            lesion(Some(4)),
            knockout(Some(5), 3),
            knockout(None, 4),
        ];
        assert_eq!((&moved.base, &moved.edits[..]), (&prompt.base, &expect[..]));
        // Too short in front, too short behind, and a deletion.
        assert_eq!(transplant(&trial, &Trial::new([11, 12], [17, 18]), 1), None);
        assert_eq!(transplant(&trial, &Trial::new([11, 12, 13, 14, 15, 16], [17]), 1), None);
        // The first key remains the first, before its query.
        let sink = Trial::new([1, 2, 3, 4], [5]).with_edits(vec![knockout(Some(2), 0)]);
        let moved = transplant(&sink, &prompt, 1).unwrap();
        assert_eq!(moved.edits, [knockout(Some(4), 0)]);
        assert_eq!(transplant(&sink, &Trial::new([11, 12], [17]), 0), None);
        // A key before the first position that may be edited.
        let far = Trial::new([1, 2, 3, 4], [5]).with_edits(vec![knockout(Some(3), 1)]);
        assert_eq!(transplant(&far, &Trial::new([11, 12, 13], [17]), 1), None);
        let delete = trial.with_edits(vec![Delete { position: 3 }]);
        assert_eq!(transplant(&delete, &prompt, 1), None);
    }

    #[test]
    fn a_retokenized_token_is_put_into_the_prompt() {
        let retokenize = |position| Edit::Retokenize { position, pieces: vec![7, 8] };
        let trial = Trial::new([1, 2, 3], [5]).with_edits(vec![retokenize(1)]);
        let moved = transplant(&trial, &Trial::new([11, 12, 13, 14], [15]), 1).unwrap();
        assert_eq!(moved, Trial::new([11, 12, 2, 14], [15]).with_edits(vec![retokenize(2)]));
        // Not in the place of a first token, and not in a continuation.
        assert_eq!(transplant(&trial, &Trial::new([11, 12], [15]), 1), None);
        let trial = trial.with_edits(vec![retokenize(3)]);
        assert_eq!(transplant(&trial, &Trial::new([11, 12], [15]), 1), None);
    }

    #[test]
    fn an_echo_is_of_one_token() {
        let at = |position, id| Edit::Replace { position, id };
        let trial = |edits| Trial::new([1, 2, 3], [4]).with_edits(edits);
        assert_eq!(echoed(&trial(vec![at(1, 9), at(3, 9)])), Some(9));
        assert_eq!(echoed(&trial(vec![at(1, 9), at(3, 8)])), None);
        assert_eq!(echoed(&trial(vec![at(1, 9), Edit::Delete { position: 2 }])), None);
        assert_eq!(echoed(&trial(vec![])), None);
    }
}
