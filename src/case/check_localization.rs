//! Validation of what localization wrote into a case: every number is finite, every list short.

use super::rules::{Fault, bounded, check_edit, fault, finite, same_length, share};
use super::{MAX_CONTROLS, MAX_EDITS, MAX_ROWS};
use crate::edit::{Component, Edit, InLayer, ResidualSite};
use crate::localize::{
    Generalization, LensRun, Localization, LogitLens, MAX_LENS_CONTROLS, MAX_MAP_POSITIONS,
    MAX_MEASURED_LAYERS, MAX_NODES, PROFILED, ResidualMap, TokenAttribution,
};

/// Checks all but the residual views and what was found in new prompts.
pub(super) fn check_localization(localization: &Localization, total: usize) -> Result<(), Fault> {
    let i = localization;
    for (name, length) in [
        ("set", i.set.len()),
        ("controls", i.controls.len()),
        ("effects", i.effects.len()),
        ("contrasts", i.contrasts.len()),
        ("positions", i.positions.len()),
        ("tokens", i.tokens.len()),
    ] {
        bounded(&format!("implication.{name}"), length, MAX_ROWS)?;
    }
    finite("implication.necessity", i.necessity)?;
    finite("implication.sufficiency", i.sufficiency)?;
    finite("implication.emergence", i.emergence.unwrap_or(0.0))?;
    finite("implication.routing", i.routing.unwrap_or(0.0))?;
    for (index, &control) in i.controls.iter().enumerate() {
        finite(&format!("implication.controls[{index}]"), control)?;
    }
    for (index, contrast) in i.contrasts.iter().enumerate() {
        let field = format!("implication.contrasts[{index}]");
        finite(&format!("{field}.necessity"), contrast.necessity)?;
        share(&format!("{field}.p_value"), contrast.p_value)?;
        bounded(&format!("{field}.controls"), contrast.controls.len(), MAX_CONTROLS)?;
        for &control in &contrast.controls {
            finite(&format!("{field}.controls"), control)?;
        }
    }
    for (index, effect) in i.effects.iter().enumerate() {
        finite(&format!("implication.effects[{index}].necessity"), effect.necessity)?;
        finite(&format!("implication.effects[{index}].sufficiency"), effect.sufficiency)?;
    }
    for (index, effect) in i.positions.iter().enumerate() {
        finite(&format!("implication.positions[{index}].necessity"), effect.necessity)?;
        finite(&format!("implication.positions[{index}].sufficiency"), effect.sufficiency)?;
    }
    check_explanation(i)?;
    i.attribution.as_ref().map_or(Ok(()), |attribution| check_attribution(attribution, total))
}

/// Checks the symptom, the graph and the interactions.
fn check_explanation(i: &Localization) -> Result<(), Fault> {
    if let Some(symptom) = &i.symptom {
        finite("implication.symptom.log_prob", symptom.log_prob)?;
        finite("implication.symptom.effect", symptom.effect)?;
    }
    if let Some(graph) = &i.graph {
        let at = |name: &str| format!("implication.graph.{name}");
        finite(&at("effect"), graph.effect)?;
        finite(&at("faithfulness"), graph.faithfulness)?;
        bounded(&at("nodes"), graph.nodes.len(), MAX_NODES)?;
        bounded(&at("edges"), graph.edges.len(), MAX_NODES * (MAX_NODES + 1))?;
        bounded(&at("random"), graph.random.len(), MAX_CONTROLS)?;
        for (index, &random) in graph.random.iter().enumerate() {
            finite(&at(&format!("random[{index}]")), random)?;
        }
        for (index, node) in graph.nodes.iter().enumerate() {
            finite(&at(&format!("nodes[{index}].necessity")), node.necessity)?;
            finite(&at(&format!("nodes[{index}].direct")), node.direct)?;
        }
        for (index, edge) in graph.edges.iter().enumerate() {
            finite(&at(&format!("edges[{index}].effect")), edge.effect)?;
            let nodes = graph.nodes.len();
            if edge.to.max(edge.from.unwrap_or(0)) >= nodes {
                return fault(at(&format!("edges[{index}]")), format!("not between {nodes} nodes"));
            }
        }
    }
    if let Some(interactions) = &i.interactions {
        let at = |name: &str| format!("implication.interactions.{name}");
        finite(&at("effect"), interactions.effect)?;
        bounded(&at("members"), interactions.members.len(), MAX_NODES)?;
        bounded(&at("pairs"), interactions.pairs.len(), MAX_NODES * MAX_NODES)?;
        for (name, shares) in [
            ("sufficient", &interactions.sufficient),
            ("necessary", &interactions.necessary),
            ("controls", &interactions.controls),
        ] {
            bounded(&at(name), shares.len(), MAX_NODES)?;
            shares.iter().try_for_each(|value| share(&at(name), *value))?;
        }
        for (index, pair) in interactions.pairs.iter().enumerate() {
            let values = pair.necessity.into_iter().chain(pair.sufficiency).chain([pair.direct]);
            for value in values {
                finite(&at(&format!("pairs[{index}]")), value)?;
            }
        }
    }
    Ok(())
}

