//! The explanation of a case in sentences, from its figures alone.

use super::format::{list, percent, quoted};
use crate::localize::{
    Baseline, ComparedWith, Contrast, DirectionAt, Graph, Localization, Node, Pair, PairKind,
    PutIn, Role,
};
use crate::text::plural;
use crate::vocabulary::{TokenForm, TokenKind};

/// Tokens that are named in a sentence.
const MOST_TOKENS: usize = 4;

/// Pairs that are named in a sentence.
const MOST_PAIRS: usize = 3;

/// Explains a case: what it makes the model say, the path that this takes, what is specific to it,
/// and how the strongest components work together. Unescaped.
pub fn sentences(found: &Localization) -> Vec<String> {
    let all = [
        symptom(found),
        path(found),
        specific(found),
        direction(found),
        pairs(found),
        routing(found),
    ];
    all.into_iter().flatten().collect()
}

/// Explains a case in short: in how many new prompts this holds, what the case makes the model say,
/// the path, and what is specific to it. Unescaped.
pub fn brief(found: &Localization) -> Vec<String> {
    let all = [generalizes(found), symptom(found), path(found), specific(found)];
    all.into_iter().flatten().collect()
}

/// Says what the edits make the model say.
fn symptom(found: &Localization) -> Option<String> {
    let symptom = found.symptom.as_ref()?;
    let says = if symptom.effect > 0.0 { "say" } else { "no longer say" };
    let tokens: Vec<String> = found.tokens.iter().map(token).collect();
    let put_in = match tokens.is_empty() {
        true => String::new(),
        false => format!("put in {} and ", list(&tokens, MOST_TOKENS)),
    };
    Some(format!(
        "The edits {put_in}make the model {says} {} after position {} ({:+.1} nats).",
        quoted(&symptom.text),
        symptom.position,
        symptom.effect
    ))
}

/// Names a token that the edits put in, and its class.
fn token(token: &PutIn) -> String {
    let class = match token.class {
        TokenKind::Special => "a control token",
        TokenKind::Anomalous => "which looks hardly trained",
        TokenKind::Form(TokenForm::Word) => "a word",
        TokenKind::Form(TokenForm::Fragment) => "part of a word",
        TokenKind::Form(TokenForm::Number) => "a number",
        TokenKind::Form(TokenForm::Punctuation) => "punctuation",
        TokenKind::Form(TokenForm::Space) => "white space",
        TokenKind::Form(TokenForm::Other) => "no plain text",
    };
    format!("{} ({class})", quoted(&token.text))
}

/// Says which places make the symptom alone.
fn path(found: &Localization) -> Option<String> {
    let graph = found.graph.as_ref()?;
    let share = percent(graph.faithfulness.clamp(0.0, 1.0));
    if !graph.is_faithful() {
        let size = plural(graph.nodes.len() as u64, "place");
        return Some(match graph.reaches_goal() {
            true => format!(
                "No small part of the model stands out: the best graph of {size} does {share} of \
                it alone, but so do random ones."
            ),
            false => format!(
                "No small part of the model does this: the best graph of {size} does {share} of \
                it alone."
            ),
        });
    }
    let rest = match graph.baseline {
        Baseline::Controls => "everything else as in controls",
        Baseline::Clean => "everything else as without the edits",
    };
    let random = match (graph.random.get(graph.random.len() / 2), graph.random.last()) {
        (Some(median), Some(most)) => format!(
            "; random graphs as large do {}, at most {}",
            percent(median.clamp(0.0, 1.0)),
            percent(most.clamp(0.0, 1.0))
        ),
        _ => String::new(),
    };
    Some(format!(
        "It goes through {}: {} {share} of it alone, with {rest}{random}.",
        places(graph),
        if graph.nodes.len() == 1 { "this does" } else { "these do" },
    ))
}

/// Lists the nodes of a graph, those at one position together.
fn places(graph: &Graph) -> String {
    let mut groups: Vec<Vec<&Node>> = Vec::new();
    for node in &graph.nodes {
        match groups.last_mut() {
            Some(group) if group.iter().all(|other| other.position == node.position) => {
                group.push(node);
            }
            _ => groups.push(vec![node]),
        }
    }
    let named = groups.iter().filter_map(|group| {
        let names: Vec<String> = group.iter().map(|node| node.component.to_string()).collect();
        let first = group.first()?;
        Some(format!(
            "{} at position {} ({})",
            list(&names, 12),
            first.position,
            quoted(&first.text)
        ))
    });
    named.collect::<Vec<_>>().join(", then ")
}

