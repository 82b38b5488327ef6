//! Prints text and JSON on standard output, and warnings and progress on standard error.

use std::io::{ErrorKind, IsTerminal as _, Write as _};
use std::ops::Deref;
use std::sync::OnceLock;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::error::{Error, Result};
use crate::text;

/// The first error of standard output; nothing is written after it.
static BROKEN: OnceLock<std::io::Error> = OnceLock::new();

/// Prints to standard output. An error is kept for [`lost`].
pub fn print(text: &str) {
    if BROKEN.get().is_some() {
        return;
    }
    let mut out = std::io::stdout().lock();
    if let Err(error) = out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        let _ = BROKEN.set(error);
    }
}

/// Prints a line.
pub fn line(text: impl AsRef<str>) {
    print(&format!("{}\n", text.as_ref()));
}

/// Prints a value as one line of JSON, in which every character that a terminal would obey is
/// escaped.
///
/// # Errors
/// [`Error::Internal`] for a value that JSON cannot hold.
pub fn json(value: &impl serde::Serialize) -> Result<()> {
    line(json_line(value)?);
    Ok(())
}

/// Returns a value as one line of JSON, escaped as [`json`] does.
///
/// # Errors
/// [`Error::Internal`] for a value that JSON cannot hold.
pub fn json_line(value: &impl serde::Serialize) -> Result<String> {
    let json = serde_json::to_string(value)
        .map_err(|e| Error::internal(format!("a value is not JSON: {e}")))?;
    Ok(text::escape_json(&json))
}

/// Returns the error with which standard output was lost, unless its reader has gone (`glitch ... |
/// head`), which is no error.
pub fn lost() -> Option<&'static std::io::Error> {
    BROKEN.get().filter(|error| error.kind() != ErrorKind::BrokenPipe)
}

/// Writes one line to standard error. The text may come from a file: it is escaped.
pub fn warn(text: impl AsRef<str>) {
    let _ = writeln!(std::io::stderr().lock(), "glitch: {}", text::escape(text.as_ref()));
}

/// Says on standard error that the folders named hold no case, and returns the exit code of that.
pub fn no_cases() -> u8 {
    warn("no case found there");
    super::exit::NO_CASES
}

/// Says on standard error that results go into another folder than the one asked for.
pub fn moved(wanted: &std::path::Path, written: &std::path::Path) {
    if wanted != written {
        let (wanted, written) = (wanted.display(), written.display());
        warn(format!(
            "{wanted} holds earlier results and stays as it is: writing to {written} (--force \
            replaces them)"
        ));
    }
}

/// Time between two lines of progress where standard error is not a terminal.
const EVERY: Duration = Duration::from_secs(60);

/// Progress of a long command: a bar on a terminal, one plain line a minute anywhere else.
pub struct Progress {
    bar: ProgressBar,
    /// Ends the thread that writes the plain lines when it is dropped.
    _lines: Option<Sender<()>>,
}

impl Progress {
    /// A bar with rate and ETA; `total` may be set later.
    pub fn bar(total: u64, what: &str) -> Self {
        let template = "{prefix} [{bar:30}] {pos}/{len} {per_sec} eta {eta} {msg}";
        let style = ProgressStyle::with_template(template)
            .unwrap_or_else(|_| ProgressStyle::default_bar())
            .progress_chars("=> ");
        Self::new(ProgressBar::new(total).with_style(style).with_prefix(what.to_owned()))
    }

    /// A spinner with the time and a message, for work whose end is not known.
    pub fn spinner() -> Self {
        let style = ProgressStyle::with_template("{spinner} {elapsed_precise} {msg}")
            .unwrap_or_else(|_| ProgressStyle::default_spinner());
        Self::new(ProgressBar::new_spinner().with_style(style))
    }

    fn new(bar: ProgressBar) -> Self {
        let plain = !std::io::stderr().is_terminal();
        let lines = plain.then(|| every(EVERY, bar.clone(), warn));
        Self { bar, _lines: lines }
    }
}

impl Deref for Progress {
    type Target = ProgressBar;

    fn deref(&self) -> &ProgressBar {
        &self.bar
    }
}

/// Returns a function that is told (newly done, total) and moves a bar. Another total is another
/// stage of the work, which begins anew.
pub fn stages(bar: &ProgressBar) -> impl Fn(u64, u64) + '_ {
    move |done, total| {
        if bar.length() != Some(total) {
            bar.set_length(total);
            bar.set_position(0);
        }
        bar.inc(done);
    }
}

/// Writes a plain line of progress every so often, until the bar is finished or the sender dropped.
fn every(
    interval: Duration,
    bar: ProgressBar,
    write: impl Fn(String) + Send + 'static,
) -> Sender<()> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        while receiver.recv_timeout(interval) == Err(RecvTimeoutError::Timeout)
            && !bar.is_finished()
        {
            write(plain(&bar));
        }
    });
    sender
}

/// Time, count and message of a bar in one line.
fn plain(bar: &ProgressBar) -> String {
    let elapsed = bar.elapsed();
    let mut parts = vec![clock(elapsed)];
    let done = bar.position();
    if let Some(total) = bar.length().filter(|total| *total > 0) {
        parts.push(format!("{}: {done} of {total}", bar.prefix()));
        if (1..total).contains(&done) {
            let left = elapsed.mul_f64((total - done) as f64 / done as f64);
            parts.push(format!("{} left", clock(left)));
        }
    }
    let message = bar.message();
    let lines = message.lines().map(str::trim).filter(|line| !line.is_empty());
    parts.extend(lines.map(str::to_owned));
    parts.join(", ")
}

/// Hours, minutes and seconds.
fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    format!("{}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// Columns of the terminal; 80 where there is none.
pub fn columns() -> usize {
    console::Term::stdout().size_checked().map_or(80, |(_, columns)| usize::from(columns)).max(40)
}

/// Writes a score in few columns, whatever a file says it is.
pub fn figure(value: f64) -> String {
    if value.abs() < 1e5 { format!("{value:.4}") } else { format!("{value:.3e}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_without_a_terminal_is_a_line_now_and_then() {
        let bar = ProgressBar::hidden();
        bar.set_length(100);
        bar.set_prefix("steps");
        bar.set_message("loss 2.0\n   best 1.0");
        bar.set_position(25);
        let (sender, lines) = channel();
        let write = move |line| drop(sender.send(line));
        let stop = every(Duration::from_millis(20), bar.clone(), write);
        let first = lines.recv_timeout(Duration::from_secs(60)).unwrap();
        assert_eq!(first, "0:00:00, steps: 25 of 100, 0:00:00 left, loss 2.0, best 1.0");
        lines.recv_timeout(Duration::from_secs(60)).unwrap();
        // The thread ends with the sender, and drops its end of the channel.
        drop(stop);
        while lines.recv_timeout(Duration::from_secs(60)).is_ok() {}
    }

    #[test]
    fn nothing_is_written_before_the_first_interval_is_over() {
        let (sender, lines) = channel();
        let write = move |line| drop(sender.send(line));
        drop(every(Duration::from_secs(3600), ProgressBar::hidden(), write));
        let disconnected = std::sync::mpsc::RecvTimeoutError::Disconnected;
        assert_eq!(lines.recv_timeout(Duration::from_secs(60)), Err(disconnected));
    }

    #[test]
    fn clocks() {
        assert_eq!(clock(Duration::from_secs(8 * 3600 + 62)), "8:01:02");
    }
}
