//! Emergence: how much of what sets of lesions do is predicted by what their members do alone.
//!
//! The model under sets of lesions is a function of sets. Polynomials of order 1 in the indicators
//! of the parts add single effects up, those of order 2 have a term for each pair, and so on. The
//! share of the variance over sets that each order explains says how far the whole is the sum of
//! its parts; it depends on the scale (loss or logit) and on the measure over sets, which are
//! always named. The additive surrogate, whose logits are sums by construction, goes through the
//! same analysis, and so do planted interactions: what the model has beyond the surrogate is
//! emergence. docs/emergence.md explains how to read it.

mod analysis;
mod explained;
mod figures;
mod interactions;
mod linear;
mod measure;
mod measured;
mod regression;
mod run;
mod sets;
mod surrogate;
mod unigram;
mod unlearned;
mod walsh;

pub use explained::Estimate;
pub use figures::{
    Emergence, OrderShares, PlantedTerms, Spectrum, Unexplained, UnexplainedAt, Verdict,
};
pub use interactions::Interaction;
pub use measure::{Replacement, Scale};
pub use measured::SetRow;
pub use run::{EmergenceOptions, LEAST_PARTS};
pub use sets::Measure;
pub use surrogate::Function;
