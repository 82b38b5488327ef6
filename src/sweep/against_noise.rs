//! Compares lesions with noise of their norm, in rounds, because noise is what takes time.
//!
//! What differs from noise enters the next round, with more directions. What does not enter the
//! second has p = 1, and what does not enter the third keeps the p-value of the second. So a small
//! p-value is one of the third round and a larger one of the second, and each stays valid, up to
//! how the spread is pooled over those that enter. Sweeps of noise in place of lesions say how well
//! that holds (docs/benchmarks.md).

use std::collections::BTreeMap;

use super::Progress;
use super::directions::p_values;
use super::measure::{Change, Swept};
use super::texts::Text;
use crate::error::Result;

/// One round of comparisons.
struct Round {
    /// The number of directions of noise.
    directions: usize,
    /// The number of texts.
    texts: usize,
    /// The largest p-value with which a lesion enters the next round.
    enters_next: f64,
}

/// The rounds. Directions differ more than texts do, so more of them tell more than more texts.
const ROUNDS: [Round; 3] = [
    Round { directions: 4, texts: 2, enters_next: 0.2 },
    Round { directions: 8, texts: 8, enters_next: 0.02 },
    Round { directions: DIRECTIONS, texts: 8, enters_next: 0.0 },
];

/// The largest number of directions of noise that a lesion is compared with.
pub const DIRECTIONS: usize = 24;

/// A lesion and noise of its norm, on the same texts.
pub struct Compared {
    /// The lesion's effect, nats per token, mean over the texts.
    pub effect: f64,
    /// The effects of noise, one in each direction.
    pub noise: Vec<f64>,
    /// The p-value of the lesion being one more direction; 1 for one that did not enter the second
    /// round.
    pub p_value: f64,
}

/// The measured lesions of a sweep, to be compared with noise.
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
        for (n, round) in ROUNDS.iter().enumerate() {
            total += entering.len() * round.directions * round.texts.min(self.texts.len());
            let done = |done: u64| (self.progress)(done, total as u64);
            let Some(mut measured) = self.round(&entering, round, &done, each)? else {
                return Ok(None);
            };
            entering.retain(|i| measured[i].p_value <= round.enters_next);
            if n == 0 {
                measured.values_mut().for_each(|compared| compared.p_value = 1.0);
            }
            compared.extend(measured);
        }
        Ok(Some(compared))
    }

    /// Compares the `chosen` lesions with noise.
    fn round(
        &self,
        chosen: &[usize],
        &Round { directions, texts, .. }: &Round,
        done: &dyn Fn(u64),
        each: &mut dyn FnMut() -> Result<bool>,
    ) -> Result<Option<BTreeMap<usize, Compared>>> {
        let n = texts.min(self.texts.len());
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
