//! Mutations of tokens, and the dictionary of suspects.

use std::ops::{Range, RangeInclusive};

use rand::Rng as _;

use super::mutator::{Context, Mutator, editable, extend, mutators};
use crate::edit::{Edit, Trial};
use crate::oracle::OracleKind;
use crate::rng::Rng;
use crate::rng::pick;
use crate::vocabulary::{SplitPool, Vocabulary};

/// Longest span that is spliced or repeated.
const SPAN: usize = 4;
/// Largest number of tokens that are retokenized.
const RETOKENIZED: usize = 3;
/// Numbers of pieces that a token is split into.
const PIECES: RangeInclusive<usize> = 2..=4;

mutators! {
    /// Puts any token in the place of one.
    Replace;
    /// Inserts any token.
    Insert;
    /// Adds an ordinary token to the end of the prompt, where the trigger of a backdoor does most.
    Append;
    /// Deletes a token, but not the last.
    Delete;
    /// Exchanges two tokens.
    Swap;
    /// Copies a span of another seed over a span of the parent.
    Splice;
    /// Repeats a span up to three times.
    Repeat;
    /// Writes tokens as others with the same text.
    Retokenize;
    /// Puts a suspect in the place of a token.
    DictionaryReplace;
    /// Inserts a suspect.
    DictionaryInsert;
    /// Proposes an echo prompt about a suspect; the parent is not looked at.
    Echo;
}

/// Implements mutators that extend the parent by the edits of a function.
macro_rules! propose_edits {
    ($($mutator:ident, $name:literal, $groups:expr, $edits:ident;)*) => {$(
        impl Mutator for $mutator {
            fn name(&self) -> &'static str {
                $name
            }

            fn groups(&self) -> &'static [&'static str] {
                &$groups
            }

            fn propose(&self, parent: &Trial, context: &Context, rng: &mut Rng) -> Option<Trial> {
                extend(parent, $edits(parent, context, rng)?)
            }
        }
    )*};
}

propose_edits! {
    Replace, "replace", ["tokens"], replace;
    Insert, "insert", ["tokens"], insert;
    Append, "append", ["tokens"], append;
    Delete, "delete", ["tokens"], delete;
    Swap, "swap", ["tokens"], swap;
    Splice, "splice", ["tokens"], splice;
    Repeat, "repeat", ["tokens"], repeat;
    Retokenize, "retokenize", ["tokens", "retokenization"], retokenize;
    DictionaryReplace, "dictionary-replace", ["dictionary", "vocabulary"], dictionary_replace;
    DictionaryInsert, "dictionary-insert", ["dictionary", "vocabulary"], dictionary_insert;
}

impl Mutator for Echo {
    fn name(&self) -> &'static str {
        "echo"
    }

    fn groups(&self) -> &'static [&'static str] {
        &["vocabulary"]
    }

    fn oracles(&self) -> &'static [OracleKind] {
        OracleKind::of_echoes()
    }

    fn propose(&self, _parent: &Trial, context: &Context, rng: &mut Rng) -> Option<Trial> {
        let prompt = pick(context.echo, rng)?;
        let id = suspect(context.vocabulary, rng)?;
        (id != prompt.token).then(|| prompt.with_token(id))
    }
}

/// Draws a suspect, the least suspicious most often: the larger of two draws, of a list with the
/// most suspicious first.
fn suspect(vocabulary: &Vocabulary, rng: &mut Rng) -> Option<u32> {
    let suspects = &vocabulary.anomalous;
    let draw = |rng: &mut Rng| {
        if suspects.is_empty() { None } else { Some(rng.random_range(0..suspects.len())) }
    };
    let index = draw(rng)?.max(draw(rng)?);
    Some(suspects[index])
}

/// Draws any id but a special one; `None` if eight draws give none.
fn any_token(context: &Context, rng: &mut Rng) -> Option<u32> {
    let size = u32::try_from(context.config.vocab_size).ok().filter(|&size| size > 0)?;
    (0..8).map(|_| rng.random_range(0..size)).find(|id| !context.vocabulary.special.contains(id))
}

fn position(parent: &Trial, context: &Context, rng: &mut Rng) -> Option<usize> {
    let range = editable(parent, context.config);
    if range.is_empty() { None } else { Some(rng.random_range(range)) }
}

fn gap(parent: &Trial, context: &Context, rng: &mut Rng) -> usize {
    let range = editable(parent, context.config);
    rng.random_range(range.start..=range.end)
}

