//! Exit codes, one documented constant each; the README has the same table.

use crate::error::Error;

/// Everything as expected.
pub const OK: u8 = 0;
/// Something in glitch itself or in the system failed (a full disk, output that cannot be written,
/// a bug).
pub const INTERNAL: u8 = 1;
/// The command line, or what it asks of this model, makes no sense.
pub const USAGE: u8 = 2;
/// The model or the device cannot be used.
pub const MODEL: u8 = 3;
/// There was no case in the folders named.
pub const NO_CASES: u8 = 4;
/// `--exit-on-find`: a finding was made.
pub const FOUND: u8 = 77;
/// A replayed case is not as expected.
pub const REGRESSION: u8 = 100;
/// A case was made on another model.
pub const FINGERPRINT: u8 = 103;
/// Interrupted (Ctrl-C, SIGTERM or SIGHUP), after everything was saved.
pub const INTERRUPTED: u8 = 130;

/// The codes, for `glitch --help`.
pub const HELP: &str = "Exit codes: 0 as expected, 1 internal or output not written, 2 usage, \
    3 model or device, 4 no case there, 77 found (--exit-on-find), 100 regression, 103 other \
    model's fingerprint, 130 interrupted (Ctrl-C, SIGTERM, SIGHUP) after saving.";

/// Returns the exit code of an error.
pub fn of(error: &Error) -> u8 {
    match error {
        Error::Model { .. } => MODEL,
        Error::File { .. } | Error::Request(_) => USAGE,
        Error::Fingerprint { .. } => FINGERPRINT,
        Error::Io { .. } | Error::Tensor(_) | Error::Internal(_) => INTERNAL,
        Error::Interrupted => INTERRUPTED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_invariant_is_not_the_users_fault() {
        let error = Error::internal("distributions were not kept");
        assert_eq!(of(&error), INTERNAL);
        assert_eq!(
            error.to_string(),
            "internal error: distributions were not kept; this is a bug in glitch, please report it"
        );
        assert_eq!(of(&Error::request("no such head")), USAGE);
    }
}
