//! Matched controls: trials of the same kind and size as a suspect one, but ordinary.
//!
//! Every score is read against these, so they decide what counts as a finding. A control differs
//! from its trial only in *what* is put in (which token, direction, component, weight), never in
//! how much, where, or how often.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use rand::Rng as _;

use super::other_keys::other_keys;
use super::other_splits::{Counterparts, OtherSplits};
use super::verdict::LEAST_CONTROLS;
use crate::edit::{Component, Edit, StandIns, Trial};
use crate::model::Config;
use crate::rng::{self, Rng};
use crate::vocabulary::Vocabulary;

/// Number of times that an unusable draw is repeated before the original is kept.
const DRAWS: usize = 16;

/// Draws before the alternatives count as exhausted. It does not depend on `count`: a replay asks
/// for as many controls as there were and must get the same ones.
const ATTEMPTS: usize = 256;

/// Draws up to `count` different controls of `trial`, none of them the trial itself.
///
/// They depend on `seed` and on the content of the trial only, so a verdict is the same whatever
/// shares its batch. Fewer come back when there are not that many (a model with one MLP has no
/// control for a lesion of it); a trial without edits has none.
///
/// None either where a lesion or a retokenization alone would have too few: an irrelevant edit
/// beside it (another token, say) would otherwise multiply the same few counterparts into what
/// looks like many controls.
pub fn draw(
    trial: &Trial,
    count: usize,
    seed: u64,
    config: &Config,
    vocabulary: &Vocabulary,
) -> Vec<Trial> {
    drawn(trial, count, seed, config, vocabulary).into_iter().map(|(control, _)| control).collect()
}

/// Draws the same controls as [`draw`] and returns what each puts in the place of what, which can
/// be done to other trials with the same edits: to the trial as it is reduced, so that every step
/// is compared with the same controls.
pub fn substitutions(
    trial: &Trial,
    count: usize,
    seed: u64,
    config: &Config,
    vocabulary: &Vocabulary,
) -> Vec<Substitution> {
    drawn(trial, count, seed, config, vocabulary).into_iter().map(|(_, made)| made).collect()
}

fn drawn(
    trial: &Trial,
    count: usize,
    seed: u64,
    config: &Config,
    vocabulary: &Vocabulary,
) -> Vec<(Trial, Substitution)> {
    let mut lesioned = trial.edits.iter().filter_map(Edit::lesioned);
    if lesioned.any(|component| !has_controls(*component, config)) {
        return Vec::new();
    }
    let other_splits = OtherSplits::new(trial, config, vocabulary);
    if !other_splits.suffice() {
        return Vec::new();
    }
    let content = serde_json::to_string(&(&trial.base[..], &trial.continuation[..], &trial.edits))
        .unwrap_or_default();
    let mut rng = rng::stream(seed, &format!("controls:{content}"));
    let mut controls: Vec<(Trial, Substitution)> = Vec::with_capacity(count);
    for _ in 0..ATTEMPTS.max(count * 4) {
        if controls.len() == count || trial.edits.is_empty() {
            break;
        }
        let (control, made) = substitute(trial, config, vocabulary, &other_splits, &mut rng);
        if control != *trial && controls.iter().all(|(other, _)| *other != control) {
            controls.push((control, made));
        }
    }
    controls
}

/// Returns true if the model has enough components of a kind for a lesion of one to be compared
/// with lesions of the others.
pub fn has_controls(component: Component, config: &Config) -> bool {
    component != Component::Embed && config.all_like(component).nth(LEAST_CONTROLS).is_some()
}

/// Draws one control of `trial`; the trial itself when nothing else is possible.
pub fn control(trial: &Trial, config: &Config, vocabulary: &Vocabulary, rng: &mut Rng) -> Trial {
    let other_splits = OtherSplits::new(trial, config, vocabulary);
    substitute(trial, config, vocabulary, &other_splits, rng).0
}

fn substitute(
    trial: &Trial,
    config: &Config,
    vocabulary: &Vocabulary,
    other_splits: &OtherSplits,
    rng: &mut Rng,
) -> (Trial, Substitution) {
    let lesioned = trial.edits.iter().filter_map(Edit::lesioned).copied().collect();
    let mut draws = Draws {
        trial,
        config,
        vocabulary,
        other_splits,
        rng,
        lesioned,
        tokens: BTreeMap::new(),
        components: BTreeMap::new(),
        deleted: Vec::new(),
        split: Vec::new(),
        splits: Counterparts::default(),
        keys: BTreeMap::new(),
        seeds: Vec::new(),
    };
    let edits = trial.edits.iter().map(|edit| edit.control(&mut draws)).collect();
    let Draws { tokens, components, deleted, splits, keys, seeds, .. } = draws;
    // Deletions and keys are known by their distance from the end of the prompt, which reductions
    // keep.
    let end = trial.base.len();
    let back = |position: usize| end.wrapping_sub(position);
    let deletions = trial.edits.iter().filter_map(|edit| match edit {
        Edit::Delete { position } => Some(back(*position)),
        _ => None,
    });
    let deletions = deletions.zip(deleted.into_iter().map(back)).collect();
    let keys = keys.into_iter().map(|(key, other)| (back(key), back(other))).collect();
    let bos = config.bos_token_id;
    let made = Substitution { bos, tokens, components, deletions, splits, keys, seeds };
    (trial.with_edits(edits), made)
}

