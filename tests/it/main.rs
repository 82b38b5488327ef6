//! The one integration binary. Regressions are named by what broke.

mod backups;
mod checkpoints;
mod cli;
mod completions;
mod corpus;
mod cut_out;
mod edits;
mod experts;
mod gradient;
mod hostile;
mod identity;
mod made;
mod pairs;
mod parity;
mod plans;
mod planted;
mod recurrent;
mod safety;
mod suffix;
