//! Counterparts of retokenizations: other splits of the same prompt into as many tokens.
//!
//! They are drawn as the mutator draws: a position, then a split of its token. The last token of
//! the prompt is apart ([`Trial::alike`]): when it was compared with the others, 203 of 207 raw
//! findings in the built-in dense model split it. A reduction shortens the prompt, so for each
//! counterpart there are several splits in order, and the first counts that the prompt still has.

use std::collections::{BTreeMap, BTreeSet};

use super::verdict::LEAST_CONTROLS;
use crate::edit::{Edit, Trial};
use crate::model::Config;
use crate::rng::Rng;
use crate::vocabulary::{SplitPool, Vocabulary};

/// Splits that are drawn for one retokenization of a control, of which the first counts.
const ALTERNATIVES: usize = 8;
/// Number of draws in which they must be found.
const DRAWS: usize = 4 * ALTERNATIVES;

/// A split of a token of a prompt that may be shortened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OtherSplit {
    /// Distance of the token from the end of the prompt.
    back: usize,
    token: u32,
    pieces: Vec<u32>,
}

/// The counterparts of a trial's retokenizations in one control of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counterparts(BTreeMap<(usize, Vec<u32>), Vec<OtherSplit>>);

impl Counterparts {
    /// Sets the splits that may take the place of one, the first before all others.
    pub fn insert(
        &mut self,
        trial: &Trial,
        position: usize,
        pieces: &[u32],
        others: Vec<OtherSplit>,
    ) {
        self.0.insert((back(trial, position), pieces.to_vec()), others);
    }

    /// Returns the counterpart of a split: the first whose token the trial still has, at a position
    /// that is not taken. If a reduction has removed them all it is the split itself, so that the
    /// trial stands out no more: there must be something to compare it with.
    pub fn get(
        &self,
        trial: &Trial,
        position: usize,
        pieces: &[u32],
        taken: &[usize],
    ) -> (usize, Vec<u32>) {
        let others = self.0.get(&(back(trial, position), pieces.to_vec()));
        let place = |split: &OtherSplit| {
            let at = trial.base.len().wrapping_sub(split.back);
            let is_left = trial.token(at) == Some(split.token) && !taken.contains(&at);
            is_left.then(|| (at, split.pieces.clone()))
        };
        let first = others.into_iter().flatten().find_map(place);
        first.unwrap_or_else(|| (position, pieces.to_vec()))
    }
}

/// Returns the distance of a position from the end of the prompt, which reductions keep; it wraps
/// around in the continuation.
fn back(trial: &Trial, position: usize) -> usize {
    trial.base.len().wrapping_sub(position)
}

/// The splits from which the controls of a trial's retokenizations are drawn.
pub struct OtherSplits<'a> {
    trial: &'a Trial,
    bos: Option<u32>,
    /// By the first of the positions, and the number of pieces.
    pools: BTreeMap<(usize, usize), SplitPool>,
}

impl<'a> OtherSplits<'a> {
    /// Takes the splits of the tokens that each retokenization is compared with.
    pub fn new(trial: &'a Trial, config: &Config, vocabulary: &Vocabulary) -> Self {
        let bos = config.bos_token_id;
        let mut pools = BTreeMap::new();
        for edit in &trial.edits {
            let Edit::Retokenize { position, pieces } = edit else { continue };
            let places = trial.alike(*position, bos);
            pools.entry((places.start, pieces.len())).or_insert_with(|| {
                let tokens = places.filter_map(|at| Some((at, trial.token(at)?)));
                SplitPool::new(&vocabulary.splits, tokens, pieces.len())
            });
        }
        Self { trial, bos, pools }
    }

    /// Returns true if each retokenization can be compared with enough others.
    pub fn suffice(&self) -> bool {
        self.pools.values().all(|pool| pool.count() > LEAST_CONTROLS as u64)
    }

    /// Draws different splits into as many pieces as those of the token at `position`, which are
    /// not among them: of tokens at positions that are not taken, or of the same one.
    pub fn draw(
        &self,
        position: usize,
        pieces: &[u32],
        taken: &BTreeSet<usize>,
        rng: &mut Rng,
    ) -> Vec<OtherSplit> {
        let first = self.trial.alike(position, self.bos).start;
        let Some(pool) = self.pools.get(&(first, pieces.len())) else { return Vec::new() };
        let mut drawn: Vec<OtherSplit> = Vec::with_capacity(ALTERNATIVES);
        for _ in 0..DRAWS {
            let Some((at, other)) = pool.draw(rng) else { break };
            let is_other = if at == position { other != pieces } else { !taken.contains(&at) };
            let Some(token) = self.trial.token(at).filter(|_| is_other) else { continue };
            let split = OtherSplit { back: back(self.trial, at), token, pieces: other };
            if !drawn.contains(&split) {
                drawn.push(split);
            }
            if drawn.len() == ALTERNATIVES {
                break;
            }
        }
        drawn
    }
}
