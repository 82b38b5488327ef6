//! The only place that writes files.
//!
//! A reader of our files sees an old version or a new one, never half of either: files are
//! replaced atomically, and the journal, which only grows, carries a length and a checksum per
//! record so that a tail torn by a crash or a full disk is recognized and cut. Nothing that a user
//! may want is replaced unasked: see [`OutputDir`] and [`OutputFile`].

mod atomic;
mod file;
mod folder;
mod input;
mod journal;
mod json;
pub mod ours;
mod vector;

pub use atomic::{create_dir, move_into, write_atomic, write_new};
pub use file::OutputFile;
pub use folder::{CASES, OutputDir};
pub use input::{MAX_TEXT, TextOrFile, read_bounded, read_text};
pub use journal::{Journal, Opened, Torn};
pub use json::{
    MAX_FILE, check_version, from_value, parse_json, pretty_json, read_json, write_json,
};
pub use ours::replace_ours;
pub use vector::{read_vector, vector_file};