/// What one control puts in the place of what its trial puts in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Substitution {
    bos: Option<u32>,
    tokens: BTreeMap<u32, u32>,
    components: BTreeMap<Component, Component>,
    /// Deleted positions, counted back from the end of the prompt.
    deletions: BTreeMap<usize, usize>,
    splits: Counterparts,
    /// Keys of attention knockouts, counted back likewise.
    keys: BTreeMap<usize, usize>,
    /// Seeds of noise, in the order of the edits.
    seeds: Vec<u64>,
}

impl Substitution {
    /// Returns the control of a trial whose edits are among those that this was drawn for.
    pub fn apply(&self, trial: &Trial) -> Trial {
        let seeds = self.seeds.iter().copied().collect();
        let (split, keys) = (Vec::new(), BTreeMap::new());
        let mut made = Made { of: self, trial, split, keys, seeds };
        trial.with_edits(trial.edits.iter().map(|edit| edit.control(&mut made)).collect())
    }
}

/// Gives the counterparts of a [`Substitution`]; what it has none for stays as it is.
struct Made<'a> {
    of: &'a Substitution,
    trial: &'a Trial,
    /// Positions of the tokens that the control splits.
    split: Vec<usize>,
    /// Counterparts of keys.
    keys: BTreeMap<usize, usize>,
    seeds: VecDeque<u64>,
}

impl StandIns for Made<'_> {
    fn token(&mut self, id: u32) -> u32 {
        self.of.tokens.get(&id).copied().unwrap_or(id)
    }

    fn position(&mut self, position: usize) -> usize {
        let (end, places) = (self.trial.base.len(), self.trial.alike(position, self.of.bos));
        let back = self.of.deletions.get(&end.wrapping_sub(position));
        let moved = back.map(|back| end.wrapping_sub(*back));
        // If the reduction has removed that place: the one before the trial's.
        let before = [moved, position.checked_sub(1)].into_iter().flatten();
        before.into_iter().find(|at| places.contains(at)).unwrap_or(position)
    }

    fn split(&mut self, position: usize, pieces: &[u32]) -> (usize, Vec<u32>) {
        let made = self.of.splits.get(self.trial, position, pieces, &self.split);
        self.split.push(made.0);
        made
    }

    fn key(&mut self, key: usize) -> usize {
        if let Some(&known) = self.keys.get(&key) {
            return known;
        }
        let back = |position: usize| self.trial.base.len().wrapping_sub(position);
        let mut others = other_keys(self.trial, key, self.of.bos);
        others.retain(|at| !self.keys.values().any(|used| used == at));
        let moved = self.of.keys.get(&back(key)).map(|moved| back(*moved));
        let moved = moved.filter(|at| *at == key || others.contains(at));
        // If the reduction has removed that place: the nearest to the trial's that is left over.
        let is_meant = |at: &usize| self.of.keys.values().any(|meant| back(*meant) == *at);
        let left = || others.iter().copied().filter(|at| !is_meant(at));
        let nearest = || left().min_by_key(|at| at.abs_diff(key));
        let made = moved.or_else(nearest).unwrap_or(key);
        self.keys.insert(key, made);
        made
    }

    fn component(&mut self, component: Component) -> Component {
        self.of.components.get(&component).copied().unwrap_or(component)
    }

    fn seed(&mut self) -> u64 {
        self.seeds.pop_front().unwrap_or_default()
    }
}

/// Draws the ordinary counterparts for one control.
struct Draws<'a> {
    trial: &'a Trial,
    config: &'a Config,
    vocabulary: &'a Vocabulary,
    other_splits: &'a OtherSplits<'a>,
    rng: &'a mut Rng,
    /// Components that the trial lesions.
    lesioned: Vec<Component>,
    /// Counterparts of tokens. One id has the same counterpart throughout a trial, because an echo
    /// prompt that names two tokens is no echo prompt.
    tokens: BTreeMap<u32, u32>,
    /// Counterparts of components.
    components: BTreeMap<Component, Component>,
    /// Positions that the control deletes.
    deleted: Vec<usize>,
    /// Positions of the tokens that the control splits.
    split: Vec<usize>,
    /// Counterparts of splits.
    splits: Counterparts,
    /// Counterparts of keys. One key has the same counterpart throughout a trial, and no two have
    /// one: heads that lose one edge lose one in the control, heads that lose two lose two.
    keys: BTreeMap<usize, usize>,
    /// Seeds of noise.
    seeds: Vec<u64>,
}

