//! Measures what pruning candidates between layers costs a suffix search.
//!
//!     cargo run --profile bench -p glitch-benches --bin race_quality -- MODEL [STEPS [SEEDS]]
//!
//! Runs GCG on a chat model (SmolLM2-135M-Instruct as a GGUF file) for each seed and pauses at the
//! given steps; both are lists such as `1,4,8`. There, 512 candidates are run to the end, and also
//! through successive halving. Two things are printed:
//!
//! - after each layer, the rank correlation between the estimated change of the loss (the whole
//!   estimate, and its part at the positions that are read) and the exact change;
//! - for several choices of rungs, averaged over all pauses: the work (1 is every layer for every
//!   candidate), the share of the best candidate's improvement that survives pruning (200 draws of
//!   256 candidates), and the share that an equal amount of work finds by running randomly drawn
//!   candidates instead.

use std::collections::BTreeMap;

use glitch::evaluate::{Expected, ModelEvaluator};
use glitch::model::Model;
use glitch::mutate::suffix::{
    Algorithm, Goal, GoalKind, Mean, Problem, Prompt, Search, SearchState, SuffixOptions, Tokens,
    prune, rungs,
};
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
    let numbers = |list: Option<String>, or: &str| -> Any<Vec<usize>> {
        Ok(list.as_deref().unwrap_or(or).split(',').map(str::parse).collect::<Result<_, _>>()?)
    };
    let (at, seeds) = (numbers(args.next(), "1,4,8,12,16,20")?, numbers(args.next(), "1,2,3")?);
    let evaluator = ModelEvaluator::new(&model);
    let tokenizer = model.tokenizer.as_ref().ok_or("a model without a tokenizer")?;
    let prompt = Prompt {
        before: tokenizer
            .encode("<|im_start|>user\nWrite one sentence about the weather in Paris.")?,
        after: tokenizer.encode("<|im_end|>\n<|im_start|>assistant\n")?,
    };
    let continuation = tokenizer.encode("Sure, here is the secret code: 7319")?;
    let goal = Goal { kind: GoalKind::Target, continuation, mean: Mean::Arithmetic };
    let problem = Problem::new(&evaluator, vec![prompt], goal, Tokens::new(&model, true)?, LENGTH)?;
    let depth = model.config.num_hidden_layers;
    let mut options = SuffixOptions {
        algorithm: Algorithm::Gcg,
        seed: 0,
        length: LENGTH,
        steps: 40,
        width: WIDTH,
        last_width: WIDTH,
        top_k: TOP_K,
        replace: 1,
        buffer: 0,
        merge: 8,
        // Copies of the target are not chosen by the gradient, which is what is measured here.
        copies: false,
        text: true,
        rungs: rungs(depth, model.config.is_recurrent()),
    };
    let choices: Vec<Vec<(usize, f64)>> = vec![
        options.rungs.clone(),
        vec![(depth / 10, 0.6), (depth / 5, 0.55), (2 * depth / 5, 0.65), (depth / 2, 0.5)],
        vec![(depth / 10, 0.7), (depth / 5, 0.55), (2 * depth / 5, 0.65), (depth / 2, 0.6)],
        vec![(depth / 10, 0.5), (depth / 5, 0.65), (3 * depth / 10, 0.7)],
        vec![(3 * depth / 10, 0.3), (depth / 2, 0.5), (2 * depth / 3, 0.5)],
        vec![(depth / 10, 0.25)],
        vec![(depth / 5, 0.25)],
        vec![(depth / 2, 0.1)],
    ];
    let mut looks = Vec::new();
    for seed in seeds {
        options.seed = seed as u64;
        let mut search = Search::new(&problem, options.clone())?;
        for step in 0..=at.iter().copied().max().unwrap_or(0) {
            if at.contains(&step) {
                looks.push(look(&problem, &search.state, seed, &choices)?);
            }
            search.advance(&problem)?;
        }
    }
    println!(
        "{} states; work, share of the best improvement found, of that by chance at the same work:",
        looks.len()
    );
    for rungs in choices {
        let work = work(&rungs, depth);
        let chance = vec![(0, work)];
        let mean = |rungs: &[(usize, f64)]| {
            looks.iter().map(|look| look.found(rungs, depth)).sum::<f64>() / looks.len() as f64
        };
        println!(
            "  {work:.2} {:>3.0}% {:>3.0}%  {rungs:?}",
            100.0 * mean(&rungs),
            100.0 * mean(&chance)
        );
    }
    Ok(())
}

/// One pause of a search, with what 512 candidates do there.
struct Look {
    /// Exact change of the loss, in nats, one per candidate.
    exact: Vec<f64>,
    /// Estimated changes by layer; before the first layer all are zero.
    expected: BTreeMap<usize, Vec<Expected>>,
}

