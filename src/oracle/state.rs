//! Recurrent states that grow beyond measure, or remember otherwise than they did.

use super::{Oracle, OracleKind, bounded};
use crate::evaluate::Observation;

/// How many times larger the norm of a layer's state is at the end than the baseline's: the natural
/// logarithm, of the layer where it is most.
#[derive(Debug)]
pub struct StateBlowup;

impl Oracle for StateBlowup {
    fn kind(&self) -> OracleKind {
        OracleKind::StateBlowup
    }

    fn score(&self, trial: &Observation, baseline: &Observation) -> f64 {
        let of = |layer: usize| {
            baseline.state_norms.iter().find(|(l, _)| *l == layer).map(|(_, norm)| f64::from(*norm))
        };
        let growth = trial
            .state_norms
            .iter()
            .filter_map(|(layer, norm)| Some(f64::from(*norm) - of(*layer)?));
        growth.map(|g| bounded(g, 0.0, 1e3)).fold(0.0, f64::max)
    }

    /// Twice the norm.
    fn minimum(&self) -> f64 {
        std::f64::consts::LN_2
    }
}

/// How much more, or less, of the beginning of the prompt is left in the state at the end
/// ([`Observation::memory`]): the logarithm of the ratio to the baseline's, without its sign.
/// Forgetting what is remembered otherwise and never letting go of it both count.
#[derive(Debug)]
pub struct StateMemory;

impl Oracle for StateMemory {
    fn kind(&self) -> OracleKind {
        OracleKind::StateMemory
    }

    fn needs_memory(&self) -> bool {
        true
    }

    fn score(&self, trial: &Observation, baseline: &Observation) -> f64 {
        let (Some(trial), Some(baseline)) = (trial.memory, baseline.memory) else { return 0.0 };
        // Below this nothing is left: how much less than nothing is arithmetic.
        let log = |share: f32| f64::from(share.max(1e-6)).ln();
        bounded((log(trial) - log(baseline)).abs(), 0.0, 1e3)
    }

    /// Twice as much, or half.
    fn minimum(&self) -> f64 {
        std::f64::consts::LN_2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layer_that_grows_most_counts() {
        let observe = |norms: &[(usize, f32)]| Observation {
            state_norms: norms.to_vec(),
            ..Default::default()
        };
        let baseline = observe(&[(0, 1.0), (1, 2.0), (2, 0.5)]);
        let check = |norms: &[(usize, f32)], expect: f64| {
            assert!(
                (StateBlowup.score(&observe(norms), &baseline) - expect).abs() < 1e-6,
                "{norms:?}"
            );
        };
        check(&[(0, 1.0), (1, 2.0), (2, 0.5)], 0.0);
        check(&[(1, 1.0), (2, 3.5)], 3.0); // the layer below the lesion was not computed
        check(&[(0, 0.0), (1, 0.0)], 0.0); // a state that shrinks
        check(&[(0, f32::NAN)], 1e3);
        check(&[], 0.0);
    }

    #[test]
    fn forgetting_and_never_forgetting_both_count() {
        let observe = |memory| Observation { memory, ..Default::default() };
        let check = |trial: Option<f32>, baseline: Option<f32>, expect: f64| {
            let got = StateMemory.score(&observe(trial), &observe(baseline));
            assert!((got - expect).abs() < 1e-5, "{trial:?} {baseline:?}: {got}");
        };
        check(Some(0.2), Some(0.2), 0.0);
        check(Some(0.02), Some(0.2), 10f64.ln());
        check(Some(0.8), Some(0.2), 4f64.ln());
        check(Some(0.0), Some(0.1), 1e5f64.ln());
        check(None, Some(0.1), 0.0);
    }
}
