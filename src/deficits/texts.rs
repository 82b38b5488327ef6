//! What can be counted in generated texts: token ids in, shares out, without a model.

use std::collections::BTreeSet;

use crate::vocabulary::{TokenForm, Vocabulary};

/// Tokens of the n-grams whose repetition is counted (Welleck et al. 2020, "Neural Text Generation
/// with Unlikelihood Training", section 6.1, seq-rep-4).
const NGRAM: usize = 4;

fn ngrams(text: &[u32]) -> BTreeSet<&[u32]> {
    text.windows(NGRAM).collect()
}

/// Returns the share of the text's 4-grams that occurred in it before (seq-rep-4); 0 for a text of
/// fewer than two.
pub(super) fn repeated_share(text: &[u32]) -> f64 {
    let all = text.windows(NGRAM).count();
    if all < 2 { 0.0 } else { 1.0 - ngrams(text).len() as f64 / all as f64 }
}

/// Returns the share of `asked` tokens that were not written because the text ended.
pub(super) fn missing_share(text: &[u32], asked: usize, end: &[u32]) -> f64 {
    let written = text.iter().filter(|id| !end.contains(id)).count().min(asked);
    1.0 - written as f64 / asked.max(1) as f64
}

/// Returns the share of the text that is bytes and pieces of words that continue no word.
pub(super) fn fragment_share(text: &[u32], vocabulary: &Vocabulary) -> f64 {
    let form = |id: &u32| vocabulary.forms.get(*id as usize).copied();
    let mut fragments = 0;
    let mut in_word = false;
    for id in text {
        let broken = match form(id) {
            Some(TokenForm::Other) => true,
            Some(TokenForm::Fragment) => !in_word,
            _ => false,
        };
        fragments += usize::from(broken);
        // A piece that continues nothing begins nothing either: `ing` after a comma, then `ed`.
        in_word = match form(id) {
            Some(TokenForm::Word) => true,
            Some(TokenForm::Fragment) => in_word,
            _ => false,
        };
    }
    fragments as f64 / text.len().max(1) as f64
}

/// Returns, for each text, the mean over the other texts of the share of its 4-grams that the other
/// has too; 0 where there is no other text, and for a text that has none.
pub(super) fn shared_with_others(texts: &[&[u32]]) -> Vec<f64> {
    let sets: Vec<BTreeSet<&[u32]>> = texts.iter().map(|text| ngrams(text)).collect();
    let share = |i: usize, j: usize| {
        sets[i].intersection(&sets[j]).count() as f64 / sets[i].len().max(1) as f64
    };
    let others = texts.len().saturating_sub(1).max(1) as f64;
    (0..texts.len())
        .map(|i| (0..texts.len()).filter(|j| *j != i).map(|j| share(i, j)).sum::<f64>() / others)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_by_hand() {
        // 1 2 3 1 2 3 1 2: five 4-grams, three distinct.
        assert!((repeated_share(&[1, 2, 3, 1, 2, 3, 1, 2]) - 0.4).abs() < 1e-12);
        assert_eq!(repeated_share(&[1, 2, 3, 4, 5, 6]), 0.0);
        assert_eq!(repeated_share(&[1, 1, 1]), 0.0);
        assert_eq!(missing_share(&[5, 6, 0], 8, &[0]), 0.75);
        assert_eq!(missing_share(&[5; 8], 8, &[0]), 0.0);
        assert_eq!(missing_share(&[], 8, &[0]), 1.0);
    }

    #[test]
    fn pieces_that_continue_no_word_are_fragments() {
        use TokenForm::{Fragment, Other, Punctuation, Word};
        let forms = vec![Word, Fragment, Punctuation, Other];
        let vocabulary = Vocabulary { forms, ..Vocabulary::default() };
        // A word and its ending; then a piece after a comma, and another; a byte.
        assert_eq!(fragment_share(&[0, 1], &vocabulary), 0.0);
        assert_eq!(fragment_share(&[0, 2, 1, 1], &vocabulary), 0.5);
        assert_eq!(fragment_share(&[0, 3, 1, 0], &vocabulary), 0.5);
        assert_eq!(fragment_share(&[], &vocabulary), 0.0);
    }

    #[test]
    fn one_text_in_two_prompts_of_three() {
        let (one, other) = ([1, 2, 3, 4, 5], [6, 7, 8, 9, 10]);
        assert_eq!(shared_with_others(&[&one, &one, &other]), [0.5, 0.5, 0.0]);
        assert_eq!(shared_with_others(&[&one]), [0.0]);
        assert_eq!(shared_with_others(&[&[], &[]]), [0.0, 0.0]);
    }
}
