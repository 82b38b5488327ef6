//! The kind of a finding: its oracle, its kinds of edits, where they act, and on which tokens.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::edit::{Action, Component, Edit, Trial};
use crate::oracle::OracleKind;
use crate::text;
use crate::vocabulary::{TokenForm, TokenKind};

/// A finding without its particulars: neither which token, which head or which weight, nor
/// at which position or how strongly.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Descriptor {
    /// The oracle that it failed. Loss blow-up counts as divergence: of what raises the loss of a
    /// text much, the predictions diverge.
    pub oracle: OracleKind,
    /// The kinds of its edits: `token`, `deletion`, `retokenization`, `embedding`, `direction`,
    /// `attention knockout`, `carried state`, `routing`, and for lesions the kind of component
    /// (`head`, `mlp`, `weight`, ...), with `set` where components in several places are lesioned.
    pub edits: BTreeSet<&'static str>,
    /// The ways in which components are changed.
    pub lesions: BTreeSet<LesionClass>,
    /// The classes of the tokens put in, pieces of a retokenization included: a piece that is
    /// hardly trained is a cause of its own.
    pub tokens: BTreeSet<TokenClass>,
    /// Where in the model its edits act, if they act there.
    pub places: BTreeSet<Place>,
}

/// The direction in which a lesion changes a component: removing, inverting and amplifying it have
/// different effects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LesionClass {
    /// Ablated (zeroed, at its mean, resampled), masked, demoted, or scaled to less.
    Removed,
    /// Scaled by a negative factor of some size; one near zero removes.
    Inverted,
    /// Scaled to more, promoted or forced.
    Amplified,
    /// With noise added.
    Noisy,
    /// With one bit flipped.
    Flipped,
}

/// The size of a negative factor up to which a component is as good as removed.
const NEARLY_ZERO: f32 = 0.25;

impl LesionClass {
    /// Returns the class of an action.
    pub fn of(action: &Action) -> Self {
        match action {
            Action::Zero | Action::Mean | Action::Resample { .. } | Action::Mask => Self::Removed,
            Action::Scale { factor } if *factor < -NEARLY_ZERO => Self::Inverted,
            Action::Scale { factor } if *factor <= 1.0 => Self::Removed,
            Action::Promote { logit } if *logit < 0.0 => Self::Removed,
            Action::Scale { .. } | Action::Force | Action::Promote { .. } => Self::Amplified,
            Action::Noise { .. } => Self::Noisy,
            Action::Flip { .. } => Self::Flipped,
        }
    }

    /// Returns the word for it, in the singular.
    fn words(self) -> &'static str {
        match self {
            Self::Removed => "lesion",
            Self::Inverted => "inversion",
            Self::Amplified => "amplification",
            Self::Noisy => "noise",
            Self::Flipped => "bit flip",
        }
    }
}

/// A class of tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenClass {
    /// Among those that look the least trained.
    HardlyTrained,
    /// Control tokens.
    Special,
    /// Bytes, and what is no text.
    Byte,
    /// All others.
    Ordinary,
    /// Not known: of a case that does not say.
    Unknown,
}

/// A block of a layer, or the stream between blocks. In deep models neighbouring layers do much the
/// same, so the first eight layers are places by themselves, and those that follow in bands: 8 to
/// 11, 12 to 15, 16 to 23, 24 to 31, 32 to 47, ...
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Place {
    /// The first layer.
    pub first: usize,
    /// The last layer.
    pub last: usize,
    /// The part of the layer.
    pub block: Block,
}

impl Place {
    /// Returns the place of a block.
    pub fn new(layer: usize, block: Block) -> Self {
        // Half an octave a band from 8 on: in 8 to 15 a band has 4 layers, in 16 to 31 it has 8.
        let width = if layer < 8 { 1 } else { 1 << (layer.ilog2() - 1) };
        let first = layer - layer % width;
        Self { first, last: first + (width - 1), block }
    }
}

/// A part of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Block {
    /// The attention, state space or time mixing.
    Mixer,
    /// The MLP, mixture of experts or channel mixing.
    Mlp,
    /// The residual stream.
    Stream,
}

