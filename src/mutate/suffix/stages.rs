//! Where candidates in a race are pruned, and by what.
//!
//! What is expected of a candidate behind some layers (what it changed so far, times the gradient
//! there) says little for most of the way. Over 18 states of searches on SmolLM2 (30 layers;
//! `examples/race_quality.rs`) its rank correlation with the exact change of the loss is -0.21
//! behind 3 layers, where it is most for those that change most, 0.01 behind 9, 0.26 behind 15 and
//! 0.77 behind 25. What of it has already come to the positions that are read, and has no more
//! attention to pass, does better at first: 0.15 behind 3 layers, 0.17 behind 6. So early stages
//! ask for both.
//!
//! Even so these stages do not beat chance in those states: at 27% of the work of running all
//! candidates to the end they find 63% of the improvement that the best of them makes, and as many
//! drawn at random as that work would run find 65%. Gentler ones do (0.7, 0.55, 0.65 and 0.6: 77%
//! against 71%, at 35% of the work). Nor do whole searches differ: after 40 steps without copies
//! three of them stood at 1.59, 1.50 and 1.30 nats a token, and three that ran 69 candidates a step
//! to the end, in the same time, at 1.72, 1.39 and 1.48.

use crate::evaluate::Expected;

/// Stages for a model of so many layers, as (layers, the share that goes on from there): none where
/// there is little to save. On SmolLM2 (30 layers, 256 candidates), 128, 64, 45 and 27 are left
/// behind 3, 6, 12 and 15 layers.
pub fn stages(layers: usize, recurrent: bool) -> Vec<(usize, f64)> {
    if recurrent || layers < 12 {
        return Vec::new();
    }
    vec![(layers / 10, 0.5), (layers / 5, 0.5), (2 * layers / 5, 0.7), (layers / 2, 0.6)]
}

/// The share of the contenders, most promising first, that goes on from a stage behind `behind` of
/// `layers` layers. `expected` is indexed by contender.
pub fn prune(
    contenders: &mut Vec<usize>,
    expected: &[Expected],
    share: f64,
    behind: usize,
    layers: usize,
) {
    // By rank, as the two differ in size by orders of magnitude and from layer to layer.
    let ranks = |of: fn(&Expected) -> f64| {
        let mut order = contenders.clone();
        order.sort_by(|a, b| of(&expected[*a]).total_cmp(&of(&expected[*b])).then(a.cmp(b)));
        let mut ranks = vec![0; expected.len()];
        order.into_iter().enumerate().for_each(|(rank, contender)| ranks[contender] = rank);
        ranks
    };
    let mut ranking = ranks(|e| e.total);
    if 3 * behind < layers {
        ranking.iter_mut().zip(ranks(|e| e.at_reads)).for_each(|(sum, rank)| *sum += rank);
    }
    contenders.sort_by_key(|contender| (ranking[*contender], *contender));
    contenders.truncate(((contenders.len() as f64 * share).ceil() as usize).max(1));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn early_stages_ask_what_has_come_to_where_it_is_read() {
        let of = |(total, at_reads)| Expected { total, at_reads };
        let expected = [(-3.0, 0.2), (-2.0, -0.1), (-1.0, 0.1), (0.0, 0.0), (-9.0, -9.0)].map(of);
        let check = |share, behind, left: &[usize]| {
            let mut contenders = vec![3, 2, 1, 0];
            prune(&mut contenders, &expected, share, behind, 30);
            assert_eq!(contenders, left, "{share} behind {behind}");
        };
        // Ranks 0 to 3 by all that is expected are contenders 0, 1, 2, 3; by what has come they are
        // 1, 3, 2, 0.
        check(0.5, 10, &[0, 1]);
        check(0.5, 9, &[1, 0]);
        check(1.0, 9, &[1, 0, 2, 3]);
        check(0.3, 9, &[1, 0]);
        check(0.0, 20, &[0]);
    }

    #[test]
    fn stages_are_inside_the_model() {
        for layers in 12..100 {
            let stages = stages(layers, false);
            assert!(
                stages[0].0 > 0
                    && stages.is_sorted_by(|a, b| a.0 < b.0)
                    && stages[stages.len() - 1].0 < layers
            );
        }
        assert!(stages(11, false).is_empty() && stages(30, true).is_empty());
    }
}
