//! The model under test: configuration, weights, tokenizer, one decoder loop.
//!
//! Nothing here knows of trials, oracles or campaigns; `evaluate` turns those into batches.

mod attention;
pub mod batch;
mod composed;
mod config;
mod decoder;
mod elementwise;
mod gguf;
pub mod hooks;
mod kernels;
mod latent;
mod linear;
pub use linear::PackedMatrix;
mod locate;
mod mamba;
mod mixture;
mod mlp;
mod names;
mod numerics;
mod pass;
mod pool;
mod pth;
pub mod readout;
mod rwkv;
mod safetensors;
mod scan;
mod tokenizer;
mod weights;

use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use composed::Probes;
pub use config::{
    Activation, Config, Experts, FAMILIES, Latent, Mixer, NormKind, QkNorm, Residual, RopeScaling,
    Rotary, Rwkv, Ssm,
};
pub use decoder::{Forward, Output};
pub use mixture::{chosen_experts, tokens_of_experts};
pub use pool::Pooled;
pub use readout::{Distributions, Read, Readout};
pub use tokenizer::Tokenizer;
pub use weights::{Layer, Linear, Mlp, Source, Weights};

use crate::edit::{Component, Matrix};
use crate::error::{Error, Result};

/// A loaded model.
pub struct Model {
    /// How it was named on the command line.
    pub name: String,
    pub config: Config,
    pub weights: Weights,
    pub tokenizer: Option<Tokenizer>,
    /// sha256 over configuration and tensors, hex.
    pub fingerprint: String,
    /// sha256 over the tokenizer, hex.
    pub tokenizer_fingerprint: Option<String>,
}

/// How a case or a summary names the model it was made on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelRef {
    /// How the model was named (`builtin:dense`, a folder, a GGUF file).
    pub name: String,
    /// sha256 over the model's tensors and configuration.
    pub fingerprint: String,
    /// sha256 over the tokenizer; `None` for a model without one.
    pub tokenizer: Option<String>,
}

/// Hashes what is loaded while it is loaded.
struct Fingerprinting<'a> {
    source: &'a mut dyn Source,
    hash: Sha256,
}

impl Source for Fingerprinting<'_> {
    fn path(&self) -> &str {
        self.source.path()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.source.shape(name)
    }

    fn load(&mut self, name: &str) -> Result<Vec<f32>> {
        let values = self.source.load(name)?;
        self.hash.update(name.as_bytes());
        let mut bytes = Vec::with_capacity(4 << 12);
        for chunk in values.chunks(1 << 12) {
            bytes.clear();
            chunk.iter().for_each(|v| bytes.extend_from_slice(&v.to_le_bytes()));
            self.hash.update(&bytes);
        }
        Ok(values)
    }
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

impl Model {
    /// Loads a model: a Hugging Face folder, a GGUF file, a `.pth` file of RWKV, `builtin:NAME`, or
    /// `hf:org/name` out of the local Hugging Face cache.
    ///
    /// # Errors
    /// [`Error::Model`] naming the file and field at fault.
    pub fn load(spec: &str) -> Result<Self> {
        if let Some(name) = spec.strip_prefix("builtin:") {
            return locate::builtin(spec, name);
        }
        let path = match spec.strip_prefix("hf:") {
            Some(repository) => locate::hf_cache(repository)?,
            None => Path::new(spec).to_owned(),
        };
        if path.is_dir() {
            let config_path = path.join("config.json");
            let mut config = Config::from_json(
                &config_path.display().to_string(),
                &read_text(&config_path, 1 << 20)?,
            )?;
            // Newer checkpoints keep the end tokens of chat in generation_config.json; union of
            // both.
            if let Ok(text) = read_text(&path.join("generation_config.json"), 1 << 20) {
                config.add_generation_ids(&text);
            }
            let tokenizer_path = path.join("tokenizer.json");
            let tokenizer = tokenizer_path
                .is_file()
                .then(|| Tokenizer::from_file(&tokenizer_path))
                .transpose()?;
            Self::assemble(spec, config, &mut safetensors::Folder::open(&path)?, tokenizer)
        } else if path.is_file() && path.extension().is_some_and(|extension| extension == "pth") {
            let mut file = pth::Pth::open(&path)?;
            let beside = path.with_file_name("tokenizer.json");
            let tokenizer = beside.is_file().then(|| Tokenizer::from_file(&beside)).transpose()?;
            let config = file.config.clone();
            Self::assemble(spec, config, &mut file, tokenizer)
        } else if path.is_file() {
            let mut file = gguf::Gguf::open(&path)?;
            let tokenizer = file.tokenizer()?.map(Tokenizer::new);
            let config = file.config.clone();
            Self::assemble(spec, config, &mut file, tokenizer)
        } else {
            Err(Error::model(
                spec,
                "path",
                "no such file or folder (also: builtin:dense, hf:org/name)",
            ))
        }
    }