impl From<TokenKind> for TokenClass {
    fn from(kind: TokenKind) -> Self {
        match kind {
            TokenKind::Anomalous => Self::HardlyTrained,
            TokenKind::Special => Self::Special,
            TokenKind::Form(TokenForm::Other) => Self::Byte,
            TokenKind::Form(_) => Self::Ordinary,
        }
    }
}

impl Descriptor {
    /// Describes a trial that failed an oracle; `class` knows the tokens.
    pub fn new(trial: &Trial, oracle: OracleKind, class: &dyn Fn(u32) -> TokenClass) -> Self {
        let put_in = trial.edits.iter().filter(|edit| edit.is_token_edit());
        let tokens = put_in.flat_map(Edit::token_ids).map(class).collect();
        let mut edits: BTreeSet<&'static str> = trial.edits.iter().map(kind).collect();
        let (mut lesions, mut lesioned) = (BTreeSet::new(), BTreeSet::new());
        for edit in &trial.edits {
            if let Edit::Lesion { action, .. } = edit {
                lesions.insert(LesionClass::of(action));
                lesioned.extend(block(edit));
            }
        }
        if lesioned.len() > 1 {
            edits.insert("set");
        }
        let places = trial.edits.iter().filter_map(place).collect();
        Self { oracle: oracle_of_kind(oracle), edits, lesions, tokens, places }
    }

    /// Returns whether a finding of the kind `other` is no news once this kind is known: it has
    /// everything that this kind has, and perhaps more.
    pub fn explains(&self, other: &Self) -> bool {
        self.oracle == other.oracle
            && self.edits.is_subset(&other.edits)
            && self.lesions.is_subset(&other.lesions)
            && self.tokens.is_subset(&other.tokens)
            && self.places.is_subset(&other.places)
    }

    /// Returns how unlike two kinds are: the Jaccard distance of what they have, between 0 and 1.
    pub fn distance(&self, other: &Self) -> f64 {
        fn count<T: Ord>(a: &BTreeSet<T>, b: &BTreeSet<T>) -> (usize, usize) {
            (a.intersection(b).count(), a.union(b).count())
        }
        let oracle = if self.oracle == other.oracle { (1, 1) } else { (0, 2) };
        let parts = [
            oracle,
            count(&self.edits, &other.edits),
            count(&self.lesions, &other.lesions),
            count(&self.tokens, &other.tokens),
            count(&self.places, &other.places),
        ];
        let (shared, all) = parts.iter().fold((0, 0), |sum, (a, b)| (sum.0 + a, sum.1 + b));
        1.0 - shared as f64 / all as f64
    }
}

impl fmt::Display for Descriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.cause(), self.oracle.oracle().label())
    }
}

impl Descriptor {
    /// Returns what is done, in words: "lesion of head in L2".
    pub fn cause(&self) -> String {
        let tokens: Vec<&str> = self.tokens.iter().map(|class| class.words()).collect();
        let layers: BTreeSet<(usize, usize)> =
            self.places.iter().map(|place| (place.first, place.last)).collect();
        let band = |&(first, last): &(usize, usize)| match first == last {
            true => format!("L{first}"),
            false => format!("L{first} to L{last}"),
        };
        let layers: Vec<String> = layers.iter().map(band).collect();
        let in_layers = match layers.is_empty() {
            true => String::new(),
            false => format!(" in {}", text::list(&layers)),
        };
        let (mut parts, mut lesioned, mut plural) = (Vec::new(), Vec::new(), "");
        for &edit in &self.edits {
            match edit {
                "token" => parts.push(format!("{} put in", text::list(&tokens))),
                "deletion" => parts.push("deleted token".to_owned()),
                "retokenization" => {
                    let pieces: Vec<String> =
                        tokens.iter().map(|word| format!("{word}s")).collect();
                    parts.push(format!("token split into {}", text::list(&pieces)));
                }
                "embedding" => parts.push("changed embedding".to_owned()),
                "direction" | "attention knockout" | "carried state" | "routing" => {
                    parts.push(edit.to_owned());
                }
                "set" => plural = "s",
                component => lesioned.push(component),
            }
        }
        if !lesioned.is_empty() {
            let done: Vec<&str> = self.lesions.iter().map(|class| class.words()).collect();
            let what: Vec<String> = lesioned.iter().map(|kind| format!("{kind}{plural}")).collect();
            parts.push(format!("{}{plural} of {}", text::list(&done), text::list(&what)));
        }
        format!("{}{in_layers}", parts.join(", "))
    }
}

