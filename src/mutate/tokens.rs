//! Mutations of tokens, and the dictionary of suspects.

use rand::Rng as _;

use super::{Context, Mutator, editable, extend};
use crate::edit::{Edit, Trial};
use crate::oracle::OracleKind;
use crate::rng::Rng;
use crate::rng::pick;
use crate::vocabulary::Vocabulary;

/// Longest span that is spliced or repeated.
const SPAN: usize = 4;

pub const ALL: [&dyn Mutator; 6] = [&Replace, &Insert, &Delete, &Swap, &Splice, &Repeat];
pub const DICTIONARY: [&dyn Mutator; 2] = [&DictionaryReplace, &DictionaryInsert];

macro_rules! mutators {
    ($($(#[$doc:meta])* $type:ident, $name:literal, $function:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $type;

        impl Mutator for $type {
            fn name(&self) -> &'static str {
                $name
            }

            fn propose(&self, parent: &Trial, context: &Context, rng: &mut Rng) -> Option<Trial> {
                extend(parent, $function(parent, context, rng)?)
            }
        }
    )*};
}

mutators! {
    /// Any token in the place of one.
    Replace, "replace", replace;
    /// Any token between two.
    Insert, "insert", insert;
    /// One token less.
    Delete, "delete", delete;
    /// Two neighbours or strangers change places.
    Swap, "swap", swap;
    /// A span of another seed over a span of this.
    Splice, "splice", splice;
    /// A span said again, up to three times.
    Repeat, "repeat", repeat;
    /// A suspect in the place of a token.
    DictionaryReplace, "dictionary-replace", dictionary_replace;
    /// A suspect between two tokens.
    DictionaryInsert, "dictionary-insert", dictionary_insert;
}

/// An echo prompt about a suspect; the parent is not looked at.
#[derive(Debug)]
pub struct Echo;

impl Mutator for Echo {
    fn name(&self) -> &'static str {
        "echo"
    }

    fn oracles(&self) -> &'static [OracleKind] {
        &[OracleKind::Echo, OracleKind::NonFinite]
    }

    fn propose(&self, _parent: &Trial, context: &Context, rng: &mut Rng) -> Option<Trial> {
        let prompt = pick(context.echo, rng)?;
        let id = suspect(context.vocabulary, rng)?;
        (id != prompt.token).then(|| prompt.with_token(id))
    }
}

/// A suspect; the more suspicious the more often (they are in ascending order).
fn suspect(vocabulary: &Vocabulary, rng: &mut Rng) -> Option<u32> {
    let suspects = &vocabulary.anomalous;
    let draw = |rng: &mut Rng| {
        if suspects.is_empty() { None } else { Some(rng.random_range(0..suspects.len())) }
    };
    let index = draw(rng)?.max(draw(rng)?);
    Some(suspects[index])
}

/// Any id but a special one.
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

fn delete(parent: &Trial, context: &Context, rng: &mut Rng) -> Option<Vec<Edit>> {
    let position = position(parent, context, rng)?;
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
    let edits = (0..length)
        .map(|i| Edit::Replace { position: start + i, id: other[from + i] })
        .filter(|edit| !matches!(edit, Edit::Replace { position, id } if parent.base[*position] == *id || context.vocabulary.special.contains(id)));
    Some(edits.collect::<Vec<_>>()).filter(|edits| !edits.is_empty())
}

fn repeat(parent: &Trial, context: &Context, rng: &mut Rng) -> Option<Vec<Edit>> {
    let start = position(parent, context, rng)?;
    let length = rng.random_range(1..=SPAN).min(parent.base.len() - start);
    let span = &parent.base[start..start + length];
    let rounds = rng.random_range(1..=3);
    let again = span.iter().map(|&id| Edit::Insert { position: start + length, id });
    Some(std::iter::repeat_n(again, rounds).flatten().collect())
}
