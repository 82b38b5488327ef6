//! The rules that the numbers, lists and edits of a file must keep.

use super::MAX_IDS;
use crate::edit::Edit;

/// A broken rule: the field, and what is wrong with it.
pub(super) type Fault = (String, String);

pub(super) fn fault<T>(field: impl Into<String>, message: impl Into<String>) -> Result<T, Fault> {
    Err((field.into(), message.into()))
}

pub(super) fn bounded(field: &str, length: usize, max: usize) -> Result<(), Fault> {
    match length <= max {
        true => Ok(()),
        false => fault(field, format!("{length} entries, at most {max} are read")),
    }
}

pub(super) fn finite(field: &str, value: f64) -> Result<(), Fault> {
    match value.is_finite() {
        true => Ok(()),
        false => fault(field, format!("{value} is not a finite number")),
    }
}

/// Checks that a number is between 0 and 1, up to rounding.
pub(super) fn share(field: &str, value: f64) -> Result<(), Fault> {
    finite(field, value)?;
    match (-1e-6..=1.0 + 1e-6).contains(&value) {
        true => Ok(()),
        false => fault(field, format!("{value} is not between 0 and 1")),
    }
}

pub(super) fn check_edit(field: &str, edit: &Edit, total: usize) -> Result<(), Fault> {
    edit.check(total, MAX_IDS).or_else(|(part, message)| fault(format!("{field}.{part}"), message))
}

pub(super) fn same_length(field: &str, length: usize, expected: usize) -> Result<(), Fault> {
    match length == expected {
        true => Ok(()),
        false => fault(field, format!("{length} entries, {expected} are expected")),
    }
}
