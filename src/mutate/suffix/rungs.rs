//! The rungs of successive halving: after which layers candidates are pruned, and by which score.
//!
//! The estimate of a candidate's loss change after some layers (its change of the residual stream
//! times the gradient there) says little for most of the way. Over 18 states of searches on SmolLM2
//! (30 layers; `race_quality` in `benches/`) its rank correlation with the exact change of the loss
//! is -0.21 after 3 layers, where the estimate is largest for the candidates that change most, 0.01
//! after 9, 0.26 after 15 and 0.77 after 25. The part of the estimate at the positions that are
//! read, which no longer has to pass through attention, does better at first: 0.15 after 3 layers,
//! 0.17 after 6. So early rungs use both.
//!
//! Even so these rungs do not beat chance in those states: at 27% of the work of running all
//! candidates to the end they find 63% of the improvement that the best of them makes, and as many
//! random candidates as the same work would run find 65%. Gentler rungs do (0.7, 0.55, 0.65 and
//! 0.6: 77% against 71%, at 35% of the work). Whole searches do not differ either: after 40 steps
//! without copies three searches stood at 1.59, 1.50 and 1.30 nats per token, and three that ran 69
//! candidates a step to the end, in the same time, at 1.72, 1.39 and 1.48.

use crate::evaluate::Expected;

/// Fewest layers that are worth pruning in: in shallower models a candidate costs too little.
const MIN_LAYERS: usize = 12;

/// Rungs in the first 1/3 of the layers rank by the estimate at the read positions too: there the
/// whole estimate says nothing (see above).
const EARLY_FRACTION: usize = 3;

/// Returns the rungs for a model of `layers` layers, as (layers, share of the candidates kept
/// after them); none where there is little to save. On SmolLM2 (30 layers, 256 candidates), 128,
/// 64, 45 and 27 candidates are left after 3, 6, 12 and 15 layers.
pub fn rungs(layers: usize, recurrent: bool) -> Vec<(usize, f64)> {
    if recurrent || layers < MIN_LAYERS {
        return Vec::new();
    }
    vec![(layers / 10, 0.5), (layers / 5, 0.5), (2 * layers / 5, 0.7), (layers / 2, 0.6)]
}

/// Keeps `share` of the candidates, most promising first, after `run` of `layers` layers.
/// `expected` is indexed by candidate.
pub fn prune(
    candidates: &mut Vec<usize>,
    expected: &[Expected],
    share: f64,
    run: usize,
    layers: usize,
) {
    // By rank, because the two estimates differ in size by orders of magnitude and from layer to
    // layer.
    let ranks = |estimate: fn(&Expected) -> f64| {
        let mut order = candidates.clone();
        order.sort_by(|a, b| {
            estimate(&expected[*a]).total_cmp(&estimate(&expected[*b])).then(a.cmp(b))
        });
        let mut ranks = vec![0; expected.len()];
        order.into_iter().enumerate().for_each(|(rank, candidate)| ranks[candidate] = rank);
        ranks
    };
    let mut ranking = ranks(|e| e.total);
    if EARLY_FRACTION * run < layers {
        ranking.iter_mut().zip(ranks(|e| e.at_reads)).for_each(|(sum, rank)| *sum += rank);
    }
    candidates.sort_by_key(|candidate| (ranking[*candidate], *candidate));
    candidates.truncate(((candidates.len() as f64 * share).ceil() as usize).max(1));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn early_rungs_rank_by_the_read_positions_too() {
        let expected_of = |(total, at_reads)| Expected { total, at_reads };
        let expected =
            [(-3.0, 0.2), (-2.0, -0.1), (-1.0, 0.1), (0.0, 0.0), (-9.0, -9.0)].map(expected_of);
        let check = |share, run, left: &[usize]| {
            let mut candidates = vec![3, 2, 1, 0];
            prune(&mut candidates, &expected, share, run, 30);
            assert_eq!(candidates, left, "{share} after {run}");
        };
        // By the whole estimate the candidates rank 0, 1, 2, 3; by its part at the read positions
        // 1, 3, 2, 0.
        check(0.5, 10, &[0, 1]);
        check(0.5, 9, &[1, 0]);
        check(1.0, 9, &[1, 0, 2, 3]);
        check(0.3, 9, &[1, 0]);
        check(0.0, 20, &[0]);
    }

    #[test]
    fn rungs_are_inside_the_model() {
        for layers in MIN_LAYERS..100 {
            let rungs = rungs(layers, false);
            assert!(
                rungs[0].0 > 0
                    && rungs.is_sorted_by(|a, b| a.0 < b.0)
                    && rungs[rungs.len() - 1].0 < layers
            );
        }
        assert!(rungs(MIN_LAYERS - 1, false).is_empty() && rungs(30, true).is_empty());
    }
}
