//! The tokenizer. Everything else works on token ids; text is for people.

use std::path::Path;

use tokenizers::Tokenizer as HfTokenizer;

use crate::error::{Error, Result};

/// A tokenizer that adds no special tokens; the caller decides where BOS goes.
pub struct Tokenizer {
    inner: HfTokenizer,
}

impl Tokenizer {
    /// Wraps a tokenizer of the `tokenizers` crate.
    pub fn new(inner: HfTokenizer) -> Self {
        Self { inner }
    }

    /// Parses a `tokenizer.json`; `path` names it in errors.
    ///
    /// # Errors
    /// [`Error::Model`] for JSON that is no tokenizer.
    pub fn from_bytes(path: &str, bytes: &[u8]) -> Result<Self> {
        HfTokenizer::from_bytes(bytes)
            .map(Self::new)
            .map_err(|e| Error::model(path, "tokenizer", crate::text::escape(&e.to_string())))
    }

    /// Reads a `tokenizer.json` of at most 256 MiB.
    ///
    /// # Errors
    /// [`Error::Model`] for a file that cannot be read or is no tokenizer.
    pub fn from_file(path: &Path) -> Result<Self> {
        Self::from_bytes(&path.display().to_string(), super::read_text(path, 256 << 20)?.as_bytes())
    }

    /// Encodes text, without special tokens of its own.
    ///
    /// # Errors
    /// [`Error::Request`] for text that cannot be encoded.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self
            .inner
            .encode_fast(text, false)
            .map_err(|e| Error::request(format!("text cannot be tokenised: {e}")))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Decodes ids, special tokens included; as `<id>` if they cannot be decoded.
    pub fn decode(&self, ids: &[u32]) -> String {
        self.inner
            .decode(ids, false)
            .unwrap_or_else(|_| ids.iter().map(|id| format!("<{id}>")).collect())
    }

    /// Returns the text of one token, `<id>` for an id that is no token.
    pub fn token(&self, id: u32) -> String {
        if self.inner.id_to_token(id).is_none() { format!("<{id}>") } else { self.decode(&[id]) }
    }

    /// Returns the spelling of a token in the vocabulary, where byte-level tokens have stand-ins
    /// for some bytes; `None` for an id that is no token.
    pub fn piece(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Returns the spelling of a token that stands for the text that it spells; `None` for one that
    /// was added to the vocabulary (control tokens among them), which is found before text is cut
    /// into tokens, and for a byte of SentencePiece (`<0x0A>`).
    pub fn spelling(&self, id: u32) -> Option<String> {
        let is_added = self.inner.get_added_vocabulary().simple_id_to_token(id).is_some();
        self.piece(id).filter(|piece| !is_added && !is_byte(piece))
    }

    /// Returns the ids that were added as special tokens, ascending.
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

    /// Returns the JSON that the tokenizer's fingerprint is taken over.
    pub fn to_json(&self) -> String {
        self.inner.to_string(false).unwrap_or_default()
    }
}

/// Returns true for a byte as SentencePiece spells it.
fn is_byte(piece: &str) -> bool {
    let digits = piece.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    digits.is_some_and(|digits| digits.len() == 2 && u8::from_str_radix(digits, 16).is_ok())
}
