//! `glitch`: a fuzzing engine for glitch interpretability.
//!
//! It mutates what a language model is given and what it is made of, scores how far the behaviour
//! diverges from matched controls, minimizes what it finds and localizes it to components.
//! ARCHITECTURE.md says which room does what and what may be touched there.

#![warn(missing_docs)]

pub mod campaign;
pub mod case;
pub mod cli;
pub mod compare;
pub mod corpus;
pub mod deficits;
pub mod echo;
pub mod edit;
pub mod emergence;
pub mod error;
pub mod evaluate;
pub mod localize;
pub mod minimize;
pub mod model;
pub mod mutate;
pub mod novelty;
pub mod oracle;
pub mod pipeline;
pub mod replicate;
pub mod report;
pub mod rng;
pub mod species;
pub mod stats;
pub mod storage;
pub mod sweep;
#[cfg(test)]
pub(crate) mod testing;
pub mod text;
pub mod transfer;
pub mod vocabulary;

pub use error::{Error, Result};
