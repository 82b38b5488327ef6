//! The one integration binary. Regressions are named by what broke.

mod edits;
mod gradient;
mod parity;
mod planted;
