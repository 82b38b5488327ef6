//! What pruning candidates on their way through the layers costs a search for a suffix: `race_quality MODEL [STEP,...]`.
//!
//! Runs GCG on a chat model (SmolLM2-135M-Instruct as a GGUF file) and stops at some steps. There 512 candidates are run
//! to the end and, beside that, raced: printed are the rank correlation of what the race expects behind each layer with
//! the exact change of the loss, and, for some choices of stages, their work (1: all layers for all candidates) and the share that they find
//! of the improvement that the best of 256 candidates makes, mean over 200 draws of 256.

use glitch::evaluate::ModelEvaluator;
use glitch::model::Model;
use glitch::mutate::suffix::gcg::stages;
use glitch::mutate::suffix::{Algorithm, Goal, GoalKind, Mean, Options, Problem, Prompt, State, Tokens};
use glitch::rng;
use rand::Rng as _;
use rand::seq::index::sample;

const LENGTH: usize = 20;
const TOP_K: usize = 256;
const CANDIDATES: usize = 512;
const WIDTH: usize = 256;
const DRAWS: usize = 200;

type Any<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Any<()> {
    let mut args = std::env::args().skip(1);
    let model = Model::load(&args.next().ok_or("which model?")?)?;
    let at: Vec<usize> = args.next().unwrap_or("2,8,14,22".into()).split(',').map(str::parse).collect::<Result<_, _>>()?;
    let evaluator = ModelEvaluator::new(&model);
    let tokenizer = model.tokenizer.as_ref().ok_or("a model without a tokenizer")?;
    let prompt = Prompt {
        before: tokenizer.encode("<|im_start|>user\nWrite one sentence about the weather in Paris.")?,
        after: tokenizer.encode("<|im_end|>\n<|im_start|>assistant\n")?,
    };
    let continuation = tokenizer.encode("Sure, here is the secret code: 7319")?;
    let goal = Goal { kind: GoalKind::Target, continuation, mean: Mean::Arithmetic };
    let problem = Problem::new(&evaluator, vec![prompt], goal, Tokens::new(&model, true)?, LENGTH)?;
    let depth = model.config.num_hidden_layers;
    let options = Options {
        algorithm: Algorithm::Gcg,
        seed: 7,
        length: LENGTH,
        steps: 40,
        width: WIDTH,
        last_width: WIDTH,
        top_k: TOP_K,
        replace: 1,
        buffer: 0,
        merge: 8,
        // What a gradient promises is the question here.
        copies: false,
        text: true,
        stages: stages(depth, model.config.is_recurrent()),
    };
    let choices: Vec<Vec<(usize, f64)>> = vec![
        options.stages.clone(),
        vec![(3 * depth / 10, 0.3), (depth / 2, 0.5), (2 * depth / 3, 0.5)],
        vec![(depth / 10, 0.3)],
        vec![(depth / 5, 0.25)],
        vec![(3 * depth / 10, 0.145)],
    ];
    let mut state = State::new(&problem, &options)?;
    for step in 0..=at.iter().copied().max().unwrap_or(0) {
        if at.contains(&step) {
            look(&problem, &state, &choices)?;
        }
        state.advance(&problem, &options)?;
    }
    Ok(())
}

fn look(problem: &Problem, state: &State, choices: &[Vec<(usize, f64)>]) -> Any<()> {
    let (suffix, depth) = (&state.buffer[0].suffix, problem.evaluator.model.config.num_hidden_layers);
    let mut layers: Vec<usize> = choices.iter().flatten().map(|(layer, _)| *layer).chain([5 * depth / 6]).collect();
    layers.sort_unstable();
    layers.dedup();
    let gradient = problem.gradient(0, suffix, &layers)?;
    let candidates = candidates(problem, suffix, &gradient.tokens);
    let exact: Vec<f64> = problem.score(1, suffix, &candidates)?.iter().map(|s| s.loss - gradient.loss).collect();
    let prompt = &problem.prompts[0];
    let ids = [&prompt.with(suffix)[..], &problem.goal.continuation].concat();
    let start = prompt.before.len();
    let moved: Vec<Vec<(usize, u32)>> = candidates.iter().map(|c| c.iter().map(|(i, id)| (start + i, *id)).collect()).collect();
    let mut race = problem.evaluator.race(&ids, ids.len() - problem.goal.continuation.len(), &moved)?;
    let mut expected: Vec<Vec<f64>> = Vec::new();
    let better = 100.0 * exact.iter().filter(|change| **change < 0.0).count() as f64 / CANDIDATES as f64;
    println!("step {}: loss {:.3}, {better:.1}% of candidates improve it", state.step, gradient.loss);
    for layer in &layers {
        race.advance(*layer)?;
        expected.push(race.expected(start, &gradient.residuals[layer])?.into_iter().flatten().collect());
        println!("  behind layer {layer:>2}: rank correlation {:>5.2}", spearman(&expected[expected.len() - 1], &exact));
    }
    for stages in choices {
        let (mut found, mut best) = (0.0, 0.0);
        for draw in 0..DRAWS {
            let mut left = sample(&mut rng::stream(draw as u64, "race quality"), CANDIDATES, WIDTH).into_vec();
            best += left.iter().map(|i| exact[*i]).fold(0.0, f64::min);
            for (layer, share) in stages {
                let of_layer = &expected[layers.iter().position(|l| l == layer).unwrap_or(0)];
                left.sort_by(|a, b| of_layer[*a].total_cmp(&of_layer[*b]));
                left.truncate((left.len() as f64 * share).ceil() as usize);
            }
            found += left.iter().map(|i| exact[*i]).fold(0.0, f64::min);
        }
        let (mut work, mut share, mut from) = (0.0, 1.0, 0);
        for (layer, kept) in stages {
            work += share * (layer - from) as f64 / depth as f64;
            (share, from) = (share * kept, *layer);
        }
        work += share * (depth - from) as f64 / depth as f64;
        println!("  {stages:?}: work {work:.2}, finds {:.0}% of the best improvement", 100.0 * found / best);
    }
    Ok(())
}

/// Single replacements among the tokens that the gradient expects most of.
fn candidates(problem: &Problem, suffix: &[u32], gradient: &[f32]) -> Vec<Vec<(usize, u32)>> {
    let rows = gradient.chunks_exact(gradient.len() / suffix.len()).zip(suffix);
    let best: Vec<Vec<u32>> = rows.map(|(row, id)| problem.tokens.best(row, *id, TOP_K)).collect();
    let (mut rng, mut candidates) = (rng::stream(5, "race quality"), Vec::new());
    while candidates.len() < CANDIDATES {
        let place = rng.random_range(0..suffix.len());
        let mut changed = suffix.to_vec();
        changed[place] = best[place][rng.random_range(0..best[place].len())];
        if problem.survives(1, &changed) {
            candidates.push(vec![(place, changed[place])]);
        }
    }
    candidates
}

fn spearman(a: &[f64], b: &[f64]) -> f64 {
    let ranks = |x: &[f64]| {
        let mut order: Vec<usize> = (0..x.len()).collect();
        order.sort_by(|i, j| x[*i].total_cmp(&x[*j]));
        let mut ranks = vec![0.0; x.len()];
        order.into_iter().enumerate().for_each(|(rank, i)| ranks[i] = rank as f64);
        ranks
    };
    let (a, b, middle) = (ranks(a), ranks(b), (a.len() - 1) as f64 / 2.0);
    let product = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| (x - middle) * (y - middle)).sum::<f64>();
    product(&a, &b) / (product(&a, &a) * product(&b, &b)).sqrt()
}
