//! Checks of edits that a file names, made without a model.

/// A rule that an edit breaks: the field, and what is wrong with it.
pub type Fault = (&'static str, String);

/// Returns a [`Fault`].
pub(super) fn fault(field: &'static str, message: impl Into<String>) -> Result<(), Fault> {
    Err((field, message.into()))
}

/// Checks that a number is neither infinite nor NaN.
pub(super) fn finite(field: &'static str, value: f32) -> Result<(), Fault> {
    match value.is_finite() {
        true => Ok(()),
        false => fault(field, format!("{value} is not a finite number")),
    }
}
