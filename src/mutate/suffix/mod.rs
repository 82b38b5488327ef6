//! Adversarial suffixes (Zou et al. 2023): a few tokens after a prompt that make the model do
//! something it would not do otherwise.
//!
//! Unlike the other mutators a search queries the model, for gradients and for the effects of
//! candidates; its findings are judged, minimized and explained like all others. A found suffix is
//! a trial whose base has a neutral suffix of the same length, and whose edits replace its tokens.
//! So the baseline is the prompt with a neutral suffix, the controls are suffixes of ordinary
//! tokens, and both can be compared with the found one position by position.

pub mod beast;
pub mod gcg;
mod goal;
mod held_out;
mod mutator;
mod problem;
pub mod promising;
mod rungs;
mod search;
pub mod soft;
mod state;
mod tokens;
mod wanted;

pub use goal::{Goal, GoalKind, Mean};
pub use held_out::held_out_success;
pub use mutator::{ALL, Suffix};
pub use problem::{Problem, Prompt, Scored};
pub use promising::Promising;
pub use rungs::{prune, rungs};
pub use search::{HeldOut, Search};
pub use state::{Algorithm, Reached, ScoredSuffix, SearchState, Step, SuffixOptions};
pub use tokens::Tokens;
pub use wanted::{Wanted, encode_continuation};
