//! Ctrl-C: the first asks the program to end with everything written, a second ends it at once.

use std::sync::atomic::{AtomicBool, Ordering};

use super::exit;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// The flag that loops look at; installs the handler on first use.
pub fn flag() -> &'static AtomicBool {
    // A second installation fails, and the first one stands.
    let _ = ctrlc::set_handler(|| {
        if INTERRUPTED.swap(true, Ordering::SeqCst) {
            std::process::exit(i32::from(exit::INTERRUPTED));
        }
        eprintln!("\nglitch: ending after this step; Ctrl-C again to end at once");
    });
    &INTERRUPTED
}
