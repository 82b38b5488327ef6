//! A screen: estimates every interaction of many components with one gradient per component instead
//! of one forward per pair.
//!
//! With `a` ablated, a gradient estimates to first order the effect of ablating each other
//! component; without any lesion, another gradient estimates the same for the intact model. The
//! difference is how the absence of `a` changes the effect of `b`: an estimate of `I(a, b)`. The
//! two orders give two estimates, of which the mean is taken, so that `n + 1` gradients replace
//! `n (n - 1) / 2` forwards. A first-order estimate misses saturation: while the second of two
//! backups still determines the answer, its gradient is small, and so is the estimate, though still
//! larger than for other pairs. So the estimates only rank pairs; what is reported is measured.

use super::Progress;
use super::sets::set_of_lesions;
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
    /// Returns the estimate of a pair, given by two indices into the list of components.
    pub fn estimate(&self, (a, b): (usize, usize)) -> f64 {
        self.estimates[a * self.n + b]
    }
}

/// The number of trials whose gradients are taken in one call.
const CHUNK: usize = 8;

/// Estimates the interaction of every pair of these components on one text.
///
/// # Errors
/// As [`ModelEvaluator::first_order`].
pub fn screen(
    evaluator: &ModelEvaluator,
    text: &Trial,
    components: &[Component],
    action: Action,
    progress: Progress,
) -> Result<Screened> {
    let n = components.len();
    // A gradient estimates the effect of ablating an expert, not of routing its tokens elsewhere.
    let direction = if action == Action::Mean { Action::Mean } else { Action::Zero };
    let intact =
        evaluator.first_order(std::slice::from_ref(text), components, direction)?.remove(0);
    let trials: Vec<Trial> =
        components.iter().map(|&c| text.with_edits(set_of_lesions(&[c], action))).collect();
    let mut lesioned = Vec::with_capacity(n);
    for chunk in trials.chunks(CHUNK) {
        lesioned.extend(evaluator.first_order(chunk, components, direction)?);
        progress(chunk.len() as u64, n as u64);
    }
    let mut estimates = vec![0.0; n * n];
    for a in 0..n {
        for b in (0..n).filter(|&b| b != a) {
            // A lesion that breaks everything has no finite gradient; such pairs rank first.
            let estimate = 0.5 * (lesioned[a][b] - intact[b] + lesioned[b][a] - intact[a]);
            estimates[a * n + b] = if estimate.is_finite() { estimate } else { f64::MAX };
        }
    }
    Ok(Screened { n, estimates })
}
