//! Lesions of single weights, from a list of proposed super weights (Yu et al. 2024, "The Super
//! Weight in Large Language Models").

use rand::Rng as _;

use super::layers::Layers;
use super::mutator::{Context, Mutator, extend, mutators};
use crate::edit::{Action, Edit, Trial};
use crate::rng::Rng;
use crate::rng::pick;

mutators! {
    /// Removes, negates or doubles one of the proposed super weights.
    Weights;
}

impl Mutator for Weights {
    fn name(&self) -> &'static str {
        "weights"
    }

    fn groups(&self) -> &'static [&'static str] {
        &["weights"]
    }

    fn propose(&self, parent: &Trial, context: &Context, rng: &mut Rng) -> Option<Trial> {
        let component = *pick(context.weights, rng)?;
        if !Layers::allow(context.layers, &component) {
            return None;
        }
        let action = match rng.random_range(0..4) {
            0 => Action::Scale { factor: -1.0 },
            1 => Action::Scale { factor: 2.0 },
            _ => Action::Zero,
        };
        extend(parent, vec![Edit::lesion(component, action)])
    }
}
