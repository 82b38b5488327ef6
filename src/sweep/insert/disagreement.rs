//! How far two models disagree about the next token after insertions.

use super::row::insertion;
use crate::edit::Trial;
use crate::error::Result;
use crate::evaluate::{Evaluator as _, Request, TwoModels};

/// Returns the Jensen-Shannon divergence of two models on the token after a prompt with each
/// insertion, bits.
pub fn disagreements(
    models: &TwoModels,
    prompt: &[u32],
    inserted: &[Vec<u32>],
    before_end: usize,
) -> Result<Vec<f64>> {
    let base = Trial::new(prompt, []);
    let request = |ids: &Vec<u32>| Request {
        compare: true,
        ..Request::new(insertion(&base, ids, before_end))
    };
    let requests: Vec<Request> = inserted.iter().map(request).collect();
    let bits = |bits: &[f32]| bits.iter().map(|bits| f64::from(*bits)).fold(0.0, f64::max);
    Ok(models.observe(&requests)?.iter().map(|o| bits(&o.disagreement_bits)).collect())
}
