//! Sweeps: every token, head, MLP, neuron, expert, proposed weight or pair of a model, measured one
//! row each, with p-values corrected for their number.

mod lesions;
mod null;
mod pairs;
mod screen;
mod sets;
mod unrepeatable;
mod vocabulary;

pub use lesions::{FALSE_DISCOVERY, LesionRow, LesionSweep, Target, propose_weights};
pub use null::LEAST_NATS;
pub use pairs::{PairKind, PairOptions, PairRow, PairSweep};
pub use screen::{Screened, screen};
pub use sets::{Baseline, Effect, MinimalSet, interactions, minimal, set_of_lesions};
pub use unrepeatable::{TokenClass, Unrepeatable};
pub use vocabulary::{GLITCH_PROBABILITY, LEAST_ECHO, TokenRow, TokenVerdict, VocabularySweep};

/// Called with (newly done, total) as a sweep goes on.
pub type Progress<'a> = &'a dyn Fn(u64, u64);