impl TokenClass {
    /// Returns the class in words, in the singular.
    pub fn words(self) -> &'static str {
        match self {
            Self::HardlyTrained => "hardly trained token",
            Self::Special => "control token",
            Self::Byte => "byte",
            Self::Ordinary => "ordinary token",
            Self::Unknown => "token",
        }
    }
}

/// Returns the oracle that a kind is told by: loss blow-up counts as divergence.
pub(super) fn oracle_of_kind(oracle: OracleKind) -> OracleKind {
    match oracle {
        OracleKind::LossBlowup => OracleKind::Divergence,
        other => other,
    }
}

/// The kinds of edits that are no lesions, and what stands beside the kinds of components where
/// several places are lesioned.
const OTHER_KINDS: [&str; 9] = [
    "token",
    "deletion",
    "retokenization",
    "embedding",
    "direction",
    "attention knockout",
    "carried state",
    "routing",
    "set",
];

/// Returns whether a descriptor's edits can have this name.
pub(super) fn is_kind_of_edit(name: &str) -> bool {
    OTHER_KINDS.contains(&name) || Component::KINDS.contains(&name)
}

fn kind(edit: &Edit) -> &'static str {
    match edit {
        Edit::Replace { .. } | Edit::Insert { .. } => "token",
        Edit::Delete { .. } => "deletion",
        Edit::Retokenize { .. } => "retokenization",
        Edit::Embedding { .. } => "embedding",
        Edit::Lesion { component, .. } => component.kind(),
        Edit::Steering { .. } => "direction",
        Edit::AttentionKnockout(_) => "attention knockout",
        Edit::CarryState { .. } => "carried state",
        Edit::FreezeRouting => "routing",
    }
}

fn place(edit: &Edit) -> Option<Place> {
    if let Edit::Steering { steering, .. } = edit {
        return Some(Place::new(steering.site.layer, Block::Stream));
    }
    block(edit).map(|(layer, block)| Place::new(layer, block))
}

