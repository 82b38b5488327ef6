//! Generation in other prompts: a trial's edits at the same positions of stretches of the reference
//! text.

use super::engine::ModelEvaluator;
use super::{Evaluator as _, Request};
use crate::edit::{Edit, Trial};
use crate::error::Result;

/// Other prompts that a trial's edits are put into.
const OTHER_PROMPTS: usize = 2;

impl ModelEvaluator<'_> {
    /// Generates [`Observation::elsewhere`](super::Observation::elsewhere) for each request, all
    /// requests together or, with `alone`, each by itself at the canonical shape.
    pub(super) fn elsewhere(
        &self,
        requests: &[&Request],
        alone: bool,
    ) -> Result<Vec<Vec<Vec<u32>>>> {
        if requests.is_empty() {
            return Ok(Vec::new());
        }
        let text = self.reference_ids()?;
        let moved = |request: &&Request| {
            let tokens = request.generate_elsewhere;
            let generating = |trial| Request::new(trial).generating(tokens);
            self.moved(&request.trial, &text).map(generating)
        };
        let moved: Vec<Request> = requests.iter().flat_map(moved).collect();
        let observed = match alone {
            true => moved.iter().map(|request| self.observe_alone(request)).collect(),
            false => self.observe(&moved),
        };
        let written: Vec<Vec<u32>> = observed?.into_iter().map(|seen| seen.generated).collect();
        Ok(written.chunks(OTHER_PROMPTS).map(<[_]>::to_vec).collect())
    }

    /// Returns the trial's prompt with its tokens replaced by stretches of `text`, and its edits. A
    /// BOS token stays, and tokens that are split do, so that the text is that of the pieces. So
    /// does the length, and with it every position.
    fn moved(&self, trial: &Trial, text: &[u32]) -> [Trial; OTHER_PROMPTS] {
        let bos = self.model.config.bos_token_id;
        let text = text.strip_prefix(bos.as_slice()).unwrap_or(text);
        let first = trial.first_editable(bos);
        let length = trial.base.len() - first;
        // A text too short for two stretches gives two that overlap.
        let apart = length.min(text.len() / OTHER_PROMPTS);
        std::array::from_fn(|prompt| {
            let mut moved = trial.prompt_only();
            let stretch = text.iter().cycle().skip(prompt * apart).take(length);
            let mut base: Vec<u32> = trial.base[..first].iter().chain(stretch).copied().collect();
            for edit in &moved.edits {
                if let Edit::Retokenize { position, .. } = edit
                    && let (Some(there), Some(own)) =
                        (base.get_mut(*position), trial.base.get(*position))
                {
                    *there = *own;
                }
            }
            moved.base = base.into();
            moved
        })
    }
}
