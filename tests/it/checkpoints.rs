//! Checkpoints made for a test: a model folder with some of its tensors or configuration changed.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use glitch::model::Model;

/// Tensors of a checkpoint by name.
pub type Tensors = HashMap<String, Tensor>;

/// Returns the folder of the built-in dense model.
pub fn dense() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/models/dense")
}

/// Reads the tensors of a model folder, in f32.
pub fn tensors(folder: &Path) -> Tensors {
    let tensors =
        candle_core::safetensors::load(folder.join("model.safetensors"), &Device::Cpu).unwrap();
    tensors.into_iter().map(|(name, x)| (name, x.to_dtype(DType::F32).unwrap())).collect()
}

/// Loads the model of `folder` with other tensors, and some fields of its configuration changed.
pub fn changed(folder: &Path, tensors: &Tensors, fields: &[(&str, serde_json::Value)]) -> Model {
    let dir = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(folder.join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
    fields.iter().for_each(|(field, value)| config[*field] = value.clone());
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let tokenizer = folder.join("tokenizer.json");
    if tokenizer.exists() {
        std::fs::copy(tokenizer, dir.path().join("tokenizer.json")).unwrap();
    }
    candle_core::safetensors::save(tensors, dir.path().join("model.safetensors")).unwrap();
    Model::load(dir.path().to_str().unwrap()).unwrap()
}
