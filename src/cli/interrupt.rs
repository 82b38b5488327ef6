//! Signals that ask the program to end: Ctrl-C, SIGTERM and SIGHUP. The first ends it with
//! everything written, a second at once.

use std::io::Write as _;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use super::exit;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Returns the flag that loops look at; the first call installs the handler.
pub fn flag() -> &'static AtomicBool {
    static INSTALL: Once = Once::new();
    INSTALL.call_once(|| {
        let nohup = hangup::is_ignored();
        // Without a handler, the signals end the program as they would any other.
        let _ = ctrlc::set_handler(|| {
            if INTERRUPTED.swap(true, Ordering::SeqCst) {
                std::process::exit(i32::from(exit::INTERRUPTED));
            }
            // The terminal may be gone: that must not end the thread of the handler.
            let message = "\nglitch: ending after this step; Ctrl-C again to end at once";
            let _ = writeln!(std::io::stderr().lock(), "{message}");
        });
        if nohup {
            hangup::ignore();
        }
    });
    &INTERRUPTED
}

/// SIGHUP where `nohup` has it ignored: it stays ignored.
#[cfg(unix)]
mod hangup {
    pub fn is_ignored() -> bool {
        // SAFETY: a plain system call; no handler of this program is installed yet.
        unsafe {
            let before = libc::signal(libc::SIGHUP, libc::SIG_IGN);
            libc::signal(libc::SIGHUP, before);
            before == libc::SIG_IGN
        }
    }

    pub fn ignore() {
        // SAFETY: a plain system call.
        unsafe {
            libc::signal(libc::SIGHUP, libc::SIG_IGN);
        }
    }
}

#[cfg(not(unix))]
mod hangup {
    pub fn is_ignored() -> bool {
        false
    }

    pub fn ignore() {}
}
