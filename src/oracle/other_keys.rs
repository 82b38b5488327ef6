//! Counterparts of the keys of attention knockouts.

use crate::edit::{AttentionKnockout, Edit, Trial};

/// Returns the positions whose knockout is compared with that of `key`: on its side (prompt or
/// continuation) and before all queries that no longer attend to it; before the last position that
/// is read, where these are all that follow. None that the trial deletes, or takes for another key.
///
/// None at all for the first position of the sequence: attention that has nothing to look for rests
/// on it (Xiao et al. 2024, "Efficient Streaming Language Models with Attention Sinks"), so that
/// its knockout does more than that of any other. It is compared with itself in other heads.
pub fn other_keys(trial: &Trial, key: usize, bos: Option<u32>) -> Vec<usize> {
    if key == 0 {
        return Vec::new();
    }
    let knockouts = || {
        trial.edits.iter().filter_map(|edit| match edit {
            Edit::AttentionKnockout(knockout) => Some(knockout),
            _ => None,
        })
    };
    let of_key = |knockout: &&AttentionKnockout| knockout.key == key;
    let query = |of: &AttentionKnockout| of.position.unwrap_or(trial.last_read());
    let end = knockouts().filter(of_key).map(query).min().unwrap_or(trial.last_read());
    let side = trial.side(key, bos);
    let is_taken = |at: &usize| {
        knockouts().any(|knockout| knockout.key == *at)
            || trial.edits.contains(&Edit::Delete { position: *at })
    };
    (side.start.max(1)..side.end.min(end)).filter(|at| !is_taken(at)).collect()
}
