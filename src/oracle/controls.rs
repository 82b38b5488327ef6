//! Matched controls: trials of the same kind and size as a suspect one, but ordinary.
//!
//! Every score is read against these, so they decide what counts as a finding. A control differs
//! from its trial only in *what* is put in (which token, direction, component, weight), never in
//! how much, where, or how often.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use rand::Rng as _;

use super::other_splits::{OtherSplit, OtherSplits, first_left};
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
    if trial.edits.iter().filter_map(lesioned).any(|component| !has_controls(component, config)) {
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
    let lesioned = trial.edits.iter().filter_map(lesioned).collect();
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
        splits: BTreeMap::new(),
        seeds: Vec::new(),
    };
    let edits = trial.edits.iter().map(|edit| edit.control(&mut draws)).collect();
    let Draws { tokens, components, deleted, splits, seeds, .. } = draws;
    // Deletions are known by their distance from the end of the prompt, which reductions keep.
    let end = trial.base.len();
    let back = |position: usize| end.wrapping_sub(position);
    let deletions = trial.edits.iter().filter_map(|edit| match edit {
        Edit::Delete { position } => Some(back(*position)),
        _ => None,
    });
    let deletions = deletions.zip(deleted.into_iter().map(back)).collect();
    (trial.with_edits(edits), Substitution { tokens, components, deletions, splits, seeds })
}

/// What one control puts in the place of what its trial puts in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Substitution {
    tokens: BTreeMap<u32, u32>,
    components: BTreeMap<Component, Component>,
    /// Deleted positions, counted back from the end of the prompt.
    deletions: BTreeMap<usize, usize>,
    /// Splits in the place of each retokenization, which is known by its distance from the end of
    /// the prompt and its pieces.
    splits: BTreeMap<(usize, Vec<u32>), Vec<OtherSplit>>,
    /// Seeds of noise, in the order of the edits.
    seeds: Vec<u64>,
}

impl Substitution {
    /// Returns the control of a trial whose edits are among those that this was drawn for.
    pub fn apply(&self, trial: &Trial) -> Trial {
        let seeds = self.seeds.iter().copied().collect();
        let mut made = Made { of: self, trial, split: Vec::new(), seeds };
        trial.with_edits(trial.edits.iter().map(|edit| edit.control(&mut made)).collect())
    }
}

/// Gives the counterparts of a [`Substitution`]; what it has none for stays as it is.
struct Made<'a> {
    of: &'a Substitution,
    trial: &'a Trial,
    /// Positions of the tokens that the control splits.
    split: Vec<usize>,
    seeds: VecDeque<u64>,
}

impl StandIns for Made<'_> {
    fn token(&mut self, id: u32) -> u32 {
        self.of.tokens.get(&id).copied().unwrap_or(id)
    }

    fn position(&mut self, position: usize) -> usize {
        let end = self.trial.base.len();
        let back = self.of.deletions.get(&end.wrapping_sub(position));
        let moved = back.map(|back| end.wrapping_sub(*back));
        // If the reduction has removed that place: the one before the trial's.
        moved.filter(|at| *at < self.trial.len()).unwrap_or(position.saturating_sub(1))
    }

    /// If the reduction has removed all of their tokens the split stays as it is, and the trial
    /// stands out no more: there must be something to compare it with.
    fn split(&mut self, position: usize, pieces: &[u32]) -> (usize, Vec<u32>) {
        let back = self.trial.base.len().wrapping_sub(position);
        let splits = self.of.splits.get(&(back, pieces.to_vec())).map_or(&[][..], Vec::as_slice);
        let made = first_left(splits, self.trial, |at| !self.split.contains(&at));
        let made = made.unwrap_or_else(|| (position, pieces.to_vec()));
        self.split.push(made.0);
        made
    }

    fn component(&mut self, component: Component) -> Component {
        self.of.components.get(&component).copied().unwrap_or(component)
    }

    fn seed(&mut self) -> u64 {
        self.seeds.pop_front().unwrap_or_default()
    }
}

