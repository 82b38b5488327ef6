//! The fused CPU kernels of inference, one file a subject.
//!
//! Each output value is computed by the same sequence of operations whatever else is in the batch
//! and however much of the row came from a cache: sums run in a fixed order over positions counted
//! from the start of the *row*. So a row in a batch equals the row alone bit for bit, and the noise
//! floor that `evaluate` measures is zero on CPU.

mod activation;
mod attention;
pub mod elementwise;
mod functions;
mod norm;
mod reduce;
mod rotary;

pub use activation::{activate, gate, gate_row};
pub use attention::{AttentionRow, AttentionShape, attention};
pub use functions::{exp, ln, sigmoid};
pub use norm::{norm, norm_rows};
pub use reduce::{LANES, lanes_sum, largest};
pub use rotary::{Rope, rotate_heads};
