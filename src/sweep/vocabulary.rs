//! `sweep vocabulary`: finds glitch tokens, ones that the model cannot repeat.
//!
//! Two signals are combined (Land and Bartolo 2024, "Fishing for Magikarp"). The *indicator* of a
//! token is the distance of its embedding rows from those of tokens that were never trained; it
//! costs nothing. The *echo* is the probability with which the model repeats the token when asked
//! to. P-values are ranks among ordinary tokens, corrected for the number of tokens.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::unrepeatable::{Unrepeatable, unrepeatable};
use super::{FALSE_DISCOVERY, Progress};
use crate::echo::EchoPrompt;
use crate::error::Result;
use crate::evaluate::Evaluator;
use crate::model::Model;
use crate::stats;
use crate::vocabulary::{Category, Vocabulary, categories, indicator, untrained_below};

/// The verdict on a token. What the model does and how rare that is are two things: a token that is
/// not repeated is `unrepeatable`, and a `glitch` if it also looks untrained or is rare among
/// ordinary tokens. Unless it is a control token, this holds whatever its category; the other
/// verdicts say why an unremarkable token is not simply `ordinary`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenVerdict {
    /// Cannot be repeated, like `Unrepeatable`; and its embedding looks untrained, or its q-value
    /// is at most [`FALSE_DISCOVERY`].
    Glitch,
    /// Cannot be repeated: the probability is below [`GLITCH_PROBABILITY`] under every prompt under
    /// which ordinary tokens are. [`TokenRow::unrepeatable`] says more.
    Unrepeatable,
    /// Repeated worse than ordinary tokens, q at most [`FALSE_DISCOVERY`].
    Weak,
    /// Repeated like ordinary tokens.
    Ordinary,
    /// A control token, which no model is expected to repeat.
    Special,
    /// No text is tokenized to it.
    Unreachable,
    /// Not valid text by itself, such as a part of a UTF-8 sequence.
    Undecodable,
    /// Left out by a limit; or the model cannot repeat ordinary tokens, so that not repeating this
    /// one means nothing.
    Untested,
}

/// One token, measured.
#[derive(Debug, Clone, Serialize)]
pub struct TokenRow {
    /// The token id.
    pub id: u32,
    /// The token, decoded.
    pub text: String,
    /// Cosine distance to the cluster of never-trained rows; near 0 is suspect.
    pub indicator: f32,
    /// Probability of repeating the token; `None` if the test was not used.
    pub echo_probability: Option<f64>,
    /// For a token that is not repeated under the first prompt, the largest probability under the
    /// other prompts that work on ordinary tokens. A glitch token is repeated under none of them.
    pub repetition_probability: Option<f64>,
    /// The verdict.
    pub verdict: TokenVerdict,
    /// The tokenizer's view of the token.
    pub category: Category,
    /// Benjamini-Hochberg q-value of the rank among the controls, corrected separately for the
    /// tokens that the indicator suspects and for the others.
    pub q_value: Option<f64>,
    /// For a token that is not repeated, what else was measured on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unrepeatable: Option<Unrepeatable>,
}

impl TokenRow {
    /// Returns the largest probability of repeating the token under any prompt it was tried with.
    pub fn repeated(&self) -> Option<f64> {
        self.echo_probability.map(|p| p.max(self.repetition_probability.unwrap_or(p)))
    }
}

/// A sweep over the vocabulary.
pub struct VocabularySweep {
    /// Every token: those that were tested, least repeatable first, then the others by their
    /// indicator.
    pub rows: Vec<TokenRow>,
    /// The number of tokens tested.
    pub tested: usize,
    /// The prompt under which ordinary tokens are repeated best.
    pub prompt: EchoPrompt,
    /// Median echo probability of the ordinary tokens.
    pub median_ordinary: f64,
    /// The number of ordinary tokens that serve as controls.
    pub controls: usize,
    /// The number of them that the same thresholds flag.
    pub controls_flagged: usize,
}

/// The probability below which a token counts as not repeated at all ("Fishing for Magikarp",
/// section 3.2).
pub const GLITCH_PROBABILITY: f64 = 0.01;
/// The median echo probability of ordinary tokens below which the test is not used.
pub const LEAST_ECHO: f64 = 0.1;

