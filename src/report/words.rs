//! Findings in plain words, the same for terminal and page. Everything here is unescaped text: the
//! caller passes whole sentences through [`crate::text`].

use std::collections::BTreeMap;

use super::diff::{self, Span};
use super::format::{list, number, percent};
use crate::case::Case;
use crate::edit::{Edit, Phrase};
use crate::localize::{ContrastKind, Implication, Reading};
use crate::oracle::OracleKind;

/// What the oracle's scores are counted in, with a leading space; empty for bare degrees.
pub fn unit(oracle: OracleKind) -> String {
    let unit = oracle.oracle().unit();
    if unit.is_empty() { String::new() } else { format!(" {unit}") }
}

/// Texts of the token ids that the case happens to name.
fn names(case: &Case) -> BTreeMap<u32, &str> {
    case.top_before.iter().chain(&case.top_after).map(|t| (t.id, t.text.as_str())).collect()
}

fn phrase(case: &Case, edit: &Edit) -> Phrase {
    let names = names(case);
    edit.phrase(&|id| {
        names.get(&id).map_or(format!("id {id}"), |text| format!("id {id} (`{text}`)"))
    })
}

/// Returns one edit as a plain imperative: "replace the token at 5 by id 4091".
pub fn edit(case: &Case, edit: &Edit) -> String {
    phrase(case, edit).to_string()
}

/// The edits as the subject of a sentence: "Replacing ` king` by ` Guid`".
pub fn doing(case: &Case) -> String {
    let [only] = case.edits.as_slice() else {
        return match case.edits.len() {
            0 => "The prompt as it is".into(),
            n => format!("Making {n} edits together"),
        };
    };
    let changed = |spans: Vec<Span>| -> Option<String> {
        let mut changed = spans.into_iter().filter(|s| s.changed).map(|s| s.text);
        changed.next().filter(|text| changed.next().is_none() && text.chars().count() <= 40)
    };
    let (before, after) = diff::words(&case.comment.prompt, &case.comment.edited_prompt);
    let (before, after) = (changed(before), changed(after));
    match (only, before, after) {
        (Edit::Replace { .. }, Some(x), Some(y)) => format!("Replacing `{x}` by `{y}`"),
        (Edit::Insert { .. }, None, Some(y)) => format!("Inserting `{y}`"),
        (Edit::Delete { .. }, Some(x), None) => format!("Deleting `{x}`"),
        _ => {
            let Phrase { gerund, object, .. } = phrase(case, only);
            let (first, rest) = gerund.split_at(1);
            format!("{}{rest} {object}", first.to_uppercase())
        }
    }
}

/// What happens, one sentence: "Replacing ` king` by ` Guid` changes the next-token distribution by
/// 0.92 bits."
pub fn what(case: &Case) -> String {
    case.verdict.oracle.oracle().sentence(&doing(case), case.verdict.score)
}

/// What the controls do under the same conditions; `None` without any.
pub fn controls(case: &Case) -> Option<String> {
    let verdict = &case.verdict;
    let most = verdict.controls.iter().copied().filter(|c| !c.is_nan()).max_by(f64::total_cmp)?;
    let kind = |f: fn(&Edit) -> bool| !case.edits.is_empty() && case.edits.iter().all(f);
    let who = if kind(Edit::is_token_edit) {
        "ordinary tokens in the same place"
    } else if kind(|e| matches!(e, Edit::Lesion { .. })) {
        "the same done to other components of the same kind"
    } else if kind(|e| matches!(e, Edit::Embedding { .. })) {
        "matched ordinary changes of the same embedding"
    } else {
        "matched ordinary trials"
    };
    Some(format!(
        "Against that, {who} score at most {}{} ({} tried).",
        number(most),
        unit(verdict.oracle),
        verdict.controls.len()
    ))
}

/// Which components carry it, one sentence; `None` where the set is empty.
pub fn carried(implication: &Implication) -> Option<String> {
    if implication.set.is_empty() {
        return None;
    }
    let names: Vec<String> = implication.set.iter().map(ToString::to_string).collect();
    let it = if names.len() == 1 { "it" } else { "them" };
    Some(format!(
        "Carried by {}: patching {it} back removes {}.",
        list(&names, 6),
        percent(implication.necessity)
    ))
}

