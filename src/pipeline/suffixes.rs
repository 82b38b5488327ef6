//! The follow-up of a search for an adversarial suffix.

use super::explain::{Attribution, ModelExplainer};
use super::finding::Finding;
use super::follow_up::{Explanation, FollowUp, Followed, Steps};
use crate::case::{Case, Lineage};
use crate::error::Result;
use crate::minimize;
use crate::mutate::suffix::{Problem, Search};
use crate::oracle::ModelJudge;
use crate::vocabulary::Vocabulary;

/// Trials that the reduction of one suffix may judge.
const MAX_CALLS: u64 = 400;

/// Trials in one batch of a reduction.
const BATCH: usize = 8;

/// Suffixes tried in a prompt until one is confirmed.
const TRIED_PER_PROMPT: usize = 4;

/// Options for following up the suffixes of a search.
pub struct SearchFollowUp<'a> {
    /// Looks for the components to which the effect is localized, which costs most.
    pub localize: bool,
    /// Asked between steps; `true` ends the follow-up with the cases made so far.
    pub stop: &'a dyn Fn() -> bool,
}

/// Explains every suffix that is confirmed, while there is time.
impl Steps for SearchFollowUp<'_> {
    fn minimized(&mut self, _: &Finding) -> Result<Explanation> {
        let localize = self.localize && !(self.stop)();
        Ok(if localize { Explanation::Localized } else { Explanation::Described })
    }
}

/// Makes a case for each prompt, of the best suffix that reached the goal in it and is confirmed;
/// each goes to `keep` as soon as it is made.
///
/// # Errors
/// Those of the evaluator and of `keep`.
pub fn cases_of_search(
    problem: &Problem,
    search: &Search,
    mut follow_up: SearchFollowUp,
    keep: &mut dyn FnMut(Case) -> Result<()>,
) -> Result<()> {
    let stop = follow_up.stop;
    if search.state.reached.is_empty() || stop() {
        return Ok(());
    }
    let (evaluator, model) = (problem.evaluator, problem.evaluator.model);
    let vocabulary = Vocabulary::of(model);
    let floor = evaluator.score_noise_floor()?;
    let (reference, oracle, seed) = (model.reference(), problem.goal.oracle(), search.options.seed);
    for prompt in 0..search.state.prompts {
        let fails = search.state.fails.as_ref().map(|entry| problem.trial(prompt, &entry.suffix));
        let explainer = ModelExplainer {
            evaluator,
            vocabulary: &vocabulary,
            model: &reference,
            new_prompts: None,
            against: None,
            attribution: Some(Attribution { fails: fails.as_ref() }),
        };
        let reached = search.state.reached.iter().filter(|reached| reached.prompts > prompt);
        for reached in reached.take(TRIED_PER_PROMPT) {
            let judge = ModelJudge::new(evaluator, &model.config, &vocabulary, oracle, seed, floor);
            let options = minimize::MinimizeOptions {
                max_calls: MAX_CALLS,
                batch: BATCH,
                prompt: minimize::PromptReduction::Tokens { neutral: Some(problem.tokens.neutral) },
                keep_first: problem.prompts[prompt].before.len(),
                keep_last: problem.prompts[prompt].after.len(),
                stop: Some(stop),
                ..Default::default()
            };
            let lineage = Lineage {
                seed,
                evaluation: reached.step as u64,
                mutators: vec!["suffix".into()],
                parent: format!("prompt {}", prompt + 1),
            };
            let pipeline =
                FollowUp { judge: &judge, options, replicator: None, explainer: &explainer };
            let trial = problem.trial(prompt, &reached.suffix);
            if let Followed::Case { case, .. } =
                pipeline.run(trial, None, lineage, &mut follow_up)?
            {
                keep(*case)?;
                break;
            }
        }
    }
    Ok(())
}