fn lesioned(edit: &Edit) -> Option<Component> {
    match edit {
        Edit::Lesion { component, .. } => Some(*component),
        _ => None,
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
    /// Splits in the place of each of the trial's.
    splits: BTreeMap<(usize, Vec<u32>), Vec<OtherSplit>>,
    /// Seeds of noise.
    seeds: Vec<u64>,
}

impl Draws<'_> {
    /// Returns the positions of the tokens that the trial or what is drawn so far edits.
    fn taken(&self) -> BTreeSet<usize> {
        let edited = self.trial.edits.iter().filter(|edit| edit.is_token_edit());
        let edited = edited.filter_map(Edit::position);
        edited.chain(self.deleted.iter().chain(&self.split).copied()).collect()
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

    /// Another position, not yet edited or deleted.
    fn position(&mut self, position: usize) -> usize {
        let range = self.trial.side(position, self.config.bos_token_id);
        let taken = self.taken();
        let mut drawn = position;
        for _ in 0..if range.is_empty() { 0 } else { DRAWS } {
            let candidate = self.rng.random_range(range.clone());
            if !taken.contains(&candidate) {
                drawn = candidate;
                break;
            }
        }
        self.deleted.push(drawn);
        drawn
    }

    fn split(&mut self, position: usize, pieces: &[u32]) -> (usize, Vec<u32>) {
        let taken = self.taken();
        let others = self.other_splits.draw(position, pieces, &taken, self.rng);
        let first = first_left(&others, self.trial, |_| true);
        let back = self.trial.base.len().wrapping_sub(position);
        self.splits.insert((back, pieces.to_vec()), others);
        let made = first.unwrap_or_else(|| (position, pieces.to_vec()));
        self.split.push(made.0);
        made
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
mod tests {
    use super::*;
    use crate::edit::{Action, EmbeddingChange, Matrix};
    use crate::testing::fake;

    /// Draws controls of a trial with these edits and checks what each must satisfy.
    fn check(edits: Vec<Edit>, expect: impl Fn(&[Edit]) -> bool) {
        let trial = Trial::new((1..=10).collect::<Vec<u32>>(), [20, 21]).with_edits(edits);
        // Deep enough for lesions of whole MLPs to have controls.
        let (config, vocabulary) = (fake::config_of(12), fake::vocabulary());
        let controls = draw(&trial, 16, 7, &config, &vocabulary);
        assert!(controls.len() >= 3, "{} controls of {:?}", controls.len(), trial.edits);
        assert_eq!(controls, draw(&trial, 16, 7, &config, &vocabulary));
        assert_ne!(controls, draw(&trial, 16, 8, &config, &vocabulary));
        for (index, control) in controls.iter().enumerate() {
            assert!(control != &trial && !controls[..index].contains(control));
            assert_eq!((&control.base, &control.continuation), (&trial.base, &trial.continuation));
            assert!(
                expect(&control.edits),
                "{:?} is no control of {:?}",
                control.edits,
                trial.edits
            );
        }
    }

    #[test]
    fn controls_match_their_trials() {
        use Edit::*;
        let ordinary = |id: u32| fake::vocabulary().ordinary.contains(&id);
        check(vec![Replace { position: 3, id: 666 }, Insert { position: 5, id: 666 }], |edits| {
            match edits {
                [Replace { position: 3, id: a }, Insert { position: 5, id: b }] => {
                    a == b && ordinary(*a)
                }
                _ => false,
            }
        });
        check(
            vec![Delete { position: 4 }],
            |edits| matches!(edits, [Delete { position }] if *position < 10 && *position != 4),
        );
        // Of the base, 4 to 7 are two digits and 8 to 10 are three: ten splits into two.
        let splits = fake::vocabulary().splits;
        check(vec![Retokenize { position: 7, pieces: vec![2, 4] }], |edits| match edits {
            [Retokenize { position, pieces }] => {
                let of_token = splits.of_token(1 + *position as u32, 2);
                (0..of_token.count()).any(|index| of_token.nth(index).as_ref() == Some(pieces))
            }
            _ => false,
        });
        check(
            vec![
                Retokenize { position: 7, pieces: vec![2, 4] },
                Retokenize { position: 9, pieces: vec![2, 6] },
                Replace { position: 5, id: 666 },
                Delete { position: 8 },
            ],
            |edits| match edits {
                [
                    Retokenize { position: a, .. },
                    Retokenize { position: b, .. },
                    Replace { position: 5, .. },
                    Delete { position: c },
                ] => {
                    let taken = [9, 5, 8].contains(a) || [7, 5, 8].contains(b);
                    !taken && a != b && a != c && b != c
                }
                _ => false,
            },
        );
        check(
            vec![Embedding {
                position: 2,
                change: EmbeddingChange::Direction { from: 1, to: 2, strength: 0.5 },
            }],
            |edits| match edits {
                [Embedding { position: 2, change: EmbeddingChange::Noise { strength, .. } }] => {
                    *strength == 0.5
                }
                _ => false,
            },
        );
        check(
            vec![Embedding {
                position: 2,
                change: EmbeddingChange::Towards { id: 666, strength: 0.5 },
            }],
            |edits| match edits {
                [Embedding { position: 2, change: EmbeddingChange::Towards { id, strength } }] => {
                    *strength == 0.5 && ordinary(*id)
                }
                _ => false,
            },
        );
        let head = Component::Head { layer: 1, head: 2 };
        check(vec![Edit::lesion(head, Action::Zero)], |edits| match edits {
            [Lesion { component, action: Action::Zero, .. }] => {
                component.kind() == "head" && *component != head
            }
            _ => false,
        });
        let mlp = Component::Mlp { layer: 0 };
        check(vec![Edit::lesion(mlp, Action::Mean)], |edits| match edits {
            [Lesion { component, action: Action::Mean, .. }] => {
                component.kind() == "mlp" && *component != mlp
            }
            _ => false,
        });
        let weight = Component::Weight { layer: 1, matrix: Matrix::Down, out: 3, input: 4 };
        check(vec![Edit::lesion(weight, Action::Zero)], |edits| match edits {
            [
                Lesion {
                    component: Component::Weight { layer: 1, matrix: Matrix::Down, out, input },
                    ..
                },
            ] => {
                (*out, *input) != (3, 4)
                    && *out < fake::config().hidden_size
                    && *input < fake::config().intermediate_size
            }
            _ => false,
        });
    }

    /// The controls of a reduced trial are those of the whole one, reduced alike.
    #[test]
    fn substitutions_are_the_controls_and_reduce_with_the_trial() {
        use Edit::*;
        let head = |head| Edit::lesion(Component::Head { layer: 1, head }, Action::Zero);
        let edits = vec![
            Replace { position: 3, id: 666 },
            Delete { position: 6 },
            Replace { position: 7, id: 667 },
            Embedding { position: 8, change: EmbeddingChange::Noise { seed: 1, strength: 0.5 } },
            head(2),
        ];
        let trial = Trial::new((1..=10).collect::<Vec<u32>>(), [20, 21]).with_edits(edits);
        let (config, vocabulary) = (fake::config_of(12), fake::vocabulary());
        let whole = draw(&trial, 16, 7, &config, &vocabulary);
        let made = substitutions(&trial, 16, 7, &config, &vocabulary);
        assert_eq!(made.iter().map(|s| s.apply(&trial)).collect::<Vec<_>>(), whole);
        // Two tokens cut in front, and the first edit gone.
        let cut = Trial::new((3..=10).collect::<Vec<u32>>(), [20, 21]).with_edits(vec![
            Delete { position: 4 },
            Replace { position: 5, id: 667 },
            Embedding { position: 6, change: EmbeddingChange::Noise { seed: 1, strength: 0.5 } },
            head(2),
        ]);
        for (control, substitution) in whole.iter().zip(&made) {
            let reduced = substitution.apply(&cut);
            let [_, Delete { position: deleted }, rest @ ..] = &control.edits[..] else { panic!() };
            let [Delete { position }, reduced @ ..] = &reduced.edits[..] else { panic!() };
            // A place that was cut has another in its stead.
            assert!(*deleted < 2 || *position == deleted - 2, "{deleted} {position}");
            let mut moved = rest.to_vec();
            moved.iter_mut().filter_map(Edit::position_mut).for_each(|at| *at -= 2);
            assert_eq!(reduced, moved);
        }
    }

    #[test]
    fn other_splits_reduce_with_the_trial() {
        let pieces = vec![8, 16];
        let at = |position| vec![Edit::Retokenize { position, pieces: pieces.clone() }];
        // Position 12 is seven digits, all others six or more.
        let ids: Vec<u32> = (100..120).map(|id| if id == 112 { 128 } else { id }).collect();
        let trial = Trial::new(ids.clone(), [20, 21]).with_edits(at(12));
        let (config, vocabulary) = (fake::config(), fake::vocabulary());
        let whole = draw(&trial, 16, 7, &config, &vocabulary);
        let made = substitutions(&trial, 16, 7, &config, &vocabulary);
        assert_eq!(made.iter().map(|s| s.apply(&trial)).collect::<Vec<_>>(), whole);
        let split = |trial: &Trial| match &trial.edits[..] {
            [Edit::Retokenize { position, pieces }] => (*position, pieces.clone()),
            other => panic!("{other:?}"),
        };
        // The beginning is cut, and 105 is another token now.
        let mut cut = ids[3..].to_vec();
        cut[2] = 9;
        let cut = Trial::new(cut, [20, 21]).with_edits(at(9));
        let (mut same, mut others) = (0, 0);
        for (control, substitution) in whole.iter().zip(&made) {
            let (control, reduced) = (split(control), split(&substitution.apply(&cut)));
            if control.0 >= 3 && control.0 != 5 {
                assert_eq!(reduced, (control.0 - 3, control.1));
                same += 1;
            } else {
                let token = cut.base[reduced.0];
                let of_token = vocabulary.splits.of_token(token, 2);
                let mut splits = (0..of_token.count()).filter_map(|index| of_token.nth(index));
                assert!(splits.any(|pieces| pieces == reduced.1) && reduced != (9, pieces.clone()));
                others += 1;
            }
        }
        assert!(same > 0 && others > 0, "{same} {others}");
        // Where nothing else is left, a control is the trial.
        let alone = Trial::new([128], [20]).with_edits(at(0));
        let controls: Vec<Trial> = made.iter().map(|s| s.apply(&alone)).collect();
        assert!(controls.contains(&alone));
        assert!(controls.iter().all(|control| split(control).0 == 0));
    }

    #[test]
    fn what_has_no_alternative_has_no_controls() {
        let trial = Trial::new([1, 2], [3]);
        let embed = trial.with_edits(vec![Edit::lesion(Component::Embed, Action::Zero)]);
        // Three other MLPs are too few, and an edit beside the lesion does not make them more.
        let mlp = Edit::lesion(Component::Mlp { layer: 1 }, Action::Zero);
        let few = trial.with_edits(vec![mlp.clone()]);
        let beside = trial.with_edits(vec![Edit::Replace { position: 0, id: 9 }, mlp]);
        // The only token of more than one digit can be split in seven other ways.
        let split = Edit::Retokenize { position: 2, pieces: vec![2, 128] };
        let token = Edit::Replace { position: 0, id: 9 };
        let short = Trial::new([1, 2, 256], [3]).with_edits(vec![split]);
        let with_token = short.with_edits([&short.edits[..], &[token]].concat());
        for trial in [trial, embed, few, beside, short, with_token] {
            assert!(draw(&trial, 16, 1, &fake::config(), &fake::vocabulary()).is_empty());
        }
    }
}