    fn assemble(
        name: &str,
        mut config: Config,
        source: &mut dyn Source,
        tokenizer: Option<Tokenizer>,
    ) -> Result<Self> {
        config.complete(source)?;
        let mut source = Fingerprinting { source, hash: Sha256::new() };
        source.hash.update(config.identity().as_bytes());
        let weights = Weights::load(&config, &mut source)?;
        let tokenizer_fingerprint =
            tokenizer.as_ref().map(|t| hex(Sha256::new_with_prefix(t.to_json())));
        Ok(Self {
            name: name.to_owned(),
            config,
            weights,
            tokenizer,
            fingerprint: hex(source.hash),
            tokenizer_fingerprint,
        })
    }

    /// How a case names this model.
    pub fn reference(&self) -> ModelRef {
        ModelRef {
            name: self.name.clone(),
            fingerprint: self.fingerprint.clone(),
            tokenizer: self.tokenizer_fingerprint.clone(),
        }
    }

    /// Encodes text, BOS first where the model has one (once, where the text itself begins with
    /// it).
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let tokenizer = self.tokenizer.as_ref().ok_or_else(|| {
            Error::request(format!("{} has no tokenizer: give token ids", self.name))
        })?;
        let mut ids = tokenizer.encode(text)?;
        if let Some(bos) = self.config.bos_token_id.filter(|bos| ids.first() != Some(bos)) {
            ids.insert(0, bos);
        }
        self.check_ids(&ids)?;
        Ok(ids)
    }

    /// Decodes ids, as `<id>` without a tokenizer.
    pub fn decode(&self, ids: &[u32]) -> String {
        match &self.tokenizer {
            Some(tokenizer) => tokenizer.decode(ids),
            None => ids.iter().map(|id| format!("<{id}>")).collect(),
        }
    }

    /// The text of one token.
    pub fn token(&self, id: u32) -> String {
        self.tokenizer.as_ref().map_or_else(|| format!("<{id}>"), |t| t.token(id))
    }

    /// # Errors
    /// [`Error::Request`] for an id beyond the vocabulary.
    pub fn check_ids(&self, ids: &[u32]) -> Result<()> {
        let size = self.config.vocab_size;
        match ids.iter().find(|id| **id as usize >= size) {
            Some(id) => {
                Err(Error::request(format!("token id {id} is beyond the vocabulary of {size}")))
            }
            None => Ok(()),
        }
    }

    /// # Errors
    /// [`Error::Request`] for a component this model does not have.
    pub fn check_component(&self, component: &Component) -> Result<()> {
        if self.config.has(component) {
            Ok(())
        } else {
            Err(Error::request(format!("{} has no component {component}", self.name)))
        }
    }

    /// One scalar weight; 0 where the layer has no such matrix.
    pub fn weight(&self, layer: usize, matrix: Matrix, out: usize, input: usize) -> f32 {
        let located = self.weights.layers[layer].locate(matrix, &self.config);
        located.map_or(0.0, |(linear, first)| linear.matrix.get(first + out, input))
    }

    /// One row of a weight matrix, `[in]`; empty where the layer has no such matrix.
    pub fn weight_row(&self, layer: usize, matrix: Matrix, out: usize) -> Vec<f32> {
        let Some((linear, first)) = self.weights.layers[layer].locate(matrix, &self.config) else {
            return Vec::new();
        };
        let mut row = vec![0f32; linear.matrix.in_()];
        linear.matrix.row(first + out, &mut row);
        row
    }

    /// The embedding of a token as the residual stream gets it, `[d_model]`.
    pub fn embedding(&self, id: u32) -> Vec<f32> {
        let mut row = vec![0f32; self.config.hidden_size];
        self.weights.embed.row(id as usize, &mut row);
        self.scale_embeddings(&mut row);
        row
    }

    /// The dot products of directions `[n, d_model]` with every token's embedding, `[n, vocab]`.
    pub fn along_embeddings(&self, directions: &[f32]) -> Vec<f32> {
        let n = directions.len() / self.config.hidden_size;
        let mut along = vec![0f32; n * self.config.vocab_size];
        self.weights.embed.matmul(directions, n, &mut along);
        self.scale_embeddings(&mut along);
        along
    }

    /// The unembedding of a token, `[d_model]`: its row of the head.
    pub fn unembedding(&self, id: u32) -> Vec<f32> {
        let mut row = vec![0f32; self.config.hidden_size];
        self.weights.head.matrix.row(id as usize, &mut row);
        row
    }

    /// Number of parameters, tied embeddings counted once.
    pub fn parameters(&self) -> usize {
        self.weights.parameters(&self.config)
    }
}

/// Reads a text file of at most `limit` bytes.
fn read_text(path: &Path, limit: u64) -> Result<String> {
    let unreadable = |e: std::io::Error| Error::model(path.display().to_string(), "file", e);
    let size = std::fs::metadata(path).map_err(unreadable)?.len();
    if size > limit {
        return Err(Error::model(
            path.display().to_string(),
            "size",
            format!("{size} bytes, more than {limit}"),
        ));
    }
    std::fs::read_to_string(path).map_err(unreadable)
}