/// Returns the layer and the block that an edit of a component acts in.
fn block(edit: &Edit) -> Option<(usize, Block)> {
    let component = edit.component().filter(|component| **component != Component::Embed)?;
    let block = if component.is_of_mlp() { Block::Mlp } else { Block::Mixer };
    Some((component.layer(), block))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edit::AttentionKnockout;

    fn described(edits: Vec<Edit>, oracle: OracleKind) -> Descriptor {
        let trial = Trial::new([1, 2, 3, 4, 5], [6]).with_edits(edits);
        let class = |id| if id > 9 { TokenClass::HardlyTrained } else { TokenClass::Ordinary };
        Descriptor::new(&trial, oracle, &class)
    }

    fn token(position: usize, id: u32) -> Edit {
        Edit::Replace { position, id }
    }

    fn zero(layer: usize, head: usize) -> Edit {
        Edit::lesion(Component::Head { layer, head }, Action::Zero)
    }

    #[test]
    fn twins_are_of_one_kind() {
        let (echo, loss) = (OracleKind::Echo, OracleKind::LossBlowup);
        let one = described(vec![token(1, 10)], echo);
        assert_eq!(one, described(vec![token(3, 11), token(4, 11)], echo));
        assert_eq!(one, described(vec![Edit::Insert { position: 0, id: 12 }], echo));
        assert_ne!(one, described(vec![token(1, 9)], echo));
        let divergence = described(vec![token(1, 10)], OracleKind::Divergence);
        assert_ne!(one, divergence);
        assert_eq!(divergence, described(vec![token(1, 10)], loss));
        assert_eq!(one.to_string(), "hardly trained token put in: echo failure");
        let head = described(vec![zero(2, 1)], loss);
        assert_eq!(head, described(vec![zero(2, 3)], loss));
        assert_eq!(head, described(vec![zero(2, 3), zero(2, 1)], loss));
        assert_ne!(head, described(vec![zero(1, 1)], loss));
        assert_eq!(head.to_string(), "lesion of head in L2: divergence");
    }

    #[test]
    fn retokenizations_are_told_by_their_pieces() {
        let split = |position, pieces: &[u32]| {
            let edits = vec![Edit::Retokenize { position, pieces: pieces.into() }];
            described(edits, OracleKind::Divergence)
        };
        assert_eq!(split(1, &[5, 6]), split(2, &[7, 8, 9]));
        assert_ne!(split(1, &[5, 6]), split(1, &[5, 10]));
        assert_ne!(split(1, &[5, 6]), described(vec![token(1, 5)], OracleKind::Divergence));
        assert_eq!(split(1, &[5, 6]).to_string(), "token split into ordinary tokens: divergence");
        assert!(is_kind_of_edit("retokenization"));
    }

    #[test]
    fn removing_inverting_and_amplifying_are_different_lesions() {
        let scaled = |factor| {
            let head = Component::Head { layer: 2, head: 1 };
            let edits = vec![Edit::lesion(head, Action::Scale { factor })];
            described(edits, OracleKind::LossBlowup)
        };
        let zeroed = described(vec![zero(2, 3)], OracleKind::LossBlowup);
        assert_eq!([scaled(0.0), scaled(0.3)], [zeroed.clone(), zeroed.clone()]);
        assert_eq!(scaled(-0.07), zeroed);
        assert_eq!(scaled(-1.5).to_string(), "inversion of head in L2: divergence");
        assert_eq!(scaled(3.0).to_string(), "amplification of head in L2: divergence");
        assert_eq!(scaled(-1.0), scaled(-2.0));
    }

    #[test]
    fn knockouts_are_told_by_their_layer() {
        let knockout = |component, position, key| {
            Edit::AttentionKnockout(AttentionKnockout { component, position, key })
        };
        let head = |head| Component::Head { layer: 2, head };
        let loss = OracleKind::LossBlowup;
        let one = described(vec![knockout(head(1), None, 2)], loss);
        assert_eq!(one, described(vec![knockout(head(3), Some(4), 1)], loss));
        let block = Component::Attention { layer: 2 };
        assert_eq!(one, described(vec![knockout(block, None, 2)], loss));
        assert_ne!(one, described(vec![zero(2, 1)], loss));
        assert_eq!(one.to_string(), "attention knockout in L2: divergence");
        assert_eq!(one.places.into_iter().collect::<Vec<_>>(), [Place::new(2, Block::Mixer)]);
    }

    #[test]
    fn deep_layers_are_in_bands() {
        let bands = [0, 7, 8, 11, 12, 16, 23, 24, 31, 32].map(|layer| {
            let place = Place::new(layer, Block::Mixer);
            (place.first, place.last)
        });
        let first = [(0, 0), (7, 7), (8, 11), (8, 11), (12, 15)];
        assert_eq!(bands[..5], first);
        assert_eq!(bands[5..], [(16, 23), (16, 23), (24, 31), (24, 31), (32, 47)]);
        assert_eq!(Place::new(usize::MAX, Block::Mlp).last, usize::MAX);
        let deep = described(vec![zero(25, 1)], OracleKind::LossBlowup);
        assert_eq!(deep, described(vec![zero(30, 2)], OracleKind::LossBlowup));
        assert_eq!(deep.to_string(), "lesion of head in L24 to L31: divergence");
        let set = described(vec![zero(25, 1), zero(30, 2)], OracleKind::LossBlowup);
        assert_eq!(set.to_string(), "lesions of heads in L24 to L31: divergence");
    }

    #[test]
    fn what_has_more_is_explained_by_what_has_less() {
        let loss = OracleKind::LossBlowup;
        let (head, set) =
            (described(vec![zero(2, 1)], loss), described(vec![zero(2, 1), zero(0, 0)], loss));
        assert!(head.explains(&set) && head.explains(&head) && !set.explains(&head));
        let mixed = described(vec![zero(2, 1), token(1, 10)], loss);
        assert!(head.explains(&mixed) && !mixed.explains(&set));
        assert_eq!(set.to_string(), "lesions of heads in L0 and L2: divergence");
        // Edits: 1 of 2 shared; places: 1 of 2; the lesion: 1 of 1; the oracle: 1 of 1.
        assert!((head.distance(&set) - (1.0 - 4.0 / 6.0)).abs() < 1e-12);
        assert_eq!(head.distance(&head), 0.0);
        assert_eq!(head.distance(&described(vec![token(1, 10)], OracleKind::Echo)), 1.0);
    }
}
