//! Proposers of mutations.

pub mod vocabulary;
