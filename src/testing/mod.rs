//! Fixtures shared by the unit tests of several rooms. Compiled for tests only; no other code may
//! import from here.

pub(crate) mod fake;
mod residuals;
pub(crate) mod sample;
