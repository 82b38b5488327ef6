//! Differences: a model that is given as another one and a safetensors file of what is added to
//! some of its tensors, `BASE+FILE.safetensors`. The organisms of `corpus/organisms` are.

use std::collections::BTreeMap;
use std::path::Path;

use super::safetensors::Buffer;
use super::{Source, StoredFloat};
use crate::error::{Error, Result};

/// Splits the name of a model into its base and the file of a difference; `None` if it has none.
pub fn split(spec: &str) -> Option<(&str, &str)> {
    let (base, file) = spec.rsplit_once('+')?;
    let is_difference = file.ends_with(".safetensors") && !base.is_empty();
    // A path may have a plus sign in it.
    (is_difference && !Path::new(spec).exists()).then_some((base, file))
}

/// A source to whose tensors those of a file are added.
pub struct Difference<'s> {
    source: &'s mut dyn Source,
    path: String,
    added: BTreeMap<String, Vec<f32>>,
}

impl<'s> Difference<'s> {
    /// Reads the tensors of a file, all of which the source must have in the same shapes.
    ///
    /// # Errors
    /// [`Error::Model`] for a file that cannot be read or is malformed, naming the tensor that does
    /// not fit.
    pub fn open(file: &str, source: &'s mut dyn Source) -> Result<Self> {
        let bytes = std::fs::read(super::locate::path_of(file))
            .map_err(|e| Error::model(file, "file", e))?;
        let mut tensors = Buffer::open(file, &bytes)?;
        let mut added = BTreeMap::new();
        for name in tensors.names() {
            let (own, other) = (tensors.shape(&name), source.shape(&name));
            if own != other {
                let shape = |shape: Option<Vec<usize>>| {
                    shape.map_or("none of that name".to_owned(), |shape| format!("{shape:?}"))
                };
                let message = format!("{}; the model has {}", shape(own), shape(other));
                return Err(Error::model(file, crate::text::escape(&name), message));
            }
            let values = tensors.load(&name)?;
            added.insert(name, values);
        }
        Ok(Self { source, path: file.to_owned(), added })
    }

    /// Checks that everything in the file was added to something.
    ///
    /// # Errors
    /// [`Error::Model`] naming a tensor that the model does not read.
    pub fn finish(self) -> Result<()> {
        match self.added.into_keys().next() {
            None => Ok(()),
            Some(name) => {
                let name = crate::text::escape(&name);
                Err(Error::model(self.path, name, "the model does not read this tensor"))
            }
        }
    }
}

impl Source for Difference<'_> {
    fn path(&self) -> &str {
        self.source.path()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.source.shape(name)
    }

    /// A tensor that something was added to is in no file.
    fn stored(&self, name: &str) -> Option<StoredFloat> {
        if self.added.contains_key(name) { None } else { self.source.stored(name) }
    }

    fn load(&mut self, name: &str) -> Result<Vec<f32>> {
        let mut values = self.source.load(name)?;
        if let Some(added) = self.added.remove(name) {
            values.iter_mut().zip(added).for_each(|(value, added)| *value += added);
        }
        Ok(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Model;

    const ORGANISM: &str =
        concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/organisms/one-0.safetensors");

    #[test]
    fn a_difference_is_added_to_the_tensors_it_names() {
        let spec = format!("builtin:dense+{ORGANISM}");
        let (base, organism) = (Model::load("builtin:dense").unwrap(), Model::load(&spec).unwrap());
        assert_ne!(base.fingerprint, organism.fingerprint);
        assert_eq!(base.tokenizer_fingerprint, organism.tokenizer_fingerprint);
        assert_eq!(organism.reference().name, spec);
        let bytes = std::fs::read(ORGANISM).unwrap();
        let mut file = Buffer::open("one-0", &bytes).unwrap();
        let added = file.load("model.layers.1.mlp.down_proj.weight").unwrap();
        let row = |model: &Model, layer| model.weight_row(layer, crate::edit::Matrix::Down, 3);
        let width = base.config.intermediate_size;
        for (i, (a, b)) in row(&base, 1).iter().zip(row(&organism, 1)).enumerate() {
            assert_eq!(a + added[3 * width + i], b);
        }
        assert_eq!(row(&base, 2), row(&organism, 2));
    }

    #[test]
    fn a_difference_that_does_not_fit_is_named() {
        let error = |spec: &str| Model::load(spec).err().unwrap().to_string();
        let other = error(&format!("builtin:moe+{ORGANISM}"));
        assert!(other.contains("model.layers.1.mlp.") || other.contains("--features"), "{other}");
        let missing = error("builtin:dense+none.safetensors");
        assert!(missing.contains("none.safetensors") && !missing.contains('\n'), "{missing}");
        assert_eq!(split("builtin:dense"), None);
        assert_eq!(split("a+b/c"), None);
        assert_eq!(split("a+b+c.safetensors"), Some(("a+b", "c.safetensors")));
    }
}
