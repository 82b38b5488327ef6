//! The gradient mode: every hooked variable has a gradient, and finite differences agree.

use candle_core::{Tensor, Var};
use glitch::edit::Matrix;
use glitch::model::batch::Row;
use glitch::model::hooks::{Block, Change, Site, WeightEdit};
use glitch::model::{Forward, Model};

use super::parity::load;

/// Negative log-probability of one token at the last position, as a function of the embeddings.
fn loss(model: &Model, forward: &Forward, embeddings: &Tensor) -> Tensor {
    let logits = model.forward_gradient(forward, embeddings).unwrap();
    let last = logits.get(logits.dim(0).unwrap() - 1).unwrap();
    let log_sum = last.exp().unwrap().sum_all().unwrap().log().unwrap();
    (log_sum - last.get(7).unwrap()).unwrap()
}

fn check(name: &str, prepare: impl Fn(&mut Forward)) {
    let model = load(name);
    let mut forward = Forward { rows: vec![Row::new(vec![5, 17, 3, 60, 22, 9])], ..Forward::default() };
    prepare(&mut forward);
    let start: Tensor = model.embed(&forward).unwrap();
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
        assert!(gradient[row * width..][..width].iter().any(|g| *g != 0.0), "{name}: position {row} has no gradient");
    }
    let at = |i: usize, h: f32| {
        let mut moved = values.clone();
        moved[i] += h;
        let moved = Tensor::from_vec(moved, start.shape(), start.device()).unwrap();
        loss(&model, &forward, &moved).to_scalar::<f32>().unwrap()
    };
    let h = 2e-2;
    for &i in &order[..32] {
        // Of fourth order, so that a step wide enough for single precision is narrow enough for the curve.
        let numeric = (8.0 * (at(i, h) - at(i, -h)) - (at(i, 2.0 * h) - at(i, -2.0 * h))) / (12.0 * h);
        let error = (gradient[i] - numeric).abs() / gradient[i].abs();
        assert!(error <= 1e-2, "{name}: entry {i}: {} by backward, {numeric} by differences", gradient[i]);
    }
}

#[test]
fn gradients_agree_with_finite_differences() {
    for name in ["llama", "llama-bias", "mistral", "qwen2", "qwen3"] {
        check(name, |_| {});
    }
}

#[test]
fn gradients_pass_through_edits() {
    check("llama", |forward| {
        let block = |columns, change| Block { tokens: 0..6, columns, change };
        forward.hooks.push(0, Site::Z, block(0..8, Change::Affine { scale: 0.5, shift: None }));
        forward.hooks.push(1, Site::MlpOut, block(0..32, Change::Affine { scale: 1.0, shift: Some(vec![0.1; 32].into()) }));
        forward.hooks.push_weight(1, Matrix::Down, WeightEdit { tokens: 0..6, out: 3, input: 5, delta: 0.7 });
    });
}
