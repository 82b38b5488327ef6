//! Times zeroing each expert of a layer: all lesions in one batch against one after the other.
//!
//!     cargo run --profile bench -p glitch-benches --bin expert_lesions -- DIR [TOKENS]
//!
//! DIR is a mixture of experts; `benches/make_moe.py` makes a random one of 64 experts. Prints the
//! median of five turns for each layer, and fails if a log-probability differs.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use glitch::edit::{Action, Component, Edit, Trial};
use glitch::evaluate::{Evaluator as _, ModelEvaluator, Observation, Request};
use glitch::model::Model;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const TURNS: usize = 5;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let model = Model::load(&args.next().context("usage: expert_lesions DIR [TOKENS]")?)?;
    let tokens: usize = args.next().map_or(Ok(32), |t| t.parse()).context("TOKENS")?;
    ensure!(tokens >= 2, "at least two tokens");
    ensure!(model.config.experts.is_some(), "no mixture of experts");
    let ids: Vec<u32> =
        (0..tokens).map(|i| (i * 7919 + 3) as u32 % model.config.vocab_size as u32).collect();
    let trial = Trial::new(&ids[..1], &ids[1..]);
    let (mut single, mut batched) = (0.0, 0.0);
    for layer in (0..model.config.num_hidden_layers).filter(|layer| model.config.is_sparse(*layer))
    {
        let lesion = |expert| Edit::lesion(Component::Expert { layer, expert }, Action::Zero);
        let requests: Vec<Request> = (0..model.config.num_experts(layer))
            .map(|e| Request::new(trial.with_edits(vec![lesion(e)])))
            .collect();
        let mut turns = (0..TURNS).map(|_| turn(&model, &requests)).collect::<Result<Vec<_>>>()?;
        turns.sort_by(|(a, b), (c, d)| (a / b).total_cmp(&(c / d)));
        let (one_by_one, batch) = turns[TURNS / 2];
        println!(
            "layer {layer}: {} lesions: {one_by_one:.2} s one by one, {batch:.2} s in a batch: \
            {:.1} times as fast",
            requests.len(),
            one_by_one / batch
        );
        single += one_by_one;
        batched += batch;
    }
    println!(
        "all layers, {tokens} tokens: {single:.2} s and {batched:.2} s: {:.1} times as fast",
        single / batched
    );
    Ok(())
}

/// Returns the seconds that the requests take one by one, and all in one batch.
fn turn(model: &Model, requests: &[Request]) -> Result<(f64, f64)> {
    // One evaluator each, so that neither profits from the other's cache.
    let (alone, together) = (ModelEvaluator::new(model), ModelEvaluator::new(model));
    let start = Instant::now();
    let singles: Vec<Observation> =
        requests.iter().map(|r| alone.observe_alone(r)).collect::<Result<_, _>>()?;
    let single = start.elapsed().as_secs_f64();
    let start = Instant::now();
    let batch = together.observe(requests)?;
    let batched = start.elapsed().as_secs_f64();
    ensure!(
        singles.iter().zip(&batch).all(|(a, b)| a.log_probs == b.log_probs),
        "the two disagree"
    );
    Ok((single, batched))
}
