//! A soft suffix: embeddings found by gradient descent, which need not be those of tokens, and the
//! nearest tokens (Schwinn et al. 2024, "Soft Prompt Threats"). The difference of their losses
//! shows how much of what embeddings allow tokens can reach.

use super::problem::Problem;
use super::state::{Descent, ScoredSuffix, SearchState, Step};
use crate::error::Result;

/// Learning rate of Adam in units of the embeddings' own root mean square.
const RATE: f32 = 0.2;

/// Decay rates of the moments, as Kingma and Ba (2015) give them.
const BETAS: [f32; 2] = [0.9, 0.999];

/// Takes one step down the gradient and scores the nearest tokens.
///
/// # Errors
/// Those of the evaluator.
pub fn advance(state: &mut SearchState, problem: &Problem) -> Result<Step> {
    let model = problem.evaluator.model;
    let start = || -> Vec<f32> {
        state.buffer[0].suffix.iter().flat_map(|id| model.embedding(*id)).collect()
    };
    let mut descent = state.soft.take().unwrap_or_else(|| {
        let embeddings = start();
        let zeros = vec![0f32; embeddings.len()];
        Descent { moments: [zeros.clone(), zeros], embeddings, best: f64::INFINITY, reached: None }
    });
    let (mut sum, mut loss, mut says) = (vec![0f32; descent.embeddings.len()], 0.0, true);
    for prompt in 0..state.prompts {
        let (gradient, says_it) =
            problem.soft_gradient(prompt, &state.buffer[0].suffix, &descent.embeddings)?;
        sum.iter_mut().zip(&gradient.embeddings).for_each(|(sum, g)| *sum += g);
        loss += gradient.loss / state.prompts as f64;
        says &= says_it;
    }
    descent.best = descent.best.min(loss);
    if says && state.prompts == problem.prompts.len() && descent.reached.is_none() {
        descent.reached = Some(state.step + 1);
    }
    let norm = sum.iter().map(|g| g * g).sum::<f32>().sqrt();
    if norm.is_finite() && norm > 0.0 {
        descend(&mut descent, &sum, state.step as i32 + 1);
    }
    let nearest = problem.tokens.nearest(model, &descent.embeddings);
    state.soft = Some(descent);
    let score = problem.score(state.prompts, &nearest, &[vec![]])?[0];
    let (candidates, prompts) = (1, state.prompts);
    let step = Step {
        candidates,
        exact: 1,
        reached: usize::from(score.reached),
        prompts,
        loss: 0.0,
        best: 0.0,
    };
    state.record(vec![(nearest, score)], problem, step, |scored, buffer| {
        *buffer = vec![ScoredSuffix::new(&scored[0])]
    })
}

/// Makes one update of Adam (Kingma and Ba 2015).
fn descend(descent: &mut Descent, gradient: &[f32], step: i32) {
    let size = (descent.embeddings.iter().map(|e| e * e).sum::<f32>()
        / descent.embeddings.len().max(1) as f32)
        .sqrt();
    let corrections = BETAS.map(|beta| 1.0 - beta.powi(step));
    let [first, second] = &mut descent.moments;
    for (((e, g), m), v) in descent.embeddings.iter_mut().zip(gradient).zip(first).zip(second) {
        *m = BETAS[0] * *m + (1.0 - BETAS[0]) * g;
        *v = BETAS[1] * *v + (1.0 - BETAS[1]) * g * g;
        *e -= RATE * size * (*m / corrections[0]) / ((*v / corrections[1]).sqrt() + 1e-12);
    }
}
