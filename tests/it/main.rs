//! The one integration binary. Regressions are named by what broke.

mod cli;
mod corpus;
mod gradient;
mod made;
mod parity;
