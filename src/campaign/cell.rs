//! The cells of the archive: what kind of trial, and what it does.

use crate::evaluate::Observation;
use crate::oracle::OracleKind;
use crate::species::Descriptor;

/// A kind of trial and of effect, known from one forward pass.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cell {
    /// The oracle that the trial exceeds the most.
    oracle: OracleKind,
    /// The kind of its edits; `None` for several. A cell for each combination would be a cell for
    /// each heap of edits.
    edits: Option<&'static str>,
    /// The lowest layer, or band of layers, that its edits act in; `None`: at the input.
    depth: Option<usize>,
    symptom: Symptom,
}

/// The change of the predictions, as far as one forward pass shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Symptom {
    /// Less certain on average: the direction of word salad.
    Flatter,
    /// More certain on average: the direction of stereotypy.
    Sharper,
    /// As certain as before.
    Other,
}

/// Change of the mean entropy that counts as flatter or sharper, in nats.
const CERTAINTY: f32 = 0.5;

impl Symptom {
    fn of(observation: &Observation, baseline: &Observation) -> Self {
        match observation.mean_entropy() - baseline.mean_entropy() {
            change if change > CERTAINTY => Self::Flatter,
            change if change < -CERTAINTY => Self::Sharper,
            _ => Self::Other,
        }
    }
}

impl Cell {
    /// Returns the cell of a trial of this kind.
    pub fn new(kind: &Descriptor, observation: &Observation, baseline: &Observation) -> Self {
        let mut edits = kind.edits.iter().copied().filter(|edit| *edit != "set");
        let (first, others) = (edits.next(), edits.next());
        Self {
            oracle: kind.oracle,
            edits: first.filter(|_| others.is_none()),
            depth: kind.places.iter().map(|place| place.first).min(),
            symptom: Symptom::of(observation, baseline),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::edit::{Action, Component, Edit, Trial};
    use crate::species::TokenClass;

    pub fn head(layer: usize) -> Edit {
        Edit::lesion(Component::Head { layer, head: 1 }, Action::Zero)
    }

    pub fn trial(edits: &[Edit]) -> Trial {
        Trial::new([1, 2, 3], [4]).with_edits(edits.to_vec())
    }

    pub fn cell(trial: &Trial, entropy: f32) -> Cell {
        let kind = Descriptor::new(trial, OracleKind::Divergence, &|_| TokenClass::Ordinary);
        let observed = |entropy| Observation { entropy: vec![entropy], ..Default::default() };
        Cell::new(&kind, &observed(entropy), &observed(2.0))
    }

    #[test]
    fn cells_know_the_kind_of_edit_the_depth_and_the_symptom() {
        let token = Edit::Replace { position: 1, id: 7 };
        let in_layer = |layer| trial(&[head(layer)]);
        assert_eq!(cell(&in_layer(1), 2.4), cell(&trial(&[head(1), head(3)]), 1.6));
        assert_ne!(cell(&in_layer(1), 2.0), cell(&in_layer(2), 2.0));
        let symptoms = [1.0, 2.0, 3.0].map(|entropy| cell(&in_layer(1), entropy).symptom);
        assert_eq!(symptoms, [Symptom::Sharper, Symptom::Other, Symptom::Flatter]);
        let mlp = Edit::lesion(Component::Mlp { layer: 1 }, Action::Zero);
        let mixed = cell(&trial(&[token.clone(), head(1)]), 2.0);
        assert_eq!(mixed, cell(&trial(&[token.clone(), head(1), mlp]), 2.0));
        let alone = cell(&trial(&[token]), 2.0);
        assert_eq!((alone.edits, alone.depth), (Some("token"), None));
        assert_eq!((mixed.edits, mixed.depth), (None, Some(1)));
    }
}
