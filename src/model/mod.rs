//! The model under test.

mod config;

pub use config::Config;
