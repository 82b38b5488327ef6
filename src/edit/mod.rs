//! The vocabulary of mutations: what may be done to a trial, as plain data.
//!
//! An [`Edit`] is small, ordered, serialisable and independent of any model object. What is
//! specific to a kind of edit short of a model stands in its file here; how a batch of edits
//! becomes one table per site of the forward pass is the business of [`crate::evaluate`].

mod action;
mod check;
mod component;
mod edits;
mod embedding;
mod knockout;
mod phrase;
mod stand_in;
mod steering;
#[cfg(test)]
mod tests;
mod trial;
mod words;

pub use action::Action;
pub use check::Fault;
pub use component::{Component, Matrix};
pub use edits::Edit;
pub use embedding::EmbeddingChange;
pub use knockout::AttentionKnockout;
pub use phrase::Phrase;
pub use stand_in::StandIns;
pub use steering::{InLayer, ResidualSite, Steering, SteeringChange, SteeringVector};
pub use trial::{Layout, Trial};
pub use words::Lookup;
