//! What a campaign on a model needs before it begins.

use super::config::CampaignConfig;
use super::seeds::prompts;
use super::subject::{Seed, Subject};
use crate::echo::EchoPrompt;
use crate::error::Result;
use crate::evaluate::ModelEvaluator;
use crate::model::Model;
use crate::mutate::suffix::Promising;
use crate::oracle::OracleKind;
use crate::sweep;
use crate::vocabulary::Vocabulary;

/// Reads the seeds, chooses the echo prompt, proposes weights and measures the noise floor.
///
/// # Errors
/// What reading the seeds and evaluating refuse.
pub fn subject<'a>(
    config: &CampaignConfig,
    model: &'a Model,
    evaluator: &'a ModelEvaluator<'a>,
    vocabulary: &'a Vocabulary,
) -> Result<Subject<'a>> {
    let mut seeds = Vec::new();
    for (name, text) in prompts(&config.seeds)? {
        let mut ids = model.encode(&text)?;
        ids.truncate(model.config.max_position_embeddings);
        seeds.extend(Seed::new(name, &ids, config.continuation));
    }
    let (echo, median) = EchoPrompt::ranked(model, evaluator, &vocabulary.ordinary)?.swap_remove(0);
    let echo = if median >= sweep::LEAST_ECHO { vec![echo] } else { Vec::new() };
    let interactions = if config.mutate.iter().any(|group| group == "sets") {
        let echo = echo.iter().map(|echo| ("echo".to_owned(), echo.baseline()));
        let seeds =
            seeds.iter().take(SEEDS_OF_SETS).map(|seed| (seed.name.clone(), seed.trial.clone()));
        sweep::interactions(evaluator, &echo.chain(seeds).collect::<Vec<_>>(), config.seed)?
    } else {
        Vec::new()
    };
    let suffixes = if config.mutate.iter().any(|group| group == "suffix") {
        Promising::after(evaluator, seeds.iter().take(SEEDS_OF_SUFFIXES).map(|seed| &seed.trial))?
    } else {
        Vec::new()
    };
    let weights = match seeds.first() {
        Some(seed) => sweep::propose_weights(evaluator, &seed.trial, PROPOSED_WEIGHTS)?,
        None => Vec::new(),
    };
    // What is measured is small against 1e-6 on CPU; that much is granted to rounding in a score.
    let floor = evaluator.noise_floor()?.max(1e-6);
    let noise_floors = OracleKind::ALL.into_iter().map(|kind| (kind, floor)).collect();
    let (model, config) = (model.reference(), &model.config);
    Ok(Subject {
        evaluator,
        model,
        config,
        vocabulary,
        seeds,
        echo,
        weights,
        interactions,
        suffixes,
        noise_floors,
    })
}

/// Seeds on which the interactions are measured that the `sets` mutator is guided by, besides the
/// echo prompt.
const SEEDS_OF_SETS: usize = 2;

/// Seeds of whose continuations the gradient is taken that the `suffix` mutator is guided by.
const SEEDS_OF_SUFFIXES: usize = 8;

/// Single weights that the `weights` mutator draws from.
const PROPOSED_WEIGHTS: usize = 64;
