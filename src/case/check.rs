//! Validation of a case without its model. The file may come from anyone, so every number is
//! checked to be finite and every list to be short; the first rule broken is named with its field.

use super::{Case, MAX_CONTROL_TOKENS, MAX_CONTROLS, MAX_EDITS, MAX_IDS, MAX_ROWS, SCHEMA_VERSION};
use crate::deficits::Deficits;
use crate::edit::{Edit, InLayer, ResidualSite};
use crate::localize::{
    LensRun, Localization, LogitLens, MAX_LENS_CONTROLS, MAX_MAP_POSITIONS, MAX_MEASURED_LAYERS,
    MAX_NODES, PROFILED, ResidualMap, TokenAttribution,
};
use crate::oracle::Verdict;
use crate::replicate::Replication;

/// A broken rule: the field, and what is wrong with it.
pub(super) type Fault = (String, String);

fn fault<T>(field: impl Into<String>, message: impl Into<String>) -> Result<T, Fault> {
    Err((field.into(), message.into()))
}

/// Returns the first fault.
pub(super) fn faults(case: &Case) -> Result<(), Fault> {
    if case.schema_version != SCHEMA_VERSION {
        return fault(
            "schema_version",
            format!("{} in memory, this program writes {SCHEMA_VERSION}", case.schema_version),
        );
    }
    if case.model.fingerprint.is_empty() {
        return fault("model.fingerprint", "empty");
    }
    if case.base.is_empty() {
        return fault("base", "empty; a prompt has at least one token");
    }
    bounded("base", case.base.len(), MAX_IDS)?;
    bounded("continuation", case.continuation.len(), MAX_IDS - case.base.len())?;
    bounded("edits", case.edits.len(), MAX_EDITS)?;
    let total = case.base.len() + case.continuation.len();
    for (index, edit) in case.edits.iter().enumerate() {
        check_edit(&format!("edits[{index}]"), edit, total)?;
    }
    check_verdict("verdict", &case.verdict)?;
    if let Some(search) = &case.search {
        check_verdict("search", search)?;
    }
    if let Some(replication) = &case.replication {
        check_replication(replication)?;
    }
    if let Some(sampled) = &case.sampled
        && sampled.degenerate.max(sampled.degenerate_baseline) > sampled.samples
    {
        return fault("sampled", format!("more degenerate than the {} samples", sampled.samples));
    }
    if let Some(deficits) = &case.deficits {
        check_deficits(deficits)?;
    }
    check_against(case)?;
    check_work(case, total)?;
    if let Some(localization) = &case.localization {
        check_localization(localization, total)?;
        let added: usize = case.edits.iter().map(Edit::added_tokens).sum();
        check_residual_views(localization, total + added)?;
    }
    if let Some(m) = &case.minimization
        && m.elements_after > m.elements_before
    {
        return fault(
            "minimisation.elements_after",
            format!("{} out of {}", m.elements_after, m.elements_before),
        );
    }
    bounded("lineage.mutators", case.lineage.mutators.len(), MAX_ROWS)?;
    for (name, list) in [("top_before", &case.top_before), ("top_after", &case.top_after)] {
        bounded(name, list.len(), MAX_ROWS)?;
        for (index, token) in list.iter().enumerate() {
            share(&format!("{name}[{index}].probability"), token.probability)?;
        }
    }
    // Last, so that a case edited by hand is told which other rule it breaks.
    let id = case.compute_id();
    if case.id != id {
        // A hostile id may be megabytes long, so it is not repeated.
        return fault("id", format!("does not match the content, whose id is {id}"));
    }
    Ok(())
}

/// Checks that a case has a second model if its oracle compares two, and only then.
fn check_against(case: &Case) -> Result<(), Fault> {
    let oracle = case.verdict.oracle;
    match (&case.against, oracle.oracle().needs_other_model()) {
        (None, false) => Ok(()),
        (None, true) => fault("against", format!("missing: {oracle} compares with a second model")),
        (Some(_), false) => fault("against", format!("{oracle} compares with no other model")),
        (Some(against), true) if against.model.fingerprint.is_empty() => {
            fault("against.model.fingerprint", "empty")
        }
        (Some(against), true) => {
            bounded("against.swaps", against.swaps.len(), MAX_ROWS)?;
            for (index, effect) in against.swaps.iter().enumerate() {
                finite(&format!("against.swaps[{index}].necessity"), effect.necessity)?;
                finite(&format!("against.swaps[{index}].sufficiency"), effect.sufficiency)?;
            }
            Ok(())
        }
    }
}

