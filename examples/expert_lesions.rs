//! Zeroing each expert of a layer: all in one batch against one after the other.
//!
//!     cargo run --release --example expert_lesions -- DIR [LAYER [TOKENS]]
//!
//! DIR is a mixture of experts; `benches/make_moe.py` makes a random one of 64 experts. Prints the time of both,
//! turn by turn, and the largest difference of a log-probability.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use glitch::edit::{Action, Component, Edit, Trial};
use glitch::evaluate::{Evaluator as _, ModelEvaluator, Observation, Request};
use glitch::model::Model;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let model = Model::load(&args.next().context("usage: expert_lesions DIR [LAYER [TOKENS]]")?)?;
    let layer: usize = args.next().map_or(Ok(0), |l| l.parse()).context("LAYER")?;
    let tokens: usize = args.next().map_or(Ok(64), |t| t.parse()).context("TOKENS")?;
    ensure!(tokens >= 2, "at least two tokens");
    ensure!(layer < model.config.num_hidden_layers && model.config.num_experts(layer) > 0, "layer {layer} has no experts");
    let ids: Vec<u32> = (0..tokens).map(|i| (i * 7919 + 3) as u32 % model.config.vocab_size as u32).collect();
    let trial = Trial::new(&ids[..1], &ids[1..]);
    let lesion = |expert| {
        let edit = Edit::lesion(Component::Expert { layer, expert }, Action::Zero);
        Request::new(trial.with_edits(vec![edit]))
    };
    let requests: Vec<Request> = (0..model.config.num_experts(layer)).map(lesion).collect();
    let mut ratios = Vec::new();
    for turn in 1..=5 {
        // Evaluators of their own: neither finds what the other has cached.
        let (alone, together) = (ModelEvaluator::new(&model), ModelEvaluator::new(&model));
        let start = Instant::now();
        let one_by_one: Vec<Observation> = requests.iter().map(|r| alone.observe_alone(r)).collect::<Result<_, _>>()?;
        let single = start.elapsed().as_secs_f64();
        let start = Instant::now();
        let batch = together.observe(&requests)?;
        let batched = start.elapsed().as_secs_f64();
        let pairs = one_by_one.iter().zip(&batch).flat_map(|(a, b)| a.log_probs.iter().zip(&b.log_probs));
        let worst = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        println!("turn {turn}: {single:.2} s one by one, {batched:.2} s in a batch, largest difference {worst:e}");
        ensure!(worst <= 1e-6, "the two disagree");
        ratios.push(single / batched);
    }
    ratios.sort_by(f64::total_cmp);
    println!("{} lesions: {:.1} times as fast in a batch (median)", requests.len(), ratios[ratios.len() / 2]);
    Ok(())
}