impl VocabularySweep {
    /// Measures the indicator of every token, and the echo of every token or of the `limit` most
    /// suspect ones and as many controls.
    ///
    /// # Errors
    /// Errors of the evaluator.
    pub fn run(
        model: &Model,
        evaluator: &dyn Evaluator,
        limit: Option<usize>,
        progress: Progress,
    ) -> Result<Self> {
        let (indicator, categories) = (indicator(model), categories(model));
        let vocabulary = Vocabulary::from(&indicator, &categories);
        let mut prompts = EchoPrompt::ranked(model, evaluator, &vocabulary.ordinary)?;
        let (prompt, median_ordinary) = prompts.remove(0);
        prompts.retain(|(_, median)| *median >= LEAST_ECHO);
        let mut ids: Vec<u32> = (0..indicator.len() as u32).collect();
        ids.sort_by(|a, b| {
            indicator[*a as usize].total_cmp(&indicator[*b as usize]).then(a.cmp(b))
        });
        let others = ids.split_off(limit.unwrap_or(usize::MAX).min(ids.len()));
        // Controls have ordinary embedding rows; with a limit, there are as many as tokens to test.
        let step = limit.map_or(1, |limit| (vocabulary.ordinary.len() / limit.max(64)).max(1));
        let controls: Vec<u32> = vocabulary.ordinary.iter().copied().step_by(step).collect();
        let mut wanted: Vec<u32> = ids.iter().chain(&controls).copied().collect();
        wanted.sort_unstable();
        wanted.dedup();
        let used = median_ordinary >= LEAST_ECHO;
        let planned = wanted.len() as u64;
        let mut echo = vec![f64::NAN; indicator.len()];
        if used {
            for chunk in wanted.chunks(1024) {
                for (id, p) in chunk.iter().zip(prompt.probabilities(evaluator, chunk)?) {
                    echo[*id as usize] = p;
                }
                progress(chunk.len() as u64, wanted.len() as u64);
            }
        }
        // Tokens and controls alike get the other prompts, so that the ranks stay comparable.
        let doubtful: Vec<u32> = wanted
            .into_iter()
            .filter(|id| used && echo[*id as usize] < 0.5 * median_ordinary)
            .collect();
        let mut repetition = vec![None; indicator.len()];
        for (other, _) in &prompts {
            for chunk in doubtful.chunks(1024) {
                for (id, p) in chunk.iter().zip(other.probabilities(evaluator, chunk)?) {
                    let best: &mut Option<f64> = &mut repetition[*id as usize];
                    *best = Some(best.map_or(p, |b| b.max(p)));
                }
                progress(chunk.len() as u64, planned + (doubtful.len() * prompts.len()) as u64);
            }
        }
        let repeated =
            |id: u32| echo[id as usize].max(repetition[id as usize].unwrap_or(f64::NEG_INFINITY));
        // The score is an improbability, because large scores are bad everywhere.
        let score = |id: &u32| -repeated(*id);
        let pool: Vec<f64> = controls.iter().map(score).collect();
        let p = stats::p_values(&ids.iter().map(score).collect::<Vec<_>>(), &pool);
        let anomalous: BTreeSet<u32> = vocabulary.anomalous.iter().copied().collect();
        let suspect: Vec<bool> = ids.iter().map(|id| anomalous.contains(id)).collect();
        let q = stratified_q_values(&p, &suspect);
        let untrained = untrained_below(&indicator, &categories);
        let looks_untrained = |id: u32| f64::from(indicator[id as usize]) < untrained;
        let unrepeated: Vec<u32> = ids
            .iter()
            .copied()
            .filter(|id| used && repeated(*id) < GLITCH_PROBABILITY)
            .filter(|id| categories[*id as usize] != Category::Special)
            .collect();
        let why: BTreeMap<u32, Unrepeatable> = unrepeated
            .iter()
            .copied()
            .zip(unrepeatable(
                model,
                evaluator,
                &prompt,
                &unrepeated,
                &vocabulary.ordinary,
                &categories,
                &looks_untrained,
            )?)
            .collect();
        // The largest echo probability that is flagged, to count flagged controls.
        let flagged_from = ids
            .iter()
            .zip(&q)
            .filter(|(_, q)| **q <= FALSE_DISCOVERY)
            .map(|(id, _)| repeated(*id))
            .fold(f64::NEG_INFINITY, f64::max);
        let mut rows: Vec<TokenRow> = ids
            .iter()
            .zip(&q)
            .map(|(&id, &q)| {
                let (category, p) = (categories[id as usize], repeated(id));
                let verdict = match category {
                    // A control token is not expected to be repeated.
                    Category::Special => TokenVerdict::Special,
                    _ if used && p < GLITCH_PROBABILITY => {
                        match looks_untrained(id) || q <= FALSE_DISCOVERY {
                            true => TokenVerdict::Glitch,
                            false => TokenVerdict::Unrepeatable,
                        }
                    }
                    _ if used && q <= FALSE_DISCOVERY && p < 0.5 * median_ordinary => {
                        TokenVerdict::Weak
                    }
                    Category::Unreachable => TokenVerdict::Unreachable,
                    Category::Undecodable => TokenVerdict::Undecodable,
                    Category::Reachable if used => TokenVerdict::Ordinary,
                    Category::Reachable => TokenVerdict::Untested,
                };
                TokenRow {
                    id,
                    text: model.token(id),
                    indicator: indicator[id as usize],
                    echo_probability: used.then_some(echo[id as usize]),
                    repetition_probability: repetition[id as usize],
                    verdict,
                    category,
                    q_value: used.then_some(q),
                    unrepeatable: why.get(&id).copied(),
                }
            })
            .collect();
        let key = |r: &TokenRow| r.repeated().unwrap_or(0.0);
        rows.sort_by(|a, b| {
            key(a)
                .total_cmp(&key(b))
                .then(a.indicator.total_cmp(&b.indicator))
                .then(a.id.cmp(&b.id))
        });
        let controls_flagged = controls
            .iter()
            .filter(|id| used && repeated(**id) <= flagged_from.min(0.5 * median_ordinary))
            .count();
        let tested = rows.len();
        rows.extend(others.into_iter().map(|id| TokenRow {
            id,
            text: model.token(id),
            indicator: indicator[id as usize],
            echo_probability: None,
            repetition_probability: None,
            verdict: match categories[id as usize] {
                Category::Special => TokenVerdict::Special,
                Category::Unreachable => TokenVerdict::Unreachable,
                Category::Undecodable => TokenVerdict::Undecodable,
                Category::Reachable => TokenVerdict::Untested,
            },
            category: categories[id as usize],
            q_value: None,
            unrepeatable: None,
        }));
        Ok(Self {
            rows,
            tested,
            prompt,
            median_ordinary,
            controls: controls.len(),
            controls_flagged,
        })
    }
}

