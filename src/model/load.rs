//! Loading a model by its name or path, and the fingerprint that is taken on the way.

use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread::JoinHandle;

use sha2::{Digest, Sha256};

use super::formats::difference::{self, Difference};
use super::formats::{Source, StoredFloat, builtin, gguf, locate, pth, read_text, safetensors};
use super::{Config, Model, Tokenizer, Weights};
use crate::error::{Error, Result};
use crate::text::hex;

/// The number of values that are handed to the hashing thread at a time.
const HASHED_AT_ONCE: usize = 1 << 18;

/// SHA-256 on a thread of its own, so that tensors are read and packed meanwhile.
struct Hashing {
    filled: SyncSender<Vec<u8>>,
    /// Buffers to be filled again.
    emptied: Receiver<Vec<u8>>,
    thread: JoinHandle<Sha256>,
}

impl Hashing {
    fn start() -> Self {
        let (filled, received) = mpsc::sync_channel::<Vec<u8>>(2);
        let (give_back, emptied) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let mut hash = Sha256::new();
            for bytes in received {
                hash.update(&bytes);
                // Nobody takes the last ones.
                let _ = give_back.send(bytes);
            }
            hash
        });
        Self { filled, emptied, thread }
    }

    /// Hashes bytes, after all that came before.
    fn update(&self, fill: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = self.emptied.try_recv().unwrap_or_default();
        bytes.clear();
        fill(&mut bytes);
        // If the thread is gone, `finish` says so.
        let _ = self.filled.send(bytes);
    }

    fn finish(self) -> Result<String> {
        drop(self.filled);
        let hash = self.thread.join().map_err(|_| Error::internal("the hashing thread ended"))?;
        Ok(hex(&hash.finalize()))
    }
}

/// A source that hashes the tensors it hands out, and notes how their matrices are stored.
struct Fingerprinting<'a> {
    source: &'a mut dyn Source,
    hash: Hashing,
    /// `None` before the first matrix; `Some(None)` once one is not stored as floats, or otherwise
    /// than another.
    stored: Option<Option<StoredFloat>>,
}

impl Source for Fingerprinting<'_> {
    fn path(&self) -> &str {
        self.source.path()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.source.shape(name)
    }

    fn load(&mut self, name: &str) -> Result<Vec<f32>> {
        if self.shape(name).is_some_and(|shape| shape.len() > 1) {
            let stored = self.source.stored(name);
            self.stored = Some(stored.filter(|_| self.stored.is_none_or(|all| all == stored)));
        }
        let values = self.source.load(name)?;
        self.hash.update(|bytes| bytes.extend_from_slice(name.as_bytes()));
        for chunk in values.chunks(HASHED_AT_ONCE) {
            self.hash.update(|bytes| {
                bytes.reserve(4 * chunk.len());
                chunk.iter().for_each(|v| bytes.extend_from_slice(&v.to_le_bytes()));
            });
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
        let mut source = Fingerprinting { source, hash: Hashing::start(), stored: None };
        source.hash.update(|bytes| bytes.extend_from_slice(config.identity().as_bytes()));
        let weights = Weights::load(&config, &mut source)?;
        // Weights that are loaded divided by a power of two are not what the file has.
        let rescaled = config.rwkv.as_ref().is_some_and(|rwkv| rwkv.rescale_every > 0);
        let stored = source.stored.flatten().filter(|_| !rescaled);
        let tokenizer_fingerprint = tokenizer.as_ref().map(|t| hex(&Sha256::digest(t.to_json())));
        Ok(Self {
            name: name.to_owned(),
            config,
            weights,
            stored,
            tokenizer,
            fingerprint: source.hash.finish()?,
            tokenizer_fingerprint,
        })
    }
}
