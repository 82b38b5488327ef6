//! The vocabulary of a model: which tokens look untrained, which are ordinary enough for controls,
//! and into which others each can be split (`splits.rs`).
//!
//! Tokens that look as if they had never been trained are found by the indicator of Land and
//! Bartolo, "Fishing for Magikarp" (2024), section 3, without a reference token given by hand.
//!
//! A token that never occurs in training is only ever pushed away as an output: all such rows of
//! the unembedding take the same push and end up near each other. The indicator of a token is the
//! cosine distance of its row to the centre of that cluster: near 0 is suspect. (Norms say nothing
//! in tied models, where the never-trained rows may be the longest.) The cluster is taken to be the
//! densest spot of the matrix: trained rows differ from each other, since they mean different
//! things.

mod splits;

pub use splits::{SplitPool, Splits, TokenSplits, spelling};

use std::collections::BTreeMap;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::model::Model;
use crate::stats;

/// Relation of a token to text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Category {
    /// Encoding its text gives it back.
    Reachable,
    /// A control token (BOS, EOS, padding, reserved).
    Special,
    /// Its text encodes to other tokens: no text reaches it, ids alone do.
    Unreachable,
    /// Its bytes alone are not valid text (part of a character), or the vocabulary has no text for
    /// it.
    Undecodable,
}

/// What a token looks like as text. Tokens of different forms do different things in any prompt (a
/// quotation mark more than most words), so a control has the form of what it stands in for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenForm {
    /// A space and letters.
    Word,
    /// Letters without a space before them.
    Fragment,
    /// Digits.
    Number,
    /// Neither letters nor digits.
    Punctuation,
    /// White space alone.
    Space,
    /// Anything else, and what is no text.
    Other,
}

impl TokenForm {
    /// Returns the form of a token's text.
    pub fn new(text: &str) -> Self {
        let body = text.strip_prefix(' ').unwrap_or(text);
        let all = |is: fn(char) -> bool| !body.is_empty() && body.chars().all(is);
        if text.is_empty() || text.contains('\u{fffd}') {
            Self::Other
        } else if text.chars().all(char::is_whitespace) {
            Self::Space
        } else if all(char::is_alphabetic) {
            if body.len() < text.len() { Self::Word } else { Self::Fragment }
        } else if all(char::is_numeric) {
            Self::Number
        } else if all(|c| !c.is_alphanumeric()) {
            Self::Punctuation
        } else {
            Self::Other
        }
    }
}

/// The kind of a token, as a reader of a case is told it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenKind {
    /// A control token.
    Special,
    /// Among those that look the least trained.
    Anomalous,
    /// Any other, by its form.
    #[serde(untagged)]
    Form(TokenForm),
}

/// Token ids of a model, sorted into suspects, ordinary and special ones.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Vocabulary {
    /// Suspects, the most suspicious first.
    pub anomalous: Vec<u32>,
    /// Well-trained tokens that text can reach: stand-ins in controls. Ascending.
    pub ordinary: Vec<u32>,
    /// Control tokens (BOS, EOS and the like). Ascending.
    pub special: Vec<u32>,
    /// The form of each token, `[vocab]`; empty for a model without a tokenizer.
    pub forms: Vec<TokenForm>,
    /// The ordinary tokens of each form, ascending.
    pub ordinary_by_form: BTreeMap<TokenForm, Vec<u32>>,
    /// The tokens that each can be split into; none for a model without a tokenizer.
    pub splits: Splits,
}

/// Ordinary tokens of a form from which they stand in for each other.
const LEAST_OF_FORM: usize = 32;

/// Number of rows whose neighbourhoods are compared to find the densest spot.
const VOTERS: usize = 2048;
/// Rows compared with all others in one matrix product, which bounds its memory.
const VOTER_BLOCK: usize = 256;
/// Number of neighbours that make a spot dense: fewer never-trained tokens than this are not found.
const NEIGHBOURS: usize = 8;
/// Robust standard deviations below the ordinary tokens' median from which a token is suspect.
const SUSPECT_DEVIATIONS: f64 = 4.0;
/// Smallest number of suspects: a campaign gets as many even where nothing stands out.
const LEAST_SUSPECTS: usize = 16;

/// Returns the cosine distance of every token's unembedding row to the cluster of never-trained
/// rows, `[vocab]`, in `[0, 2]`; for an untied model the mean of that and the same for its
/// embedding row.
pub fn indicator(model: &Model) -> Vec<f32> {
    let vocab = model.config.vocab_size;
    let table = |row: &(dyn Fn(u32) -> Vec<f32> + Sync)| -> Vec<Vec<f32>> {
        (0..vocab as u32).into_par_iter().map(|id| normalised(row(id))).collect()
    };
    let head = distances(&table(&|id| model.unembedding(id)));
    if model.config.tie_word_embeddings {
        return head;
    }
    let embed = distances(&table(&|id| model.embedding(id)));
    head.iter().zip(embed).map(|(a, b)| 0.5 * (a + b)).collect()
}

