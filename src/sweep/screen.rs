//! A cheap guess at every interaction of many components: one gradient a component instead of one
//! run a pair.
//!
//! With `a` gone, a gradient says to first order what switching off each other component would do;
//! without any lesion, another says what it would do to the intact model. The difference is what
//! the absence of `a` makes of `b`: an estimate of `I(a, b)`. The two orders give two estimates,
//! and their mean is taken. `n + 1` gradients stand for `n (n - 1) / 2` runs. What a first order
//! cannot see is a step: where the second of two backups still saturates the answer, its gradient
//! is small, and so is the estimate, though it is larger than that of other pairs. So the estimates
//! are for ranking; what is reported is measured.

use super::Progress;
use super::sets::lesions;
use crate::edit::{Action, Component, Trial};
use crate::error::Result;
use crate::evaluate::ModelEvaluator;

/// Estimated interactions, nats per token.
pub struct Screened {
    n: usize,
    /// `[components, components]`, symmetric.
    estimates: Vec<f64>,
}

impl Screened {
    /// What is expected of a pair, given by two places in the list of components.
    pub fn of(&self, (a, b): (usize, usize)) -> f64 {
        self.estimates[a * self.n + b]
    }
}

/// Trials whose gradients are taken in one call.
const CHUNK: usize = 8;

/// Screens every pair of these components on one text.
pub fn screen(
    evaluator: &ModelEvaluator,
    text: &Trial,
    components: &[Component],
    action: Action,
    progress: Progress,
) -> Result<Screened> {
    let n = components.len();
    // The gradient knows what switching a component off does, not what the router would do instead
    // of it.
    let direction = if action == Action::Mean { Action::Mean } else { Action::Zero };
    let intact =
        evaluator.first_order(std::slice::from_ref(text), components, direction)?.remove(0);
    let trials: Vec<Trial> =
        components.iter().map(|&c| text.with_edits(lesions(&[c], action))).collect();
    let mut given = Vec::with_capacity(n);
    for chunk in trials.chunks(CHUNK) {
        given.extend(evaluator.first_order(chunk, components, direction)?);
        progress(chunk.len() as u64, n as u64);
    }
    let mut estimates = vec![0.0; n * n];
    for a in 0..n {
        for b in (0..n).filter(|&b| b != a) {
            // A lesion that breaks everything has no finite gradient: such pairs are worth a look.
            let estimate = 0.5 * (given[a][b] - intact[b] + given[b][a] - intact[a]);
            estimates[a * n + b] = if estimate.is_finite() { estimate } else { f64::MAX };
        }
    }
    Ok(Screened { n, estimates })
}
