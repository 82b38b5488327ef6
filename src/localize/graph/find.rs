//! Finds the graph of a case and measures it.

use super::background::Background;
use super::search::{Mixers, Search};
use super::{GOAL, Graph, Node};
use crate::edit::Component;
use crate::error::Result;
use crate::evaluate::hook_name;
use crate::localize::Effect;
use crate::localize::set::LocalizeOptions;
use crate::localize::symptom::Symptom;

/// Finds the graph of a case, starting from the effects of patching whole components; `None` if
/// there is nothing to find. Returns also the number of trials evaluated.
///
/// # Errors
/// Errors of the evaluator.
pub fn graph(
    symptom: &Symptom,
    background: &Background,
    effects: &[Effect],
    options: &LocalizeOptions,
) -> Result<(Option<Graph>, u64)> {
    // By heads first. Where these are too many for a small graph, by whole mixers.
    let mut search = Search::new(symptom, background, effects, Mixers::Heads, options);
    let gradients = search.gradients()?;
    let (mut places, mut faithfulness) = search.smallest(gradients.as_ref())?;
    let has_heads = places.iter().any(|(component, _)| matches!(component, Component::Head { .. }));
    if has_heads && faithfulness < GOAL {
        let mut whole = Search::new(symptom, background, effects, Mixers::Whole, options);
        let (others, more) = whole.smallest(gradients.as_ref())?;
        let calls = search.calls + whole.calls;
        if more > faithfulness {
            (search, places, faithfulness) = (whole, others, more);
        }
        search.calls = calls;
    }
    if places.is_empty() {
        return Ok((None, search.calls));
    }
    let random = search.random(&places)?;
    let necessities = search.necessities(&places)?;
    let (direct, edges) = search.paths(&places)?;
    let ids = symptom.runs.corrupted.trial.layout().ids;
    let config = &symptom.runs.evaluator.model.config;
    let nodes = (places.iter().zip(necessities).zip(direct))
        .map(|((&(component, position), necessity), direct)| Node {
            component,
            hook: hook_name(&component, config),
            position,
            id: ids[position],
            text: symptom.runs.evaluator.model.token(ids[position]),
            necessity,
            direct,
        })
        .collect();
    let graph = Graph {
        effect: background.effect,
        baseline: background.baseline,
        nodes,
        edges,
        faithfulness,
        random,
    };
    Ok((Some(graph), search.calls))
}
