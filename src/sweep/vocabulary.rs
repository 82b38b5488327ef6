//! `sweep vocabulary`: indicator and echo of every token.

use std::collections::BTreeSet;

use serde::Serialize;

use super::Progress;
use crate::echo::EchoPrompt;
use crate::error::Result;
use crate::evaluate::Evaluator;
use crate::model::Model;
use crate::stats;
use crate::vocabulary::{Category, Vocabulary, categories, indicator};

/// What became of a token. Unless it is a control token, one whose behaviour is anomalous is
/// `glitch` or `weak` whatever its category; the other verdicts say why an unremarkable token is
/// not simply `ordinary`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenVerdict {
    /// Cannot be repeated: probability below [`GLITCH_PROBABILITY`] under every prompt, and q below
    /// [`FALSE_DISCOVERY`].
    Glitch,
    /// Repeated worse than ordinary tokens, q below [`FALSE_DISCOVERY`].
    Weak,
    Ordinary,
    Special,
    Unreachable,
    Undecodable,
    /// Not asked for, by a limit; or the model cannot repeat ordinary tokens, so that not repeating
    /// this one says nothing.
    Untested,
}

/// One token.
#[derive(Debug, Clone, Serialize)]
pub struct TokenRow {
    pub id: u32,
    pub text: String,
    /// Cosine distance to the cluster of never-trained rows; near 0 is suspect.
    pub indicator: f32,
    /// `None` where the test was not used.
    pub echo_probability: Option<f64>,
    /// Of a token that the first prompt did not get repeated: the largest probability under the
    /// other prompts that work on ordinary tokens. A glitch is what none of them gets repeated.
    pub repetition_probability: Option<f64>,
    pub verdict: TokenVerdict,
    pub category: Category,
    /// Benjamini-Hochberg, p-values by rank among the controls, the tokens that the indicator
    /// suspects by themselves and the others by themselves.
    pub q_value: Option<f64>,
}

impl TokenRow {
    /// The largest probability of repeating it under any prompt it was tried with.
    pub fn repeated(&self) -> Option<f64> {
        self.echo_probability.map(|p| p.max(self.repetition_probability.unwrap_or(p)))
    }
}

/// The whole sweep.
pub struct VocabularySweep {
    /// Every token: those that were tested, worst first, then the others by their indicator.
    pub rows: Vec<TokenRow>,
    /// How many of them were tested.
    pub tested: usize,
    pub prompt: EchoPrompt,
    /// Median echo probability of the ordinary tokens.
    pub median_ordinary: f64,
    /// Ordinary tokens in the role of controls, and how many of them the same thresholds flag.
    pub controls: usize,
    pub controls_flagged: usize,
}

/// Below this a token is not repeated at all ("Fishing for Magikarp", section 3.2).
pub const GLITCH_PROBABILITY: f64 = 0.01;
/// False discovery rate of the flags.
pub const FALSE_DISCOVERY: f64 = 0.05;
/// Median echo probability of ordinary tokens below which the test is not used.
pub const LEAST_ECHO: f64 = 0.1;

impl VocabularySweep {
    /// The indicator of every token; the echo of every one, or of the `limit` most suspect and as
    /// many controls.
    ///
    /// # Errors
    /// What the evaluator refuses.
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
        // Controls are ordinary by their rows; with a limit, as many as there are tokens to test.
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
        // Tokens and controls alike get their other chances, so that the ranks stay comparable.
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
        // Large scores are bad everywhere: improbability.
        let score = |id: &u32| -repeated(*id);
        let pool: Vec<f64> = controls.iter().map(score).collect();
        let p = stats::p_values(&ids.iter().map(score).collect::<Vec<_>>(), &pool);
        let anomalous: BTreeSet<u32> = vocabulary.anomalous.iter().copied().collect();
        let suspect: Vec<bool> = ids.iter().map(|id| anomalous.contains(id)).collect();
        let q = stratified_q_values(&p, &suspect);
        // The echo that the false discovery rate allows, for the controls' own count.
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
                    // Nobody expects a control token to be repeated.
                    Category::Special => TokenVerdict::Special,
                    _ if used && q <= FALSE_DISCOVERY && p < GLITCH_PROBABILITY => {
                        TokenVerdict::Glitch
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

/// False discovery rates within each of two strata (Sun, Craiu, Paterson and Bull 2006): what is
/// known of a token before the test (its rows look untrained) says which of many are likely to fail
/// it, and a few suspects need not be outweighed by tens of thousands of others.
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
