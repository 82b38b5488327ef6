//! The prompts of a sweep of insertions: beginnings of the bundled passages.

use rand::Rng as _;
use rand::seq::SliceRandom as _;

use crate::error::{Error, Result};
use crate::model::Model;
use crate::replicate::{in_context, passages};
use crate::rng;
use crate::vocabulary::TokenForm;

/// Tokens of a prompt, at least and at most.
const TOKENS: std::ops::Range<usize> = 8..32;

/// Prompts that end with a whole word.
pub struct Prompts {
    /// Those whose continuations are compared.
    pub chosen_on: Vec<Vec<u32>>,
    /// As many others.
    pub elsewhere: Vec<Vec<u32>>,
}

impl Prompts {
    /// Takes beginnings of passages, each from a passage of its own and cut before a word that is
    /// drawn by the seed. `added` tokens come after each: they have room in the model's context.
    ///
    /// # Errors
    /// [`Error::Request`] for a model without a tokenizer, one whose context is too short, and more
    /// prompts than there are passages; those of the tokenizer.
    pub fn new(model: &Model, count: usize, added: usize, seed: u64) -> Result<Self> {
        if model.tokenizer.is_none() {
            let name = &model.name;
            return Err(Error::request(format!(
                "{name} has no tokenizer, so no text goes into it"
            )));
        }
        let mut rng = rng::stream(seed, "prompts of insertions");
        let mut all = Vec::new();
        let room = model.config.max_position_embeddings.saturating_sub(added);
        for passage in passages() {
            let mut ids = in_context(model, passage)?;
            ids.truncate(room);
            let begins: Vec<usize> = (TOKENS.start..TOKENS.end.min(ids.len()))
                .filter(|at| TokenForm::new(&model.token(ids[*at])) == TokenForm::Word)
                .collect();
            if !begins.is_empty() {
                ids.truncate(begins[rng.random_range(0..begins.len())]);
                all.push(ids);
            }
        }
        all.shuffle(&mut rng);
        if all.len() < 2 * count {
            return Err(Error::request(format!(
                "{count} prompts need as many passages to choose texts and as many to measure \
                them; there are {}",
                all.len()
            )));
        }
        let elsewhere = all.split_off(count);
        let elsewhere = elsewhere.into_iter().take(count).collect();
        Ok(Self { chosen_on: all, elsewhere })
    }
}
