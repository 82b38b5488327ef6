//! Comparison of models: the same campaigns and sweeps on each, with intervals.
//!
//! The figures come from campaigns over several seeds, a sweep of the vocabulary, lesion sweeps and
//! sets of lesions, as the other commands run them. A figure that varies with the seed has an
//! interval over the seeds (Student's t), a share of a fixed set of tokens or components a binomial
//! one (Wilson), and shares of variance one over texts and sets (bootstrap). Figures that have no
//! meaning for a model are listed as not applicable.

mod measure;
mod spectrum;

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Deserializer, Serialize};

pub use measure::{Progress, measure};
pub use spectrum::{EmergenceSpectrum, Explained, ScaleSpectrum};

use crate::model::ModelRef;
use crate::{stats, storage};

/// Version of `comparison.json`.
pub const SCHEMA_VERSION: u32 = 1;

/// The figures of several models, as `comparison.json` holds them.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Comparison {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// The number of evaluations of each campaign.
    pub max_evals: u64,
    /// The seeds of the campaigns.
    pub seeds: Vec<u64>,
    /// The models, in the order they were given in.
    pub models: Vec<ModelFigures>,
}

/// The figures of one model.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelFigures {
    /// The model.
    pub model: ModelRef,
    /// Its family, as `config.json` names it.
    pub model_type: String,
    /// The number of parameters.
    pub parameters: usize,
    /// Loss on the reference text, nats per token.
    pub loss: f64,
    /// Confirmed and minimized findings per 1,000 evaluations, by oracle, without the oracles that
    /// do not apply.
    pub findings: BTreeMap<String, Estimate>,
    /// The same for all oracles together.
    pub all_findings: Estimate,
    /// The share of matched controls that the same thresholds flag, over all seeds.
    pub controls_flagged: Share,
    /// The share of the tested tokens that the model cannot repeat; `None` if it cannot repeat
    /// ordinary ones.
    pub glitch_tokens: Option<Share>,
    /// The share of the cases compared with controls in which some component is specific
    /// ([`Role::Specific`](crate::localize::Role)). `None` in comparisons of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub with_specific: Option<Share>,
    /// The number of places of a case's graph, over the cases with a faithful one
    /// ([`Graph::is_faithful`](crate::localize::Graph::is_faithful)). `None` in comparisons of
    /// earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub graph_places: Option<Spread>,
    /// The share of the cases with a symptom that have no faithful graph. `None` in comparisons of
    /// earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub without_graph: Option<Share>,
    /// The number of named components for 80% of a case's effect, in comparisons of earlier
    /// versions; it is read and no longer shown, because only what is specific is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concentration: Option<Spread>,
    /// The share of cases whose named components do less, in comparisons of earlier versions; it is
    /// read and no longer shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub diffuse: Option<Share>,
    /// The share of the absolute Harsanyi dividends of a case's strongest components that pairs and
    /// larger sets of them have
    /// ([`Interactions::sufficient`](crate::localize::Interactions::sufficient)).
    ///
    /// `None` in comparisons of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub joint: Option<Spread>,
    /// The emergence of cases as earlier versions measured it; it is read and no longer shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub emergence: Option<Spread>,
    /// The effects of sets of zeroed blocks against those of their members; `None` in comparisons
    /// of earlier versions, where it was left out, and where it has no meaning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spectrum: Option<EmergenceSpectrum>,
    /// In a mixture of experts, the share of a case's effect that acts through routing.
    pub routing: Option<Spread>,
    /// The interaction of every pair of blocks (a layer's mixer or MLP) on the reference text, in
    /// units of the larger single effect ([`PairRow::ratio`](crate::sweep::PairRow::ratio)).
    pub interaction: Spread,
    /// The share of those pairs that do more harm together than the sum.
    pub redundant: Share,
    /// The share of single lesions that raise the loss on the reference text by at least
    /// [`HARMFUL`] nats per token, by kind.
    pub harmful: BTreeMap<String, Share>,
    /// The parts of the comparison that have no meaning for this model.
    pub not_applicable: Vec<String>,
}

