//! The rows of a comparison about emergence: how far sets of zeroed blocks do what single ones
//! predict, beside the additive surrogate, and what follows.

use super::format::count;
use crate::compare::{EmergenceSpectrum, Explained, ScaleSpectrum};
use crate::emergence::{Estimate, Verdict};

/// Stands for a figure that is not there.
const NONE: &str = "–";

/// The spectrum in one of the scales.
type Scaled = fn(&EmergenceSpectrum) -> &ScaleSpectrum;

/// One figure: a name, its meaning, and how it is shown.
pub struct Figure {
    /// The name.
    pub name: String,
    /// Its meaning.
    pub meaning: &'static str,
    /// Returns the text of a model's cell.
    pub cell: Box<dyn Fn(&EmergenceSpectrum) -> String>,
}

impl Figure {
    fn new(
        name: impl Into<String>,
        meaning: &'static str,
        cell: impl Fn(&EmergenceSpectrum) -> String + 'static,
    ) -> Self {
        Self { name: name.into(), meaning, cell: Box::new(cell) }
    }
}

/// Returns all figures, in the order of the page.
pub fn figures() -> Vec<Figure> {
    let mut figures = vec![
        Figure::new(
            "sets of blocks",
            "zeroed together, every size as likely; dead: worse than a unigram model",
            sets,
        ),
        Figure::new("passages for these", "bundled ones, whose tokens are predicted", |of| {
            format!("{} ({} tokens)", count(of.passages as u64), count(of.tokens as u64))
        }),
    ];
    let loss: Scaled = |of| &of.loss;
    let logit: Scaled = |of| &of.logit;
    for (name, scale) in [("loss", loss), ("logit", logit)] {
        let orders = [
            ("singles", "share of the variance over living sets, held out, that singles explain"),
            ("and pairs", "the same with a term for each pair"),
            ("and triples", "the same with a term for each triple, too"),
        ];
        for (order, (what, meaning)) in orders.into_iter().enumerate() {
            figures.push(Figure::new(format!("{name}: {what}"), meaning, move |of| {
                share(scale(of).alive.model.get(order))
            }));
        }
        figures.push(Figure::new(
            format!("{name}: additive, singles"),
            "what singles explain of the surrogate whose logits add up their effects",
            move |of| share(scale(of).alive.surrogate.first()),
        ));
        figures.push(Figure::new(
            format!("{name}: sum of its parts?"),
            "no, if singles explain less of the model than of the surrogate; not judged, if they \
            explain less than 99% of the surrogate's logit",
            move |of| verdict(&scale(of).alive),
        ));
        figures.push(Figure::new(
            format!("{name}: dead sets too"),
            "the same question about all sets",
            move |of| scale(of).with_dead.as_ref().map_or_else(|| NONE.into(), verdict),
        ));
    }
    figures
}

/// Says which sets were run.
fn sets(of: &EmergenceSpectrum) -> String {
    format!(
        "{}{} of 1 to {} of {} blocks, {} dead",
        if of.exact { "all " } else { "drawn: " },
        count((of.alive + of.dead) as u64),
        of.up_to,
        count(of.blocks as u64),
        count(of.dead as u64)
    )
}

/// Formats a share in percent with its interval.
fn share(estimate: Option<&Estimate>) -> String {
    let Some(estimate) = estimate else { return NONE.into() };
    format!("{:.1}%{}", 100.0 * estimate.value, interval(estimate))
}

fn interval(estimate: &Estimate) -> String {
    estimate.interval.map_or(String::new(), |(low, high)| {
        format!(" ({:.1} to {:.1})", 100.0 * low, 100.0 * high)
    })
}

/// Says what follows, and from which difference.
fn verdict(of: &Explained) -> String {
    let said = match of.verdict {
        Verdict::SumOfParts => "yes",
        Verdict::NotSumOfParts => "no",
        Verdict::Undecided => "not enough to tell",
        Verdict::NotJudged => "not judged",
    };
    match &of.beyond_surrogate {
        Some(beyond) => {
            format!("{said}: {:.1} points less{}", 100.0 * beyond.value, interval(beyond))
        }
        None => said.into(),
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A spectrum whose loss is judged, and whose logit is not.
    pub fn sample() -> EmergenceSpectrum {
        let estimate = |value, low, high| Estimate { value, interval: Some((low, high)) };
        let explained = |beyond, verdict| Explained {
            model: vec![estimate(0.678, 0.628, 0.718), estimate(0.939, 0.923, 0.95)],
            surrogate: vec![Estimate { value: 0.968, interval: None }],
            beyond_surrogate: Some(beyond),
            verdict,
        };
        let nothing = Explained {
            model: Vec::new(),
            surrogate: Vec::new(),
            beyond_surrogate: None,
            verdict: Verdict::NotJudged,
        };
        EmergenceSpectrum {
            blocks: 8,
            up_to: 4,
            exact: true,
            alive: 90,
            dead: 72,
            passages: 12,
            tokens: 1918,
            loss: ScaleSpectrum {
                alive: explained(estimate(0.29, 0.245, 0.341), Verdict::NotSumOfParts),
                with_dead: Some(explained(estimate(0.01, 0.005, 0.02), Verdict::SumOfParts)),
            },
            logit: ScaleSpectrum { alive: nothing, with_dead: None },
        }
    }

    #[test]
    fn every_figure_is_shown_and_nothing_is_claimed_without_one() {
        let of = sample();
        let cells: Vec<(String, String)> =
            figures().iter().map(|figure| (figure.name.clone(), (figure.cell)(&of))).collect();
        let expected = [
            ("sets of blocks", "all 162 of 1 to 4 of 8 blocks, 72 dead"),
            ("passages for these", "12 (1,918 tokens)"),
            ("loss: singles", "67.8% (62.8 to 71.8)"),
            ("loss: and pairs", "93.9% (92.3 to 95.0)"),
            ("loss: and triples", NONE),
            ("loss: additive, singles", "96.8%"),
            ("loss: sum of its parts?", "no: 29.0 points less (24.5 to 34.1)"),
            ("loss: dead sets too", "yes: 1.0 points less (0.5 to 2.0)"),
            ("logit: singles", NONE),
            ("logit: and pairs", NONE),
            ("logit: and triples", NONE),
            ("logit: additive, singles", NONE),
            ("logit: sum of its parts?", "not judged"),
            ("logit: dead sets too", NONE),
        ];
        assert_eq!(cells, expected.map(|(name, cell)| (name.to_owned(), cell.to_owned())));
    }
}