impl Draws<'_> {
    /// Returns the positions of the tokens that the trial or what is drawn so far edits, and the
    /// ends of edges that are knocked out.
    fn taken(&self) -> BTreeSet<usize> {
        let takes =
            |edit: &&Edit| edit.is_token_edit() || matches!(edit, Edit::AttentionKnockout(_));
        let edited = self.trial.edits.iter().filter(takes).flat_map(Edit::positions);
        let drawn = self.deleted.iter().chain(&self.split).chain(self.keys.values());
        edited.chain(drawn.copied()).collect()
    }
}

impl StandIns for Draws<'_> {
    fn token(&mut self, id: u32) -> u32 {
        if let Some(&known) = self.tokens.get(&id) {
            return known;
        }
        let mut drawn = id;
        for _ in 0..DRAWS {
            let Some(&candidate) = rng::pick(self.vocabulary.stand_ins(id), self.rng) else {
                break;
            };
            // Tokens of the continuation would give it away (or, in an echo prompt, change
            // nothing).
            if candidate != id
                && !self.trial.continuation.contains(&candidate)
                && !self.tokens.values().any(|&used| used == candidate)
            {
                drawn = candidate;
                break;
            }
        }
        self.tokens.insert(id, drawn);
        drawn
    }

    /// Another position that it is compared with, not yet edited or deleted, and no end of a
    /// knocked-out edge; the same for the last token of the prompt, which is like no other.
    fn position(&mut self, position: usize) -> usize {
        let range = self.trial.alike(position, self.config.bos_token_id);
        let taken = self.taken();
        let free: Vec<usize> = range.filter(|at| !taken.contains(at)).collect();
        let drawn = rng::pick(&free, self.rng).copied().unwrap_or(position);
        self.deleted.push(drawn);
        drawn
    }

    fn split(&mut self, position: usize, pieces: &[u32]) -> (usize, Vec<u32>) {
        let taken = self.taken();
        let others = self.other_splits.draw(position, pieces, &taken, self.rng);
        self.splits.insert(self.trial, position, pieces, others);
        let made = self.splits.get(self.trial, position, pieces, &self.split);
        self.split.push(made.0);
        made
    }

    /// One of the [`other_keys`] that nothing drawn so far takes.
    fn key(&mut self, key: usize) -> usize {
        if let Some(&known) = self.keys.get(&key) {
            return known;
        }
        let mut others = other_keys(self.trial, key, self.config.bos_token_id);
        let used = |at: &usize| self.keys.values().chain(&self.deleted).any(|used| used == at);
        others.retain(|at| !used(at));
        let drawn = rng::pick(&others, self.rng).copied().unwrap_or(key);
        self.keys.insert(key, drawn);
        drawn
    }

    /// A component in the same third of the layers (any layer, where the third has too few),
    /// neither lesioned by the trial nor drawn before; for a weight, another of the same matrix.
    fn component(&mut self, component: Component) -> Component {
        if let Some(&known) = self.components.get(&component) {
            return known;
        }
        let mut drawn = component;
        for _ in 0..4 * DRAWS {
            let candidate = random_like(component, self.config, self.rng);
            let taken = self.components.values().any(|&used| used == candidate);
            if !self.lesioned.contains(&candidate) && !taken {
                drawn = candidate;
                break;
            }
        }
        self.components.insert(component, drawn);
        drawn
    }

    fn seed(&mut self) -> u64 {
        let seed = self.rng.random();
        self.seeds.push(seed);
        seed
    }
}

fn random_like(component: Component, config: &Config, rng: &mut Rng) -> Component {
    let layer = match component {
        // Another weight of the same matrix.
        Component::Weight { layer, .. } => layer,
        _ => random_layer(component, config, rng),
    };
    let index = index(config.count_in(layer, component), rng);
    config.nth_in(layer, component, index)
}

fn index(count: usize, rng: &mut Rng) -> usize {
    rng.random_range(0..count.max(1))
}

fn random_layer(component: Component, config: &Config, rng: &mut Rng) -> usize {
    let all = config.layers_with(component);
    let third = |l: usize| l * 3 / config.num_hidden_layers.max(1);
    let same: Vec<usize> =
        all.iter().copied().filter(|l| third(*l) == third(component.layer())).collect();
    // A handful of alternatives would be drawn again and again and pass for many controls.
    let alternatives: usize = same.iter().map(|layer| config.count_in(*layer, component)).sum();
    let pool = if alternatives > LEAST_CONTROLS { same } else { all };
    pool.get(index(pool.len(), rng)).copied().unwrap_or(component.layer())
}

#[cfg(test)]
mod tests;