fn normalised(mut row: Vec<f32>) -> Vec<f32> {
    let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
    row.iter_mut().for_each(|x| *x /= norm);
    row
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Returns the cosine distance of unit rows to the centre of their densest spot.
fn distances(rows: &[Vec<f32>]) -> Vec<f32> {
    let Some(width) = rows.first().map(Vec::len) else { return Vec::new() };
    let step = rows.len().div_ceil(VOTERS).max(1);
    // A voter's density is its cosine to its k-th nearest neighbour among all rows.
    let table = crate::model::PackedMatrix::new(&rows.concat(), rows.len(), width);
    let voters: Vec<usize> = (0..rows.len()).step_by(step).collect();
    let mut best: Option<(f32, Vec<usize>)> = None;
    for block in voters.chunks(VOTER_BLOCK) {
        let x: Vec<f32> = block.iter().flat_map(|i| rows[*i].iter().copied()).collect();
        let mut cosines = vec![0f32; block.len() * rows.len()];
        table.matmul(&x, block.len(), &mut cosines);
        let found = cosines.par_chunks(rows.len()).map(nearest).collect::<Vec<_>>();
        for (density, members) in found {
            if best.as_ref().is_none_or(|(d, _)| density > *d) {
                best = Some((density, members));
            }
        }
    }
    let members = best.map(|(_, members)| members).unwrap_or_default();
    let mut centre = vec![0f32; width];
    members.iter().for_each(|i| centre.iter_mut().zip(&rows[*i]).for_each(|(c, x)| *c += x));
    let centre = normalised(centre);
    rows.par_iter().map(|row| 1.0 - dot(row, &centre)).collect()
}

/// Returns the [`NEIGHBOURS`]-th largest cosine and the rows of the largest (the row itself
/// included).
fn nearest(cosines: &[f32]) -> (f32, Vec<usize>) {
    let mut order: Vec<usize> = (0..cosines.len()).collect();
    let k = NEIGHBOURS.min(order.len() - 1);
    order.select_nth_unstable_by(k, |a, b| cosines[*b].total_cmp(&cosines[*a]).then(a.cmp(b)));
    let density = cosines[order[k]];
    order.truncate(k + 1);
    order.sort_unstable();
    (density, order)
}

/// Returns the category of every token, `[vocab]`.
pub fn categories(model: &Model) -> Vec<Category> {
    let size = model.config.vocab_size as u32;
    let Some(tokenizer) = &model.tokenizer else { return vec![Category::Reachable; size as usize] };
    let mut special = tokenizer.special_ids();
    special.extend(model.config.bos_token_id);
    special.extend(&model.config.eos_token_ids);
    (0..size)
        .into_par_iter()
        .map(|id| {
            if special.contains(&id) {
                return Category::Special;
            }
            if tokenizer.piece(id).is_none() {
                return Category::Undecodable;
            }
            let text = tokenizer.decode(&[id]);
            if text.is_empty() || text.contains('\u{fffd}') {
                return Category::Undecodable;
            }
            match tokenizer.encode(&text) {
                Ok(ids) if ids == [id] => Category::Reachable,
                _ => Category::Unreachable,
            }
        })
        .collect()
}

/// Returns the indicator below which a token looks untrained: several robust standard deviations
/// below the median of the tokens that text can reach.
pub fn untrained_below(indicator: &[f32], categories: &[Category]) -> f64 {
    let reachable: Vec<f64> = indicator
        .iter()
        .zip(categories)
        .filter(|(_, category)| **category == Category::Reachable)
        .map(|(value, _)| f64::from(*value))
        .collect();
    let deviation = (stats::MAD_TO_DEVIATION * stats::mad(&reachable)).max(1e-6);
    stats::median(&reachable) - SUSPECT_DEVIATIONS * deviation
}

impl Vocabulary {
    /// Sorts the tokens of a model by its embeddings alone, without a forward pass.
    pub fn of(model: &Model) -> Self {
        let sorted = Self::from(&indicator(model), &categories(model));
        let vocabulary = Self { splits: Splits::of(model), ..sorted };
        let form = |id: u32| TokenForm::new(&model.token(id));
        match &model.tokenizer {
            Some(_) => vocabulary.with_forms(
                (0..model.config.vocab_size as u32).into_par_iter().map(form).collect(),
            ),
            None => vocabulary,
        }
    }

    /// Sets the form of each token, `[vocab]`.
    pub fn with_forms(mut self, forms: Vec<TokenForm>) -> Self {
        self.ordinary_by_form.clear();
        for &id in &self.ordinary {
            if let Some(form) = forms.get(id as usize) {
                self.ordinary_by_form.entry(*form).or_default().push(id);
            }
        }
        self.forms = forms;
        self
    }

    /// Returns the kind of a token.
    pub fn kind(&self, id: u32) -> TokenKind {
        if self.special.binary_search(&id).is_ok() {
            return TokenKind::Special;
        }
        if self.anomalous.contains(&id) {
            return TokenKind::Anomalous;
        }
        TokenKind::Form(self.forms.get(id as usize).copied().unwrap_or(TokenForm::Other))
    }

    /// Returns the ordinary tokens that stand in for a token in controls: those of its form or,
    /// where these are too few, all of them.
    pub fn stand_ins(&self, id: u32) -> &[u32] {
        let form = self.forms.get(id as usize);
        let alike = form.and_then(|form| self.ordinary_by_form.get(form));
        alike.filter(|ids| ids.len() >= LEAST_OF_FORM).unwrap_or(&self.ordinary)
    }

    /// Sorts tokens by their indicators and categories, `[vocab]` each.
    pub fn from(indicator: &[f32], categories: &[Category]) -> Self {
        let ids = || 0..indicator.len() as u32;
        let value = |id: u32| f64::from(indicator[id as usize]);
        let special: Vec<u32> =
            ids().filter(|id| categories[*id as usize] == Category::Special).collect();
        let untrained = untrained_below(indicator, categories);
        let mut by_suspicion: Vec<u32> =
            ids().filter(|id| categories[*id as usize] != Category::Special).collect();
        by_suspicion.sort_by(|a, b| value(*a).total_cmp(&value(*b)).then(a.cmp(b)));
        let suspects = by_suspicion.partition_point(|id| value(*id) < untrained);
        // Beyond half of the vocabulary "anomalous" would lose its meaning.
        let suspects = suspects.max(LEAST_SUSPECTS).min(by_suspicion.len() / 2);
        let (anomalous, rest) = by_suspicion.split_at(suspects);
        // The nearer half of the rest is left out: a control should be beyond doubt.
        let mut ordinary: Vec<u32> = rest[rest.len() / 2..]
            .iter()
            .copied()
            .filter(|id| categories[*id as usize] == Category::Reachable)
            .collect();
        ordinary.sort_unstable();
        Self { anomalous: anomalous.to_vec(), ordinary, special, ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_by_hand() {
        use TokenForm::*;
        for (text, form) in [
            (" house", Word),
            ("ing", Fragment),
            (" \u{e9}t\u{e9}", Word),
            (" 1999", Number),
            ("7", Number),
            ("\"", Punctuation),
            (" \u{201c}", Punctuation),
            (",\"", Punctuation),
            (" ", Space),
            ("\n\n", Space),
            ("", Other),
            ("\u{fffd}", Other),
            ("a1", Other),
            ("'s", Other),
        ] {
            assert_eq!(TokenForm::new(text), form, "{text:?}");
        }
    }

    #[test]
    fn kinds_by_hand() {
        let forms = vec![TokenForm::Word, TokenForm::Number, TokenForm::Other, TokenForm::Word];
        let vocabulary =
            Vocabulary { anomalous: vec![3, 2], special: vec![0], ..Vocabulary::default() };
        let vocabulary = vocabulary.with_forms(forms);
        let kinds = [0, 1, 2, 3, 9].map(|id| vocabulary.kind(id));
        let form = TokenKind::Form;
        let anomalous = TokenKind::Anomalous;
        let expected = [
            TokenKind::Special,
            form(TokenForm::Number),
            anomalous,
            anomalous,
            form(TokenForm::Other),
        ];
        assert_eq!(kinds, expected);
        // As files have them.
        let json = serde_json::to_string(&kinds).unwrap();
        assert_eq!(json, r#"["special","number","anomalous","anomalous","other"]"#);
        assert_eq!(serde_json::from_str::<[TokenKind; 5]>(&json).unwrap(), expected);
    }

    #[test]
    fn a_token_is_stood_in_for_by_its_own_kind() {
        let forms: Vec<TokenForm> = (0..100)
            .map(|id| if id < 60 { TokenForm::Word } else { TokenForm::Punctuation })
            .chain([TokenForm::Space])
            .collect();
        let vocabulary = Vocabulary { ordinary: (1..=100).collect(), ..Vocabulary::default() };
        let unknown = vocabulary.clone();
        let vocabulary = vocabulary.with_forms(forms);
        assert_eq!(vocabulary.stand_ins(0), &vocabulary.ordinary[..59]);
        assert_eq!(vocabulary.stand_ins(70), &vocabulary.ordinary[59..99]);
        // One ordinary token is white space: too few to compare with.
        assert_eq!(vocabulary.stand_ins(100), vocabulary.ordinary);
        assert_eq!(unknown.stand_ins(70), unknown.ordinary);
    }
}
