//! Splits of tokens: the same text cut into other tokens (Geh et al., "Adversarial Tokenization",
//! 2025, who call all cuts but the tokenizer's own non-canonical).
//!
//! Texts are compared as the vocabulary spells them, byte for byte: decoded, a token that is part
//! of a character would be a replacement character, and a space at the beginning would be lost. The
//! splits of a token are paths through its spelling. They are counted from its end (dynamic
//! programming), and one is found by its number, so that drawing one does not list them all.

use std::fmt;

use rand::Rng as _;
use rayon::prelude::*;

use crate::model::Model;
use crate::rng::{Rng, pick};

/// Characters beyond which a token has no splits here. Longer ones are runs of spaces, dashes and
/// the like, of which there are millions of splits.
const LONGEST: usize = 32;

/// The spellings of tokens, among which the pieces of a token are found.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Splits {
    /// The spelling of each token that stands for text, `[vocab]`.
    spellings: Vec<Option<Box<str>>>,
    /// The ids of these, by spelling.
    sorted: Vec<u32>,
}

impl fmt::Debug for Splits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Splits of {} tokens", self.sorted.len())
    }
}

/// Returns the spelling of a token in the vocabulary; `None` if it stands for no text by itself: a
/// control token or another that was added to the vocabulary, or a byte in hexadecimal.
pub fn spelling(model: &Model, id: u32) -> Option<String> {
    let config = &model.config;
    let ends = config.bos_token_id.iter().chain(&config.eos_token_ids).any(|end| *end == id);
    model.tokenizer.as_ref().filter(|_| !ends)?.spelling(id)
}

impl Splits {
    /// Takes the spellings of a model's tokens.
    pub fn of(model: &Model) -> Self {
        let ids = 0..model.config.vocab_size as u32;
        Self::new(ids.into_par_iter().map(|id| spelling(model, id)).collect())
    }

    /// Takes the spelling of each token, `[vocab]`; `None` for one that is neither split nor a
    /// piece. Of two tokens with one spelling the first is the piece.
    pub fn new(spellings: Vec<Option<String>>) -> Self {
        let spellings: Vec<Option<Box<str>>> =
            spellings.into_iter().map(|text| text.map(String::into_boxed_str)).collect();
        let text = |id: u32| spellings[id as usize].as_deref();
        let mut sorted: Vec<u32> = (0..spellings.len() as u32)
            .filter(|id| text(*id).is_some_and(|text| !text.is_empty()))
            .collect();
        sorted.par_sort_unstable_by_key(|id| (text(*id), *id));
        sorted.dedup_by_key(|id| text(*id));
        Self { spellings, sorted }
    }

    fn text(&self, id: u32) -> Option<&str> {
        self.spellings.get(id as usize)?.as_deref()
    }

    fn id(&self, text: &str) -> Option<u32> {
        let at = self.sorted.binary_search_by(|id| self.text(*id).cmp(&Some(text))).ok()?;
        Some(self.sorted[at])
    }

    /// Returns the splits of a token into so many pieces.
    pub fn of_token(&self, id: u32, pieces: usize) -> TokenSplits {
        let text = self.text(id).filter(|text| text.chars().count() <= LONGEST).unwrap_or_default();
        let bounds: Vec<usize> =
            text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
        let length = bounds.len() - 1;
        let from = |start: usize| {
            let to = |end: usize| Some((end, self.id(&text[bounds[start]..bounds[end]])?));
            (start + 1..=length).filter_map(to).collect()
        };
        TokenSplits::new((0..length).map(from).collect(), pieces)
    }
}

/// The splits of one token into a number of pieces, numbered from 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenSplits {
    /// For each character of the spelling the pieces that begin there: where they end, and ids.
    steps: Vec<Vec<(usize, u32)>>,
    /// In how many ways what begins at each character is n pieces, `[n, characters + 1]`.
    ways: Vec<Vec<u64>>,
}

impl TokenSplits {
    fn new(steps: Vec<Vec<(usize, u32)>>, pieces: usize) -> Self {
        let mut none = vec![0; steps.len() + 1];
        none[steps.len()] = 1;
        let mut ways = vec![none];
        for n in 0..pieces {
            let rest = |&(end, _): &(usize, u32)| ways[n][end];
            let more = steps.iter().map(|steps| steps.iter().map(rest).sum());
            let more = more.chain([0]).collect();
            ways.push(more);
        }
        Self { steps, ways }
    }

    /// Returns how many there are.
    pub fn count(&self) -> u64 {
        self.ways.last().map_or(0, |ways| ways[0])
    }

    /// Returns the pieces of the split with this number; `None` from [`count`](Self::count) on.
    pub fn nth(&self, mut index: u64) -> Option<Vec<u32>> {
        let (mut at, mut pieces) = (0, Vec::new());
        for ways in self.ways.iter().rev().skip(1) {
            let (end, id) = *self.steps.get(at)?.iter().find(|(end, _)| {
                let passed = index >= ways[*end];
                index -= if passed { ways[*end] } else { 0 };
                !passed
            })?;
            pieces.push(id);
            at = end;
        }
        Some(pieces)
    }
}