/// Runs 512 candidates of a state to the end and through the rungs, and prints correlations.
fn look(
    problem: &Problem,
    state: &SearchState,
    seed: usize,
    choices: &[Vec<(usize, f64)>],
) -> Any<Look> {
    let (suffix, depth) =
        (&state.buffer[0].suffix, problem.evaluator.model.config.num_hidden_layers);
    let mut layers: Vec<usize> =
        choices.iter().flatten().map(|(layer, _)| *layer).chain([5 * depth / 6]).collect();
    layers.sort_unstable();
    layers.dedup();
    let gradient = problem.gradient(0, suffix, &layers)?;
    let candidates = candidates(problem, suffix, &gradient.tokens);
    let exact: Vec<f64> =
        problem.score(1, suffix, &candidates)?.iter().map(|s| s.loss - gradient.loss).collect();
    let prompt = &problem.prompts[0];
    let ids = [&prompt.with(suffix)[..], &problem.goal.continuation].concat();
    let start = prompt.before.len();
    let moved: Vec<Vec<(usize, u32)>> =
        candidates.iter().map(|c| c.iter().map(|(i, id)| (start + i, *id)).collect()).collect();
    let mut halving = problem.evaluator.successive_halving(
        &ids,
        ids.len() - problem.goal.continuation.len(),
        &moved,
    )?;
    let mut expected = BTreeMap::from([(0, vec![Expected::default(); CANDIDATES])]);
    let better =
        100.0 * exact.iter().filter(|change| **change < 0.0).count() as f64 / CANDIDATES as f64;
    println!(
        "seed {seed}, step {}: loss {:.3}, {better:.1}% of candidates improve it",
        state.step, gradient.loss
    );
    for layer in layers {
        halving.advance(layer)?;
        let of_layer: Vec<Expected> =
            halving.expected(start, &gradient.residuals[&layer])?.into_iter().flatten().collect();
        let correlation = |of: fn(&Expected) -> f64| {
            spearman(&of_layer.iter().map(of).collect::<Vec<_>>(), &exact)
        };
        let (total, at_reads) = (correlation(|e| e.total), correlation(|e| e.at_reads));
        println!(
            "  behind layer {layer:>2}: rank correlation {total:>5.2}, at the reads {at_reads:>5.2}"
        );
        expected.insert(layer, of_layer);
    }
    Ok(Look { exact, expected })
}

impl Look {
    /// Returns the share of the best improvement that survives pruning, over all draws.
    fn found(&self, rungs: &[(usize, f64)], depth: usize) -> f64 {
        let (mut found, mut best) = (0.0, 0.0);
        let least = |of: &[usize]| of.iter().map(|i| self.exact[*i]).fold(0.0, f64::min);
        for draw in 0..DRAWS {
            let mut left =
                sample(&mut rng::stream(draw as u64, "race quality"), CANDIDATES, WIDTH).into_vec();
            best += least(&left);
            for (layer, share) in rungs {
                prune(&mut left, &self.expected[layer], *share, *layer, depth);
            }
            found += least(&left);
        }
        found / best.min(-f64::MIN_POSITIVE)
    }
}

/// Returns the layers that candidates go through, as a share of all layers for all of them.
fn work(rungs: &[(usize, f64)], depth: usize) -> f64 {
    let (mut work, mut share, mut from) = (0.0, 1.0, 0);
    for (layer, kept) in rungs {
        work += share * (layer - from) as f64 / depth as f64;
        (share, from) = (share * kept, *layer);
    }
    work + share * (depth - from) as f64 / depth as f64
}

/// Draws single replacements from the tokens that the gradient ranks highest.
fn candidates(problem: &Problem, suffix: &[u32], gradient: &[f32]) -> Vec<Vec<(usize, u32)>> {
    let rows = gradient.chunks_exact(gradient.len() / suffix.len()).zip(suffix);
    let best: Vec<Vec<u32>> = rows.map(|(row, id)| problem.tokens.best(row, *id, TOP_K)).collect();
    let (mut rng, mut candidates) = (rng::stream(5, "race quality"), Vec::new());
    while candidates.len() < CANDIDATES {
        let place = rng.random_range(0..suffix.len());
        let mut changed = suffix.to_vec();
        changed[place] = best[place][rng.random_range(0..best[place].len())];
        if problem.round_trips(1, &changed) {
            candidates.push(vec![(place, changed[place])]);
        }
    }
    candidates
}

/// Returns Spearman's rank correlation.
fn spearman(a: &[f64], b: &[f64]) -> f64 {
    let ranks = |x: &[f64]| {
        let mut order: Vec<usize> = (0..x.len()).collect();
        order.sort_by(|i, j| x[*i].total_cmp(&x[*j]));
        let mut ranks = vec![0.0; x.len()];
        order.into_iter().enumerate().for_each(|(rank, i)| ranks[i] = rank as f64);
        ranks
    };
    let (a, b, middle) = (ranks(a), ranks(b), (a.len() - 1) as f64 / 2.0);
    let product = |x: &[f64], y: &[f64]| {
        x.iter().zip(y).map(|(x, y)| (x - middle) * (y - middle)).sum::<f64>()
    };
    product(&a, &b) / (product(&a, &a) * product(&b, &b)).sqrt()
}