/// Checks what was found in new prompts, as far as is possible without the model.
pub(super) fn check_generalization(tried: &Generalization, edits: &[Edit]) -> Result<(), Fault> {
    if let Some(direction) = &tried.direction {
        finite("implication.generalization.direction.norm", direction.norm)?;
    }
    let counts = tried.direction.iter().flat_map(|direction| {
        [direction.made, direction.removed, direction.made_by_random, direction.removed_by_random]
    });
    if tried.with_effect > tried.prompts
        || counts.chain(tried.set).any(|count| count > tried.with_effect)
    {
        return fault("implication.generalization", "more prompts than there are");
    }
    let field = "implication.generalization.blocks";
    bounded(field, tried.blocks.len(), MAX_ROWS)?;
    for (index, block) in tried.blocks.iter().enumerate() {
        let field = format!("{field}[{index}]");
        if tried.blocks[..index].iter().any(|other| other.component == block.component) {
            return fault(format!("{field}.component"), "a second time");
        }
        let component = block.component;
        if !component.is_block() || component.layer() >= MAX_ROWS {
            return fault(format!("{field}.component"), format!("{component} is no mixer or MLP"));
        }
        let is_of_block = |edited: &Component| {
            let is_of_mlp = component.is_of_mlp();
            edited.layer() == component.layer() && edited.is_of_mlp() == is_of_mlp
        };
        let mut edited = edits.iter().filter_map(Edit::component);
        if edited.any(|edited| *edited != Component::Embed && is_of_block(edited)) {
            return fault(format!("{field}.component"), format!("{component} is edited"));
        }
        if block.necessity.len() > tried.with_effect {
            let message = format!("{} prompts, more than have an effect", block.necessity.len());
            return fault(format!("{field}.necessity"), message);
        }
        same_length(&field, block.necessity.len(), tried.blocks[0].necessity.len())?;
        bounded(&format!("{field}.necessity"), block.necessity.len(), PROFILED)?;
        for (at, &value) in block.necessity.iter().enumerate() {
            share(&format!("{field}.necessity[{at}]"), value)?;
        }
    }
    Ok(())
}

/// Checks the residual map and the logit lens of a case whose edited sequence is at most `longest`
/// tokens long.
pub(super) fn check_residual_views(i: &Localization, longest: usize) -> Result<(), Fault> {
    if let Some(map) = &i.residual_map {
        check_residual_map(map, longest)?;
    }
    let Some(lens) = &i.logit_lens else { return Ok(()) };
    check_logit_lens(lens)?;
    let predicts = i.symptom.as_ref().map(|symptom| symptom.position);
    match predicts == Some(lens.position) && lens.position < longest {
        true => Ok(()),
        false => fault(
            "implication.logit_lens.position",
            format!("{}, which does not predict a symptom", lens.position),
        ),
    }
}

fn check_residual_map(map: &ResidualMap, longest: usize) -> Result<(), Fault> {
    let at = |name: &str| format!("implication.residual_map.{name}");
    check_layers(&at, &map.layers, &map.hooks, InLayer::Pre)?;
    bounded(&at("positions"), map.positions.len(), MAX_MAP_POSITIONS)?;
    let positions: Vec<usize> = map.positions.iter().map(|at| at.position).collect();
    if !positions.is_sorted_by(|a, b| a < b) || positions.last().is_none_or(|p| *p >= longest) {
        return fault(
            at("positions"),
            format!("not ascending positions of at most {longest} tokens"),
        );
    }
    same_length(&at("necessity"), map.necessity.len(), map.layers.len())?;
    for (index, shares) in map.necessity.iter().enumerate() {
        let field = at(&format!("necessity[{index}]"));
        same_length(&field, shares.len(), positions.len())?;
        shares.iter().try_for_each(|value| share(&field, *value))?;
    }
    Ok(())
}

