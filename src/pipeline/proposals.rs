//! The follow-up of what a sweep proposes: trials that it takes for failures, each to be confirmed,
//! minimized and explained like a raw finding of a campaign.

use super::explain::ModelExplainer;
use super::finding::Finding;
use super::follow_up::{Explanation, FollowUp, Followed, Steps};
use crate::case::{Case, Lineage};
use crate::edit::Trial;
use crate::error::Result;
use crate::evaluate::{Evaluator, ModelEvaluator, TwoModels};
use crate::minimize::{MinimizeOptions, PromptReduction};
use crate::oracle::{ModelJudge, OracleKind};
use crate::replicate::{self, NewPrompts, Replicator};
use crate::stats::evidence::Lond;
use crate::vocabulary::Vocabulary;

/// Trials that the reduction of one proposal may judge.
const MAX_CALLS: u64 = 400;
/// Trials in one batch of a reduction.
const BATCH: usize = 8;

/// Proposals of one sweep, and the way they are judged.
pub struct Proposals<'a> {
    /// Judges them.
    pub oracle: OracleKind,
    /// The name of the sweep, in place of a mutator in the lineage of the cases.
    pub sweep: &'static str,
    /// Seed of the controls.
    pub seed: u64,
    /// The second model, for an oracle that compares two.
    pub against: Option<&'a TwoModels<'a, 'a>>,
    /// Prompts that the sweep did not use.
    pub new_prompts: &'a NewPrompts,
    /// Asked between proposals; `true` ends the follow-up with the cases made so far.
    pub stop: &'a dyn Fn() -> bool,
}

impl Proposals<'_> {
    /// Makes a case of each proposal that is confirmed, from the first of its trials that is; each
    /// goes to `keep` as soon as it is made.
    ///
    /// # Errors
    /// Those of the evaluator and of `keep`.
    pub fn follow_up(
        &self,
        evaluator: &ModelEvaluator,
        proposals: &[Vec<Trial>],
        keep: &mut dyn FnMut(Case) -> Result<()>,
    ) -> Result<()> {
        if proposals.is_empty() {
            return Ok(());
        }
        let model = evaluator.model;
        let vocabulary = Vocabulary::of(model);
        let floor = evaluator.score_noise_floor()?;
        let token = |id| model.token(id);
        let reference = model.reference();
        let explainer = ModelExplainer {
            evaluator,
            vocabulary: &vocabulary,
            model: &reference,
            new_prompts: Some(self.new_prompts),
            against: self.against,
            attribution: None,
        };
        let judged_by: &dyn Evaluator = match self.against {
            Some(models) => models,
            None => evaluator,
        };
        let mut steps =
            Stream { discoveries: Lond::new(replicate::FALSE_DISCOVERY), stop: self.stop };
        for (proposed, trials) in proposals.iter().enumerate() {
            for trial in trials {
                if (self.stop)() {
                    return Ok(());
                }
                let oracle = self.oracle;
                let judge = ModelJudge::new(
                    judged_by,
                    &model.config,
                    &vocabulary,
                    oracle,
                    self.seed,
                    floor,
                );
                let options = MinimizeOptions {
                    max_calls: MAX_CALLS,
                    batch: BATCH,
                    prompt: PromptReduction::Text { token: &token },
                    keep_first: trial.first_editable(model.config.bos_token_id),
                    stop: Some(self.stop),
                    ..Default::default()
                };
                let lineage = Lineage {
                    seed: self.seed,
                    evaluation: proposed as u64,
                    mutators: vec![self.sweep.into()],
                    parent: self.sweep.into(),
                };
                let replicator = Some(Replicator { prompts: self.new_prompts, null: false });
                let pipeline =
                    FollowUp { judge: &judge, options, replicator, explainer: &explainer };
                if let Followed::Case { case, .. } =
                    pipeline.run(trial.clone(), None, lineage, &mut steps)?
                {
                    keep(*case)?;
                    break;
                }
            }
        }
        Ok(())
    }
}

/// Explains every finding while there is time, and tests them as one stream.
struct Stream<'a> {
    discoveries: Lond,
    stop: &'a dyn Fn() -> bool,
}

impl Steps for Stream<'_> {
    fn minimized(&mut self, _: &Finding) -> Result<Explanation> {
        Ok(if (self.stop)() { Explanation::Described } else { Explanation::Localized })
    }

    fn is_discovery(&mut self, e_value: f64) -> bool {
        self.discoveries.test(e_value)
    }
}
