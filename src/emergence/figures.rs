//! The figures of a run, as `--json` has them.

use serde::{Deserialize, Serialize};

use super::explained::Estimate;
use super::interactions::Interaction;
use super::measure::{Replacement, Scale};
use super::sets::Measure;
use super::surrogate::Function;
use crate::edit::Component;

/// A model whose single lesions explain less than its surrogate's by a smaller share than this is
/// called the sum of its parts: what "enough" leaves over, 100% - 95%.
const NEGLIGIBLE: f64 = 0.05;

/// The answer to whether the whole is the sum of its parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Single lesions explain the model as they explain its additive surrogate, or less by fewer
    /// than 5 points.
    SumOfParts,
    /// They explain less of the model.
    NotSumOfParts,
    /// The interval allows for both.
    Undecided,
    /// The fits fail on the surrogate itself, or there is no interval.
    NotJudged,
}

impl Verdict {
    /// Judges the difference in shares between the surrogate and the model, as in
    /// [`Emergence::beyond_surrogate`].
    pub fn of(beyond_surrogate: Option<&Estimate>) -> Self {
        match beyond_surrogate.and_then(|beyond| beyond.interval) {
            None => Self::NotJudged,
            Some((_, high)) if high < NEGLIGIBLE => Self::SumOfParts,
            Some((low, _)) if low > 0.0 => Self::NotSumOfParts,
            Some(_) => Self::Undecided,
        }
    }
}

/// Shares of the variance that polynomials of each order explain on sets held out from the fit.
#[derive(Debug, Clone, Serialize)]
pub struct OrderShares {
    /// The function of sets.
    pub function: Function,
    /// The quantity.
    pub scale: Scale,
    /// The share that polynomials of at most order 1, 2, ... explain, at most 1; below 0 where sets
    /// are predicted worse than by the mean.
    pub orders: Vec<Estimate>,
    /// The first order that explains 95%; `None` if it is beyond `orders`.
    pub order_for_95: Option<usize>,
    /// The number of sets that the surrogate or a planted reference does not survive.
    pub dead: usize,
}

/// The Walsh-Fourier weights over all subsets, each as likely, dead ones included: exact, or
/// estimated from drawn subsets.
#[derive(Debug, Clone, Serialize)]
pub struct Spectrum {
    /// The function of sets.
    pub function: Function,
    /// The quantity.
    pub scale: Scale,
    /// The share of the variance on each order from 1; if exact, they add up to 1.
    pub orders: Vec<Estimate>,
    /// The share on all orders up to each.
    pub cumulative: Vec<Estimate>,
    /// True if all subsets were run; else estimated from those that were drawn.
    pub exact: bool,
}

/// The part of the model that low orders leave unexplained, in some of the sets.
#[derive(Debug, Clone, Serialize)]
pub struct UnexplainedAt {
    /// The size of the sets, or the layer that has a lesion in them.
    pub at: usize,
    /// The number of sets.
    pub sets: usize,
    /// Mean square of what order 1 leaves, in variances over all sets.
    pub after_order_1: f64,
    /// Mean square of what order 2 leaves, in variances over all sets; `None` if it was not fitted.
    pub after_order_2: Option<f64>,
}

/// The sets and layers in which low orders leave the model unexplained.
#[derive(Debug, Clone, Serialize)]
pub struct Unexplained {
    /// The quantity.
    pub scale: Scale,
    /// By the number of lesions.
    pub by_size: Vec<UnexplainedAt>,
    /// By the layers that have a lesion; a set counts for each of its layers.
    pub by_layer: Vec<UnexplainedAt>,
}

/// Planted terms, and whether they were found.
#[derive(Debug, Clone, Serialize)]
pub struct PlantedTerms {
    /// The kind.
    pub function: Function,
    /// The parts of each.
    pub terms: Vec<Vec<Component>>,
    /// The number of them among the strongest interactions of their size in the logit, as many as
    /// there are terms.
    pub named: usize,
}

/// All figures of a run: how far the whole is the sum of its parts.
#[derive(Debug, Clone, Serialize)]
pub struct Emergence {
    /// The parts.
    pub parts: Vec<Component>,
    /// The lesion.
    pub replacement: Replacement,
    /// The measure over sets.
    pub measure: Measure,
    /// The size of the largest sets.
    pub largest: usize,
    /// True if all sets of the measure were run; else intervals are over drawn sets too.
    pub exact: bool,
    /// The number of different sets that were run.
    pub sets_run: usize,
    /// The number of different sets that the shares are of.
    pub sets_used: usize,
    /// The number of sets of the measure that leave the model worse than a unigram model.
    pub dead: usize,
    /// The number of texts.
    pub texts: usize,
    /// The number of tokens whose prediction is measured.
    pub tokens: usize,
    /// Every `stride`-th token is measured.
    pub stride: usize,
    /// Loss of the intact model, nats per token.
    pub baseline_loss: f64,
    /// Loss of the unigram model, nats per token.
    pub unigram_loss: f64,
    /// Shares by order, of each function and scale.
    pub shares: Vec<OrderShares>,
    /// Shares by order of the model and its surrogate where dead sets count too; none if there are
    /// none, or if a value is not finite.
    pub with_dead: Vec<OrderShares>,
    /// Share of the model's variance that the surrogate, without any fit, predicts: in the loss and
    /// in the logit.
    pub sum_of_parts: [Estimate; 2],
    /// The share that order 1 explains of the surrogate, minus that of the model: in the loss and
    /// in the logit. `None` where the fits fail on the surrogate itself: order 1 has to explain 99%
    /// of its logit.
    pub beyond_surrogate: [Option<Estimate>; 2],
    /// The same where dead sets count too.
    pub beyond_surrogate_with_dead: [Option<Estimate>; 2],
    /// Spectra over all subsets, if all were run or drawn from and their values are finite.
    pub spectra: Vec<Spectrum>,
    /// Where low orders leave the model unexplained, in the loss and in the logit.
    pub unexplained: Vec<Unexplained>,
    /// The strongest irreducible interactions, by the size of the dividend of the loss.
    pub interactions: Vec<Interaction>,
    /// The planted terms.
    pub planted: Vec<PlantedTerms>,
    /// The strength `D` of the planted terms, nats, mean over the texts.
    pub planted_nats: f64,
    /// False if it was ended early: the figures are of the texts until then.
    pub complete: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_by_hand() {
        let of =
            |low, high| Verdict::of(Some(&Estimate { value: 0.1, interval: Some((low, high)) }));
        assert_eq!(of(0.01, 0.04), Verdict::SumOfParts);
        assert_eq!(of(-0.02, 0.049), Verdict::SumOfParts);
        assert_eq!(of(0.01, 0.06), Verdict::NotSumOfParts);
        assert_eq!(of(-0.01, 0.06), Verdict::Undecided);
        assert_eq!(of(f64::NAN, f64::NAN), Verdict::Undecided);
        assert_eq!(Verdict::of(Some(&Estimate { value: 0.5, interval: None })), Verdict::NotJudged);
        assert_eq!(Verdict::of(None), Verdict::NotJudged);
    }
}
