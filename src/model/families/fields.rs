//! Reading a configuration field by field. Every error names the file and the field.

use serde_json::Value;

use crate::error::{Error, Result};

/// The fields of a JSON object, with the name of its file for errors.
pub struct Fields<'a> {
    /// The name of the file.
    pub path: &'a str,
    /// The object.
    pub root: &'a serde_json::Map<String, Value>,
}

impl Fields<'_> {
    /// Creates an error about a field.
    pub fn error(&self, field: &str, message: impl ToString) -> Error {
        Error::model(self.path, field, message)
    }

    /// Returns the value of a field; `None` if it is missing or null.
    pub fn get(&self, field: &str) -> Option<&Value> {
        self.root.get(field).filter(|v| !v.is_null())
    }

    /// Returns a count in `1..=limit`. The limits are far beyond real models, and keep a hostile
    /// file from asking for more memory than there is.
    pub fn count(&self, field: &str, limit: usize) -> Result<Option<usize>> {
        let Some(value) = self.get(field) else { return Ok(None) };
        match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
            Some(n) if (1..=limit).contains(&n) => Ok(Some(n)),
            _ => Err(self.error(
                field,
                format!("expected a whole number from 1 to {limit}, got {}", short(value)),
            )),
        }
    }

    /// Returns a [`count`](Self::count) that must be there.
    pub fn required(&self, field: &str, limit: usize) -> Result<usize> {
        self.count(field, limit)?.ok_or_else(|| self.error(field, "is missing"))
    }

    /// Returns the first of several spellings that the object has, or the first of all.
    pub fn spelled<'n>(&self, names: &[&'n str]) -> &'n str {
        names.iter().find(|name| self.get(name).is_some()).unwrap_or(&names[0])
    }

    /// Returns a text; `None` for other types.
    pub fn text(&self, field: &str) -> Option<&str> {
        self.get(field).and_then(Value::as_str)
    }

    /// Returns an object inside this one.
    pub fn object(&self, field: &str) -> Option<Fields<'_>> {
        self.get(field).and_then(Value::as_object).map(|root| Fields { path: self.path, root })
    }

    /// Returns a positive, finite number.
    pub fn positive(&self, field: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(field) else { return Ok(None) };
        match value.as_f64() {
            Some(x) if x.is_finite() && x > 0.0 => Ok(Some(x)),
            _ => {
                Err(self.error(field, format!("expected a positive number, got {}", short(value))))
            }
        }
    }

    /// Returns true or false.
    pub fn flag(&self, field: &str) -> Result<Option<bool>> {
        let Some(value) = self.get(field) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| {
            self.error(field, format!("expected true or false, got {}", short(value)))
        })
    }

    /// Returns a list of token ids, which may be written as one id.
    pub fn ids(&self, field: &str) -> Result<Vec<u32>> {
        let bad = |v: &Value| {
            self.error(field, format!("expected a token id or a list of them, got {}", short(v)))
        };
        let id = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok()).ok_or_else(|| bad(v));
        match self.get(field) {
            None => Ok(Vec::new()),
            Some(Value::Array(list)) if list.len() <= 64 => list.iter().map(id).collect(),
            Some(value) => Ok(vec![id(value)?]),
        }
    }
}

/// Returns a value as it is quoted in an error: escaped, at most 40 characters.
pub fn short(value: &Value) -> String {
    crate::text::escape(&value.to_string().chars().take(40).collect::<String>())
}
