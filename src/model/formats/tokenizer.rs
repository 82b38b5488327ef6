//! Text to ids and back. Ids are the truth everywhere else; text is only where people look.

use std::path::Path;

use tokenizers::Tokenizer as HfTokenizer;

use crate::error::{Error, Result};

/// A tokenizer that adds no special tokens by itself: where BOS goes is the caller's decision.
pub struct Tokenizer {
    inner: HfTokenizer,
}

impl Tokenizer {
    pub fn new(inner: HfTokenizer) -> Self {
        Self { inner }
    }

    pub fn from_bytes(path: &str, bytes: &[u8]) -> Result<Self> {
        HfTokenizer::from_bytes(bytes)
            .map(Self::new)
            .map_err(|e| Error::model(path, "tokenizer", crate::text::escape(&e.to_string())))
    }

    pub fn from_file(path: &Path) -> Result<Self> {
        Self::from_bytes(&path.display().to_string(), super::read_text(path, 256 << 20)?.as_bytes())
    }

    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self
            .inner
            .encode_fast(text, false)
            .map_err(|e| Error::request(format!("text cannot be tokenised: {e}")))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Decodes ids, special tokens included; ids without a text are shown as `<id>`.
    pub fn decode(&self, ids: &[u32]) -> String {
        self.inner
            .decode(ids, false)
            .unwrap_or_else(|_| ids.iter().map(|id| format!("<{id}>")).collect())
    }

    /// The text of one token.
    pub fn token(&self, id: u32) -> String {
        if self.inner.id_to_token(id).is_none() { format!("<{id}>") } else { self.decode(&[id]) }
    }

    /// The vocabulary's own spelling of a token (byte-level tokens are spelled with stand-ins),
    /// `None` for an id without one.
    pub fn piece(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Ids that were added as special tokens, ascending.
    pub fn special_ids(&self) -> Vec<u32> {
        let mut ids: Vec<u32> = self
            .inner
            .get_added_tokens_decoder()
            .into_iter()
            .filter(|(_, t)| t.special)
            .map(|(id, _)| id)
            .collect();
        ids.sort_unstable();
        ids
    }

    /// What its fingerprint is taken over.
    pub fn to_json(&self) -> String {
        self.inner.to_string(false).unwrap_or_default()
    }
}
