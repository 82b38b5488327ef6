//! Results for people: self-contained HTML pages, and the summary for the terminal.
//!
//! Nothing here runs a model or reads a clock: the same summary and cases give the same bytes.
//! Every text that comes from a model or a file is data and goes through [`crate::text`].

mod against;
mod attribution;
mod card;
pub mod comparison;
mod deficits;
mod diff;
mod explanation;
mod format;
mod glossary;
mod graph;
mod html;
mod interactions;
pub mod judged;
mod localization;
mod logit_lens;
mod residual_map;
mod spectrum;
mod suffix;
mod suffix_terminal;
mod svg;
mod terminal;
mod words;

pub use html::page;
pub use localization::{localization, set_in_words, two_models};
pub use suffix::suffix_page;
pub use suffix_terminal::suffix_terminal;
pub use terminal::{terminal, terminal_in};
