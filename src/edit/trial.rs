//! A trial: prompt, continuation and edits; one row of a batch.

use std::ops::Range;
use std::slice;
use std::sync::Arc;

use super::{AttentionKnockout, Edit};

/// Prompt token ids, a continuation whose prediction is observed, and the edits made to both.
///
/// The *baseline* of a trial is the same trial without edits.
#[derive(Debug, Clone, PartialEq)]
pub struct Trial {
    /// Prompt ids, BOS first where the model has one.
    pub base: Arc<[u32]>,
    /// Ids that are teacher-forced after the prompt; the distributions that predict them are read.
    pub continuation: Arc<[u32]>,
    /// The mutations, in the order in which they are made.
    pub edits: Vec<Edit>,
}

/// A trial's tokens after its token edits, and where each original token went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Edited prompt followed by edited continuation.
    pub ids: Vec<u32>,
    /// Length of the edited prompt; the continuation is `ids[prompt_len..]`.
    pub prompt_len: usize,
    /// For every original position (base then continuation): its new position, `None` if deleted.
    /// A retokenized token is where its last piece is: there the model has read the same text as
    /// after the token, and what acts at the token acts after all of it.
    pub moved: Vec<Option<usize>>,
}

impl Layout {
    /// Returns the new position of the token at an original one; `None` if it is deleted or there
    /// is no such position.
    pub fn at(&self, position: usize) -> Option<usize> {
        self.moved.get(position).copied().flatten()
    }

    /// Returns the new positions of a knockout's queries, without an end if it is of all later
    /// ones, and of its key; `None` if the token of the key or of the only query is deleted.
    pub fn edges(&self, knockout: &AttentionKnockout) -> Option<(Range<usize>, usize)> {
        let key = self.at(knockout.key)?;
        let queries = match knockout.position {
            Some(position) => self.at(position).map(|query| query..query + 1)?,
            None => key + 1..usize::MAX,
        };
        Some((queries, key))
    }
}

impl Trial {
    /// Returns a trial without edits.
    pub fn new(base: impl Into<Arc<[u32]>>, continuation: impl Into<Arc<[u32]>>) -> Self {
        Self { base: base.into(), continuation: continuation.into(), edits: Vec::new() }
    }

    /// Returns the same prompt and continuation with other edits.
    pub fn with_edits(&self, edits: Vec<Edit>) -> Self {
        Self { edits, ..self.clone() }
    }

    /// Returns the first position that may be edited: a BOS token stays where it is.
    pub fn first_editable(&self, bos_token_id: Option<u32>) -> usize {
        usize::from(bos_token_id.is_some() && self.base.first().copied() == bos_token_id)
    }

    /// Returns the positions that may be edited on the side (prompt or continuation) of one.
    pub fn side(&self, position: usize, bos_token_id: Option<u32>) -> Range<usize> {
        if position < self.base.len() {
            self.first_editable(bos_token_id)..self.base.len()
        } else {
            self.base.len()..self.len()
        }
    }

    /// Returns the positions on the side of one whose deletion or other split is compared with
    /// that of the one: the last of the prompt alone, or all others. The model predicts from the
    /// last, so that whatever is done to it does more than the same elsewhere.
    pub fn alike(&self, position: usize, bos_token_id: Option<u32>) -> Range<usize> {
        let (side, last) = (self.side(position, bos_token_id), self.base.len().saturating_sub(1));
        if position > last {
            side
        } else if position == last {
            last..last + 1
        } else {
            side.start..last
        }
    }

    /// Returns the first position that an edit changes; 0 for edits that act everywhere, or none.
    pub fn first_edited(&self) -> usize {
        self.edits.iter().map(Edit::first_changed).min().unwrap_or(0)
    }

    /// Returns the last position, before any edits, whose prediction is read: the last of the
    /// prompt, or the last but one of the continuation, whose last token predicts nothing.
    pub fn last_read(&self) -> usize {
        self.base.len().saturating_sub(1).max(self.len().saturating_sub(2))
    }

    /// Returns the trial without its edits.
    pub fn baseline(&self) -> Self {
        self.with_edits(Vec::new())
    }

    /// Returns the prompt alone, with the edits that act in it or everywhere.
    pub fn prompt_only(&self) -> Self {
        let end = self.base.len();
        let in_prompt = |edit: &&Edit| edit.least_length() <= end;
        let edits = self.edits.iter().filter(in_prompt).cloned().collect();
        Self { base: self.base.clone(), continuation: Arc::from([]), edits }
    }

    /// Returns the unedited token at a position.
    pub fn token(&self, position: usize) -> Option<u32> {
        let after = position.checked_sub(self.base.len());
        after.map_or(self.base.get(position), |after| self.continuation.get(after)).copied()
    }

    /// Returns the unedited length: base and continuation.
    pub fn len(&self) -> usize {
        self.base.len() + self.continuation.len()
    }