fn check_logit_lens(lens: &LogitLens) -> Result<(), Fault> {
    let at = |name: &str| format!("implication.logit_lens.{name}");
    check_layers(&at, &lens.layers, &lens.hooks, InLayer::Post)?;
    bounded(&at("controls"), lens.controls.len(), MAX_LENS_CONTROLS)?;
    let controls = lens.controls.iter().enumerate();
    let controls = controls.map(|(index, run)| (format!("controls[{index}]"), run));
    let runs: [(String, &LensRun); 2] =
        [("clean".into(), &lens.clean), ("corrupted".into(), &lens.corrupted)];
    for (name, run) in runs.into_iter().chain(controls) {
        let layers = lens.layers.len();
        same_length(&at(&format!("{name}.log_probs")), run.log_probs.len(), layers)?;
        same_length(&at(&format!("{name}.top")), run.top.len(), layers)?;
        same_length(&at(&format!("{name}.texts")), run.texts.len(), layers)?;
        for (index, value) in run.log_probs.iter().enumerate() {
            let field = at(&format!("{name}.log_probs[{index}]"));
            finite(&field, *value)?;
            // Up to rounding.
            if *value > 1e-3 {
                return fault(field, format!("{value} is no log-probability"));
            }
        }
    }
    Ok(())
}

/// Checks measured layers and the names of their hook points.
fn check_layers(
    at: &dyn Fn(&str) -> String,
    layers: &[usize],
    hooks: &[String],
    place: InLayer,
) -> Result<(), Fault> {
    bounded(&at("layers"), layers.len(), MAX_MEASURED_LAYERS)?;
    if !layers.is_sorted_by(|a, b| a < b) || layers.last().is_none_or(|layer| *layer >= MAX_ROWS) {
        return fault(at("layers"), "not ascending layers of a model");
    }
    same_length(&at("hooks"), hooks.len(), layers.len())?;
    for (index, (&layer, name)) in layers.iter().zip(hooks).enumerate() {
        let expected = ResidualSite { layer, at: place }.hook_name();
        if *name != expected {
            return fault(at(&format!("hooks[{index}]")), format!("not {expected}"));
        }
    }
    Ok(())
}

fn check_attribution(attribution: &TokenAttribution, total: usize) -> Result<(), Fault> {
    let at = |name: &str| format!("implication.reading.{name}");
    if attribution.first > attribution.last || attribution.last >= total {
        return fault(
            at("last"),
            format!("positions {} to {}", attribution.first, attribution.last),
        );
    }
    bounded(&at("readers"), attribution.attending.len(), MAX_ROWS)?;
    bounded(&at("contrasts"), attribution.comparisons.len(), MAX_CONTROLS)?;
    let comparisons = attribution
        .comparisons
        .iter()
        .enumerate()
        .map(|(i, c)| (format!("contrasts[{i}].carried"), &c.mediation));
    for (name, mediation) in comparisons.chain([("carried".to_owned(), &attribution.mediation)]) {
        bounded(&at(&format!("{name}.handover")), mediation.layerwise.len(), MAX_ROWS)?;
        if mediation.attending_each.len() != attribution.attending.len() {
            return fault(
                at(&format!("{name}.each")),
                format!(
                    "{} of {} readers",
                    mediation.attending_each.len(),
                    attribution.attending.len()
                ),
            );
        }
        let values = [
            mediation.loss,
            mediation.divergence_bits,
            mediation.necessity,
            mediation.sufficiency,
            mediation.attending,
        ];
        for value in values
            .into_iter()
            .chain(mediation.layerwise.iter().chain(&mediation.attending_each).copied())
        {
            finite(&at(&name), value)?;
        }
    }
    for (index, comparison) in attribution.comparisons.iter().enumerate() {
        let edits = at(&format!("contrasts[{index}].edits"));
        bounded(&edits, comparison.edits.len(), MAX_EDITS)?;
        for (index, edit) in comparison.edits.iter().enumerate() {
            if !matches!(edit, Edit::Replace { .. }) {
                return fault(
                    format!("{edits}[{index}]"),
                    "not a replacement, and an attribution is of replaced tokens",
                );
            }
            check_edit(&format!("{edits}[{index}]"), edit, total)?;
        }
    }
    Ok(())
}
