//! Options of a sweep of insertions.

/// Options of [`InsertSweep::run`](super::InsertSweep::run).
#[derive(Debug, Clone, Copy)]
pub struct InsertOptions {
    /// Prompts whose continuations are compared; as many others are used to measure the lift.
    pub prompts: usize,
    /// Tokens of each continuation.
    pub tokens: usize,
    /// Inserts only this many tokens, an even choice. `None`: all.
    pub limit: Option<usize>,
    /// Words that are also inserted in pairs, an even choice; `None`: none, and at most
    /// [`MOST_WORDS`](super::MOST_WORDS).
    pub pairs: Option<usize>,
    /// Inserts triples of these words as well: each word before the most promising pairs.
    pub triples: bool,
    /// Tokens of the prompt that come after the inserted ones.
    pub before_end: usize,
    /// Seed of the prompts, and of the halves of the tokens.
    pub seed: u64,
    /// Gives each token the continuations of other tokens, in each prompt those of another: then
    /// nothing is left that a token does in all prompts.
    pub null: bool,
}

impl Default for InsertOptions {
    fn default() -> Self {
        Self {
            prompts: 8,
            tokens: 8,
            limit: None,
            pairs: None,
            triples: false,
            before_end: 0,
            seed: 1,
            null: false,
        }
    }
}
