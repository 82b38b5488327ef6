//! Measures what a model's own writing loses by the edits of a finding (as lesion-deficit studies
//! in neuropsychology describe patients by what they can no longer do).
//!
//! The edits of a finding are put into new prompts, and the model writes on in each: with the
//! edits, without them, and with each of the finding's controls in their place. What is counted in
//! these texts needs no other model. A deficit is shown where the change is further in the bad
//! direction than that of any control, by the rule of every verdict
//! ([`threshold_above`]).

mod measure;
mod texts;

pub use measure::measure;

use serde::{Deserialize, Serialize};

use crate::oracle::{margin_among_controls, threshold_above};
use crate::stats::mean;

/// Prompts in which a finding's deficits are measured.
pub const PROMPTS: usize = 6;
/// Controls that they are compared with, the same ones in every prompt.
pub const CONTROLS: usize = 24;
/// Tokens that the model writes, greedily, in each prompt.
pub const GENERATED: usize = 32;

/// A quantity that is measured on what a model writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// The share of the 4-grams that are repetitions, 0 to 1 (seq-rep-4, Welleck et al. 2020).
    Repetition,
    /// The share of the tokens asked for that were not written because the text ended, 0 to 1.
    Missing,
    /// A passage is shown and begun again: the share of its other tokens that are then the most
    /// probable ones, 0 to 1 (induction: Olsson et al. 2022).
    Copying,
    /// Mean entropy of the distributions that the text was chosen from, nats.
    Entropy,
    /// Nats per token by which the text is more probable, to the model without edits, after its own
    /// prompt than after another (pointwise mutual information of text and prompt).
    PromptAgreement,
    /// The share of the tokens that are bytes, or pieces of words that continue none, 0 to 1.
    Fragments,
    /// The share of a text's 4-grams that the text of another prompt has too, 0 to 1.
    SameText,
}

/// A way in which a model is broken: a measure, and the direction in which it is bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Deficit {
    /// The text repeats itself.
    Loops,
    /// The text ends early.
    EarlyEnd,
    /// The model cannot copy what it was shown.
    NoCopying,
    /// The choice of tokens is spread out: word salad.
    HighEntropy,
    /// The choice of tokens is narrow: stereotypy.
    LowEntropy,
    /// The text has nothing to do with its prompt.
    PromptLost,
    /// The text is in pieces.
    Fragments,
    /// The same text whatever the prompt.
    FixedText,
}

impl Deficit {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Loops,
        Self::EarlyEnd,
        Self::NoCopying,
        Self::HighEntropy,
        Self::LowEntropy,
        Self::PromptLost,
        Self::Fragments,
        Self::FixedText,
    ];

    /// Returns what it is read from.
    pub fn measure(self) -> Measure {
        match self {
            Self::Loops => Measure::Repetition,
            Self::EarlyEnd => Measure::Missing,
            Self::NoCopying => Measure::Copying,
            Self::HighEntropy | Self::LowEntropy => Measure::Entropy,
            Self::PromptLost => Measure::PromptAgreement,
            Self::Fragments => Measure::Fragments,
            Self::FixedText => Measure::SameText,
        }
    }

    /// Returns 1 where more of the measure is worse, -1 where less is.
    pub fn sign(self) -> f64 {
        match self {
            Self::NoCopying | Self::LowEntropy | Self::PromptLost => -1.0,
            _ => 1.0,
        }
    }

    /// Returns the words for it: "loops".
    pub fn words(self) -> &'static str {
        match self {
            Self::Loops => "loops",
            Self::EarlyEnd => "early end",
            Self::NoCopying => "copying failure",
            Self::HighEntropy => "word salad",
            Self::LowEntropy => "stereotypy",
            Self::PromptLost => "agreement with the prompt lost",
            Self::Fragments => "bytes and fragments",
            Self::FixedText => "the same text in any prompt",
        }
    }
}

impl Measure {
    /// Returns the smallest change that a person would notice, in the measure's unit.
    pub fn minimum(self) -> f64 {
        match self {
            Self::Repetition | Self::Missing | Self::Copying | Self::SameText => 0.2,
            Self::Fragments => 0.1,
            Self::Entropy => 0.5,
            Self::PromptAgreement => 0.3,
        }
    }

    /// Returns the unit with a leading space; empty for a share.
    pub fn unit(self) -> &'static str {
        match self {
            Self::Entropy => " nats",
            Self::PromptAgreement => " nats per token",
            _ => "",
        }
    }
}

/// One measure on the texts of a finding, of its baseline and of its controls.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measured {
    /// What is measured.
    pub measure: Measure,
    /// Without the edits, `[prompts]`.
    pub baseline: Vec<f64>,
    /// With the edits, `[prompts]`.
    pub edited: Vec<f64>,
    /// The mean change that each control makes, `[controls]`.
    pub controls: Vec<f64>,
}