/// The splits of several tokens into the same number of pieces.
#[derive(Debug, Clone)]
pub struct SplitPool(Vec<(usize, TokenSplits)>);

impl SplitPool {
    /// Takes those tokens, with their positions, that have such splits.
    pub fn new(splits: &Splits, tokens: impl Iterator<Item = (usize, u32)>, pieces: usize) -> Self {
        let split = tokens.map(|(position, id)| (position, splits.of_token(id, pieces)));
        Self(split.filter(|(_, splits)| splits.count() > 0).collect())
    }

    /// Returns how many splits there are.
    pub fn count(&self) -> u64 {
        self.0.iter().map(|(_, splits)| splits.count()).sum()
    }

    /// Draws a position, and then a split of its token.
    pub fn draw(&self, rng: &mut Rng) -> Option<(usize, Vec<u32>)> {
        let (position, splits) = pick(&self.0, rng)?;
        Some((*position, splits.nth(rng.random_range(0..splits.count()))?))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Vocabulary;
    use super::*;

    fn splits(texts: &[&str]) -> Splits {
        let text = |text: &&str| (!text.is_empty()).then(|| (*text).to_owned());
        Splits::new(texts.iter().map(text).collect())
    }

    fn all(splits: &Splits, id: u32, pieces: usize) -> Vec<Vec<u32>> {
        let splits = splits.of_token(id, pieces);
        assert_eq!(splits.nth(splits.count()), None);
        (0..splits.count()).map(|index| splits.nth(index).unwrap()).collect()
    }

    #[test]
    fn splits_by_hand() {
        // Token 1 has no text, and 6 is spelled as 2 is.
        let texts = ["\u{120}den", "", "\u{120}", "den", "d", "\u{120}d", "\u{120}", "en", "n"];
        let splits = splits(&texts);
        assert_eq!(all(&splits, 0, 1), [[0]]);
        assert_eq!(all(&splits, 0, 2), [[2, 3], [5, 7]]);
        assert_eq!(all(&splits, 0, 3), [[2, 4, 7]]);
        assert!(all(&splits, 0, 4).is_empty());
        assert_eq!(all(&splits, 5, 2), [[2, 4]]);
        for id in [1, 4, 8, 9, u32::MAX] {
            assert!(all(&splits, id, 2).is_empty(), "{id}");
        }
    }

    #[test]
    fn every_cut_of_a_run_is_counted_once() {
        let runs: Vec<String> = (1..=LONGEST + 1).map(|length| "=".repeat(length)).collect();
        let splits = Splits::new(runs.into_iter().map(Some).collect());
        // Cuts between 32 characters: 31, of which pieces - 1 are made.
        let last = LONGEST as u32 - 1;
        assert_eq!(splits.of_token(last, 2).count(), 31);
        assert_eq!(splits.of_token(last, 4).count(), 31 * 30 * 29 / 6);
        assert_eq!(splits.of_token(last, 64).count(), 0);
        assert_eq!(splits.of_token(last + 1, 2).count(), 0);
        let mut found = all(&splits, 7, 4);
        assert!(found.iter().all(|pieces| pieces.iter().map(|id| id + 1).sum::<u32>() == 8));
        found.dedup();
        assert_eq!(found.len(), 35);
    }

    #[test]
    fn a_pool_draws_every_split_of_what_can_be_split() {
        let splits = splits(&["ab", "a", "b", "aab"]);
        let pool = SplitPool::new(&splits, [(3, 0), (4, 1), (5, 3)].into_iter(), 2);
        let mut rng = crate::rng::stream(1, "test");
        let mut drawn: Vec<_> = (0..64).map(|_| pool.draw(&mut rng).unwrap()).collect();
        drawn.sort();
        drawn.dedup();
        assert_eq!(drawn, [(3, vec![1, 2]), (5, vec![1, 0])]);
        let none = SplitPool::new(&splits, [(4, 1)].into_iter(), 2);
        assert_eq!(none.draw(&mut rng), None);
    }

    /// The text is the same to the byte: as the vocabulary spells it, and as it is decoded.
    #[cfg(feature = "dense")]
    #[test]
    fn the_splits_of_a_model_have_the_text_of_its_tokens() {
        let model = Model::load("builtin:dense").unwrap();
        let splits = Splits::of(&model);
        let mut split = 0;
        for id in 0..model.config.vocab_size as u32 {
            for pieces in 2..=4 {
                let of_token = splits.of_token(id, pieces);
                split += u32::from(pieces == 2 && of_token.count() > 0);
                for index in 0..of_token.count() {
                    let ids = of_token.nth(index).unwrap();
                    let texts: Vec<&str> = ids.iter().map(|id| splits.text(*id).unwrap()).collect();
                    assert_eq!(texts.concat(), splits.text(id).unwrap());
                    assert_eq!(model.decode(&ids), model.token(id));
                    assert_eq!(ids.len(), pieces);
                }
            }
        }
        // Most of a vocabulary was merged from pieces that are in it.
        assert!(split > model.config.vocab_size as u32 / 2, "{split}");
        for id in Vocabulary::of(&model).special {
            assert_eq!(splits.of_token(id, 2).count(), 0);
        }
    }
}
