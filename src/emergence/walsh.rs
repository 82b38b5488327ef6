//! Exact transforms of a set function: the Walsh-Fourier spectrum over all subsets, and the Moebius
//! transform, whose values are Harsanyi's dividends (1963).
//!
//! Under the uniform measure over subsets, a function is the sum of one component for each set of
//! parts, and its variance is the sum of their squared coefficients. The *weight of order d* is the
//! part of the variance that falls on sets of d parts. A dividend is something else: what a set
//! does beyond all its proper subsets, measured from the intact model.

use super::sets::PartSet;
use crate::stats::walsh_hadamard;

/// Returns the Walsh-Fourier coefficients of a function given at every subset, by bit mask (bit i:
/// part i is lesioned), in the same order.
pub fn walsh(values: &[f64]) -> Vec<f64> {
    let mut x = values.to_vec();
    walsh_hadamard(&mut x);
    let scale = 1.0 / x.len() as f64;
    x.iter_mut().for_each(|x| *x *= scale);
    x
}

/// Returns the dividend of a set: the alternating sum over its subsets,
/// `sum over T in S of (-1)^(|S| - |T|) f(T)`; `None` if the function is not known on all of them.
pub fn dividend(set: &PartSet, value: impl Fn(&PartSet) -> Option<f64>) -> Option<f64> {
    let sign =
        |subset: &PartSet| if (set.len() - subset.len()).is_multiple_of(2) { 1.0 } else { -1.0 };
    set.subsets(set.len()).iter().map(|subset| Some(sign(subset) * value(subset)?)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_spectrum_of_and_or_and_parity_by_hand() {
        // AND of two parts is (1 - x - y + xy)/4 in signs: a quarter in each coefficient.
        assert_eq!(walsh(&[0.0, 0.0, 0.0, 1.0]), [0.25, -0.25, -0.25, 0.25]);
        assert_eq!(walsh(&[0.0, 1.0, 1.0, 1.0]), [0.75, -0.25, -0.25, -0.25]);
        assert_eq!(walsh(&[0.0, 1.0, 1.0, 0.0]), [0.5, 0.0, 0.0, -0.5]);
        // Parseval: the squares add up to the mean square.
        let values: Vec<f64> = (0..16).map(|i| f64::from(i * i % 7)).collect();
        let mean_square = values.iter().map(|v| v * v).sum::<f64>() / 16.0;
        let weight: f64 = walsh(&values).iter().map(|c| c * c).sum();
        assert!((weight - mean_square).abs() < 1e-12);
    }

    #[test]
    fn dividends_are_what_a_set_adds() {
        let f = |set: &PartSet| {
            let has = |part| f64::from(u8::from(set.contains(part)));
            Some(
                7.0 + 2.0 * has(0) - has(1)
                    + 3.0 * has(0) * has(1)
                    + 5.0 * has(0) * has(1) * has(2),
            )
        };
        let of = |parts: &[u32]| dividend(&PartSet::new(parts.to_vec()), f).unwrap();
        assert_eq!([of(&[]), of(&[0]), of(&[1]), of(&[2])], [7.0, 2.0, -1.0, 0.0]);
        assert_eq!([of(&[0, 1]), of(&[0, 2]), of(&[0, 1, 2])], [3.0, 0.0, 5.0]);
        assert_eq!(dividend(&PartSet::new(vec![0, 1]), |s| (s.len() != 1).then_some(1.0)), None);
    }
}
