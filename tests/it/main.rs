//! The one integration binary. Regressions are named by what broke.

mod gradient;
mod parity;
