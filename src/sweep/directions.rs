//! Whether a lesion costs what noise of its norm costs.
//!
//! A lesion is a change in one direction, and so is a noise lesion. Directions differ: on the same
//! texts one costs half as much again as another. More texts do not help against that, so a lesion
//! is compared with several directions, and with how far directions lie apart. Effects of noise
//! spread in proportion to their size, and evenly below some hundredths of a nat, so they are
//! compared on the scale of `asinh`. How far the directions of one component lie apart is then much
//! the same for all, but not quite: where some direction reaches a massive activation, it is four
//! times as far. So each component has its own variance, shrunk towards those of the others
//! ([`CommonVariance`]).

use statrs::distribution::{ContinuousCDF as _, StudentsT};

use crate::stats::CommonVariance;

/// The effect from which effects of noise spread in proportion to their size, nats per token:
/// measured on heads and blocks of the built-in models.
const PROPORTIONAL_FROM: f64 = 0.03;

/// Returns the effect on a scale on which effects of noise have much the same standard deviation.
/// One that is not finite is larger than any other.
fn scaled(effect: f64) -> f64 {
    if effect.is_finite() { (effect / PROPORTIONAL_FROM).asinh() } else { f64::INFINITY }
}

/// Returns for each lesion the two-sided p-value of being one more draw among the effects of noise,
/// nats per token: a pair of its own effect and those of noise, one in each direction.
///
/// A lesion has p = 1 if neither it nor noise leaves the loss finite, or noise does so in some
/// directions only; and p = 0 if just one of them does.
pub fn p_values(lesions: &[(f64, &[f64])]) -> Vec<f64> {
    let moments: Vec<Option<Moments>> =
        lesions.iter().map(|(_, noise)| Moments::new(noise)).collect();
    // All have as many directions, but for tests.
    let degrees = |noise: &[f64]| noise.len().saturating_sub(1) as f64;
    let least = lesions.iter().map(|(_, noise)| degrees(noise)).fold(f64::INFINITY, f64::min);
    let variances: Vec<f64> = moments.iter().flatten().map(|m| m.variance).collect();
    let common = CommonVariance::fit(&variances, least);
    lesions
        .iter()
        .zip(&moments)
        .map(|((effect, noise), moments)| {
            let effect = scaled(*effect);
            match (effect.is_finite(), moments, &common) {
                (true, Some(moments), Some(common)) => {
                    let (variance, degrees) = common.shrink(moments.variance, degrees(noise));
                    let of_one_more = variance * (1.0 + 1.0 / noise.len() as f64);
                    let t = (effect - moments.mean).abs() / of_one_more.sqrt();
                    StudentsT::new(0.0, 1.0, degrees).map_or(1.0, |student| 2.0 * student.sf(t))
                }
                (false, Some(_), _) => 0.0,
                (true, None, _) if noise.iter().all(|e| !e.is_finite()) => 0.0,
                _ => 1.0,
            }
        })
        .collect()
}

/// Mean and variance of the effects of noise in all directions, scaled.
struct Moments {
    mean: f64,
    variance: f64,
}

impl Moments {
    /// Returns `None` if there are fewer than two effects or one is not finite.
    fn new(noise: &[f64]) -> Option<Self> {
        let scaled: Vec<f64> = noise.iter().map(|&effect| scaled(effect)).collect();
        if scaled.len() < 2 || !scaled.iter().all(|y| y.is_finite()) {
            return None;
        }
        let n = scaled.len() as f64;
        let mean = scaled.iter().sum::<f64>() / n;
        let squares = scaled.iter().map(|y| (y - mean) * (y - mean)).sum::<f64>();
        Some(Self { mean, variance: squares / (n - 1.0) })
    }
}

#[cfg(test)]
mod tests {
    use rand::Rng as _;

    use super::*;
    use crate::rng;

    /// A lesion that is one more direction is called different as often as stated, whatever the
    /// size of its component's effects and though some components spread three times as far as
    /// others; one that costs three times as much is found.
    #[test]
    fn a_further_direction_is_called_different_as_often_as_stated() {
        let mut rng = rng::stream(1, "directions");
        let mut normal = || (0..12).map(|_| rng.random_range(-0.5..0.5f64)).sum::<f64>();
        let (mut called, mut rarely, mut found, mut all) = (0, 0, 0, 0);
        for _ in 0..200 {
            let sizes: Vec<f64> = (0..40).map(|i| 0.002 * 1.2f64.powi(i)).collect();
            let mut draw = |i: usize| {
                let spread = if i.is_multiple_of(8) { 0.6 } else { 0.2 };
                sizes[i] * (spread * normal()).exp() + 0.002 * normal()
            };
            let noise: Vec<Vec<f64>> = (0..40).map(|i| (0..8).map(|_| draw(i)).collect()).collect();
            let pairs = |lesions: Vec<f64>| -> Vec<f64> {
                p_values(
                    &lesions.into_iter().zip(noise.iter().map(Vec::as_slice)).collect::<Vec<_>>(),
                )
            };
            let null = pairs((0..40).map(&mut draw).collect());
            let found_here = pairs((0..40).map(|i| 3.0 * draw(i)).collect());
            called += null.iter().filter(|p| **p <= 0.05).count();
            rarely += null.iter().filter(|p| **p <= 0.001).count();
            found += (0..40).filter(|i| sizes[*i] > 0.1 && found_here[*i] <= 0.05).count();
            all += sizes.len();
        }
        let share = |n: usize| n as f64 / all as f64;
        assert!((0.03..0.06).contains(&share(called)), "{}", share(called));
        assert!(share(rarely) < 0.003, "{}", share(rarely));
        assert!(found > 2500, "{found}");
    }

    #[test]
    fn what_is_not_finite_is_larger_than_noise_and_like_noise_that_is_not() {
        let usual = [0.1, 0.12, 0.11];
        let p = p_values(&[
            (f64::NAN, &usual),
            (f64::NAN, &[f64::INFINITY, 0.1, 0.1]),
            (0.1, &[f64::NAN, f64::NAN, f64::NAN]),
            (0.1, &[f64::NAN, 0.1, 0.1]),
            (0.11, &usual),
        ]);
        assert_eq!(p[..4], [0.0, 1.0, 0.0, 1.0]);
        assert!(p[4] > 0.9);
        assert_eq!(p_values(&[(1.0, &[0.1])]), [1.0]);
        assert!(p_values(&[]).is_empty());
    }
}
