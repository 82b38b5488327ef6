//! Random rotations, for changes that keep everything of another but its direction.

use rand::Rng as _;
use rand::seq::SliceRandom as _;

use super::walsh_hadamard;
use crate::rng::Rng;

/// Rounds of a rotation: after three, a vector along one channel lies along all of them.
const ROUNDS: usize = 3;

/// A random rotation that takes `d log d` steps: rounds of permuted channels, random signs, and a
/// Walsh-Hadamard transform of as many channels as a power of two has room for.
pub struct Rotation(Vec<Vec<(usize, f32)>>);

impl Rotation {
    /// Draws a rotation of vectors of `d` values.
    pub fn new(d: usize, rng: &mut Rng) -> Self {
        let round = |rng: &mut Rng| {
            let mut from: Vec<usize> = (0..d).collect();
            from.shuffle(rng);
            from.into_iter().map(|from| (from, if rng.random() { 1.0 } else { -1.0 })).collect()
        };
        Self((0..ROUNDS).map(|_| round(rng)).collect())
    }

    /// Rotates a vector.
    pub fn apply(&self, x: &mut Vec<f32>) {
        for round in &self.0 {
            *x = round.iter().map(|(from, sign)| sign * x[*from]).collect();
            let width = 1usize << x.len().max(1).ilog2();
            hadamard(&mut x[..width]);
        }
    }
}

/// Applies the Walsh-Hadamard transform, scaled so that it keeps the norm, to `x`, whose length is
/// a power of two.
fn hadamard(x: &mut [f32]) {
    walsh_hadamard(x);
    let scale = (x.len() as f32).sqrt().recip();
    x.iter_mut().for_each(|x| *x *= scale);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng;

    #[test]
    fn one_channel_spreads_over_all_of_them() {
        let mut rng = rng::stream(1, "test");
        for d in [16, 24, 576] {
            let mut one = vec![0.0; d];
            one[d / 3] = 1.0;
            Rotation::new(d, &mut rng).apply(&mut one);
            let (norm, largest) =
                one.iter().fold((0.0f32, 0.0f32), |(n, m), x| (n + x * x, m.max(x.abs())));
            assert!((norm - 1.0).abs() < 1e-5, "{d}: {norm}");
            assert!(largest < 4.5 / (d as f32).sqrt(), "{d}: {largest}");
        }
    }
}