/// Which heads read the replaced tokens, and what the first of them is to others in their place.
pub fn read_by(reading: &Reading) -> Option<String> {
    let readers: Vec<String> = reading.readers.iter().map(ToString::to_string).collect();
    let (first, own) = (readers.first()?, *reading.carried.each.first()?);
    let of = |kind: ContrastKind| {
        let contrasts = reading.contrasts.iter().filter(|c| c.kind == kind);
        let shares =
            contrasts.filter_map(|c| c.carried.each.first().copied()).filter(|s| s.is_finite());
        let (low, high) = shares
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), s| (low.min(s), high.max(s)));
        (low <= high).then(|| {
            if low == high {
                percent(low)
            } else {
                format!("{} to {}", percent(low), percent(high))
            }
        })
    };
    let random = of(ContrastKind::Random)
        .map(|s| format!(", of what random tokens do there {s}"))
        .unwrap_or_default();
    let fails = of(ContrastKind::Fails)
        .map(|s| format!(", of what a suffix that fails does {s}"))
        .unwrap_or_default();
    let handed = match reading.carried.handed_over() {
        Some((from, to)) if from == to => format!(" Other positions read them in layer {from}."),
        Some((from, to)) => format!(" Other positions read them in layers {from} to {to}."),
        None => String::new(),
    };
    Some(format!(
        "The replaced tokens are read by {}: with what {first} alone puts out behind them set \
        right, {} of what they do goes{random}{fails}.{handed}",
        list(&readers, 4),
        percent(own)
    ))
}

/// What necessity and sufficiency of this set mean.
pub fn necessity_and_sufficiency(implication: &Implication) -> String {
    let best = implication.controls.iter().copied().filter(|c| !c.is_nan()).max_by(f64::total_cmp);
    let random = best
        .map(|c| format!("; random sets of the same kinds and size remove at most {}", percent(c)))
        .unwrap_or_default();
    format!(
        "Giving the set its undisturbed output in the glitched run removes {} of the \
        glitch{random}. Giving it the glitched output in an undisturbed run makes {} of it.",
        percent(implication.necessity),
        percent(implication.sufficiency)
    )
}

/// How much of a mixture's glitch is a matter of who computes it; `None` where nothing is routed.
pub fn routing(implication: &Implication) -> Option<String> {
    let share = percent(implication.routing?.clamp(0.0, 1.0));
    Some(format!(
        "With every token routed as without the edits, {share} of the glitch is gone: so much of \
        it acts through routing."
    ))
}

/// Whether the parts add up.
pub fn emergence(implication: &Implication) -> String {
    match implication.emergence {
        None if implication.set.len() <= 1 => "One component: there is nothing to add up.".into(),
        None => "Alone, the set makes next to none of the glitch, so its parts cannot be added up."
            .into(),
        Some(e) if !e.is_finite() => "It could not be measured whether the parts add up.".into(),
        Some(e) if e > 0.25 => format!(
            "The parts do not add up to the whole: {} of what the set does, it does only when all \
            its members act together (emergence).",
            percent(e.min(1.0))
        ),
        Some(e) if e < -0.25 => format!(
            "The members are redundant: their single effects add up to more than they do together \
            (emergence {}).",
            number(e)
        ),
        Some(e) => format!("The parts about add up to the whole (emergence {}).", number(e)),
    }
}

/// Cases, the farthest above their thresholds first: a ratio, since oracles count in different
/// units.
pub fn strongest_first(cases: &[Case]) -> Vec<&Case> {
    let mut order: Vec<&Case> = cases.iter().collect();
    let strength = |case: &Case| {
        let v = &case.verdict;
        let ratio = v.score / v.threshold.max(1e-9);
        if ratio.is_nan() { f64::NEG_INFINITY } else { ratio }
    };
    order.sort_by(|a, b| strength(b).total_cmp(&strength(a)).then_with(|| a.id.cmp(&b.id)));
    order
}

/// Where the case lies, from the folder of the campaign; `None` for an id that is no file name.
pub fn path(case: &Case) -> Option<String> {
    let plain = !case.id.is_empty()
        && case.id.len() <= 64
        && case.id.chars().all(|c| c.is_ascii_alphanumeric());
    plain.then(|| format!("cases/{}.json", case.id))
}
