//! The arithmetic of a forward pass: the trait [`Numerics`], its two modes, and their kernels.
//!
//! [`fused`] is inference: packed weights ([`linear`]) and fused kernels ([`kernels`], [`scan`])
//! over plain buffers from a pool ([`pool`]). [`composed`] is the gradient mode: candle operations
//! that all have a backward. Nothing outside this folder and `forward.rs` names a mode.

pub mod composed;
pub mod fused;
pub mod kernels;
pub mod linear;
mod numerics;
pub mod pool;
pub mod scan;

pub use numerics::{HeadNorms, Mixture, Numerics, Span};