/// Says what is specific to the case, and what mediates whatever is put in its place.
pub fn specific(found: &Localization) -> Option<String> {
    let names: Vec<String> = found.set.iter().map(ToString::to_string).collect();
    let their = if names.len() == 1 { "its" } else { "their" };
    let removes = format!(
        "patching in {their} clean output removes {} of the effect",
        percent(found.necessity)
    );
    let relay = found.relay();
    let specific = found.contrasts.iter().find(|c| c.role == Role::Specific);
    if let Some(contrast) = specific.filter(|_| !names.is_empty()) {
        let apart = match names.len() {
            1 => "component that sets this case apart is",
            _ => "components that set this case apart are",
        };
        let here = match found.set[..] == [contrast.component] {
            true => ", but".to_owned(),
            false => format!(
                ". That of {} alone removes {}, but",
                contrast.component,
                whole(contrast.necessity)
            ),
        };
        let passed_on = relay
            .map(|relay| format!(" {} passes on whatever is put there.", relay.component))
            .unwrap_or_default();
        return Some(format!(
            "The {apart} {}: {removes}{here} only {} of that of {}.{passed_on}",
            list(&names, 6),
            of_controls(contrast),
            controls(found, contrast)
        ));
    }
    match relay {
        _ if !names.is_empty() => Some(format!(
            "Outside the edits it is localized to {}: {removes}{}.",
            list(&names, 6),
            random_sets(found)
        )),
        Some(relay) => Some(format!(
            "No explanation was found beyond relaying: {} mediates {} of the effect, but also {} \
            of that of {}.",
            relay.component,
            whole(relay.necessity),
            of_controls(relay),
            controls(found, relay)
        )),
        None if found.contrasts.is_empty() => None,
        None => Some(match found.compared_with {
            ComparedWith::OrdinaryContent => {
                "No component sets this case apart from ordinary content.".into()
            }
            ComparedWith::Noise => {
                "No component sets these lesions apart from noise in their place.".into()
            }
        }),
    }
}

/// Says what random sets of the same kinds and size remove.
fn random_sets(found: &Localization) -> String {
    let best = found.controls.iter().copied().filter(|c| !c.is_nan()).max_by(f64::total_cmp);
    let Some(best) = best else { return String::new() };
    let sets = match found.controls.len() {
        1 => "the one other set of the same kinds and size removes".to_owned(),
        n => format!("{n} random sets of the same kinds and size remove at most"),
    };
    format!("; {sets} {}", percent(best))
}

/// Says in how many new prompts the explanation holds: the named set or, where nothing is named,
/// the direction. `None` if it was not tried.
pub fn generalizes(found: &Localization) -> Option<String> {
    let tried = found.generalization.as_ref()?;
    if tried.with_effect == 0 {
        let prompts = plural(tried.prompts as u64, "new prompt");
        return Some(format!("In {prompts} the edits have no effect to explain."));
    }
    let (what, count) = match (tried.set, &tried.direction) {
        (Some(count), _) => {
            let names: Vec<String> = found.set.iter().map(ToString::to_string).collect();
            (format!("patching {} clean removes most of it", list(&names, 6)), count)
        }
        (None, Some(direction)) => (
            format!("a direction after {} removes most of it", direction.component),
            direction.removed,
        ),
        (None, None) => return None,
    };
    Some(format!(
        "In {count} of {} in which the edits have an effect, {what}.",
        plural(tried.with_effect as u64, "new prompt")
    ))
}

/// Says what the direction does in new prompts.
fn direction(found: &Localization) -> Option<String> {
    let tried = found.generalization.as_ref().filter(|tried| tried.with_effect > 0)?;
    let direction = tried.direction.as_ref()?;
    let at = match direction.at {
        DirectionAt::Edits => "at the edits",
        DirectionAt::Symptom => "where the symptom is predicted",
    };
    Some(format!(
        "The direction in which the case differs from its controls after {}, {at}, makes most of \
        the effect in {} of {} new prompts when it is added to the clean run (random ones in {}), \
        and removes it in {} when it is held at its clean value (random ones in {}).",
        direction.component,
        direction.made,
        tried.with_effect,
        direction.made_by_random,
        direction.removed,
        direction.removed_by_random
    ))
}

/// Names the pairs that do more than add up.
fn pairs(found: &Localization) -> Option<String> {
    let interactions = found.interactions.as_ref()?;
    let named = |pair: &&Pair| matches!(pair.kind, PairKind::And | PairKind::Or | PairKind::Chain);
    let said: Vec<String> =
        interactions.pairs.iter().filter(named).take(MOST_PAIRS).map(pair).collect();
    (!said.is_empty()).then(|| format!("Of the strongest components, {}.", list(&said, MOST_PAIRS)))
}

/// Says how two components work together.
fn pair(pair: &Pair) -> String {
    let [first, second] = &pair.components;
    match pair.kind {
        PairKind::Chain => format!("{first} acts through {second}"),
        PairKind::And => format!("{first} and {second} act only together"),
        PairKind::Or => format!("either of {first} or {second} is enough"),
        PairKind::Additive => format!("{first} and {second} add up"),
        PairKind::Mixed => format!("{first} and {second} interact"),
    }
}

/// Says how much of the effect acts through routing; `None` for a model without experts.
fn routing(found: &Localization) -> Option<String> {
    let share = percent(found.routing?.clamp(0.0, 1.0));
    Some(format!(
        "Routing every token as in the clean run removes {share} of the effect: that much of it \
        acts through routing."
    ))
}

/// Returns a share between none and all, in whole percent.
pub fn whole(share: f64) -> String {
    format!("{:.0}%", 100.0 * share.clamp(0.0, 1.0))
}

/// Returns the share of their effect that a component mediates in controls, as a range.
pub fn of_controls(contrast: &Contrast) -> String {
    match (contrast.controls.first(), contrast.controls.last()) {
        (Some(low), Some(high)) => match (whole(*low), whole(*high)) {
            (low, high) if low == high => low,
            (low, high) => format!("{low} to {high}"),
        },
        _ => "none".into(),
    }
}

fn controls(found: &Localization, contrast: &Contrast) -> String {
    let controls = match found.compared_with {
        ComparedWith::OrdinaryContent => "ordinary content",
        ComparedWith::Noise => "noise in the place of the lesions",
    };
    format!("{controls} ({})", plural(contrast.controls.len() as u64, "control"))
}