impl Measured {
    /// Returns the mean over the prompts without the edits.
    pub fn before(&self) -> f64 {
        mean(&self.baseline)
    }

    /// Returns the mean over the prompts with the edits.
    pub fn after(&self) -> f64 {
        mean(&self.edited)
    }

    /// Returns the mean change that the edits make.
    pub fn change(&self) -> f64 {
        self.after() - self.before()
    }

    /// Returns whether the change is bad in the direction of `sign`, and beyond all controls.
    fn shows(&self, sign: f64) -> bool {
        sign * self.change() > threshold_above(self.measure.minimum(), &self.worsening(sign))
    }

    /// Returns the controls' changes with the bad direction up.
    fn worsening(&self, sign: f64) -> Vec<f64> {
        self.controls.iter().map(|change| sign * change).collect()
    }

    /// Returns whether a control shows the deficit when it is judged against the others.
    fn control_shows(&self, sign: f64, control: usize) -> bool {
        margin_among_controls(self.measure.minimum(), &self.worsening(sign), control)
            .is_some_and(|margin| margin > 0.0)
    }
}

/// The deficits of a finding.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deficits {
    /// True if the prompts are new; false if the finding's own prompt is the only one, which the
    /// search picked.
    pub new_prompts: bool,
    /// Tokens that the model was asked to write in each.
    pub generated: usize,
    /// Each measure that applies.
    pub measures: Vec<Measured>,
}

impl Deficits {
    /// Returns the deficits that are shown, in the order of [`Deficit::ALL`].
    pub fn shown(&self) -> impl Iterator<Item = (Deficit, &Measured)> {
        Deficit::ALL.into_iter().filter_map(|deficit| {
            let measured = self.measures.iter().find(|m| m.measure == deficit.measure())?;
            measured.shows(deficit.sign()).then_some((deficit, measured))
        })
    }

    /// Returns the number of controls of the measure that has the fewest.
    pub fn controls(&self) -> usize {
        self.measures.iter().map(|measured| measured.controls.len()).min().unwrap_or(0)
    }

    /// Returns how many controls there are, and how many of them show a deficit when each is judged
    /// against the others: how often the same rule finds one where there is nothing to find.
    pub fn controls_showing(&self) -> (usize, usize) {
        let controls = self.controls();
        let shows = |control: &usize| {
            Deficit::ALL.into_iter().any(|deficit| {
                let measured = self.measures.iter().find(|m| m.measure == deficit.measure());
                measured.is_some_and(|measured| measured.control_shows(deficit.sign(), *control))
            })
        };
        (controls, (0..controls).filter(shows).count())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(measure: Measure, change: f64, controls: &[f64]) -> Measured {
        let (baseline, edited) = (vec![0.4, 0.6], vec![0.4 + change, 0.6 + change]);
        Measured { measure, baseline, edited, controls: controls.to_vec() }
    }

    #[test]
    fn a_deficit_is_bad_and_beyond_every_control() {
        let shown = |measure, change, controls: &[f64]| {
            let measures = vec![measured(measure, change, controls)];
            let deficits = Deficits { new_prompts: true, generated: 32, measures };
            deficits.shown().map(|(deficit, _)| deficit).collect::<Vec<_>>()
        };
        let quiet = [0.0, 0.01, -0.01, 0.02, 0.0, 0.01, 0.0, -0.02];
        assert_eq!(shown(Measure::Repetition, 0.3, &quiet), [Deficit::Loops]);
        assert_eq!(shown(Measure::Repetition, -0.3, &quiet), []);
        assert_eq!(shown(Measure::Copying, -0.3, &quiet), [Deficit::NoCopying]);
        assert_eq!(shown(Measure::Entropy, 0.6, &quiet), [Deficit::HighEntropy]);
        assert_eq!(shown(Measure::Entropy, -0.6, &quiet), [Deficit::LowEntropy]);
        // Too little to notice; no more than one of the controls; too few controls.
        assert_eq!(shown(Measure::Repetition, 0.19, &quiet), []);
        let loud = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.31];
        assert_eq!(shown(Measure::Repetition, 0.3, &loud), []);
        assert_eq!(shown(Measure::Repetition, 0.3, &quiet[1..]), []);
        // One of nine controls is as loud as a finding.
        let nine = [&loud[..], &[0.0]].concat();
        let measures = vec![measured(Measure::Repetition, 0.3, &nine)];
        let deficits = Deficits { new_prompts: true, generated: 32, measures };
        assert_eq!(deficits.controls_showing(), (9, 1));
    }
}
