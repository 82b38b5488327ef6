//! How much a token that is said counts: by how rarely other insertions lead to it, and not at all
//! if it only completes a word.

use std::collections::BTreeMap;

use crate::vocabulary::TokenForm;

/// How often each token occurs in continuations.
pub struct Rarity {
    counts: BTreeMap<u32, usize>,
    total: usize,
    vocabulary: usize,
}

impl Rarity {
    /// Counts the tokens of continuations, which are those of each insertion in each prompt.
    pub fn of(continuations: &[Vec<Vec<u32>>], vocabulary: usize) -> Self {
        let mut rarity = Self { counts: BTreeMap::new(), total: 0, vocabulary };
        for id in continuations.iter().flatten().flatten() {
            *rarity.counts.entry(*id).or_default() += 1;
            rarity.total += 1;
        }
        rarity
    }

    /// Returns the negative logarithm of a token's frequency in the continuations that are not
    /// `own`, one added to every count.
    pub fn nats(&self, id: u32, own: &Self) -> f64 {
        let count = |of: &Self| of.counts.get(&id).copied().unwrap_or(0);
        let others = count(self).saturating_sub(count(own));
        let total = self.total.saturating_sub(own.total) + self.vocabulary;
        -((others as f64 + 1.0) / total as f64).ln()
    }
}

/// Returns true if all tokens that were said are letters without a space: they end the word that
/// the inserted token began.
pub fn completes_word(said: &[u32], forms: &[TokenForm]) -> bool {
    let fragment = |id: &u32| {
        matches!(forms.get(*id as usize), Some(TokenForm::Fragment | TokenForm::Other) | None)
    };
    said.iter().all(fragment)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_rare_if_others_do_not_say_it() {
        let continuations = vec![vec![vec![7, 7, 7]], vec![vec![1, 2, 1]], vec![vec![1]]];
        let all = Rarity::of(&continuations, 10);
        let own = Rarity::of(&continuations[..1], 0);
        assert_eq!(all.nats(7, &own), -(1.0f64 / 14.0).ln());
        assert_eq!(all.nats(1, &own), -(4.0f64 / 14.0).ln());
    }

    #[test]
    fn what_completes_the_word_does_not_count() {
        use TokenForm::*;
        let forms = [Fragment, Word, Punctuation];
        let completes = |said: &[u32]| completes_word(said, &forms);
        assert!(completes(&[0]) && completes(&[0, 0]));
        assert!(!completes(&[1]) && !completes(&[0, 2]) && !completes(&[0, 1, 0]));
    }
}
