//! Loading a model by its name or path, and the fingerprint that is taken on the way.

use sha2::{Digest, Sha256};

use super::formats::difference::{self, Difference};
use super::formats::{Source, builtin, gguf, locate, pth, read_text, safetensors};
use super::{Config, Model, Tokenizer, Weights};
use crate::error::{Error, Result};
use crate::text::hex;

/// A source that hashes the tensors it hands out.
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

impl Model {
    /// Loads a model: a Hugging Face folder, a GGUF file, a `.pth` file of RWKV, `builtin:NAME`, or
    /// `hf:org/name` from the local Hugging Face cache; or one of these and what is added to its
    /// tensors, `MODEL+FILE.safetensors`.
    ///
    /// # Errors
    /// [`Error::Model`] naming the file and field at fault.
    pub fn load(spec: &str) -> Result<Self> {
        let (base, difference) = match difference::split(spec) {
            Some((base, file)) => (base, Some(file)),
            None => (spec, None),
        };
        if let Some(name) = base.strip_prefix("builtin:") {
            return builtin::load(spec, name, difference);
        }
        let path = match base.strip_prefix("hf:") {
            Some(repository) => locate::hf_cache(repository)?,
            None => locate::path_of(base),
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
            let mut folder = safetensors::Folder::open(&path)?;
            Self::assemble(spec, config, &mut folder, tokenizer, difference)
        } else if path.is_file() && path.extension().is_some_and(|extension| extension == "pth") {
            let mut file = pth::Pth::open(&path)?;
            let beside = path.with_file_name("tokenizer.json");
            let tokenizer = beside.is_file().then(|| Tokenizer::from_file(&beside)).transpose()?;
            let config = file.config.clone();
            Self::assemble(spec, config, &mut file, tokenizer, difference)
        } else if path.is_file() {
            let mut file = gguf::Gguf::open(&path)?;
            let tokenizer = file.tokenizer()?.map(Tokenizer::new);
            let config = file.config.clone();
            Self::assemble(spec, config, &mut file, tokenizer, difference)
        } else {
            Err(Error::model(
                spec,
                "path",
                "no such file or folder (also: builtin:dense, hf:org/name)",
            ))
        }
    }

    /// Loads all tensors of a source by a configuration, with those of the file `difference` added
    /// to them, and takes the fingerprints.
    pub(super) fn assemble(
        name: &str,
        mut config: Config,
        source: &mut dyn Source,
        tokenizer: Option<Tokenizer>,
        difference: Option<&str>,
    ) -> Result<Self> {
        config.complete(source)?;
        if let Some(file) = difference {
            let mut changed = Difference::open(file, source)?;
            let model = Self::assemble(name, config, &mut changed, tokenizer, None)?;
            return changed.finish().map(|()| model);
        }
        let mut source = Fingerprinting { source, hash: Sha256::new() };
        source.hash.update(config.identity().as_bytes());
        let weights = Weights::load(&config, &mut source)?;
        let tokenizer_fingerprint = tokenizer.as_ref().map(|t| hex(&Sha256::digest(t.to_json())));
        Ok(Self {
            name: name.to_owned(),
            config,
            weights,
            tokenizer,
            fingerprint: hex(&source.hash.finalize()),
            tokenizer_fingerprint,
        })
    }
}
