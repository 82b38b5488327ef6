//! How far a lesion stands out from its peers: a description, not a test.
//!
//! Most components of a kind matter little, so median and MAD of the log divergences of one kind in
//! one third of the layers describe the ordinary ones. The components that are scored are those
//! that the scale is taken from, so no p-value follows from it.

use crate::edit::Component;
use crate::stats;

/// The number of peers from which a component is scored.
const LEAST_PEERS: usize = 8;

/// Returns for each component the robust z-score of the logarithm of its divergence (bits) among
/// its peers: the components of its kind in the same third of the layers, or in all layers where
/// these are fewer than eight. Layer 0, which every later layer reads, is a group of its own and
/// no one's peer. `None` where there are fewer than eight peers.
pub fn outlier_scores(
    components: &[Component],
    divergences: &[f64],
    layers: usize,
) -> Vec<Option<f64>> {
    // 0 for layer 0, then 1 to 3.
    let group = |c: &Component| match c.layer() {
        0 => 0,
        layer => 1 + 3 * layer / layers.max(1),
    };
    // A lesion that breaks the model diverges as far as there is: one bit.
    let log = |divergence: f64| if divergence.is_nan() { 0.0 } else { divergence.max(1e-9).ln() };
    let scale = |is_peer: &dyn Fn(&Component) -> bool| {
        let peers: Vec<f64> = components
            .iter()
            .zip(divergences)
            .filter(|(c, _)| is_peer(c))
            .map(|(_, d)| log(*d))
            .collect();
        (peers.len() >= LEAST_PEERS).then(|| {
            (stats::median(&peers), (stats::MAD_TO_DEVIATION * stats::mad(&peers)).max(1e-3))
        })
    };
    // A kind's blocks are of two kinds, mixers and MLPs; a sweep of one kind has one.
    let mut kinds: Vec<&str> = components.iter().map(Component::kind).collect();
    kinds.sort_unstable();
    kinds.dedup();
    let mut scores = vec![None; components.len()];
    for kind in kinds {
        let all = scale(&|c| c.kind() == kind && c.layer() > 0);
        for part in 0..=3 {
            let peers = scale(&|c| c.kind() == kind && group(c) == part);
            let Some((centre, spread)) = peers.or(all.filter(|_| part > 0)) else { continue };
            for (i, component) in components.iter().enumerate() {
                if component.kind() == kind && group(component) == part {
                    scores[i] = Some((log(divergences[i]) - centre) / spread);
                }
            }
        }
    }
    scores
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_that_stands_out_has_the_large_score_and_layer_0_is_apart() {
        let heads: Vec<Component> =
            (0..40).map(|i| Component::Head { layer: i / 10, head: i % 10 }).collect();
        // Layer 0 diverges a hundred times as much as the rest, one head of layer 2 likewise.
        let mut divergences: Vec<f64> = (0..40u32)
            .map(|i| 0.001 * f64::from(1 + i % 7) * if i < 10 { 100.0 } else { 1.0 })
            .collect();
        divergences[23] = 0.5;
        let scores = outlier_scores(&heads, &divergences, 4);
        for (i, score) in scores.iter().enumerate() {
            assert_eq!(score.unwrap() > 4.0, i == 23, "{i}: {score:?}");
        }
    }

    #[test]
    fn too_few_peers_give_no_score() {
        let mlps: Vec<Component> = (0..9).map(|layer| Component::Mlp { layer }).collect();
        let scores = outlier_scores(&mlps, &[0.1; 9], 9);
        assert_eq!(scores[0], None);
        assert!(scores[1..].iter().all(|score| *score == Some(0.0)));
        assert_eq!(outlier_scores(&mlps[..8], &[0.1; 8], 8), vec![None; 8]);
    }
}
