//! A sequential Monte Carlo test: controls are drawn until it is clear how rarely one scores as
//! much as the trial.
//!
//! Wald's sequential probability ratio test (1945) of the share of controls that score at least as
//! much: [`RARE`] against [`COMMON`], each wrong answer with a probability of about [`ERROR`]
//! wherever the share lies beyond them. What is no finding is turned down after a few controls
//! (Besag and Clifford 1991, "Sequential Monte Carlo p-values", stop for the same reason); what is
//! one needs a few hundred.

/// Share of controls that score at least as much as a finding.
pub const RARE: f64 = 0.002;
/// Share of them for what is no finding.
pub const COMMON: f64 = 0.02;
/// Probability of either wrong answer.
pub const ERROR: f64 = 0.01;
/// Controls drawn before a trial is confirmed.
pub const LEAST: usize = 64;
/// Controls after which the test ends whatever is known.
pub const MOST: usize = 999;
/// Largest p-value at which a verdict is one of failure.
pub const LARGEST_P: f64 = 0.01;

/// What is known after some controls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Draw more.
    Undecided,
    /// Controls hardly ever score as much.
    Exceeds,
    /// Controls score as much too often.
    Ordinary,
}

/// Decides after `controls` controls, of which `as_extreme` score at least as much as the trial.
pub fn decide(as_extreme: usize, controls: usize) -> Decision {
    let (above, below) = (as_extreme as f64, controls.saturating_sub(as_extreme) as f64);
    let evidence = above * (RARE / COMMON).ln() + below * ((1.0 - RARE) / (1.0 - COMMON)).ln();
    let clear = ((1.0 - ERROR) / ERROR).ln();
    if evidence <= -clear {
        Decision::Ordinary
    } else if evidence >= clear && controls >= LEAST {
        Decision::Exceeds
    } else if controls < MOST {
        Decision::Undecided
    } else {
        // Not clear: what is confirmed once should seldom be turned down under other controls.
        Decision::Ordinary
    }
}

/// Draws controls in batches until [`decide`] does; `draw(n)` scores up to `n` more of them, and
/// fewer only where there are no others. Then all there are have been compared with, and the
/// decision is left to the threshold: [`Decision::Undecided`].
///
/// # Errors
/// Those of `draw`.
pub fn test<E>(
    score: f64,
    mut draw: impl FnMut(usize) -> Result<Vec<f64>, E>,
) -> Result<(Decision, Vec<f64>), E> {
    let mut controls: Vec<f64> = Vec::new();
    loop {
        let as_extreme = controls.iter().filter(|c| c.total_cmp(&score).is_ge()).count();
        match decide(as_extreme, controls.len()) {
            Decision::Undecided => {}
            decision => return Ok((decision, controls)),
        }
        let batch = LEAST.min(MOST - controls.len());
        let more = draw(batch)?;
        let exhausted = more.len() < batch;
        controls.extend(more);
        if exhausted {
            return Ok((Decision::Undecided, controls));
        }
    }
}

/// Returns how many of `controls` may score at least as much as a finding: their share, as a
/// [`p_value`](super::p_value), stays within [`LARGEST_P`]. Fewer than 199 allow none.
pub fn allowed(controls: usize) -> usize {
    ((LARGEST_P * (1 + controls) as f64) as usize).saturating_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng;
    use crate::stats::p_value;
    use rand::Rng as _;

    #[test]
    fn decisions_by_hand() {
        assert_eq!(decide(0, 63), Decision::Undecided);
        // ln 99 = 4.595; a control below adds 0.01820, one above takes 2.3026.
        assert_eq!(decide(0, 252), Decision::Undecided);
        assert_eq!(decide(0, 253), Decision::Exceeds);
        assert_eq!(decide(1, 379), Decision::Undecided);
        assert_eq!(decide(1, 380), Decision::Exceeds);
        assert_eq!(decide(2, 2), Decision::Ordinary);
        assert_eq!(decide(1, 1), Decision::Undecided);
        assert_eq!((decide(5, 998), decide(6, 998)), (Decision::Exceeds, Decision::Undecided));
        assert_eq!((decide(5, 999), decide(6, 999)), (Decision::Exceeds, Decision::Ordinary));
    }

    #[test]
    fn what_exceeds_is_within_what_the_threshold_allows() {
        assert_eq!([0, 16, 198, 199, 298, 299, 999].map(allowed), [0, 0, 0, 1, 1, 2, 9]);
        for n in LEAST..=MOST {
            for above in 0..=n.min(20) {
                if decide(above, n) == Decision::Exceeds {
                    assert!(above <= allowed(n), "{above} of {n}");
                    let controls: Vec<f64> = (0..n).map(|i| f64::from(i < above)).collect();
                    assert!(p_value(1.0, &controls) <= LARGEST_P);
                }
            }
        }
    }

    /// The error rates that the test promises, on shares beyond the two, and what it costs.
    #[test]
    fn wrong_answers_are_rare_and_ordinary_trials_are_cheap() {
        let run = |share: f64, seed: u64| {
            let mut rng = rng::stream(seed, "sequential");
            let draw = |n: usize| -> Result<Vec<f64>, ()> {
                Ok((0..n).map(|_| f64::from(rng.random_bool(share))).collect())
            };
            test(1.0, draw).unwrap()
        };
        let rate = |share: f64, decision: Decision| {
            let runs = (0..2000).map(|seed| run(share, seed));
            let (hits, drawn) = runs.fold((0, 0), |(hits, drawn), (d, controls)| {
                (hits + usize::from(d == decision), drawn + controls.len())
            });
            (hits as f64 / 2000.0, drawn as f64 / 2000.0)
        };
        let (exceeds, _) = rate(COMMON, Decision::Exceeds);
        assert!(exceeds <= 0.02, "{exceeds}");
        let (ordinary, _) = rate(RARE, Decision::Ordinary);
        assert!(ordinary <= 0.02, "{ordinary}");
        let (wrong, cost) = rate(0.25, Decision::Exceeds);
        assert!(wrong == 0.0 && cost < 70.0, "{wrong} {cost}");
    }

    #[test]
    fn where_no_more_can_be_drawn_the_test_ends() {
        let mut left = 11;
        let draw = |n: usize| -> Result<Vec<f64>, ()> {
            let now = n.min(left);
            left -= now;
            Ok(vec![0.0; now])
        };
        assert_eq!(test(1.0, draw).unwrap(), (Decision::Undecided, vec![0.0; 11]));
    }
}