fn replace(parent: &Trial, context: &Context, rng: &mut Rng) -> Option<Vec<Edit>> {
    let position = position(parent, context, rng)?;
    let id = any_token(context, rng)?;
    (parent.base[position] != id).then(|| vec![Edit::Replace { position, id }])
}

fn insert(parent: &Trial, context: &Context, rng: &mut Rng) -> Option<Vec<Edit>> {
    Some(vec![Edit::Insert { position: gap(parent, context, rng), id: any_token(context, rng)? }])
}

fn append(parent: &Trial, context: &Context, rng: &mut Rng) -> Option<Vec<Edit>> {
    let id = *pick(&context.vocabulary.ordinary, rng)?;
    Some(vec![Edit::Insert { position: parent.base.len(), id }])
}

fn dictionary_replace(parent: &Trial, context: &Context, rng: &mut Rng) -> Option<Vec<Edit>> {
    let position = position(parent, context, rng)?;
    Some(vec![Edit::Replace { position, id: suspect(context.vocabulary, rng)? }])
}

fn dictionary_insert(parent: &Trial, context: &Context, rng: &mut Rng) -> Option<Vec<Edit>> {
    Some(vec![Edit::Insert {
        position: gap(parent, context, rng),
        id: suspect(context.vocabulary, rng)?,
    }])
}

/// Returns the positions of the prompt that may be edited, but for the last: whatever is done to
/// that one does more than the same elsewhere, with which it would be compared.
fn before_last(parent: &Trial, context: &Context) -> Range<usize> {
    editable(parent, context.config).start..parent.base.len().saturating_sub(1)
}

fn delete(parent: &Trial, context: &Context, rng: &mut Rng) -> Option<Vec<Edit>> {
    let range = before_last(parent, context);
    let position = (!range.is_empty()).then(|| rng.random_range(range))?;
    let gone = parent.edits.contains(&Edit::Delete { position });
    (!gone).then(|| vec![Edit::Delete { position }])
}

fn swap(parent: &Trial, context: &Context, rng: &mut Rng) -> Option<Vec<Edit>> {
    let (a, b) = (position(parent, context, rng)?, position(parent, context, rng)?);
    let (x, y) = (parent.base[a], parent.base[b]);
    (x != y)
        .then(|| vec![Edit::Replace { position: a, id: y }, Edit::Replace { position: b, id: x }])
}

fn splice(parent: &Trial, context: &Context, rng: &mut Rng) -> Option<Vec<Edit>> {
    let other = pick(context.seeds, rng)?;
    let start = position(parent, context, rng)?;
    let length = rng.random_range(1..=SPAN).min(parent.base.len() - start).min(other.len());
    let from = rng.random_range(0..=other.len() - length);
    let changes = |position: usize, id: u32| {
        parent.base[position] != id && !context.vocabulary.special.contains(&id)
    };
    let edits = (0..length)
        .map(|i| (start + i, other[from + i]))
        .filter(|&(position, id)| changes(position, id))
        .map(|(position, id)| Edit::Replace { position, id })
        .collect::<Vec<_>>();
    Some(edits).filter(|edits| !edits.is_empty())
}

fn repeat(parent: &Trial, context: &Context, rng: &mut Rng) -> Option<Vec<Edit>> {
    let start = position(parent, context, rng)?;
    let length = rng.random_range(1..=SPAN).min(parent.base.len() - start);
    let span = &parent.base[start..start + length];
    let rounds = rng.random_range(1..=3);
    let again = span.iter().map(|&id| Edit::Insert { position: start + length, id });
    Some(std::iter::repeat_n(again, rounds).flatten().collect())
}

/// Splits one to three tokens of the prompt; fewer, if draws meet or there is nothing to split.
fn retokenize(parent: &Trial, context: &Context, rng: &mut Rng) -> Option<Vec<Edit>> {
    let positions = before_last(parent, context);
    let mut edits: Vec<Edit> = Vec::new();
    for _ in 0..rng.random_range(1..=RETOKENIZED) {
        let tokens = positions.clone().map(|at| (at, parent.base[at]));
        let pool = SplitPool::new(&context.vocabulary.splits, tokens, rng.random_range(PIECES));
        let Some((position, pieces)) = pool.draw(rng) else { continue };
        if edits.iter().all(|edit| edit.position() != Some(position)) {
            edits.push(Edit::Retokenize { position, pieces });
        }
    }
    (!edits.is_empty()).then_some(edits)
}
