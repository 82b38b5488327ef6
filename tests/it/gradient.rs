//! The gradient mode: every hooked variable has a gradient, and finite differences agree.

use candle_core::{Tensor, Var};
use glitch::edit::Matrix;
use glitch::model::batch::Row;
use glitch::model::hooks::{Block, Change, Knockout, Site, WeightEdit};
use glitch::model::{Forward, Model};

use super::parity::{ATTENTION, RECURRENT, load};

/// Negative log-probability of one token at the last position, as a function of the embeddings.
fn loss(model: &Model, forward: &Forward, embeddings: &Tensor) -> Tensor {
    let logits = model.forward_gradient(forward, embeddings).unwrap();
    let last = logits.get(logits.dim(0).unwrap() - 1).unwrap();
    let log_sum = last.exp().unwrap().sum_all().unwrap().log().unwrap();
    (log_sum - last.get(7).unwrap()).unwrap()
}

/// Which experts each token goes to in each layer, when the rows start from these embeddings.
fn routing(model: &Model, rows: &[Row], embeddings: &[f32]) -> Vec<Vec<usize>> {
    let Some(experts) = &model.config.experts else { return Vec::new() };
    let tokens = rows.iter().map(|row| row.ids.len()).sum();
    let mut forward = Forward { rows: rows.to_vec(), ..Forward::default() };
    let change = Change::Affine { scale: 0.0, shift: Some(embeddings.into()) };
    forward.hooks.push(
        0,
        Site::Embed,
        Block { tokens: 0..tokens, columns: 0..model.config.hidden_size, change },
    );
    forward.hooks.capture =
        (0..model.config.num_hidden_layers).map(|layer| (layer, Site::RouterLogits)).collect();
    let captured = model.forward(&forward).unwrap().captured;
    let logits = captured.values().flat_map(|logits| logits.chunks_exact(experts.num_experts));
    let chosen = |logits: &[f32]| {
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
        order.truncate(experts.num_experts_per_tok);
        order.sort_unstable();
        order
    };
    logits.map(chosen).collect()
}

fn check(name: &str, prepare: impl Fn(&mut Forward)) {
    let model = load(name);
    let mut forward =
        Forward { rows: vec![Row::new(vec![5, 17, 3, 60, 22, 9])], ..Forward::default() };
    prepare(&mut forward);
    let start = model.embed_tensor(&forward).unwrap();
    let var = Var::from_tensor(&start).unwrap();
    let gradients = loss(&model, &forward, var.as_tensor()).backward().unwrap();
    let gradient = gradients.get(&var).expect("the embeddings have a gradient");
    let gradient: Vec<f32> = gradient.flatten_all().unwrap().to_vec1().unwrap();
    let values: Vec<f32> = start.flatten_all().unwrap().to_vec1().unwrap();
    let mut order: Vec<usize> = (0..gradient.len()).collect();
    order.sort_by(|a, b| gradient[*b].abs().total_cmp(&gradient[*a].abs()));
    assert!(gradient[order[0]].abs() > 1e-3, "{name}: a gradient of nothing");
    let width = model.config.hidden_size;
    for row in 0..6 {
        assert!(
            gradient[row * width..][..width].iter().any(|g| *g != 0.0),
            "{name}: position {row} has no gradient"
        );
    }
    let chosen = routing(&model, &forward.rows, &values);
    let mut compared = 0;
    for &i in &order {
        let moved = |h: f32| {
            let mut moved = values.clone();
            moved[i] += h;
            moved
        };
        // Where a token goes to another expert the function has a step, and no derivative to
        // compare with.
        let flips = |h: f32| {
            [h, -h, 2.0 * h, -2.0 * h]
                .iter()
                .any(|h| routing(&model, &forward.rows, &moved(*h)) != chosen)
        };
        let at = |h: f32| {
            let moved = Tensor::from_vec(moved(h), start.shape(), start.device()).unwrap();
            loss(&model, &forward, &moved).to_scalar::<f32>().unwrap()
        };
        // Of fourth order. The wide step is for single precision, the narrow one for where the
        // curve bends.
        let numeric = |h: f32| (8.0 * (at(h) - at(-h)) - (at(2.0 * h) - at(-2.0 * h))) / (12.0 * h);
        let error = |numeric: f32| (gradient[i] - numeric).abs() / gradient[i].abs();
        let steps: Vec<f32> =
            [5e-3, 1e-3].into_iter().filter(|h| !flips(*h)).map(numeric).collect();
        let Some(nearest) = steps.into_iter().min_by(|a, b| error(*a).total_cmp(&error(*b))) else {
            continue;
        };
        assert!(
            error(nearest) <= 1e-2,
            "{name}: entry {i}: {} by backward, {nearest} by differences",
            gradient[i]
        );
        compared += 1;
        if compared == 32 {
            return;
        }
    }
    panic!("{name}: only {compared} entries could be compared");
}

#[test]
fn gradients_agree_with_finite_differences() {
    for name in ATTENTION.into_iter().chain(RECURRENT) {
        check(name, |_| {});
    }
}

#[test]
fn gradients_pass_through_edits() {
    check("llama", |forward| {
        let block = |columns, change| Block { tokens: 0..6, columns, change };
        forward.hooks.push(0, Site::Z, block(0..8, Change::Affine { scale: 0.5, shift: None }));
        forward.hooks.push(
            1,
            Site::MlpOut,
            block(0..32, Change::Affine { scale: 1.0, shift: Some(vec![0.1; 32].into()) }),
        );
        let direction: Vec<f32> = (0..24).map(|i| (i as f32).cos()).collect();
        let change = Change::Clamp { value: 0.5, direction: direction.into() };
        forward.hooks.push(0, Site::ResidPost, Block { tokens: 2..5, columns: 4..28, change });
        forward.hooks.push_weight(
            1,
            Matrix::Down,
            WeightEdit { tokens: 0..6, out: 3, input: 5, delta: 0.7 },
        );
    });
    for name in ["llama", "gemma3", "deepseek-v2"] {
        check(name, |forward| {
            let cut = |tokens, heads, key| Knockout { tokens, heads, key };
            forward.hooks.push_knockout(0, cut(3..6, 0..4, 2));
            forward.hooks.push_knockout(0, cut(5..6, 1..2, 4));
            forward.hooks.push_knockout(1, cut(4..6, 2..4, 0));
        });
    }
    check("olmoe", |forward| {
        for expert in 0..8usize {
            let change = Change::Affine { scale: 0.5, shift: Some(vec![0.1; 32].into()) };
            forward.hooks.push(
                1,
                Site::Experts,
                Block { tokens: 1..5, columns: expert * 32..(expert + 1) * 32, change },
            );
        }
    });
}
