//! Lesions of single weights, from a list of proposed super weights (Yu et al. 2024, "The Super
//! Weight in Large Language Models").

use rand::Rng as _;

use super::layers::Layers;
use super::mutator::{Context, Mutator, extend, mutators};
use crate::edit::{Action, Edit, Trial};
use crate::rng::Rng;
use crate::rng::pick;

mutators! {
    /// Removes, negates or doubles one of the proposed super weights, or flips a lower bit of its
    /// exponent.
    Weights;
}

/// Bits of the exponent that are flipped: these change a weight by a factor of 2, 4, 16 or 256. The
/// higher ones make any weight as good as zero, or larger than all others together.
const LOWER_BITS: u32 = 4;

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
        let action = match (rng.random_range(0..5), context.stored) {
            (0, _) => Action::Scale { factor: -1.0 },
            (1, _) => Action::Scale { factor: 2.0 },
            (2, Some(stored)) => {
                let lowest = stored.exponent_bits();
                Action::Flip { bit: rng.random_range(lowest - LOWER_BITS..lowest) + 1 }
            }
            _ => Action::Zero,
        };
        extend(parent, vec![Edit::lesion(component, action)])
    }
}
