//! Routing of a mixture that collapses, or turns to other experts.

use crate::evaluate::{LayerRouting, Observation};
use crate::model::Config;
use crate::oracle::interface::Oracle;
use crate::text::percent;

/// Scores the larger of two shares, 0 to 1, over the read positions and the routers: the choices of
/// experts that are not the baseline's, and the variety of the baseline's choices that is lost (one
/// minus the ratio of effective numbers of experts, `exp` of the entropy of how often each is
/// chosen).
#[derive(Debug)]
pub struct RoutingCollapse;

impl Oracle for RoutingCollapse {
    fn name(&self) -> &'static str {
        "routing_collapse"
    }

    fn label(&self) -> &'static str {
        "routing collapse"
    }

    fn unit(&self) -> &'static str {
        ""
    }

    fn meaning(&self) -> &'static str {
        "The routers send tokens to other experts than before, or to few of them; the score is the \
        share of choices changed, or of their variety lost."
    }

    fn sentence(&self, cause: &str, score: f64) -> String {
        let share = percent(score);
        format!(
            "{cause} changes {share} of the choices of experts, or takes as much of their variety."
        )
    }

    fn effect(&self, score: f64, _continuation: &str) -> String {
        format!("sends {:.0}% of the choices to other experts, or to fewer", 100.0 * score)
    }

    fn judges_mutations(&self) -> bool {
        true
    }

    fn applies(&self, config: &Config) -> bool {
        config.experts.is_some()
    }

    fn score(&self, trial: &Observation, baseline: &Observation) -> f64 {
        // A row that resumed above a layer is routed there as its baseline.
        let routed_at = |layer: usize| trial.routing.iter().find(|r| r.layer == layer);
        let pairs: Vec<(&LayerRouting, &LayerRouting)> =
            baseline.routing.iter().map(|b| (routed_at(b.layer).unwrap_or(b), b)).collect();
        if pairs.is_empty() || pairs.iter().any(|(t, b)| t.chosen.len() != b.chosen.len()) {
            return 0.0;
        }
        let flipped: f64 = pairs.iter().map(|(t, b)| flips(t, b, trial.entropy.len())).sum::<f64>()
            / pairs.len() as f64;
        let lost = pairs.iter().map(|(t, b)| 1.0 - effective(t) / effective(b)).sum::<f64>()
            / pairs.len() as f64;
        flipped.max(lost)
    }

    /// Half of the choices.
    fn minimum(&self) -> f64 {
        0.5
    }
}

/// Returns the share of choices that the baseline does not make at the same position.
fn flips(trial: &LayerRouting, baseline: &LayerRouting, positions: usize) -> f64 {
    let both = trial.by_position(positions).zip(baseline.by_position(positions));
    let other: usize =
        both.map(|(t, b)| t.iter().filter(|expert| !b.contains(expert)).count()).sum();
    other as f64 / trial.chosen.len().max(1) as f64
}

/// Returns the effective number of experts: as many, chosen equally often, have the same entropy.
fn effective(routing: &LayerRouting) -> f64 {
    let mut counts = vec![0f64; routing.num_experts];
    routing.chosen.iter().for_each(|expert| counts[*expert as usize] += 1.0);
    let total: f64 = counts.iter().sum();
    counts
        .into_iter()
        .filter(|c| *c > 0.0)
        .map(|c| -(c / total) * (c / total).ln())
        .sum::<f64>()
        .exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(trial: &[u32], baseline: &[u32], expect: f64) {
        let observe = |chosen: &[u32]| Observation {
            entropy: vec![0.0; 4],
            routing: vec![LayerRouting { layer: 0, num_experts: 8, chosen: chosen.to_vec() }],
            ..Default::default()
        };
        let got = RoutingCollapse.score(&observe(trial), &observe(baseline));
        assert!((got - expect).abs() < 1e-9, "{trial:?}: {got} is not {expect}");
    }

    #[test]
    fn shares_by_hand() {
        let baseline = [0, 1, 2, 3, 4, 5, 6, 7]; // four positions, two experts each
        check(&baseline, &baseline, 0.0);
        check(&[1, 0, 3, 2, 5, 4, 7, 6], &baseline, 0.0); // the same sets
        check(&[0, 2, 2, 4, 4, 6, 6, 0], &baseline, 0.5); // each position keeps one of two
        check(&[0, 1, 0, 1, 0, 1, 0, 1], &baseline, 0.75); // two experts in the place of eight
        check(&[2, 3, 0, 1, 6, 7, 4, 5], &baseline, 1.0); // as varied, and none as before
    }

    #[test]
    fn a_layer_below_the_lesion_counts_as_unchanged() {
        let routing = |layer, chosen: [u32; 2]| LayerRouting {
            layer,
            num_experts: 4,
            chosen: chosen.to_vec(),
        };
        let baseline = Observation {
            entropy: vec![0.0],
            routing: vec![routing(0, [0, 1]), routing(1, [0, 1])],
            ..Default::default()
        };
        let trial = Observation {
            entropy: vec![0.0],
            routing: vec![routing(1, [2, 3])],
            ..Default::default()
        };
        assert_eq!(RoutingCollapse.score(&trial, &baseline), 0.5);
    }
}
