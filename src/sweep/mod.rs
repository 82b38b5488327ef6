//! The whole map: every token, head, MLP, neuron or proposed weight of a model, one row each.

mod lesions;
mod pairs;
mod screen;
mod sets;
mod vocabulary;

pub use lesions::{FALSE_DISCOVERY, LesionRow, LesionSweep, Target, propose_weights};
pub use pairs::{Kind as PairKind, LEAST_NATS, Options as PairOptions, PairRow, PairSweep};
pub use screen::{Screened, screen};
pub use sets::{Effect, Intact, MinimalSet, interactions, lesions as set_of_lesions, minimal};
pub use vocabulary::{LEAST_ECHO, TokenRow, TokenVerdict, VocabularySweep};

/// Called with (done, total) as a sweep goes on.
pub type Progress<'a> = &'a dyn Fn(u64, u64);
