//! The tokens that a suffix may be made of, and round trips through the tokenizer.

use std::sync::OnceLock;

use crate::error::{Error, Result};
use crate::model::Model;
use crate::vocabulary::{Category, categories};

/// The tokens that a suffix may be made of.
#[derive(Clone)]
pub struct Tokens {
    /// True for each token that is allowed, `[vocab]`.
    allowed: Vec<bool>,
    /// The neutral token: a search begins with a suffix of these, ` x` where the vocabulary has it.
    pub neutral: u32,
    /// Norms of the embeddings, `[vocab]`, computed when first used.
    norms: OnceLock<Vec<f32>>,
}

impl Tokens {
    /// Allows every token that some text encodes to; with `ascii` those of printable ASCII alone.
    ///
    /// # Errors
    /// [`Error::Request`] if the model has none.
    pub fn new(model: &Model, ascii: bool) -> Result<Self> {
        let printable = |id: u32| {
            let text = model.token(id);
            !ascii || text.chars().all(|c| c == ' ' || c.is_ascii_graphic())
        };
        let is_allowed = |(id, category): (usize, Category)| {
            category == Category::Reachable && printable(id as u32)
        };
        let allowed: Vec<bool> =
            categories(model).into_iter().enumerate().map(is_allowed).collect();
        let first = allowed.iter().position(|allowed| *allowed);
        let first = first
            .ok_or_else(|| Error::request(format!("{} has no token for a suffix", model.name)))?;
        // The literature starts from `x x x` or `! ! !`; any token will do.
        let plain =
            model.tokenizer.as_ref().and_then(|t| t.encode(" x").ok()).filter(|ids| ids.len() == 1);
        let plain = plain.map(|ids| ids[0]).filter(|id| allowed.get(*id as usize) == Some(&true));
        Ok(Self { allowed, neutral: plain.unwrap_or(first as u32), norms: OnceLock::new() })
    }

    /// Returns true if a suffix may hold this token.
    pub fn allows(&self, id: u32) -> bool {
        self.allowed.get(id as usize) == Some(&true)
    }

    /// Returns the allowed tokens nearest to embeddings `[n, d_model]` by cosine similarity.
    pub fn nearest(&self, model: &Model, embeddings: &[f32]) -> Vec<u32> {
        let vocabulary = model.config.vocab_size;
        let along = model.along_embeddings(embeddings);
        let norm = |id| model.embedding(id).iter().map(|e| e * e).sum::<f32>().sqrt().max(1e-12);
        let norms = self.norms.get_or_init(|| (0..vocabulary as u32).map(norm).collect());
        let nearest = |row: &[f32]| {
            let cosines = row.iter().zip(norms).zip(0u32..).filter(|(_, id)| self.allows(*id));
            let best = cosines
                .map(|((dot, norm), id)| (dot / norm, id))
                .max_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1)));
            best.map_or(self.neutral, |(_, id)| id)
        };
        along.chunks_exact(vocabulary).map(nearest).collect()
    }

    /// Returns the `k` allowed ids with the most negative gradient `[vocab]`, best first, without
    /// `except`.
    pub fn best(&self, gradient: &[f32], except: u32, k: usize) -> Vec<u32> {
        let mut ids: Vec<u32> =
            (0..gradient.len() as u32).filter(|id| self.allows(*id) && *id != except).collect();
        let by = |a: &u32, b: &u32| {
            gradient[*a as usize].total_cmp(&gradient[*b as usize]).then(a.cmp(b))
        };
        if k < ids.len() {
            ids.select_nth_unstable_by(k, by);
            ids.truncate(k);
        }
        ids.sort_unstable_by(by);
        ids
    }
}

/// Returns true if the text of these ids encodes to the same ids again; true without a tokenizer.
pub fn round_trips(model: &Model, ids: &[u32]) -> bool {
    let Some(tokenizer) = &model.tokenizer else { return true };
    tokenizer.encode(&tokenizer.decode(ids)).is_ok_and(|again| again == ids)
}
