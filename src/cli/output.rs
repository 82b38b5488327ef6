//! Printing that survives a closed pipe, and tables that fit the terminal.

use std::io::Write as _;

use indicatif::{ProgressBar, ProgressStyle};

/// Prints to standard output; a reader that has gone (`glitch ... | head`) is not an error.
pub fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Prints a line.
pub fn line(text: impl AsRef<str>) {
    print(&format!("{}\n", text.as_ref()));
}

/// Says in one line, on standard error, what is wrong. The text may come from a file: it is
/// escaped.
pub fn warn(text: impl AsRef<str>) {
    let _ = writeln!(std::io::stderr().lock(), "glitch: {}", crate::text::escape(text.as_ref()));
}

/// A bar on standard error with the rate and an ETA; silent when that is not a terminal.
pub fn bar(total: u64, what: &str) -> ProgressBar {
    let style =
        ProgressStyle::with_template("{prefix} [{bar:30}] {pos}/{len} {per_sec} eta {eta} {msg}")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(total).with_style(style.progress_chars("=> "));
    bar.set_prefix(what.to_owned());
    bar
}

/// Columns of the terminal; 80 where there is none.
pub fn columns() -> usize {
    console::Term::stdout().size_checked().map_or(80, |(_, columns)| usize::from(columns)).max(40)
}