/// Returns q-values corrected within each of two strata (Sun, Craiu, Paterson and Bull 2006). The
/// indicator is known before the test and says which tokens are likely to fail it; in a stratum of
/// their own, a few suspects are not outweighed by tens of thousands of other tokens.
fn stratified_q_values(p: &[f64], suspect: &[bool]) -> Vec<f64> {
    let mut q = vec![1.0; p.len()];
    for stratum in [true, false] {
        let members: Vec<usize> = (0..p.len()).filter(|i| suspect[*i] == stratum).collect();
        let values = stats::q_values(&members.iter().map(|i| p[*i]).collect::<Vec<_>>());
        members.into_iter().zip(values).for_each(|(i, value)| q[i] = value);
    }
    q
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suspects_are_not_outweighed_and_the_rest_not_let_through() {
        // Five suspects as bad as one control in a thousand, among ten thousand tokens that are
        // like controls.
        let (mut p, mut suspect) = (vec![0.001; 5], vec![true; 5]);
        p.extend((1..=10_000).map(|i| f64::from(i) / 10_000.0));
        suspect.extend(vec![false; 10_000]);
        let q = stratified_q_values(&p, &suspect);
        assert!(
            q[..5].iter().all(|q| *q <= 0.001 + 1e-12) && q[5..].iter().all(|q| *q > 0.9),
            "{:?}",
            &q[..8]
        );
        assert!(stats::q_values(&p)[..5].iter().all(|q| *q > 0.05));
    }
}
