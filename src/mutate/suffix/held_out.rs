//! Tests a suffix on held-out prompts.

use super::problem::{Problem, Prompt};
use super::search::{HeldOut, Search};
use crate::error::Result;

/// Counts the held-out prompts in which the best suffix of a search reaches the goal. `None`
/// without such prompts.
///
/// # Errors
/// [`Error::Request`](crate::Error::Request) for a held-out prompt that the model cannot read; what
/// the evaluator refuses.
pub fn held_out_success(
    problem: &Problem,
    search: &Search,
    held_out: &[Prompt],
) -> Result<Option<HeldOut>> {
    if held_out.is_empty() {
        return Ok(None);
    }
    let suffix =
        search.state.reached.first().map_or(&search.state.best.suffix, |reached| &reached.suffix);
    let (goal, tokens) = (problem.goal.clone(), problem.tokens.clone());
    let others = Problem::new(problem.evaluator, held_out.to_vec(), goal, tokens, suffix.len())?;
    let mut reached = 0;
    for prompt in 0..held_out.len() {
        let observed = others.observe(prompt, suffix, &[vec![]])?;
        reached += u64::from(others.goal.reached(&observed[0], others.baseline(prompt)));
    }
    Ok(Some(HeldOut { reached, prompts: held_out.len() as u64 }))
}
