//! The whole map: every token, head, MLP, neuron or proposed weight of a model, one row each.

mod echo;
mod lesions;
mod vocabulary;

pub use echo::EchoPrompt;
pub use lesions::{FALSE_DISCOVERY, LesionRow, LesionSweep, Target, propose_weights};
pub use vocabulary::{LEAST_ECHO, TokenRow, TokenVerdict, VocabularySweep};

/// Called with (done, total) as a sweep goes on.
pub type Progress<'a> = &'a dyn Fn(u64, u64);