/// The increase of the loss, in nats per token, from which a lesion counts as harmful: perplexity
/// times 1.1.
pub const HARMFUL: f64 = 0.1;

/// A figure measured once for every seed.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Estimate {
    /// Mean over the seeds.
    pub mean: f64,
    /// Lower end of the mean's 95% interval by Student's t; the value itself for a single seed.
    pub low: f64,
    /// Upper end of the interval.
    pub high: f64,
    /// The value of each seed.
    pub values: Vec<f64>,
}

/// A share of a total, with its 95% interval (Wilson 1927).
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Share {
    /// The counted part.
    pub count: u64,
    /// The total.
    #[serde(rename = "of")]
    pub total: u64,
    /// `count / total`; 0 if there are none.
    pub share: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end of the interval.
    pub high: f64,
}

/// Median and quartiles of some values.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spread {
    /// The number of values.
    pub n: usize,
    /// The median.
    #[serde(deserialize_with = "nan_if_null")]
    pub median: f64,
    /// The 25th percentile.
    #[serde(deserialize_with = "nan_if_null")]
    pub lower_quartile: f64,
    /// The 75th percentile.
    #[serde(deserialize_with = "nan_if_null")]
    pub upper_quartile: f64,
}

/// Reads a number that may be missing: JSON has no NaN, and holds `null` in its place.
fn nan_if_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

impl Comparison {
    /// Reads a `comparison.json`.
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File) for a file that is missing, is no comparison, or is of a
    /// later version.
    pub fn read(path: &Path) -> crate::Result<Self> {
        let all: Self = storage::read_json(path)?;
        storage::check_version(path, all.schema_version, SCHEMA_VERSION)?;
        Ok(all)
    }
}

impl Estimate {
    /// Takes mean and interval of one value for each seed.
    pub fn new(values: Vec<f64>) -> Self {
        let mean = values.iter().sum::<f64>() / values.len().max(1) as f64;
        let half = stats::t_half_width(&values);
        Self { mean, low: mean - half, high: mean + half, values }
    }
}

impl Share {
    /// Takes the share and its interval.
    pub fn new(count: u64, total: u64) -> Self {
        let (low, high) = stats::wilson(count, total.max(1), 1.96);
        Self { count, total, share: count as f64 / total.max(1) as f64, low, high }
    }
}

impl Spread {
    /// Takes median and quartiles; without values they are NaN (`null` in JSON).
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

    #[test]
    fn comparisons_of_earlier_versions_are_read_and_unknown_fields_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("comparison.json");
        // As version 0.1 wrote it.
        let nothing = serde_json::json!({
            "n": 0, "median": null, "lower_quartile": null, "upper_quartile": null
        });
        let none = serde_json::json!({"count": 0, "of": 1, "share": 0.0, "low": 0.0, "high": 0.8});
        let mean = serde_json::json!({"mean": 1.0, "low": 0.5, "high": 1.5, "values": [0.9, 1.1]});
        let mut all = serde_json::json!({
            "schema_version": 1, "max_evals": 10, "seeds": [1, 2], "models": [{
                "model": {"name": "builtin:dense", "fingerprint": "f", "tokenizer": "t"},
                "model_type": "llama", "parameters": 12, "loss": 3.0, "findings": {"echo": mean},
                "all_findings": mean, "controls_flagged": none, "glitch_tokens": null,
                "concentration": nothing, "diffuse": none, "emergence": nothing, "routing": null,
                "interaction": nothing, "redundant": none, "harmful": {}, "not_applicable": []
            }]
        });
        let read = |all: &serde_json::Value| {
            std::fs::write(&path, all.to_string()).unwrap();
            Comparison::read(&path)
        };
        let model = read(&all).unwrap().models.remove(0);
        assert!(model.spectrum.is_none() && model.joint.is_none() && model.emergence.is_some());
        assert!(model.graph_places.is_none() && model.diffuse.is_some());
        all["models"][0]["spectra"] = nothing;
        let error = read(&all).unwrap_err().to_string();
        assert!(error.contains("spectra"), "{error}");
    }
}
