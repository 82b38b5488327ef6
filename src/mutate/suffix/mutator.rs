//! Suffixes as mutations of a campaign: tokens that a gradient expects most of, put after a prompt.

use std::sync::Arc;

use rand::Rng as _;

use super::{Goal, GoalKind, Mean, Problem, Prompt, Tokens};
use crate::edit::{Edit, Trial};
use crate::error::Result;
use crate::evaluate::ModelEvaluator;
use crate::mutate::{Context, Mutator, extend};
use crate::rng::Rng;
use crate::rng::pick;

/// What the gradient expects most of, at each place after a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Promising {
    pub base: Arc<[u32]>,
    /// Ids, best first.
    pub places: Vec<Vec<u32>>,
}

/// Tokens of a suffix at most, and ids kept of each place.
const LENGTH: usize = 4;
const KEPT: usize = 64;

impl Promising {
    /// Of suffixes that raise the loss of what follows each of these trials' prompts. Prompts that
    /// fill the model's context have none.
    ///
    /// # Errors
    /// What the evaluator refuses.
    pub fn after<'t>(
        evaluator: &ModelEvaluator,
        trials: impl Iterator<Item = &'t Trial>,
    ) -> Result<Vec<Self>> {
        let mut all = Vec::new();
        let (most, tokens) =
            (evaluator.model.config.max_position_embeddings, Tokens::new(evaluator.model, false)?);
        for trial in trials.filter(|t| t.len() + LENGTH <= most && !t.continuation.is_empty()) {
            let prompt = Prompt { before: trial.base.to_vec(), after: Vec::new() };
            let goal = Goal {
                kind: GoalKind::Loss,
                continuation: trial.continuation.to_vec(),
                mean: Mean::Arithmetic,
            };
            let problem = Problem::new(evaluator, vec![prompt], goal, tokens.clone(), LENGTH)?;
            let neutral = problem.tokens.neutral;
            let gradient = problem.gradient(0, &[neutral; LENGTH], &[])?;
            let rows = gradient.tokens.chunks_exact(evaluator.model.config.vocab_size);
            let places = rows.map(|row| problem.tokens.best(row, neutral, KEPT)).collect();
            all.push(Self { base: trial.base.clone(), places });
        }
        Ok(all)
    }
}

/// A few of the tokens that the gradient expects most of, after the prompt.
#[derive(Debug)]
pub struct Suffix;

impl Mutator for Suffix {
    fn name(&self) -> &'static str {
        "suffix"
    }

    fn propose(&self, parent: &Trial, context: &Context, rng: &mut Rng) -> Option<Trial> {
        // Of the parent's own prompt where it was measured there; what is promising elsewhere may
        // be so here.
        let own = context.suffixes.iter().find(|promising| promising.base == parent.base);
        let promising = own.or_else(|| pick(context.suffixes, rng))?;
        let length = rng.random_range(1..=promising.places.len().max(1));
        let position = parent.base.len();
        let token = |place: &Vec<u32>| Some(Edit::Insert { position, id: *pick(place, rng)? });
        let edits: Option<Vec<Edit>> = promising.places.iter().take(length).map(token).collect();
        extend(parent, edits.filter(|edits| !edits.is_empty())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::fake;

    #[test]
    fn a_suffix_is_of_what_is_promising_after_its_own_prompt() {
        let (config, vocabulary) = (fake::config(), fake::vocabulary());
        let suffixes = fake::suffixes();
        let context = Context {
            config: &config,
            vocabulary: &vocabulary,
            seeds: &[],
            echo: &[],
            weights: &[],
            interactions: &[],
            suffixes: &suffixes,
        };
        let parent = Trial::new(suffixes[0].base.clone(), [4]);
        let mut rng = crate::rng::stream(3, "test");
        let mut lengths = std::collections::BTreeSet::new();
        for _ in 0..200 {
            let trial = Suffix.propose(&parent, &context, &mut rng).unwrap();
            lengths.insert(trial.edits.len());
            for (place, edit) in trial.edits.iter().enumerate() {
                let Edit::Insert { position, id } = *edit else { panic!("{edit:?}") };
                assert_eq!(position, parent.base.len());
                assert!(suffixes[0].places[place].contains(&id), "{id} at {place}");
            }
        }
        assert_eq!(
            lengths.into_iter().collect::<Vec<_>>(),
            (1..=suffixes[0].places.len()).collect::<Vec<_>>()
        );
        assert!(Suffix.propose(&Trial::new([9, 9], [4]), &context, &mut rng).is_some());
        assert_eq!(Suffix.propose(&parent, &Context { suffixes: &[], ..context }, &mut rng), None);
    }
}
