//! The emergence spectrum of a model in a comparison: how much of what sets of zeroed blocks do is
//! predicted by what single ones do, pairs and triples.
//!
//! [`Emergence`] measures it, as `glitch emergence --of blocks` does with its default options, so
//! the figures are the same for the same passages. Where all sets of up to four blocks are run
//! (models of up to 18 blocks), the default number of passages is that of the command. Where sets
//! are drawn from more blocks, the model is larger and there are fewer passages; how many there
//! were stands beside the figures.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};

use crate::emergence::{
    Emergence, EmergenceOptions, Estimate, Function, LEAST_PARTS, OrderShares, Scale, Verdict,
};
use crate::error::{Error, Result};
use crate::evaluate::ModelEvaluator;
use crate::replicate::encoded_passages;
use crate::sweep::{Target, components};

/// The number of passages where all sets are run: the command's.
const PASSAGES: usize = 12;
/// The number of passages where sets are drawn.
const PASSAGES_DRAWN: usize = 4;

/// The effects of sets of zeroed blocks against those of their members.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EmergenceSpectrum {
    /// The number of blocks, which are the parts.
    pub blocks: usize,
    /// The size of the largest sets; every size is as likely.
    pub up_to: usize,
    /// True if all sets were run; else they were drawn.
    pub exact: bool,
    /// The number of different sets that the model survives, which the shares are of.
    pub alive: usize,
    /// The number of different sets that leave it worse than a unigram model.
    pub dead: usize,
    /// The number of passages.
    pub passages: usize,
    /// The number of tokens whose prediction is measured.
    pub tokens: usize,
    /// In the loss.
    pub loss: ScaleSpectrum,
    /// In the right token's centred logit.
    pub logit: ScaleSpectrum,
}

/// The spectrum in one scale.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScaleSpectrum {
    /// Over the sets that the model survives.
    pub alive: Explained,
    /// Over all sets; `None` if there are no dead ones, or if a value is not finite.
    pub with_dead: Option<Explained>,
}

/// Shares of the variance of held-out sets that polynomials of order 1, 2, ... explain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Explained {
    /// In the model, up to each order; those before the first that is not a number.
    pub model: Vec<Estimate>,
    /// In its additive surrogate.
    pub surrogate: Vec<Estimate>,
    /// The share that order 1 explains of the surrogate, minus that of the model; `None` where the
    /// fits fail on the surrogate itself.
    pub beyond_surrogate: Option<Estimate>,
    /// The verdict on these figures.
    pub verdict: Verdict,
}

impl Explained {
    /// Takes the rows of the model and its surrogate; `None` if they are not there.
    fn new(rows: &[OrderShares], scale: Scale, beyond: Option<Estimate>) -> Option<Self> {
        let of = |function| {
            let row = rows.iter().find(|row| row.function == function && row.scale == scale)?;
            Some(row.orders.iter().copied().take_while(is_finite).collect::<Vec<_>>())
        };
        let beyond_surrogate = beyond.filter(is_finite);
        Some(Self {
            model: of(Function::Model)?,
            surrogate: of(Function::Surrogate)?,
            beyond_surrogate,
            verdict: Verdict::of(beyond_surrogate.as_ref()),
        })
    }
}

/// Returns whether JSON can hold an estimate: it has no NaN.
fn is_finite(estimate: &Estimate) -> bool {
    estimate.value.is_finite()
        && estimate.interval.is_none_or(|(low, high)| low.is_finite() && high.is_finite())
}

impl EmergenceSpectrum {
    /// Takes the figures that are compared.
    fn new(found: &Emergence) -> Result<Self> {
        let of = |scale: Scale| -> Result<ScaleSpectrum> {
            let alive =
                Explained::new(&found.shares, scale, found.beyond_surrogate[scale as usize]);
            let with_dead = found.beyond_surrogate_with_dead[scale as usize];
            Ok(ScaleSpectrum {
                alive: alive.ok_or_else(|| Error::internal("emergence without its shares"))?,
                with_dead: Explained::new(&found.with_dead, scale, with_dead),
            })
        };
        Ok(Self {
            blocks: found.parts.len(),
            up_to: found.largest,
            exact: found.exact,
            alive: found.sets_used,
            dead: found.dead,
            passages: found.texts,
            tokens: found.tokens,
            loss: of(Scale::Loss)?,
            logit: of(Scale::Logit)?,
        })
    }

    /// Measures a model on some of the bundled passages; `None` for their number takes 12 where all
    /// sets are run and 4 where they are drawn. `progress` is told the passage.
    ///
    /// `None` if there are fewer than three blocks: no set of them is larger than a pair.
    ///
    /// # Errors
    /// [`Error::Request`] for a block without which the logits are not finite: there are no single
    /// effects to add up. [`Error::Interrupted`] if the user interrupts; errors of the evaluator.
    pub fn measure(
        evaluator: &ModelEvaluator,
        passages: Option<usize>,
        interrupted: &AtomicBool,
        progress: &dyn Fn(&str),
    ) -> Result<Option<Self>> {
        let blocks = components(evaluator.model, Target::Blocks).len();
        if blocks < LEAST_PARTS {
            return Ok(None);
        }
        let options = EmergenceOptions::new(Target::Blocks);
        let passages = passages.unwrap_or(match options.runs_all(blocks) {
            true => PASSAGES,
            false => PASSAGES_DRAWN,
        });
        let texts = encoded_passages(evaluator.model, passages)?;
        let all = encoded_passages(evaluator.model, usize::MAX)?;
        let done = Cell::new(0);
        let tell = || progress(&format!("passage {} of {passages}", done.get() + 1));
        let mut each = |_: &[_]| {
            done.set(done.get() + 1);
            if done.get() < passages {
                tell();
            }
            Ok(())
        };
        tell();
        let go_on = || !interrupted.load(Ordering::Relaxed);
        let found =
            Emergence::run(evaluator, &texts, &all, &options, &|_, _| {}, &go_on, &mut each)?;
        match found.complete {
            true => Self::new(&found).map(Some),
            false => Err(Error::Interrupted),
        }
    }
}
