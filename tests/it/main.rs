//! The one integration binary. Regressions are named by what broke.

mod backups;
mod by_hand;
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
mod imports;
mod inputs;
mod lesions;
mod made;
mod pairs;
mod parity;
mod places;
mod plans;
mod planted;
mod recurrent;
mod safety;
mod snapshots;
mod streams;
mod suffix;