/// Bounds the work of a replay: a small file may ask for many controls.
fn check_work(case: &Case, total: usize) -> Result<(), Fault> {
    let further = case.edits.iter().map(|edit| match edit {
        Edit::CarryState { from, .. } => from.len(),
        edit => edit.added_tokens(),
    });
    let (controls, tokens) = (case.verdict.controls.len(), total + further.sum::<usize>());
    match controls.saturating_mul(tokens) {
        work if work <= MAX_CONTROL_TOKENS => Ok(()),
        work => fault(
            "verdict.controls",
            format!(
                "{controls} controls of {tokens} tokens are {work} tokens to run, at most \
                {MAX_CONTROL_TOKENS} are"
            ),
        ),
    }
}

fn check_verdict(field: &str, v: &Verdict) -> Result<(), Fault> {
    for (name, value) in [
        ("score", v.score),
        ("threshold", v.threshold),
        ("margin", v.margin),
        ("noise_floor", v.noise_floor),
    ] {
        finite(&format!("{field}.{name}"), value)?;
    }
    if v.noise_floor < 0.0 {
        return fault(format!("{field}.noise_floor"), format!("{} is negative", v.noise_floor));
    }
    share(&format!("{field}.p_value"), v.p_value)?;
    v.baseline.map_or(Ok(()), |baseline| share(&format!("{field}.baseline"), baseline))?;
    bounded(&format!("{field}.controls"), v.controls.len(), MAX_CONTROLS)?;
    for (index, &control) in v.controls.iter().enumerate() {
        finite(&format!("{field}.controls[{index}]"), control)?;
    }
    Ok(())
}

fn check_replication(replication: &Replication) -> Result<(), Fault> {
    finite("replication.e_value", replication.e_value)?;
    if replication.e_value < 0.0 {
        return fault("replication.e_value", format!("{} is negative", replication.e_value));
    }
    bounded("replication.prompts", replication.prompts.len(), MAX_ROWS)?;
    for (index, prompt) in replication.prompts.iter().enumerate() {
        let field = format!("replication.prompts[{index}]");
        finite(&format!("{field}.score"), prompt.score)?;
        finite(&format!("{field}.threshold"), prompt.threshold)?;
        if prompt.as_extreme > prompt.controls {
            let message = format!("{} of {} controls", prompt.as_extreme, prompt.controls);
            return fault(format!("{field}.as_extreme"), message);
        }
    }
    Ok(())
}

/// The largest value of a measure of deficits: shares are at most 1, the others some dozen nats.
const MAX_MEASURE: f64 = 1e6;

fn check_deficits(deficits: &Deficits) -> Result<(), Fault> {
    bounded("deficits.measures", deficits.measures.len(), MAX_ROWS)?;
    for (index, measured) in deficits.measures.iter().enumerate() {
        let field = format!("deficits.measures[{index}]");
        if deficits.measures[..index].iter().any(|other| other.measure == measured.measure) {
            return fault(format!("{field}.measure"), "a second time");
        }
        same_length(&format!("{field}.edited"), measured.edited.len(), measured.baseline.len())?;
        let lists = [
            ("baseline", &measured.baseline),
            ("edited", &measured.edited),
            ("controls", &measured.controls),
        ];
        for (name, values) in lists {
            bounded(&format!("{field}.{name}"), values.len(), MAX_CONTROLS)?;
            for (at, &value) in values.iter().enumerate() {
                let field = format!("{field}.{name}[{at}]");
                finite(&field, value)?;
                if value.abs() > MAX_MEASURE {
                    return fault(field, format!("{value} is no value of a measure"));
                }
            }
        }
    }
    Ok(())
}

fn bounded(field: &str, length: usize, max: usize) -> Result<(), Fault> {
    match length <= max {
        true => Ok(()),
        false => fault(field, format!("{length} entries, at most {max} are read")),
    }
}

fn finite(field: &str, value: f64) -> Result<(), Fault> {
    match value.is_finite() {
        true => Ok(()),
        false => fault(field, format!("{value} is not a finite number")),
    }
}

/// Checks that a number is between 0 and 1, up to rounding.
fn share(field: &str, value: f64) -> Result<(), Fault> {
    finite(field, value)?;
    match (-1e-6..=1.0 + 1e-6).contains(&value) {
        true => Ok(()),
        false => fault(field, format!("{value} is not between 0 and 1")),
    }
}

fn check_edit(field: &str, edit: &Edit, total: usize) -> Result<(), Fault> {
    edit.check(total, MAX_IDS).or_else(|(part, message)| fault(format!("{field}.{part}"), message))
}

fn check_localization(localization: &Localization, total: usize) -> Result<(), Fault> {
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

/// Checks the symptom, the graph, the interactions and what was found in new prompts.
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
    let Some(tried) = &i.generalization else { return Ok(()) };
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
fn check_residual_views(i: &Localization, longest: usize) -> Result<(), Fault> {
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

fn same_length(field: &str, length: usize, expected: usize) -> Result<(), Fault> {
    match length == expected {
        true => Ok(()),
        false => fault(field, format!("{length} entries, {expected} are expected")),
    }
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
