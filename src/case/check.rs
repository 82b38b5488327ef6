//! Validation of a case without its model. The file may come from anyone, so every number is
//! checked to be finite and every list to be short; the first rule broken is named with its field.

use super::check_localization::{check_generalization, check_localization, check_residual_views};
use super::rules::{Fault, bounded, check_edit, fault, finite, same_length, share};
use super::{Case, MAX_CONTROL_TOKENS, MAX_CONTROLS, MAX_EDITS, MAX_IDS, MAX_ROWS, SCHEMA_VERSION};
use crate::deficits::Deficits;
use crate::edit::Edit;
use crate::oracle::Verdict;
use crate::replicate::Replication;

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
        let tried = localization.generalization.as_ref();
        tried.map_or(Ok(()), |tried| check_generalization(tried, &case.edits))?;
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
