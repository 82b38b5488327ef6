//! A screen: estimates many interactions with one gradient per component instead of one forward per
//! pair.
//!
//! With `a` ablated, a gradient estimates to first order the effect of ablating each other
//! component; without any lesion, another gradient estimates the same for the intact model. The
//! difference is how the absence of `a` changes the effect of `b`: an estimate of `I(a, b)`. Where
//! both orders were computed there are two estimates, of which the mean is taken, so that `n + 1`
//! gradients replace `n (n - 1) / 2` forwards. With a limit, only that many components are ablated,
//! those with the largest estimated effect of their own; pairs of two others have no estimate. A
//! first-order estimate misses saturation: while the second of two backups still determines the
//! answer, its gradient is small, and so is the estimate, though still larger than for other pairs.
//! So the estimates only rank pairs; what is reported is measured.

use super::Progress;
use super::sets::set_of_lesions;
use crate::edit::{Action, Component, Trial};
use crate::error::Result;
use crate::evaluate::ModelEvaluator;

/// Estimated interactions, nats per token.
pub struct Screened {
    /// For each component, the estimates of its interactions with all others, if it was ablated.
    estimates: Vec<Option<Vec<f64>>>,
}

impl Screened {
    /// Returns the estimate of a pair, given by two indices into the list of components; `None` if
    /// neither of them was ablated.
    pub fn estimate(&self, (a, b): (usize, usize)) -> Option<f64> {
        let one = |a: usize, b: usize| self.estimates[a].as_ref().map(|row| row[b]);
        match (one(a, b), one(b, a)) {
            (Some(x), Some(y)) => Some(0.5 * (x + y)),
            (one, other) => one.or(other),
        }
    }
}

/// The number of trials whose gradients are taken in one call.
const CHUNK: usize = 8;

/// Estimates the interactions of pairs of these components on one text, with a gradient for each of
/// at most `limit` of them.
///
/// # Errors
/// As [`ModelEvaluator::first_order`].
pub fn screen(
    evaluator: &ModelEvaluator,
    text: &Trial,
    components: &[Component],
    action: Action,
    limit: usize,
    progress: Progress,
) -> Result<Screened> {
    let n = components.len();
    // A gradient estimates the effect of ablating an expert, not of routing its tokens elsewhere.
    let direction = if action == Action::Mean { Action::Mean } else { Action::Zero };
    let intact =
        evaluator.first_order(std::slice::from_ref(text), components, direction)?.remove(0);
    let mut ablated: Vec<usize> = (0..n).collect();
    ablated.sort_by(|a, b| intact[*b].abs().total_cmp(&intact[*a].abs()).then(a.cmp(b)));
    ablated.truncate(limit);
    ablated.sort_unstable();
    let mut estimates = vec![None; n];
    for chunk in ablated.chunks(CHUNK) {
        let trials: Vec<Trial> = chunk
            .iter()
            .map(|&a| text.with_edits(set_of_lesions(&[components[a]], action)))
            .collect();
        let lesioned = evaluator.first_order(&trials, components, direction)?;
        for (&a, effects) in chunk.iter().zip(lesioned) {
            // A lesion that breaks everything has no finite gradient; such pairs rank first.
            let finite = |x: f64| if x.is_finite() { x } else { f64::MAX };
            let row = effects.iter().zip(&intact).map(|(with, without)| finite(with - without));
            estimates[a] = Some(row.collect());
        }
        progress(chunk.len() as u64, ablated.len() as u64);
    }
    Ok(Screened { estimates })
}
