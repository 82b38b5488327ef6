//! `glitch`: a fuzzing engine for glitch interpretability.
//!
//! It mutates what a language model is given and what it is made of, scores how far the behaviour
//! diverges from matched controls, minimises what it finds and names the components that carry it.
//! ARCHITECTURE.md says which room does what and what may be touched there.

pub mod behaviour;
pub mod campaign;
pub mod case;
pub mod cli;
pub mod compare;
pub mod corpus;
pub mod edit;
pub mod error;
pub mod evaluate;
pub mod implicate;
pub mod minimise;
pub mod model;
pub mod mutate;
pub mod oracle;
pub mod report;
pub mod rng;
pub mod stats;
pub mod storage;
pub mod sweep;
pub mod text;
pub mod transfer;

pub use error::{Error, Result};
