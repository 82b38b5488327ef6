//! What the programs in `bin/` share.

use glitch::campaign::Seed;
use glitch::campaign::seeds::prompts;
use glitch::edit::Trial;
use glitch::model::Model;

/// Returns the built-in seed prompts, their last `continuation` tokens teacher-forced; without
/// those that are not more than twice as long.
///
/// # Errors
/// Those of the tokenizer.
pub fn seed_prompts(model: &Model, continuation: usize) -> glitch::Result<Vec<Trial>> {
    let mut trials = Vec::new();
    for (name, text) in prompts(&[], &[])? {
        let ids = model.encode(&text)?;
        if ids.len() > 2 * continuation {
            trials.extend(Seed::new(name, &ids, continuation).map(|seed| seed.trial));
        }
    }
    Ok(trials)
}
