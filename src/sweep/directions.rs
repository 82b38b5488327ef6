//! Whether a lesion costs what noise of its norm costs.
//!
//! A lesion is a change in one direction, and so is a noise lesion. Directions differ: on the same
//! texts one costs half as much again as another. More texts do not help against that, so a lesion
//! is compared with several directions, and with how far directions lie apart. Effects of noise
//! spread in proportion to their size, and evenly below a tenth of a nat, so they are compared on
//! the scale of `asinh`. How far the directions of one component lie apart is then much
//! the same for all, but not quite: where some direction reaches a massive activation, it is four
//! times as far. So each component has its own variance, shrunk towards those of the others
//! ([`stats::moderated_p_values`]).

use crate::stats;

/// The effect from which effects of noise spread in proportion to their size, nats per token: small
/// ones have a standard deviation of 0.01 to 0.03 between directions, of large ones it is a quarter
/// (heads and blocks of the built-in models and of SmolLM2, on 8 texts of 60 tokens).
const PROPORTIONAL_FROM: f64 = 0.1;

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
    let noise: Vec<Vec<f64>> = lesions
        .iter()
        .map(|(_, noise)| noise.iter().map(|&effect| scaled(effect)).collect())
        .collect();
    let pairs: Vec<(f64, &[f64])> = (lesions.iter().zip(&noise))
        .map(|((effect, _), noise)| (scaled(*effect), &noise[..]))
        .collect();
    let p = stats::moderated_p_values(&pairs);
    let just_one_breaks = |effect: f64, noise: &[f64]| match effect.is_finite() {
        true => !noise.is_empty() && noise.iter().all(|y| !y.is_finite()),
        false => noise.len() > 1 && noise.iter().all(|y| y.is_finite()),
    };
    let of = |((effect, noise), p)| if just_one_breaks(effect, noise) { 0.0 } else { p };
    pairs.into_iter().zip(p).map(of).collect()
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
