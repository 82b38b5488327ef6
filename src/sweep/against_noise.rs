//! Compares lesions with noise of their norm, in two rounds, because noise is what takes time.

use std::collections::BTreeMap;

use super::Progress;
use super::directions::p_values;
use super::measure::{Change, Swept};
use super::texts::Text;
use crate::error::Result;

/// The numbers of directions of noise and of texts in the first round, and the p-value above which
/// a lesion does not enter the second. (It has p = 1 then, so that the first round decides nothing
/// in favour of a flag.)
const FIRST: (usize, usize) = (4, 2);
const NOT_FURTHER: f64 = 0.2;

/// The number of directions of noise that a lesion is tested against.
pub const DIRECTIONS: usize = 8;

/// The numbers of directions and of texts in the second round.
const SECOND: (usize, usize) = (DIRECTIONS, 8);

/// A lesion and noise of its norm, on the same texts.
pub struct Compared {
    /// The lesion's effect, nats per token, mean over the texts.
    pub effect: f64,
    /// The effects of noise, one in each direction.
    pub noise: Vec<f64>,
    /// The p-value of the lesion being one more direction; 1 for one that was left in the first
    /// round.
    pub p_value: f64,
}

/// What lesions are compared with noise on.
pub struct AgainstNoise<'a> {
    /// The components.
    pub swept: &'a Swept<'a>,
    /// The texts.
    pub texts: &'a [Text],
    /// The losses under each lesion, nats per token, one for each text.
    pub losses: &'a [Vec<f64>],
    /// The seed of the noise.
    pub seed: u64,
    /// Is told of every noise lesion.
    pub progress: Progress<'a>,
}

impl AgainstNoise<'_> {
    /// Compares the `chosen` lesions, by index. `each` is asked after every text whether to go on;
    /// returns `None` if not.
    ///
    /// # Errors
    /// Errors of the forward pass and of `each`.
    pub fn compare(
        &self,
        chosen: Vec<usize>,
        each: &mut dyn FnMut() -> Result<bool>,
    ) -> Result<Option<BTreeMap<usize, Compared>>> {
        let mut total = self.swept.components.len() * self.texts.len();
        let mut compared = BTreeMap::new();
        let mut entering = chosen;
        for round in [FIRST, SECOND] {
            total += entering.len() * round.0 * round.1.min(self.texts.len());
            let done = |done: u64| (self.progress)(done, total as u64);
            let Some(measured) = self.round(&entering, round, &done, each)? else {
                return Ok(None);
            };
            if round == FIRST {
                let further = |i: &usize| measured[i].p_value <= NOT_FURTHER;
                entering.retain(further);
                compared
                    .extend(measured.into_iter().map(|(i, c)| (i, Compared { p_value: 1.0, ..c })));
            } else {
                compared.extend(measured);
            }
        }
        Ok(Some(compared))
    }

    /// Compares the `chosen` lesions in so many directions, on so many of the texts.
    fn round(
        &self,
        chosen: &[usize],
        (directions, on): (usize, usize),
        done: &dyn Fn(u64),
        each: &mut dyn FnMut() -> Result<bool>,
    ) -> Result<Option<BTreeMap<usize, Compared>>> {
        let n = on.min(self.texts.len());
        let mut effects = vec![0.0; chosen.len()];
        let mut noise = vec![vec![0.0; directions]; chosen.len()];
        let change = Change::Noise { seed: self.seed, directions: 0..directions };
        for at in (0..n).map(|i| i * self.texts.len() / n) {
            let text = &self.texts[at];
            let share = |loss: f64| (loss - text.loss) / n as f64;
            effects.iter_mut().zip(chosen).for_each(|(sum, &i)| *sum += share(self.losses[i][at]));
            let observed = self.swept.observe(text, chosen, &change, None, done)?;
            noise.iter_mut().flatten().zip(observed).for_each(|(sum, o)| *sum += share(o.loss()));
            if !each()? {
                return Ok(None);
            }
        }
        let pairs: Vec<(f64, &[f64])> =
            effects.iter().copied().zip(noise.iter().map(Vec::as_slice)).collect();
        let p = p_values(&pairs);
        let compared = effects.into_iter().zip(noise).zip(p);
        let compared =
            compared.map(|((effect, noise), p_value)| Compared { effect, noise, p_value });
        Ok(Some(chosen.iter().copied().zip(compared).collect()))
    }
}
