//! The tensors of a Hugging Face folder: one safetensors file, or shards with an index.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component as PathPart, Path, PathBuf};

use candle_core::safetensors::MmapedSafetensors;
use candle_core::{DType, Device};

use super::{Source, StoredFloat, first_line, read_text};
use crate::error::{Error, Result};

/// The tensors of a folder, memory-mapped.
pub struct Folder {
    path: String,
    files: MmapedSafetensors,
    shapes: BTreeMap<String, Vec<usize>>,
}

impl Folder {
    /// Opens the safetensors files of a folder.
    ///
    /// # Errors
    /// [`Error::Model`] for files that are missing or malformed.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.display().to_string();
        let files = weight_files(dir)?;
        // SAFETY: the map is read-only; like every program that maps files, this one relies on
        // nobody truncating them while it runs. Sizes in the header are checked against the file by
        // safetensors.
        let mapped = unsafe { MmapedSafetensors::multi(&files) };
        let mapped = mapped.map_err(|e| Error::model(&path, "safetensors", first_line(&e)))?;
        let shapes = mapped
            .tensors()
            .into_iter()
            .map(|(name, view)| (name, view.shape().to_vec()))
            .collect();
        Ok(Self { path, files: mapped, shapes })
    }
}

/// Returns `model.safetensors`, or the shards that the index lists.
fn weight_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let index = dir.join("model.safetensors.index.json");
    let single = dir.join("model.safetensors");
    if single.is_file() || !index.is_file() {
        if !single.is_file() {
            return Err(Error::model(
                dir.display().to_string(),
                "model.safetensors",
                "no such file",
            ));
        }
        return Ok(vec![single]);
    }
    let name = index.display().to_string();
    let text = read_text(&index, 64 << 20)?;
    let value: serde_json::Value =
        serde_json::from_str(&text).map_err(|e| Error::model(&name, "index", e))?;
    let map = value
        .get("weight_map")
        .and_then(|m| m.as_object())
        .ok_or_else(|| Error::model(&name, "weight_map", "expected an object"))?;
    let mut shards = BTreeSet::new();
    for (tensor, shard) in map {
        let shard = shard.as_str().ok_or_else(|| {
            Error::model(
                &name,
                "weight_map",
                format!("shard of {} is no string", crate::text::escape(tensor)),
            )
        })?;
        // A shard is a file beside the index; a path that leads elsewhere is not followed.
        let inside = Path::new(shard).components().all(|p| matches!(p, PathPart::Normal(_)));
        if !inside || !dir.join(shard).is_file() {
            return Err(Error::model(
                &name,
                "weight_map",
                format!("no shard {} beside it", crate::text::escape(shard)),
            ));
        }
        shards.insert(dir.join(shard));
    }
    Ok(shards.into_iter().collect())
}

impl Source for Folder {
    fn path(&self) -> &str {
        &self.path
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.shapes.get(name).cloned()
    }

    fn load(&mut self, name: &str) -> Result<Vec<f32>> {
        let read = || {
            self.files
                .load(name, &Device::Cpu)?
                .to_dtype(DType::F32)?
                .flatten_all()?
                .to_vec1::<f32>()
        };
        read().map_err(|e| Error::model(&self.path, name, first_line(&e)))
    }

    fn stored(&self, name: &str) -> Option<StoredFloat> {
        let dtype = self.files.get(name).ok()?.dtype();
        StoredFloat::of(dtype.try_into().ok()?)
    }
}

/// The tensors of one safetensors buffer (a built-in model).
pub struct Buffer {
    path: String,
    tensors: std::collections::HashMap<String, candle_core::Tensor>,
}

impl Buffer {
    /// Parses a buffer; `path` names it in errors.
    ///
    /// # Errors
    /// [`Error::Model`] for a buffer that is malformed.
    pub fn open(path: &str, bytes: &[u8]) -> Result<Self> {
        let tensors = candle_core::safetensors::load_buffer(bytes, &Device::Cpu)
            .map_err(|e| Error::model(path, "safetensors", first_line(&e)))?;
        Ok(Self { path: path.to_owned(), tensors })
    }

    /// Returns the names of the tensors, ascending.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.tensors.keys().cloned().collect();
        names.sort_unstable();
        names
    }
}

impl Source for Buffer {
    fn path(&self) -> &str {
        &self.path
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.tensors.get(name).map(|t| t.dims().to_vec())
    }

    fn load(&mut self, name: &str) -> Result<Vec<f32>> {
        let tensor = self
            .tensors
            .remove(name)
            .ok_or_else(|| Error::model(&self.path, name, "tensor is missing"))?;
        let read = || tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
        read().map_err(|e| Error::model(&self.path, name, first_line(&e)))
    }

    fn stored(&self, name: &str) -> Option<StoredFloat> {
        StoredFloat::of(self.tensors.get(name)?.dtype())
    }
}
