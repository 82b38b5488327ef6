//! The routing of one prompt against that of others: the activation rates of experts that SteerMoE
//! compares (Fayyaz et al. 2025, "Steering MoE LLMs via Expert (De)Activation", section
//! 3).

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::edit::{Component, Trial};
use crate::error::Result;
use crate::evaluate::{Evaluator, Request};

/// The experts that a prompt uses more, or less, than other prompts do.
#[derive(Debug, Clone, PartialEq)]
pub struct RoutingContrast {
    /// Ids of the prompt.
    pub base: Arc<[u32]>,
    /// Experts, with the share of the prompt's tokens that choose each less its mean share in the
    /// other prompts, -1 to 1: largest difference first.
    pub experts: Vec<(Component, f64)>,
}

/// Experts that are kept for each prompt.
const KEPT: usize = 16;

impl RoutingContrast {
    /// Compares the routing of each of these prompts with that of the others. Empty for a single
    /// prompt, and for a model without experts.
    ///
    /// # Errors
    /// Those of the evaluator.
    pub fn between(evaluator: &dyn Evaluator, prompts: &[Arc<[u32]>]) -> Result<Vec<Self>> {
        // Nothing is read of a prompt of one token.
        let prompts: Vec<&Arc<[u32]>> = prompts.iter().filter(|ids| ids.len() > 1).collect();
        let request = |ids: &&Arc<[u32]>| Request::new(Trial::new(&ids[..1], &ids[1..]));
        let requests: Vec<Request> = prompts.iter().map(request).collect();
        let rates: Vec<BTreeMap<Component, f64>> = (evaluator.observe(&requests)?.iter())
            .zip(&prompts)
            .map(|(observed, ids)| {
                let mut rates = BTreeMap::new();
                for routing in &observed.routing {
                    for expert in routing.chosen.iter().map(|expert| *expert as usize) {
                        let component = Component::Expert { layer: routing.layer, expert };
                        *rates.entry(component).or_default() += 1.0 / (ids.len() - 1) as f64;
                    }
                }
                rates
            })
            .collect();
        if rates.len() < 2 {
            return Ok(Vec::new());
        }
        let mut sums: BTreeMap<Component, f64> = BTreeMap::new();
        for (component, rate) in rates.iter().flatten() {
            *sums.entry(*component).or_default() += rate;
        }
        let others = (rates.len() - 1) as f64;
        let contrast = |(own, base): (&BTreeMap<Component, f64>, &Arc<[u32]>)| {
            let more = |(component, sum): (&Component, &f64)| {
                let rate = own.get(component).copied().unwrap_or(0.0);
                (*component, rate - (sum - rate) / others)
            };
            let mut experts: Vec<(Component, f64)> = sums.iter().map(more).collect();
            experts.retain(|(_, more)| *more != 0.0);
            experts.sort_by(|a, b| b.1.abs().total_cmp(&a.1.abs()).then(a.0.cmp(&b.0)));
            experts.truncate(KEPT);
            Self { base: Arc::clone(base), experts }
        };
        let all = rates.iter().zip(prompts.iter().copied()).map(contrast);
        Ok(all.filter(|contrast| !contrast.experts.is_empty()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::ModelEvaluator;
    use crate::model::Model;

    #[test]
    fn rates_are_those_of_a_naive_count() {
        let model =
            Model::load(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/olmoe")).unwrap();
        let evaluator = ModelEvaluator::new(&model);
        let prompts: [Arc<[u32]>; 3] =
            [&[1, 50, 51, 52][..], &[1, 90, 91, 92], &[1, 7]].map(|ids: &[u32]| Arc::from(ids));
        assert_eq!(RoutingContrast::between(&evaluator, &prompts[..1]).unwrap(), []);
        let contrasts = RoutingContrast::between(&evaluator, &prompts).unwrap();
        assert_eq!(contrasts.len(), 3);
        // Each expert of each layer, one token at a time.
        for contrast in &contrasts {
            for (component, more) in &contrast.experts {
                let Component::Expert { layer, expert } = *component else { panic!() };
                let rate = |ids: &Arc<[u32]>| {
                    let chose = |end: &usize| {
                        let trial = Trial::new(&ids[..*end], [1]);
                        let observed = evaluator.observe_alone(&Request::new(trial)).unwrap();
                        let of_layer = observed.routing.iter().find(|r| r.layer == layer).unwrap();
                        of_layer.chosen.contains(&(expert as u32))
                    };
                    let count = (1..ids.len()).filter(chose).count();
                    count as f64 / (ids.len() - 1) as f64
                };
                let others = prompts.iter().filter(|ids| **ids != contrast.base);
                let expected = rate(&contrast.base) - others.map(rate).sum::<f64>() / 2.0;
                assert!((more - expected).abs() < 1e-9, "{component}: {more} {expected}");
            }
        }
    }
}
