//! The preparation of a campaign on a model: seeds, echo prompt, weights, noise floor.

use super::config::CampaignConfig;
use super::seeds::prompts;
use super::subject::{Seed, Subject};
use crate::case::MAX_CONTROL_TOKENS;
use crate::echo::EchoPrompt;
use crate::error::{Error, Result};
use crate::evaluate::ModelEvaluator;
use crate::model::Model;
use crate::mutate::RoutingContrast;
use crate::mutate::suffix::Promising;
use crate::oracle::OracleKind;
use crate::replicate::NewPrompts;
use crate::sweep;
use crate::vocabulary::Vocabulary;

/// Reads the seeds, chooses the echo prompt, proposes weights, makes the new prompts and measures
/// the noise floor. `token` gives the text of a token.
///
/// # Errors
/// [`Error::Request`] for layers that the model does not have; what reading the seeds and
/// evaluating refuse.
pub fn subject<'a>(
    config: &CampaignConfig,
    model: &'a Model,
    evaluator: &'a ModelEvaluator<'a>,
    vocabulary: &'a Vocabulary,
    token: &'a dyn Fn(u32) -> String,
) -> Result<Subject<'a>> {
    config.oracles_on(&model.config)?;
    let highest = model.config.num_hidden_layers.saturating_sub(1);
    if let Some(layers) = config.layers.filter(|layers| layers.last > highest) {
        return Err(Error::request(format!(
            "layers: {layers}, but the layers of {} are 0-{highest}",
            model.name
        )));
    }
    let mut seeds = Vec::new();
    for (name, text) in prompts(&config.seeds, &config.prompts)? {
        let mut ids = model.encode(&text)?;
        ids.truncate(model.config.max_position_embeddings);
        seeds.extend(Seed::new(name, &ids, config.continuation));
    }
    // Refused before anything is evaluated or written, as an empty campaign is.
    if seeds.is_empty() {
        return Err(Error::request(NO_SEEDS));
    }
    // Edits add a little to a seed; no case may be written that nobody would read again.
    let longest = 2 * seeds.iter().map(|seed| seed.trial.len()).max().unwrap_or(0);
    if config.controls_per_trial.saturating_mul(longest) > MAX_CONTROL_TOKENS {
        return Err(Error::request(format!(
            "controls_per_trial: {} are too many for seeds of {} tokens",
            config.controls_per_trial,
            longest / 2
        )));
    }
    let (echo, median) = EchoPrompt::ranked(model, evaluator, &vocabulary.ordinary)?.swap_remove(0);
    let echo = if median >= sweep::LEAST_ECHO { vec![echo] } else { Vec::new() };
    let interactions = if config.mutate.iter().any(|group| group == "sets") {
        let echo = echo.iter().map(|echo| ("echo".to_owned(), echo.baseline()));
        let seeds =
            seeds.iter().take(SEEDS_OF_SETS).map(|seed| (seed.name.clone(), seed.trial.clone()));
        sweep::interactions(
            evaluator,
            &echo.chain(seeds).collect::<Vec<_>>(),
            config.seed,
            config.layers,
        )?
    } else {
        Vec::new()
    };
    let suffixes = if config.mutate.iter().any(|group| group == "suffix") {
        Promising::after(evaluator, seeds.iter().take(SEEDS_OF_SUFFIXES).map(|seed| &seed.trial))?
    } else {
        Vec::new()
    };
    let lesions = config.mutate.iter().any(|group| group == "lesions");
    let routing = if lesions && model.config.experts.is_some() {
        let prompts: Vec<_> = seeds.iter().map(|seed| seed.trial.base.clone()).collect();
        RoutingContrast::between(evaluator, &prompts)?
    } else {
        Vec::new()
    };
    let weights = match seeds.first() {
        Some(seed) => sweep::propose_weights(
            evaluator,
            std::slice::from_ref(&seed.trial),
            PROPOSED_WEIGHTS,
            config.layers,
            sweep::WeightRank::Product,
        )?,
        None => Vec::new(),
    };
    let floor = evaluator.score_noise_floor()?;
    let noise_floors = OracleKind::ALL.into_iter().map(|kind| (kind, floor)).collect();
    let new_prompts = NewPrompts::new(model, vocabulary, &echo)?;
    let layers = config.layers;
    let (stored, config) = (model.stored, &model.config);
    let model = model.reference();
    Ok(Subject {
        layers,
        evaluator,
        model,
        against: None,
        config,
        vocabulary,
        token,
        seeds,
        new_prompts,
        echo,
        weights,
        stored,
        interactions,
        suffixes,
        routing,
        noise_floors,
    })
}

/// The fault of prompts of which none can be used.
pub(super) const NO_SEEDS: &str = "seeds: no prompt is long enough (2 tokens and a continuation)";

/// Seeds, besides the echo prompt, on which interactions are measured for the `sets` mutator.
const SEEDS_OF_SETS: usize = 2;

/// Seeds after which the gradient is taken for the `suffix` mutator.
const SEEDS_OF_SUFFIXES: usize = 8;

/// Single weights that the `weights` mutator draws from.
const PROPOSED_WEIGHTS: usize = 64;
