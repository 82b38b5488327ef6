//! Findings in plain words, shared by terminal and page. All texts returned here are unescaped: the
//! caller escapes whole sentences with [`crate::text`].

use std::collections::BTreeMap;

use super::diff::{self, Span};
use super::format::{count, list, number, percent, plural, wilson};
use crate::campaign::{
    FOLLOWED_OF_A_KIND, KindCount, NEXT_EVALUATIONS, Summary, Unseen, kinds_seen,
};
use crate::case::Case;
use crate::edit::{Edit, Phrase};
use crate::localize::{ComparisonKind, TokenAttribution};
use crate::oracle::OracleKind;

/// Returns the unit of an oracle's scores with a leading space; empty for a score without one.
pub fn unit(oracle: OracleKind) -> String {
    let unit = oracle.oracle().unit();
    if unit.is_empty() { String::new() } else { format!(" {unit}") }
}

/// Returns the texts of those token ids that the case names.
fn names(case: &Case) -> BTreeMap<u32, &str> {
    let predicted = case.top_before.iter().chain(&case.top_after);
    let put_in = case.localization.iter().flat_map(|found| &found.tokens);
    let put_in = put_in.map(|token| (token.id, token.text.as_str()));
    put_in.chain(predicted.map(|token| (token.id, token.text.as_str()))).collect()
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

/// Returns the edits as the subject of a sentence: "Replacing ` king` by ` Guid`".
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

/// Returns the text of the token that an echo prompt shows: what stands where the unedited prompt
/// has the ordinary token that its continuation repeats.
fn shown(case: &Case) -> Option<&str> {
    let comment = &case.comment;
    let (prompt, ordinary) = (comment.prompt.as_str(), comment.continuation.as_str());
    let mut places = prompt.match_indices(ordinary).filter(|(_, ordinary)| !ordinary.is_empty());
    places.find_map(|(at, _)| {
        let (before, after) = (&prompt[..at], &prompt[at + ordinary.len()..]);
        comment.edited_prompt.strip_prefix(before)?.strip_suffix(after)
    })
}

/// Names the token that the edits put in: "the token ` Guid` (id 4091)".
pub fn token(case: &Case) -> String {
    let mut ids = case.edits.iter().map(|edit| match edit {
        Edit::Replace { id, .. } => Some(*id),
        _ => None,
    });
    let Some(Some(id)) = ids.next() else { return "the token that it is shown".into() };
    if ids.any(|other| other != Some(id)) {
        return "the tokens that it is shown".into();
    }
    let text = names(case).get(&id).copied().or_else(|| shown(case));
    match text.filter(|text| !text.is_empty() && text.chars().count() <= 40) {
        Some(text) => format!("the token `{text}` (id {id})"),
        None => format!("the token with id {id}"),
    }
}

/// Says what happens, in one sentence: "Replacing ` king` by ` Guid` changes the next-token
/// distribution by 0.92 bits."
pub fn what(case: &Case) -> String {
    let oracle = case.verdict.oracle.oracle();
    let cause = if oracle.edits_one_token() { token(case) } else { doing(case) };
    oracle.sentence(&cause, case.verdict.score)
}

/// Says how high the controls score; `None` if there are none.
pub fn controls(case: &Case) -> Option<String> {
    let verdict = &case.verdict;
    let most = verdict.controls.iter().copied().filter(|c| !c.is_nan()).max_by(f64::total_cmp)?;
    let kind = |f: fn(&Edit) -> bool| !case.edits.is_empty() && case.edits.iter().all(f);
    let who = if kind(|e| matches!(e, Edit::Delete { .. })) {
        "deletions of other tokens"
    } else if kind(|e| matches!(e, Edit::Retokenize { .. })) {
        "other splits of the prompt into as many tokens"
    } else if kind(|e| e.is_token_edit() && !e.has_controls_elsewhere()) {
        "ordinary tokens in the same place"
    } else if kind(|e| matches!(e, Edit::Lesion { .. })) {
        "the same lesions of other components of the same kind"
    } else if kind(|e| matches!(e, Edit::AttentionKnockout(_))) {
        "knockouts of other keys in other components of the same kind"
    } else if kind(|e| matches!(e, Edit::Steering { .. })) {
        "random directions of the same length in the same place"
    } else if kind(|e| matches!(e, Edit::Embedding { .. })) {
        "ordinary changes of the same embedding"
    } else {
        "matched ordinary trials"
    };
    Some(format!(
        "By comparison, {who} score at most {}{} ({}).",
        number(most),
        unit(verdict.oracle),
        plural(verdict.controls.len() as u64, "control")
    ))
}

/// Says how many of the sample of a kind held; nothing where there is none.
pub fn sample(kind: &KindCount) -> String {
    match kind.sampled {
        0 => String::new(),
        sampled => format!("{} of {}", count(kind.held), count(sampled)),
    }
}

/// Returns the chance of a new kind and the number of kinds after four times the evaluations, each
/// with the ends of its interval.
pub fn unseen_figures(unseen: &Unseen) -> ([String; 3], [String; 3]) {
    let (new, after) = (&unseen.chance_of_new, &unseen.kinds_after_four_times);
    let kinds = [after.value, after.low.floor(), after.high.ceil()];
    ([new.value, new.low, new.high].map(percent), kinds.map(|kinds| format!("{kinds:.0}")))
}

/// Says of a campaign how its trials were selected and what became of its findings in new prompts,
/// a sentence each; nothing of one of a version that did not count it.
pub fn campaign(summary: &Summary) -> Vec<String> {
    let mut said = Vec::new();
    if let Some(against) = &summary.against {
        said.push(format!(
            "Compared with {}: what is found is text after which the two predict different things.",
            against.name
        ));
    }
    if summary.null {
        said.push(
            "A null campaign: every trial is one of its own controls, and what is reported is \
            reported by chance."
                .to_owned(),
        );
    }
    if summary.judged > 0 {
        said.push(format!(
            "Selection: of {} trials {} score beyond the minimum and the upper decile of \
            controls; {} of them were judged, those of little known kinds first.",
            count(summary.evaluations),
            count(summary.extreme),
            count(summary.judged)
        ));
    }
    let minimized = summary.kinds.iter().filter(|kind| kind.minimized > 0).count();
    if !summary.kinds.is_empty() {
        said.push(format!(
            "The raw findings are of {}; the confirmed ones, at most {FOLLOWED_OF_A_KIND} of each \
            kind, are of {} once minimized.",
            plural(kinds_seen(&summary.kinds), "kind"),
            plural(minimized as u64, "kind"),
        ));
    }
    let sum = |of: fn(&KindCount) -> u64| summary.kinds.iter().map(of).sum::<u64>();
    let (sampled, held) = (sum(|kind| kind.sampled), sum(|kind| kind.held));
    if sampled > 0 {
        said.push(format!(
            "Of those that came after these, {} were judged again with new controls (the first, \
            second, fourth, eighth and so on of each kind), and {} held.",
            count(sampled),
            count(held)
        ));
    }
    if let Some(unseen) = &summary.unseen {
        let ([chance, low, high], [kinds, fewest, most]) = unseen_figures(unseen);
        said.push(format!(
            "The next {} evaluations show another kind with a probability of {chance} (95% \
            interval {low} to {high}); four times the evaluations would show about {kinds} kinds \
            ({fewest} to {most}).",
            count(NEXT_EVALUATIONS)
        ));
    }
    if summary.replicated > 0 {
        said.push(format!(
            "Of {} put into new prompts, {} are consistent (false discovery rate 5%) and {} \
            specific to their prompt.",
            plural(summary.replicated, "finding"),
            count(summary.consistent),
            count(summary.replicated - summary.consistent.min(summary.replicated))
        ));
    }
    said
}

/// Says what the model does without the edits; `None` for a case that does not have it.
pub fn baseline(case: &Case) -> Option<String> {
    let sentence = case.verdict.oracle.oracle().baseline_sentence(case.verdict.baseline?);
    (!sentence.is_empty()).then_some(sentence)
}

/// Says how many of the controls in the case's own prompt score less; `None` if there are none.
pub fn own_controls(case: &Case) -> Option<String> {
    let all = case.verdict.controls.len();
    let below = all - case.verdict.as_extreme();
    (all > 0).then(|| format!("above {below} of {all} controls in its own prompt"))
}

/// Says in how many new prompts a case holds; `None` for one of a version that did not ask.
pub fn replicated(case: &Case) -> Option<String> {
    // Cases of searches that ask have their search's verdict as well.
    let Some(replication) = &case.replication else {
        let asked = case.search.is_some();
        return asked.then(|| {
            "It could not be put into new prompts: this is specific to its own.".to_owned()
                + &by_chance(case)
        });
    };
    let (holds, all) = (replication.holds() as u64, replication.prompts.len() as u64);
    let interval = interval(holds, all)?;
    Some(match replication.consistent {
        true => format!(
            "It holds in {holds} of {all} new prompts ({interval}), p {}.",
            number(replication.p_value())
        ),
        false => format!(
            "It is specific to its prompt: of {all} new ones it holds in {holds} ({interval}).{}",
            by_chance(case)
        ),
    })
}

/// Says how many trials that rank as high under this oracle among their own controls the search
/// would be expected to meet, were each one of its controls; with a space before it, empty where
/// there was no search.
fn by_chance(case: &Case) -> String {
    let (trials, p) = (case.lineage.evaluation, case.verdict.p_value);
    if trials == 0 || !(0.0..=1.0).contains(&p) {
        return String::new();
    }
    let expected = p * trials as f64;
    let expected = match expected < 1.0 {
        true => "fewer than one".to_owned(),
        false => format!("about {}", count(expected.round() as u64)),
    };
    format!(
        " Of the {} trials up to it, {expected} would rank as high under this oracle in their own \
        prompts by chance.",
        count(trials)
    )
}

/// Says between which shares `hits` of `all` may lie: "95% interval 65% to 99%"; `None` of nothing.
fn interval(hits: u64, all: u64) -> Option<String> {
    let (low, high) = wilson(hits, all)?;
    Some(format!("95% interval {} to {}", percent(low), percent(high)))
}

/// Says how often what is sampled degenerates; `None` for a verdict that is not about generation.
pub fn sampled(case: &Case) -> Option<String> {
    let sampled = case.sampled?;
    let share = |degenerate: u64| {
        let interval = interval(degenerate, sampled.samples)?;
        Some(format!("{degenerate} of {} ({interval})", sampled.samples))
    };
    Some(format!(
        "The score is about greedy generation; of continuations sampled at temperature 1, {} \
        degenerate, and {} without the edits.",
        share(sampled.degenerate)?,
        share(sampled.degenerate_baseline)?
    ))
}

/// Says which heads attend to the replaced tokens, compared with other tokens in their place;
/// `None` if no head stands out.
pub fn attribution(attribution: &TokenAttribution) -> Option<String> {
    let attending: Vec<String> = attribution.attending.iter().map(ToString::to_string).collect();
    let (first, own) = (attending.first()?, *attribution.mediation.attending_each.first()?);
    let of = |kind: ComparisonKind| {
        let comparisons = attribution.comparisons.iter().filter(|c| c.kind == kind);
        let shares = comparisons
            .filter_map(|c| c.mediation.attending_each.first().copied())
            .filter(|s| s.is_finite());
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
    let others: Vec<String> =
        [("random tokens", ComparisonKind::Random), ("tokens that fail", ComparisonKind::Fails)]
            .into_iter()
            .filter_map(|(name, kind)| Some(format!("{name}: {}", of(kind)?)))
            .collect();
    let others =
        if others.is_empty() { String::new() } else { format!(" ({})", others.join("; ")) };
    let moved = match attribution.mediation.transfer_layers() {
        Some((from, to)) if from == to => {
            format!(" The effect moves to other positions in layer {from}.")
        }
        Some((from, to)) => {
            format!(" The effect moves to other positions in layers {from} to {to}.")
        }
        None => String::new(),
    };
    let attend = if attending.len() == 1 { "attends" } else { "attend" };
    Some(format!(
        "{} {attend} to the replaced tokens: patching {first} alone at later positions removes {} \
        of \
        their effect{others}.{moved}",
        list(&attending, 4),
        percent(own)
    ))
}

/// Returns a number of cases and of their kinds: `12 cases of 8 kinds`.
pub fn cases_of_kinds(cases: usize, kinds: usize) -> String {
    let cases = plural(cases as u64, "case");
    if kinds == 0 { cases } else { format!("{cases} of {}", plural(kinds as u64, "kind")) }
}

/// Returns the path of the case's file within the folder of the campaign; `None` for an id that is
/// not a plain file name.
pub fn path(case: &Case) -> Option<String> {
    let plain = !case.id.is_empty()
        && case.id.len() <= 64
        && case.id.chars().all(|c| c.is_ascii_alphanumeric());
    plain.then(|| format!("cases/{}.json", case.id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::sample;

    #[test]
    fn an_echo_names_its_token_and_not_the_word_around_it() {
        let (_, cases) = sample::campaign();
        let mut case = cases.into_iter().find(|c| c.verdict.oracle == OracleKind::Echo).unwrap();
        case.edits = [3, 6].map(|position| Edit::Replace { position, id: 3943 }).to_vec();
        case.comment.continuation = " great".into();
        let mut check = |prompt: &str, edited: &str, expected: &str| {
            case.comment.prompt = prompt.into();
            case.comment.edited_prompt = edited.into();
            assert_eq!(token(&case), expected);
        };
        check("<s>: \" great: \"", "<s>: \")\": \"", "the token `)\"` (id 3943)");
        check("say great, great: ", "say great, good: ", "the token ` good` (id 3943)");
        check("say it: ", "say ten: ", "the token with id 3943");
    }
}
