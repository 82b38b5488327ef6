//! PyTorch files (`.pth`) of RWKV, as its author publishes them: tensors alone, whose names and
//! shapes give the configuration. They are read by candle, which does not execute pickled code.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use candle_core::pickle::{Object, Stack, TensorInfo};
use candle_core::{DType, Device, Tensor};
use zip::ZipArchive;

use super::{Source, StoredFloat, first_line};
use crate::error::{Error, Result};
use crate::model::config::Config;
use crate::model::families;

/// An opened `.pth` file.
pub struct Pth {
    path: String,
    archive: ZipArchive<BufReader<File>>,
    tensors: BTreeMap<String, TensorInfo>,
    /// The configuration that the tensors imply.
    pub config: Config,
}

/// Size limit of the pickle, bytes: room for the names and shapes of tens of thousands of tensors.
const PICKLE_BYTES: u64 = 64 << 20;

impl Pth {
    /// Opens a file and reads the names and shapes of its tensors.
    ///
    /// # Errors
    /// [`Error::Model`] for a file that is malformed or of a family that is not read from `.pth`.
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let bad = |field: &str, message: String| {
            Error::model(&name, field, crate::text::escape(&message))
        };
        let file = File::open(path).map_err(|e| bad("file", e.to_string()))?;
        let size = file.metadata().map_err(|e| bad("file", e.to_string()))?.len();
        let mut archive = quietly(|| ZipArchive::new(BufReader::new(file)))
            .ok_or_else(|| bad("archive", "is malformed".into()))?
            .map_err(|e| bad("archive", e.to_string()))?;
        let entry = (0..archive.len()).find_map(|i| {
            let name = archive.by_index(i).ok()?.name().ok()?.into_owned();
            name.ends_with("data.pkl").then_some(name)
        });
        let entry = entry.ok_or_else(|| {
            bad("archive", "has no data.pkl: not saved by PyTorch 1.6 or later".into())
        })?;
        let folder = entry.trim_end_matches(".pkl").to_owned();
        let pickle = archive.by_name(&entry).map_err(|e| bad("data.pkl", e.to_string()))?;
        let tensors = quietly(|| tensors(pickle.take(PICKLE_BYTES), Path::new(&folder)))
            .ok_or_else(|| bad("data.pkl", "is malformed".into()))?
            .map_err(|e| Error::model(&name, "data.pkl", first_line(&e)))?;
        for (tensor, info) in &tensors {
            // Nothing in an archive of tensors is compressed: what they hold is in the file.
            let bytes = info
                .layout
                .dims()
                .iter()
                .try_fold(info.dtype.size_in_bytes(), |n, dim| n.checked_mul(*dim));
            if bytes.is_none_or(|bytes| bytes as u64 > size) || !info.layout.is_contiguous() {
                let shape = format!(
                    "shape {:?} is not laid out in what the file holds",
                    info.layout.dims()
                );
                return Err(bad(&crate::text::escape(tensor), shape));
            }
        }
        let config = config(&name, &tensors)?;
        Ok(Self { path: name, archive, tensors, config })
    }
}

/// Returns the tensors that a pickle names; the archive holds their values in `folder`.
fn tensors(
    pickle: impl std::io::Read,
    folder: &Path,
) -> candle_core::Result<BTreeMap<String, TensorInfo>> {
    let mut stack = Stack::empty();
    stack.read_loop(&mut BufReader::new(pickle))?;
    let Object::Dict(entries) = stack.finalize()? else {
        candle_core::bail!("expected a dictionary of tensors")
    };
    let mut tensors = BTreeMap::new();
    for (name, value) in entries {
        if let Some(info) = value.into_tensor_info(name, folder)? {
            tensors.insert(info.name.clone(), info);
        }
    }
    Ok(tensors)
}

/// Runs candle's reader, which panics on some malformed files, and returns `None` if it does. The
/// message of the panic is not printed; no other thread has work while a model is loaded.
fn quietly<T>(read: impl FnOnce() -> T) -> Option<T> {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let result = catch_unwind(AssertUnwindSafe(read));
    std::panic::set_hook(hook);
    result.ok()
}

/// Returns the configuration that the tensors imply.
fn config(path: &str, tensors: &BTreeMap<String, TensorInfo>) -> Result<Config> {
    let has = |name: &str| tensors.contains_key(name);
    let Some((family, _)) = families::with_pth().find(|(_, tensor)| has(tensor)) else {
        let known = families::with_pth()
            .map(|(family, tensor)| format!("{} has {tensor}", family.model_type));
        let known = known.collect::<Vec<_>>().join(", ");
        return Err(Error::model(path, "tensors", format!("of no family known here: {known}")));
    };
    let Some([vocab_size, hidden_size]) = tensors.get("emb.weight").map(|info| info.layout.dims())
    else {
        return Err(Error::model(path, "emb.weight", "expected a matrix"));
    };
    let layers = (0..).take_while(|i| has(&format!("blocks.{i}.ln1.weight"))).count();
    let text = serde_json::json!({
        "model_type": family.model_type,
        "hidden_size": hidden_size,
        "num_hidden_layers": layers,
        "vocab_size": vocab_size,
    });
    Config::from_json(path, &text.to_string())
}

impl Source for Pth {
    fn path(&self) -> &str {
        &self.path
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.tensors.get(name).map(|info| info.layout.dims().to_vec())
    }

    fn stored(&self, name: &str) -> Option<StoredFloat> {
        StoredFloat::of(self.tensors.get(name)?.dtype)
    }

    fn load(&mut self, name: &str) -> Result<Vec<f32>> {
        let info = self
            .tensors
            .get(name)
            .ok_or_else(|| Error::model(&self.path, name, "tensor is missing"))?;
        let archive = &mut self.archive;
        let read = || -> candle_core::Result<Vec<f32>> {
            let mut entry = archive.by_name(&info.path).map_err(candle_core::Error::wrap)?;
            // candle counts the start of a tensor in its storage in bytes.
            std::io::copy(
                &mut entry.by_ref().take(info.layout.start_offset() as u64),
                &mut std::io::sink(),
            )?;
            let mut bytes =
                vec![0u8; info.layout.shape().elem_count() * info.dtype.size_in_bytes()];
            entry.read_exact(&mut bytes)?;
            let tensor =
                Tensor::from_raw_buffer(&bytes, info.dtype, info.layout.dims(), &Device::Cpu)?;
            tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()
        };
        match quietly(read) {
            Some(values) => values.map_err(|e| Error::model(&self.path, name, first_line(&e))),
            None => Err(Error::model(&self.path, name, "is malformed")),
        }
    }
}