    /// Returns true if there is no token at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Applies the token edits. Edits at positions that do not exist are ignored here; a case with
    /// one is refused when it is read (`case`). Of several replacements at one position the last
    /// wins, and a deletion wins over a replacement; a retokenization is a replacement by several.
    ///
    /// Inserts at `base.len()` go to the end of the prompt, before the continuation.
    pub fn layout(&self) -> Layout {
        let total = self.len();
        let mut replaced: Vec<&[u32]> =
            self.base.iter().chain(self.continuation.iter()).map(slice::from_ref).collect();
        let mut deleted = vec![false; total];
        let mut inserts: Vec<(usize, u32)> = Vec::new();
        for edit in &self.edits {
            match edit {
                Edit::Replace { position, id } if *position < total => {
                    replaced[*position] = slice::from_ref(id);
                }
                Edit::Retokenize { position, pieces } if *position < total => {
                    replaced[*position] = pieces;
                }
                Edit::Delete { position } if *position < total => deleted[*position] = true,
                Edit::Insert { position, id } if *position <= total => {
                    inserts.push((*position, *id));
                }
                _ => {}
            }
        }
        // A stable sort keeps the list's order within a position.
        inserts.sort_by_key(|&(position, _)| position);
        let mut ids = Vec::with_capacity(total + inserts.len());
        let mut moved = Vec::with_capacity(total);
        let mut pending = inserts.into_iter().peekable();
        let mut prompt_len = 0;
        for position in 0..=total {
            while let Some((_, id)) = pending.next_if(|&(at, _)| at == position) {
                ids.push(id);
            }
            if position == self.base.len() {
                prompt_len = ids.len();
            }
            if position < total {
                if !deleted[position] {
                    ids.extend_from_slice(replaced[position]);
                }
                moved.push((!deleted[position]).then(|| ids.len().saturating_sub(1)));
            }
        }
        Layout { ids, prompt_len, moved }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(edits: Vec<Edit>, ids: &[u32], prompt_len: usize) {
        let layout = Trial::new([10, 11, 12], [20, 21]).with_edits(edits).layout();
        assert_eq!((layout.ids.as_slice(), layout.prompt_len), (ids, prompt_len));
        for (old, new) in layout.moved.iter().enumerate() {
            if let Some(new) = new {
                assert!(*new < layout.ids.len(), "position {old} moved to {new}");
            }
        }
    }

    #[test]
    fn what_acts_in_the_continuation_is_not_of_the_prompt() {
        use Edit::*;
        let freeze = FreezeRouting;
        let kept = [Replace { position: 2, id: 5 }, Insert { position: 3, id: 7 }, freeze];
        let gone = [Replace { position: 3, id: 5 }, Insert { position: 4, id: 7 }];
        let trial = Trial::new([10, 11, 12], [20, 21]).with_edits([&kept[..], &gone].concat());
        assert_eq!(trial.prompt_only(), Trial::new([10, 11, 12], []).with_edits(kept.to_vec()));
    }

    #[test]
    fn token_edits_refer_to_original_positions() {
        use Edit::*;
        check(vec![], &[10, 11, 12, 20, 21], 3);
        check(vec![Replace { position: 1, id: 5 }], &[10, 5, 12, 20, 21], 3);
        check(vec![Delete { position: 0 }, Replace { position: 1, id: 5 }], &[5, 12, 20, 21], 2);
        check(
            vec![Insert { position: 3, id: 7 }, Insert { position: 3, id: 8 }],
            &[10, 11, 12, 7, 8, 20, 21],
            5,
        );
        check(vec![Insert { position: 0, id: 7 }, Delete { position: 2 }], &[7, 10, 11, 20, 21], 3);
        check(
            vec![Replace { position: 3, id: 9 }, Insert { position: 5, id: 1 }],
            &[10, 11, 12, 9, 21, 1],
            3,
        );
        check(
            vec![Retokenize { position: 1, pieces: vec![5, 6, 7] }, Insert { position: 1, id: 8 }],
            &[10, 8, 5, 6, 7, 12, 20, 21],
            6,
        );
        check(
            vec![Retokenize { position: 2, pieces: vec![5, 6] }, Insert { position: 3, id: 8 }],
            &[10, 11, 5, 6, 8, 20, 21],
            5,
        );
        check(
            vec![Retokenize { position: 3, pieces: vec![5, 6] }, Replace { position: 4, id: 7 }],
            &[10, 11, 12, 5, 6, 7],
            3,
        );
        check(vec![Retokenize { position: 99, pieces: vec![5, 6] }], &[10, 11, 12, 20, 21], 3);
        check(
            vec![Replace { position: 99, id: 9 }, Delete { position: 99 }],
            &[10, 11, 12, 20, 21],
            3,
        );
    }

    #[test]
    fn a_retokenized_token_is_where_its_last_piece_is() {
        let retokenize = Edit::Retokenize { position: 1, pieces: vec![5, 6, 7] };
        let layout = Trial::new([10, 11, 12], [20]).with_edits(vec![retokenize]).layout();
        assert_eq!(layout.moved, [Some(0), Some(3), Some(4), Some(5)]);
    }

    #[test]
    fn positions_go_on_in_the_continuation() {
        let trial = Trial::new([10, 11], [20]);
        assert_eq!([0, 1, 2, 3].map(|at| trial.token(at)), [Some(10), Some(11), Some(20), None]);
    }
}
