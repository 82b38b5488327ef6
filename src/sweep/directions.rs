//! Whether a lesion costs what noise of its norm costs.
//!
//! A lesion is a change in one direction, and so is a noise lesion. Directions differ: on the same
//! texts one costs half as much again as another. More texts do not help against that, so a lesion
//! is compared with several directions, and with how far directions lie apart. Effects of noise
//! spread in proportion to their size, and evenly below some hundredths of a nat, so they are
//! compared on the scale of `asinh`, on which one standard deviation serves all components of a
//! sweep. It is taken from the differences between the directions of each (a pooled variance).

use statrs::distribution::{ContinuousCDF as _, StudentsT};

/// The effect from which effects of noise spread in proportion to their size, nats per token:
/// measured on heads and blocks of the built-in models.
const PROPORTIONAL_FROM: f64 = 0.03;

/// Returns the effect on a scale on which effects of noise have one standard deviation. One that is
/// not finite is larger than any other.
fn scaled(effect: f64) -> f64 {
    if effect.is_finite() { (effect / PROPORTIONAL_FROM).asinh() } else { f64::INFINITY }
}

/// How far noise in one direction lies from noise in another, over all components of a sweep.
pub struct Spread {
    /// Standard deviation between the directions of one component, on the scale of [`scaled`].
    deviation: f64,
    degrees_of_freedom: f64,
}

impl Spread {
    /// Takes the spread of the effects of noise, nats per token: for each component one in each
    /// direction. `None` if no component has two that are finite.
    pub fn new<'a>(noise: impl Iterator<Item = &'a [f64]>) -> Option<Self> {
        let (mut squares, mut degrees) = (0.0, 0);
        for effects in noise {
            let scaled: Vec<f64> =
                effects.iter().map(|&e| scaled(e)).filter(|y| y.is_finite()).collect();
            let mean = scaled.iter().sum::<f64>() / scaled.len().max(1) as f64;
            squares += scaled.iter().map(|y| (y - mean) * (y - mean)).sum::<f64>();
            degrees += scaled.len().saturating_sub(1);
        }
        let degrees_of_freedom = degrees as f64;
        (degrees > 0).then(|| Self {
            deviation: (squares / degrees_of_freedom).sqrt().max(1e-3),
            degrees_of_freedom,
        })
    }

    /// Returns the two-sided p-value of an effect among those of noise in random directions: of one
    /// more draw, by Student's t.
    pub fn p_value(&self, effect: f64, noise: &[f64]) -> f64 {
        let mean = noise.iter().map(|&e| scaled(e)).sum::<f64>() / noise.len() as f64;
        let (effect, further) = (scaled(effect), (1.0 + 1.0 / noise.len() as f64).sqrt());
        match (effect.is_finite(), mean.is_finite()) {
            (true, true) => {}
            (false, false) => return 1.0,
            _ => return 0.0,
        }
        let t = (effect - mean).abs() / (self.deviation * further);
        StudentsT::new(0.0, 1.0, self.degrees_of_freedom).map_or(1.0, |student| 2.0 * student.sf(t))
    }
}

#[cfg(test)]
mod tests {
    use rand::Rng as _;

    use super::*;
    use crate::rng;

    /// A lesion that is one more direction is called different as often as stated, whatever the
    /// size of its component's effects; one that costs three times as much is found.
    #[test]
    fn a_further_direction_is_called_different_as_often_as_stated() {
        let mut rng = rng::stream(1, "directions");
        let mut normal = || (0..12).map(|_| rng.random_range(-0.5..0.5f64)).sum::<f64>();
        let (mut called, mut found, mut all) = (0, 0, 0);
        for _ in 0..100 {
            let sizes: Vec<f64> = (0..40).map(|i| 0.002 * 1.2f64.powi(i)).collect();
            let mut draw = |size: &f64| size * (1.0 + 0.25 * normal()) + 0.005 * normal();
            let noise: Vec<Vec<f64>> =
                sizes.iter().map(|size| vec![draw(size), draw(size)]).collect();
            let spread = Spread::new(noise.iter().map(Vec::as_slice)).unwrap();
            for (size, noise) in sizes.iter().zip(&noise) {
                called += usize::from(spread.p_value(draw(size), noise) <= 0.05);
                found += usize::from(*size > 0.1 && spread.p_value(3.0 * size, noise) <= 0.05);
                all += 1;
            }
        }
        let share = called as f64 / all as f64;
        assert!((0.02..0.07).contains(&share), "{share}");
        assert!(found > 1500, "{found}");
    }

    #[test]
    fn what_is_not_finite_is_larger_than_noise_and_like_noise_that_is_not() {
        let spread = Spread::new([&[0.1, 0.12][..]].into_iter()).unwrap();
        assert_eq!(spread.p_value(f64::NAN, &[0.1, 0.12]), 0.0);
        assert_eq!(spread.p_value(f64::NAN, &[f64::INFINITY, 0.1]), 1.0);
        assert_eq!(spread.p_value(0.1, &[f64::NAN, f64::NAN]), 0.0);
        assert!(spread.p_value(0.11, &[0.1, 0.12]) > 0.9);
        assert!(Spread::new([&[f64::NAN, 0.1][..]].into_iter()).is_none());
    }
}
