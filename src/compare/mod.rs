//! The same campaign on several models, and what of it can be held against each other.
//!
//! Everything is measured by what the other commands measure: campaigns over several seeds, a sweep
//! of the vocabulary, lesion sweeps. A figure that differs from seed to seed has an interval over
//! the seeds, a share of a fixed set (tokens, components) has one of its own; what has no meaning
//! for a model is said to have none.

mod measure;

use std::collections::BTreeMap;

use serde::Serialize;

pub use measure::{Progress, measure};

use crate::model::ModelRef;
use crate::stats;

/// Version of `comparison.json`.
pub const SCHEMA_VERSION: u32 = 1;

/// A whole comparison.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    pub schema_version: u32,
    /// Trials of each campaign.
    pub max_evals: u64,
    pub seeds: Vec<u64>,
    pub models: Vec<ModelFigures>,
}

/// What was measured on one model.
#[derive(Debug, Clone, Serialize)]
pub struct ModelFigures {
    pub model: ModelRef,
    pub model_type: String,
    pub parameters: usize,
    /// Loss on the reference text, nats a token.
    pub loss: f64,
    /// Confirmed and minimized findings per 1,000 evaluations, by oracle; those that do not apply
    /// are left out.
    pub findings: BTreeMap<String, Estimate>,
    /// All of them together.
    pub all_findings: Estimate,
    /// Matched controls that the same thresholds flag, over all seeds.
    pub controls_flagged: Share,
    /// Tokens that the model cannot repeat, of those tested; `None` where it cannot repeat ordinary
    /// ones.
    pub glitch_tokens: Option<Share>,
    /// Components (the strongest first) that together remove 80% of a case's effect when they are
    /// given their clean outputs: over all cases that were implicated.
    pub concentration: Spread,
    /// Of those cases, how many need more components than were tried together.
    pub diffuse: Share,
    /// [`Implication::emergence`](crate::localize::Implication::emergence) over the cases of more
    /// than one component.
    pub emergence: Spread,
    /// Of a mixture of experts: the share of a case's effect that acts through routing.
    pub routing: Option<Spread>,
    /// Two blocks (a layer's mixer or its MLP) removed together, every pair of them on the
    /// reference text: the interaction in units of the larger of the two single effects
    /// ([`PairRow::ratio`](crate::sweep::PairRow::ratio)).
    pub interaction: Spread,
    /// Of those pairs, how many do more harm together than the sum.
    pub redundant: Share,
    /// Single lesions that raise the loss on the reference text by [`HARMFUL`] nats a token or
    /// more, by kind.
    pub harmful: BTreeMap<String, Share>,
    /// What of the comparison has no meaning for this model.
    pub not_applicable: Vec<String>,
}

/// Nats a token of loss from which a lesion counts as harmful: perplexity times 1.1.
pub const HARMFUL: f64 = 0.1;

/// A figure measured once a seed.
#[derive(Debug, Clone, Serialize)]
pub struct Estimate {
    pub mean: f64,
    /// 95% interval of the mean by Student's t; the value itself where there is one seed.
    pub low: f64,
    pub high: f64,
    pub values: Vec<f64>,
}

/// A share of a count, with its 95% interval (Wilson 1927).
#[derive(Debug, Clone, Serialize)]
pub struct Share {
    pub count: u64,
    pub of: u64,
    pub share: f64,
    pub low: f64,
    pub high: f64,
}

/// Median and quartiles.
#[derive(Debug, Clone, Serialize)]
pub struct Spread {
    pub n: usize,
    pub median: f64,
    pub lower_quartile: f64,
    pub upper_quartile: f64,
}

impl Estimate {
    pub fn new(values: Vec<f64>) -> Self {
        let mean = values.iter().sum::<f64>() / values.len().max(1) as f64;
        let half = stats::t_half_width(&values);
        Self { mean, low: mean - half, high: mean + half, values }
    }
}

impl Share {
    pub fn new(count: u64, of: u64) -> Self {
        let (low, high) = stats::wilson(count, of.max(1), 1.96);
        Self { count, of, share: count as f64 / of.max(1) as f64, low, high }
    }
}

impl Spread {
    /// `n` is 0 and the rest NaN (`null` in JSON) of nothing.
    pub fn new(values: &[f64]) -> Self {
        let at = |q| if values.is_empty() { f64::NAN } else { stats::quantile(values, q) };
        Self {
            n: values.len(),
            median: at(0.5),
            lower_quartile: at(0.25),
            upper_quartile: at(0.75),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_estimate_is_as_wide_as_its_seeds_differ() {
        let same = Estimate::new(vec![3.0, 3.0, 3.0]);
        assert_eq!((same.mean, same.low, same.high), (3.0, 3.0, 3.0));
        let one = Estimate::new(vec![5.0]);
        assert_eq!((one.low, one.high), (5.0, 5.0));
        // 1, 2, 3: standard error 1/sqrt(3), t of two degrees of freedom 4.303.
        let three = Estimate::new(vec![1.0, 2.0, 3.0]);
        assert!(
            (three.high - (2.0 + 4.303 / 3f64.sqrt())).abs() < 1e-3
                && (three.low + three.high - 4.0).abs() < 1e-9
        );
    }

    #[test]
    fn shares_and_spreads_of_nothing_are_no_numbers_to_be_taken_for_some() {
        let none = Share::new(0, 0);
        assert_eq!((none.share, none.low), (0.0, 0.0));
        assert!(none.high > 0.7);
        assert!(Spread::new(&[]).median.is_nan());
        assert_eq!(Spread::new(&[1.0, 2.0, 9.0]).median, 2.0);
    }
}
