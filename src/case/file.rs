//! Reading and writing case files, of every schema version.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Case, SCHEMA_VERSION, check};
use crate::error::{Error, Result};
use crate::storage;

impl Case {
    /// Reads and validates a case of any known schema version.
    ///
    /// # Errors
    /// [`Error::File`] for what is not a valid case, [`Error::Io`] if it cannot be read.
    pub fn read(path: &Path) -> Result<Self> {
        Self::parse(path, &storage::read_bounded(path, storage::MAX_FILE)?)
    }

    /// Parses and validates the bytes of a case file; errors name `path`.
    ///
    /// # Errors
    /// [`Error::File`] for what is not a valid case.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        /// The field that every version has.
        #[derive(Deserialize)]
        struct Versioned {
            schema_version: u32,
        }
        let case: Self = match storage::parse_json::<Versioned>(path, bytes)?.schema_version {
            // Straight from the bytes, so that a duplicate key is an error.
            SCHEMA_VERSION => storage::parse_json(path, bytes)?,
            older => {
                storage::from_value(path, migrate(path, storage::parse_json(path, bytes)?, older)?)?
            }
        };
        case.validate(path)?;
        Ok(case)
    }

    /// Writes `<id>.json` into `dir`, atomically, and returns its path. An earlier case of the same
    /// id is replaced, another file of that name is not. An invalid case (its id is not that of its
    /// content, a score is not finite) is refused, because it could not be read again.
    ///
    /// # Errors
    /// [`Error::File`] for an invalid case and for a file in the way, [`Error::Io`] if it cannot be
    /// written.
    pub fn write(&self, dir: &Path) -> Result<PathBuf> {
        let path = dir.join(format!("{}.json", self.id));
        self.validate(&path)?;
        storage::replace_ours(&path, &storage::pretty_json(&path, self)?)?;
        Ok(path)
    }

    /// Like [`Case::write`], but leaves an earlier case of the same id as it is unless `force`.
    ///
    /// # Errors
    /// [`Error::File`] for an invalid case, and if there is a file of that name.
    pub fn write_new(&self, dir: &Path, force: bool) -> Result<PathBuf> {
        if force {
            return self.write(dir);
        }
        let path = dir.join(format!("{}.json", self.id));
        self.validate(&path)?;
        match storage::write_new(&path, &storage::pretty_json(&path, self)?)? {
            true => Ok(path),
            false => Err(Error::file(path, "--out", "exists already; --force replaces it")),
        }
    }

    /// Checks everything that can be checked without the model. Whether ids and components exist
    /// depends on the model.
    ///
    /// # Errors
    /// [`Error::File`], naming `path` and the field.
    pub fn validate(&self, path: &Path) -> Result<()> {
        check::faults(self).map_err(|(field, message)| Error::file(path, field, message))
    }
}

/// Returns the fields of a case. serde also reads a struct from an array, which no version ever
/// wrote.
fn fields<'a>(path: &Path, value: &'a mut Value) -> Result<&'a mut Map<String, Value>> {
    let object = || Error::file(path, "(top level)", "invalid type: a case is an object");
    value.as_object_mut().ok_or_else(object)
}

/// Brings a case of `version` to the next one, which added optional fields: these it must not have.
fn without(path: &Path, mut value: Value, version: u32, added: &[&str]) -> Result<Value> {
    let fields = fields(path, &mut value)?;
    fields.insert("schema_version".into(), (version + 1).into());
    match added.iter().find(|field| fields.contains_key(**field)) {
        Some(&field) => {
            let message = format!("unknown field in a case of version {version}");
            Err(Error::file(path, field, message))
        }
        None => Ok(value),
    }
}

/// Brings a case of an older schema up to the current one, version by version, so that files once
/// written stay readable. A new version adds an arm here and never changes an old one.
fn migrate(path: &Path, mut value: Value, version: u32) -> Result<Value> {
    match version {
        SCHEMA_VERSION => Ok(value),
        1 => {
            let fields = fields(path, &mut value)?;
            fields.insert("schema_version".into(), 2.into());
            if let Some(localization) =
                fields.get_mut("implication").and_then(|i| i.as_object_mut())
                && localization.insert("positions".into(), serde_json::json!([])).is_some()
            {
                return Err(Error::file(
                    path,
                    "implication.positions",
                    "unknown field in a case of version 1",
                ));
            }
            migrate(path, value, 2)
        }
        2 => migrate(path, without(path, value, 2, &["search", "replication", "sampled"])?, 3),
        3 => migrate(path, without(path, value, 3, &["against"])?, 4),
        4 => migrate(path, without(path, value, 4, &["deficits"])?, 5),
        newer if newer > SCHEMA_VERSION => Err(Error::file(
            path,
            "schema_version",
            format!(
                "{newer} is newer than this program, which reads up to {SCHEMA_VERSION}; update \
                glitch"
            ),
        )),
        unknown => Err(Error::file(
            path,
            "schema_version",
            format!("{unknown} is no version of the case schema"),
        )),
    }
}
