//! Sweeps: every token, head, MLP, neuron, expert, proposed weight or pair of a model, measured one
//! row each, with p-values corrected for their number.

mod against_noise;
mod directions;
mod groups;
mod head_scores;
mod insert;
mod lesions;
mod measure;
mod noise;
mod null;
mod outlier;
mod pairs;
mod row;
mod screen;
mod sets;
mod targets;
mod texts;
mod unrepeatable;
mod vocabulary;

pub use groups::{HeadGroup, WrittenChannel};
pub use head_scores::{HeadScores, head_scores};
pub use insert::{AgainstRow, AgainstSweep, InsertOptions, InsertRow, InsertSweep, MOST_WORDS};
pub use lesions::{LesionOptions, LesionSweep};
pub use pairs::{PairKind, PairOptions, PairRow, PairSweep};
pub use row::{LEAST_TEXTS, LesionRow};
pub use screen::{Screened, screen};
pub use sets::{Baseline, Effect, MinimalSet, interactions, minimal, set_of_lesions};
pub use targets::{Target, WeightRank, components, propose_weights, spread};
pub use unrepeatable::{TokenClass, Unrepeatable};
pub use vocabulary::{GLITCH_PROBABILITY, LEAST_ECHO, TokenRow, TokenVerdict, VocabularySweep};

/// The false discovery rate of a flag.
pub const FALSE_DISCOVERY: f64 = 0.05;
/// The smallest effect of interest, nats per token: a perplexity changed by a thousandth.
pub const LEAST_NATS: f64 = 1e-3;

/// Called with (newly done, total) as a sweep goes on.
pub type Progress<'a> = &'a dyn Fn(u64, u64);
