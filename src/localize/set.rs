//! How much a localization tries, and which set it names: the smallest that does nearly as much as
//! the best.

use crate::edit::Component;

/// Options of [`localize`](super::localize): how much it tries.
#[derive(Debug, Clone, Copy)]
pub struct LocalizeOptions {
    /// The number of strongest MLPs (and of mixers without heads) whose parts are tried.
    pub mlps: usize,
    /// The number of neurons (or channels) tried in each of them.
    pub neurons: usize,
    /// The size of the largest set tried.
    pub set: usize,
    /// The smallest set is named whose necessity is this share of the best set's.
    pub share_of_best: f64,
    /// The number of random sets of the same kinds.
    pub controls: usize,
    /// The number of strongest members of the set that are also patched position by position.
    pub members_by_position: usize,
    /// The number of positions tried for each of them.
    pub positions: usize,
    /// The number of strongest components whose subsets are all patched.
    pub interacting: usize,
    /// The number of strongest mixers whose heads are tried; `None`: of all mixers.
    pub mixers: Option<usize>,
    /// Finds the graph, too, and how the strongest components work together.
    pub graph: bool,
    /// The number of controls with an effect that a case is compared with.
    pub contrasted: usize,
    /// The seed of the random sets.
    pub seed: u64,
}

impl Default for LocalizeOptions {
    fn default() -> Self {
        Self {
            mlps: 2,
            neurons: 48,
            set: 8,
            share_of_best: 0.9,
            controls: 16,
            members_by_position: 3,
            positions: 12,
            interacting: 6,
            mixers: None,
            graph: true,
            contrasted: 19,
            seed: 0,
        }
    }
}

/// The number of mixers and MLPs up to which a model is small.
const FEW_BLOCKS: usize = 32;

impl LocalizeOptions {
    /// Returns what is tried in a model of so many mixers and MLPs: less in one of many, where
    /// every patch takes longer. In two cases of SmolLM2, the strongest of 48 neurons was the first
    /// that was tried in each of three MLPs, and 24 of the 28 strongest heads were in the 8
    /// strongest mixers.
    pub fn for_blocks(self, blocks: usize) -> Self {
        match blocks <= FEW_BLOCKS {
            true => self,
            false => Self {
                mixers: Some(self.mixers.unwrap_or(8)),
                neurons: self.neurons.min(16),
                interacting: self.interacting.min(5),
                ..self
            },
        }
    }
}

/// The set that is named, and its effect.
#[derive(Default)]
pub struct SmallestSet {
    /// The set, strongest first; empty if none does anything to speak of.
    pub set: Vec<Component>,
    /// As in [`Localization`](super::Localization).
    pub necessity: f64,
    /// As in [`Localization`](super::Localization).
    pub sufficiency: f64,
    /// As in [`Localization`](super::Localization).
    pub components_for_80_percent: Option<usize>,
}

impl SmallestSet {
    /// Takes the shortest of these prefixes of a ranking whose necessity is so much of the best
    /// one's.
    pub fn of(
        prefixes: &[&[Component]],
        necessity: &[f64],
        sufficiency: &[f64],
        share_of_best: f64,
    ) -> Self {
        let best = necessity.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let reaches = |share: f64| necessity.iter().position(|n| *n >= share);
        match reaches(share_of_best * best).filter(|_| best >= LEAST_NECESSITY) {
            None => Self::default(),
            Some(at) => Self {
                set: prefixes[at].to_vec(),
                necessity: necessity[at],
                sufficiency: sufficiency[at],
                components_for_80_percent: reaches(LARGE_SHARE).map(|at| at + 1),
            },
        }
    }
}

/// The necessity below which no set is named.
const LEAST_NECESSITY: f64 = 0.1;

/// The share of an effect in [`SmallestSet::components_for_80_percent`].
const LARGE_SHARE: f64 = 0.8;
