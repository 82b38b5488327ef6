//! Recurrent states that grow without bound, or whose memory of the prompt changes.

use crate::evaluate::Observation;
use crate::model::Config;
use crate::oracle::interface::{Oracle, bounded};
use crate::text::number;

/// Largest logarithm that is shown as a factor: beyond it the factor says nothing more.
const LARGEST_LOGARITHM: f64 = 30.0;

/// Scores the natural logarithm of how many times larger the norm of a layer's state is at the end
/// than the baseline's, at the layer that grows most.
#[derive(Debug)]
pub struct StateBlowup;

impl Oracle for StateBlowup {
    fn name(&self) -> &'static str {
        "state_blowup"
    }

    fn label(&self) -> &'static str {
        "state blow-up"
    }

    fn unit(&self) -> &'static str {
        "nats"
    }

    fn meaning(&self) -> &'static str {
        "A recurrent state grows beyond what it does otherwise; the score is the logarithm of how \
        many times."
    }

    fn sentence(&self, cause: &str, score: f64) -> String {
        let factor = number(score.min(LARGEST_LOGARITHM).exp());
        format!("{cause} makes a recurrent state {factor} times as large.")
    }

    fn effect(&self, score: f64, _continuation: &str) -> String {
        format!("makes a recurrent state {:.1} times as large", score.exp())
    }

    fn judges_mutations(&self) -> bool {
        true
    }

    fn applies(&self, config: &Config) -> bool {
        config.is_recurrent()
    }

    fn score(&self, trial: &Observation, baseline: &Observation) -> f64 {
        let norm_before = |layer: usize| {
            baseline.state_norms.iter().find(|(l, _)| *l == layer).map(|(_, norm)| f64::from(*norm))
        };
        let growth = trial
            .state_norms
            .iter()
            .filter_map(|(layer, norm)| Some(f64::from(*norm) - norm_before(*layer)?));
        growth.map(|g| bounded(g, 0.0, 1e3)).fold(0.0, f64::max)
    }

    /// Twice the norm.
    fn minimum(&self) -> f64 {
        std::f64::consts::LN_2
    }
}

/// Scores how much more, or less, of the beginning of the prompt is left in the state at the end
/// ([`Observation::memory`]): the absolute logarithm of the ratio to the baseline's. Forgetting
/// what is remembered otherwise and never letting go of it both count.
#[derive(Debug)]
pub struct StateMemory;

impl Oracle for StateMemory {
    fn name(&self) -> &'static str {
        "state_memory"
    }

    fn label(&self) -> &'static str {
        "state memory"
    }

    fn unit(&self) -> &'static str {
        "nats"
    }

    fn meaning(&self) -> &'static str {
        "The recurrent state forgets the beginning of the text that it would remember, or keeps \
        what it would forget; the score is the logarithm of by how much."
    }

    fn sentence(&self, cause: &str, score: f64) -> String {
        let factor = number(score.min(LARGEST_LOGARITHM).exp());
        format!(
            "{cause} changes how much of the beginning is left in the recurrent state by a factor \
            of {factor}."
        )
    }

    fn effect(&self, score: f64, _continuation: &str) -> String {
        format!("changes what the state remembers by a factor of {:.1}", score.exp())
    }

    fn judges_mutations(&self) -> bool {
        true
    }

    fn applies(&self, config: &Config) -> bool {
        config.is_recurrent()
    }

    fn needs_memory(&self) -> bool {
        true
    }

    fn score(&self, trial: &Observation, baseline: &Observation) -> f64 {
        let (Some(trial), Some(baseline)) = (trial.memory, baseline.memory) else { return 0.0 };
        // Smaller shares are rounding: nothing is left of the beginning.
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
