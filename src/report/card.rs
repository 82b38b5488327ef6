//! The card of one finding on the page.

use std::fmt::Write;

use super::diff::{self, Span};
use super::explanation::whole;
use super::format::{count, list, number, percent, plural, prose};
use super::{
    against, attribution, deficits, explanation, graph, logit_lens, residual_map, svg, words,
};
use crate::case::{Case, Expectation, TokenProbability};
use crate::edit::{Component, Edit};
use crate::localize::{ComparedWith, Contrast, Interactions, Localization, PositionEffect};
use crate::replicate::Replication;
use crate::text;

/// Number of cards that are open when the page loads.
pub const OPEN_CARDS: usize = 2;
/// Most characters shown of one text.
const MOST_TEXT: usize = 6000;
/// Most edits listed on a card.
const MOST_EDITS: usize = 60;
/// Components whose shares are compared with controls.
const MOST_CONTRASTS: usize = 8;
/// Pairs whose relation is listed.
const MOST_PAIRS: usize = 8;

/// Returns the title of a finding, one line, unescaped.
pub fn title(case: &Case) -> String {
    if case.comment.title.is_empty() { words::doing(case) } else { clip(&case.comment.title, 200) }
}

/// Cuts a text after `most` characters and says how many were left out.
pub fn clip(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        None => text.to_owned(),
        Some((at, _)) => {
            format!("{}… ({} characters more)", &text[..at], text[at..].chars().count())
        }
    }
}

/// Writes the card of finding `i`, with the name of its kind if `kind` has it: what happens, the
/// prompt, the next tokens, the score among its controls, the localization, the provenance.
pub fn card(out: &mut String, case: &Case, i: usize, open: bool, kind: Option<&str>) {
    let v = &case.verdict;
    let open = if open { " open" } else { "" };
    let _ = write!(
        out,
        "<details class=\"card\"{open}><summary><span class=\"rank\">{0}</span><span \
        class=\"title\">{1}</span><span class=\"chip\">{2} {3}{4}</span></summary><div \
        class=\"body\" id=\"case-{0}\">",
        i + 1,
        prose(&title(case)),
        v.oracle.oracle().label(),
        number(v.score),
        words::unit(v.oracle)
    );
    if let Some(kind) = kind {
        let _ = write!(out, "<p class=\"soft\">{}</p>", text::html(kind));
    }
    let mut lead = vec![words::what(case)];
    lead.extend(words::controls(case));
    lead.extend(words::baseline(case));
    lead.extend(words::replicated(case));
    lead.extend(words::sampled(case));
    lead.extend(deficits::sentence(case));
    lead.extend(against::sentences(case));
    let _ = write!(out, "<p class=\"lead\">{}</p>", prose(&lead.join(" ")));
    let explained: Vec<String> =
        case.localization.iter().flat_map(explanation::sentences).collect();
    if !explained.is_empty() {
        let generalizes = case.localization.as_ref().and_then(explanation::generalizes);
        let _ = write!(
            out,
            "<p class=\"lead\"><b>{}</b> {}</p>",
            prose(&generalizes.unwrap_or_default()),
            prose(&explained.join(" "))
        );
    }
    prompts(out, case);
    out.push_str("<div class=\"pair\">");
    next_tokens(out, case);
    score(out, case);
    out.push_str("</div>");
    if let Some(replication) = &case.replication {
        new_prompts(out, replication, &words::unit(case.verdict.oracle));
    }
    deficits::section(out, case);
    against::section(out, case);
    if let Some(localization) = &case.localization {
        localized(out, localization);
    }
    if let Some(attribution) =
        case.localization.as_ref().and_then(|localization| localization.attribution.as_ref())
    {
        attribution::section(out, attribution);
    }
    provenance(out, case);
    out.push_str("</div></details>");
}

fn is_retokenization(edit: &Edit) -> bool {
    matches!(edit, Edit::Retokenize { .. })
}

fn prompts(out: &mut String, case: &Case) {
    let c = &case.comment;
    let (before, after) =
        diff::words(&clip(&c.prompt, MOST_TEXT), &clip(&c.edited_prompt, MOST_TEXT));
    let shown = |spans: &[Span], tag: &str| -> String {
        let show = |s: &Span| {
            let inner = text::html(&s.text);
            if s.changed { format!("<{tag}>{inner}</{tag}>") } else { inner }
        };
        spans.iter().map(show).collect()
    };
    out.push_str("<h3>Prompt</h3><dl class=\"texts\">");
    let mut row = |name: &str, inner: String| {
        let inner = if inner.is_empty() { "<i>(nothing)</i>".into() } else { inner };
        let _ = write!(out, "<dt>{name}</dt><dd class=\"text\">{inner}</dd>");
    };
    row("before", shown(&before, "del"));
    if !case.edits.iter().any(Edit::is_token_edit) {
        row("after", "<i>unchanged: the edits are inside the model</i>".into());
    } else if c.prompt == c.edited_prompt && case.edits.iter().any(is_retokenization) {
        row("after", "<i>the same text, cut into other tokens: see the edits</i>".into());
    } else {
        row("after", shown(&after, "ins"));
    }
    if case.verdict.oracle.oracle().edits_one_token() {
        row("to be repeated, before", text::html(&clip(&c.continuation, MOST_TEXT)));
        row("to be repeated, after", prose(&words::token(case)));
    } else if !c.continuation.is_empty() {
        row("measured on", text::html(&clip(&c.continuation, MOST_TEXT)));
    }
    if !(c.generated_before.is_empty() && c.generated_after.is_empty()) {
        row("model writes, before", text::html(&clip(&c.generated_before, MOST_TEXT)));
        row("model writes, after", text::html(&clip(&c.generated_after, MOST_TEXT)));
    }
    out.push_str("</dl>");
    if !case.edits.is_empty() {
        let _ =
            write!(out, "<h3>{}</h3><ul class=\"edits\">", plural(case.edits.len() as u64, "edit"));
        for edit in case.edits.iter().take(MOST_EDITS) {
            let _ = write!(out, "<li>{}</li>", prose(&words::edit(case, edit)));
        }
        if case.edits.len() > MOST_EDITS {
            let _ = write!(out, "<li>and {} more</li>", case.edits.len() - MOST_EDITS);
        }
        out.push_str(
            "</ul><p class=\"soft\">Positions count the tokens of the unedited prompt, from 0.</p>",
        );
    }
}

/// Writes the next-token probabilities before and after the edits as paired bars.
fn next_tokens(out: &mut String, case: &Case) {
    const MOST: usize = 8;
    let find =
        |list: &[TokenProbability], id| list.iter().find(|t| t.id == id).map(|t| t.probability);
    let mut rows: Vec<(&TokenProbability, Option<f64>, Option<f64>)> = Vec::new();
    for token in case.top_before.iter().chain(&case.top_after) {
        if rows.iter().all(|row| row.0.id != token.id) {
            rows.push((token, find(&case.top_before, token.id), find(&case.top_after, token.id)));
        }
    }
    if rows.is_empty() {
        return;
    }
    let most = |row: &(&TokenProbability, Option<f64>, Option<f64>)| {
        row.1.unwrap_or(0.0).max(row.2.unwrap_or(0.0))
    };
    rows.sort_by(|a, b| most(b).total_cmp(&most(a)).then(a.0.id.cmp(&b.0.id)));
    out.push_str(
        "<figure><figcaption>Next token: <span class=\"key0\">■ before</span>, <span \
        class=\"key1\">▨ after</span></figcaption><table class=\"bars\"><tbody>",
    );
    for (token, before, after) in rows.into_iter().take(MOST) {
        let _ = write!(
            out,
            "<tr><th title=\"id {}\">{}</th><td>",
            token.id,
            text::html(&clip(&token.text, 40))
        );
        for (class, probability) in [("before", before), ("after", after)] {
            let width =
                probability.filter(|p| p.is_finite()).unwrap_or(0.0).clamp(0.0, 1.0) * 100.0;
            let (bar, value) = match probability {
                Some(p) => (format!("<i style=\"width:{width:.1}%\"></i>"), percent(p)),
                None => (String::new(), "not among the top".into()),
            };
            let _ = write!(out, "<div class=\"bar {class}\">{bar}<span>{value}</span></div>");
        }
        out.push_str("</td></tr>");
    }
    out.push_str("</tbody></table></figure>");
}

fn score(out: &mut String, case: &Case) {
    let v = &case.verdict;
    let unit = words::unit(v.oracle);
    let against = match v.controls.len() {
        0 => "Score (no controls were drawn)".into(),
        n => format!("Score against {}", plural(n as u64, "matched control")),
    };
    let plot = svg::strip(&v.controls, v.score, v.threshold, &unit);
    let _ = write!(out, "<figure><figcaption>{against}</figcaption>{plot}<dl class=\"facts\">");
    for (name, value) in [
        ("score", number(v.score) + &unit),
        ("threshold", number(v.threshold) + &unit),
        ("margin", number(v.margin) + &unit),
        ("noise floor", number(v.noise_floor)),
        ("rank", words::own_controls(case).unwrap_or_else(|| "no controls".into())),
    ] {
        let _ = write!(out, "<div><dt>{name}</dt><dd>{value}</dd></div>");
    }
    let _ = write!(
        out,
        "</dl><p class=\"soft\">{}</p></figure>",
        text::html(v.oracle.oracle().meaning())
    );
}

/// Writes the scores in new prompts as a table.
fn new_prompts(out: &mut String, replication: &Replication, unit: &str) {
    const MOST: usize = 24;
    let _ = write!(
        out,
        "<h3>In new prompts</h3><div class=\"scroll\"><table><thead><tr><th>prompt</th><th \
        class=\"n\">score</th><th class=\"n\">threshold</th><th class=\"n\">controls that score \
        as much</th><th>holds</th></tr></thead><tbody>"
    );
    for prompt in replication.prompts.iter().take(MOST) {
        let _ = write!(
            out,
            "<tr><td>{}</td><td class=\"n\">{}{unit}</td><td class=\"n\">{}{unit}</td><td \
            class=\"n\">{} of {}</td><td>{}</td></tr>",
            text::html(&clip(&prompt.prompt, 40)),
            number(prompt.score),
            number(prompt.threshold),
            prompt.as_extreme,
            prompt.controls,
            if prompt.holds { "yes" } else { "no" }
        );
    }
    let _ = write!(
        out,
        "</tbody></table></div><p class=\"soft\">The search used none of these prompts, and each \
        has controls of its own. E-value of the ranks: {}.</p>",
        number(replication.e_value)
    );
}

fn localized(out: &mut String, localization: &Localization) {
    out.push_str("<h3>Localization</h3>");
    if explanation::sentences(localization).is_empty() {
        out.push_str(
            "<p>Nothing is named: no component does much alone, or the effect of the case or of \
            too many of its controls is too small to compare.</p>",
        );
    }
    if let Some((graph, svg)) =
        (localization.graph.as_ref()).and_then(|g| Some((g, graph::svg(g)?)))
    {
        let share = percent(graph.faithfulness.clamp(0.0, 1.0));
        let _ = write!(
            out,
            "<figure><figcaption>The places that make {share} of the effect alone. A line is as \
            wide as what is removed when its end does not see its beginning.</figcaption>{svg}\
            </figure>"
        );
    }
    if localization.residual_map.is_some() || localization.logit_lens.is_some() {
        out.push_str("<div class=\"pair\">");
        residual_map::figure(out, localization);
        logit_lens::figure(out, localization);
        out.push_str("</div>");
    }
    if let Some(interactions) = &localization.interactions {
        pairs(out, interactions);
    }
    contrasts(out, &localization.contrasts, localization.compared_with);
    let map = |label, value| svg::heat_map(label, &localization.effects, value, &localization.set);
    out.push_str("<div class=\"pair\">");
    if let Some(svg) =
        map("share of the effect removed by patching each head and MLP", |e| e.necessity)
    {
        let _ = write!(
            out,
            "<figure><figcaption>Removed by patching in this component's clean \
            output</figcaption>{svg}</figure>"
        );
    }
    if let Some(svg) =
        map("share of the effect reproduced by patching each head and MLP", |e| e.sufficiency)
    {
        let _ = write!(
            out,
            "<figure><figcaption>Reproduced by patching in its corrupted \
            output</figcaption>{svg}</figure>"
        );
    }
    out.push_str("</div>");
    // A mixer of which the map shows the heads has no cell of its own.
    let has_heads = |layer: usize| {
        let is_head = |c: &Component| matches!(*c, Component::Head { layer: l, .. } if l == layer);
        localization.effects.iter().any(|e| is_head(&e.component))
    };
    let in_the_map = |component: &Component| match svg::heat_map_cell(component) {
        Some((layer, Some(_))) => matches!(component, Component::Head { .. }) || !has_heads(layer),
        cell => cell.is_some(),
    };
    let mut fine: Vec<_> = localization
        .effects
        .iter()
        .filter(|e| !in_the_map(&e.component) && !e.necessity.is_nan())
        .collect();
    fine.sort_by(|a, b| b.necessity.total_cmp(&a.necessity).then(a.component.cmp(&b.component)));
    let rows = fine
        .into_iter()
        .take(8)
        .map(|e| (e.component.to_string(), e.necessity, e.sufficiency))
        .collect();
    effects_table(out, "strongest of the others", rows);
    let mut places: Vec<_> = localization.positions.iter().collect();
    places.sort_by(|a, b| (b.necessity + b.sufficiency).total_cmp(&(a.necessity + a.sufficiency)));
    let place =
        |e: &PositionEffect| format!("{} at position {} (token {})", e.component, e.position, e.id);
    let rows = places.into_iter().take(8).map(|e| (place(e), e.necessity, e.sufficiency)).collect();
    effects_table(out, "at one position only, strongest", rows);
}

/// Writes how the strongest components work together.
fn pairs(out: &mut String, interactions: &Interactions) {
    let order = |shares: &[f64]| shares.first().map_or("-".into(), |share| whole(*share));
    let controls = match &interactions.controls[..] {
        [] => String::new(),
        [one] => format!(" ({} in a control)", whole(*one)),
        [low, .., high] => format!(
            " ({} to {} in {} controls)",
            whole(*low),
            whole(*high),
            interactions.controls.len()
        ),
    };
    let _ = write!(
        out,
        "<p>All subsets of the {} strongest components were patched. Of what they do to the \
        symptom's centred logit ({} nats), single components have {} of the absolute mass patched \
        into the clean run{controls}, and {} out of the corrupted run; the rest is in pairs and \
        larger sets.</p>",
        interactions.members.len(),
        number(interactions.effect),
        order(&interactions.sufficient),
        order(&interactions.necessary)
    );
    if interactions.pairs.is_empty() {
        return;
    }
    out.push_str(
        "<div class=\"scroll\"><table><thead><tr><th>pair</th><th>relation</th><th \
        class=\"n\">removed: first, second, both</th><th class=\"n\">made: first, second, \
        both</th><th class=\"n\">first, second held clean</th></tr></thead><tbody>",
    );
    for pair in interactions.pairs.iter().take(MOST_PAIRS) {
        let shares = |s: [f64; 3]| s.map(whole).join(", ");
        let [first, second] = &pair.components;
        let _ = write!(
            out,
            "<tr><td>{first}, {second}</td><td>{}</td><td class=\"n\">{}</td><td \
            class=\"n\">{}</td><td class=\"n\">{}</td></tr>",
            pair.kind.name(),
            shares(pair.necessity),
            shares(pair.sufficiency),
            whole(pair.direct)
        );
    }
    out.push_str("</tbody></table></div>");
}

/// Writes what components carry in the case and in its controls, or nothing if none were compared.
fn contrasts(out: &mut String, contrasts: &[Contrast], with: ComparedWith) {
    let Some(first) = contrasts.first() else { return };
    let _ = write!(
        out,
        "<div class=\"scroll\"><table><thead><tr><th>removed by patching in the clean output</th>\
        <th class=\"n\">here</th><th class=\"n\">in {} controls</th><th class=\"n\">p</th>\
        <th>role</th></tr></thead><tbody>",
        first.controls.len()
    );
    for contrast in contrasts.iter().take(MOST_CONTRASTS) {
        let _ = write!(
            out,
            "<tr><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td \
            class=\"n\">{}</td><td>{}</td></tr>",
            contrast.component,
            whole(contrast.necessity),
            explanation::of_controls(contrast),
            number(contrast.p_value),
            contrast.role.name()
        );
    }
    let controls = match with {
        ComparedWith::OrdinaryContent => "the same edits with ordinary content",
        ComparedWith::Noise => {
            "noise in the place of the lesions: what they change, rotated at random"
        }
    };
    let _ = write!(
        out,
        "</tbody></table></div><p class=\"soft\">Controls are {controls}. What mediates theirs as \
        well is a relay.</p>"
    );
}

/// Writes a table of effects, or nothing if there are no rows.
fn effects_table(out: &mut String, head: &str, rows: Vec<(String, f64, f64)>) {
    if rows.is_empty() {
        return;
    }
    let _ = write!(
        out,
        "<div class=\"scroll\"><table><thead><tr><th>{head}</th><th class=\"n\">removed</th><th \
        class=\"n\">made</th></tr></thead><tbody>"
    );
    for (what, removed, made) in rows {
        let (removed, made) = (percent(removed), percent(made));
        let _ = write!(
            out,
            "<tr><td>{}</td><td class=\"n\">{removed}</td><td class=\"n\">{made}</td></tr>",
            text::html(&what)
        );
    }
    out.push_str("</tbody></table></div>");
}

fn provenance(out: &mut String, case: &Case) {
    out.push_str("<h3>Where it comes from</h3><p>");
    let l = &case.lineage;
    let _ = write!(
        out,
        "Found at evaluation {} with seed {}, from the seed prompt {}",
        count(l.evaluation),
        l.seed,
        text::html(&l.parent)
    );
    if !l.mutators.is_empty() {
        let _ = write!(out, ", by {}", text::html(&list(&l.mutators, 12)));
    }
    out.push_str(". ");
    match &case.minimization {
        Some(m) => {
            let _ = write!(
                out,
                "Reduced from {} to {} in {}; {}",
                plural(m.elements_before as u64, "element"),
                count(m.elements_after as u64),
                plural(m.calls, "trial"),
                if m.one_minimal {
                    "1-minimal: without any single edit or sentence that is left, or the first \
                    words, less than half of the margin remains."
                } else {
                    "not shown to be 1-minimal: the budget ran out, or the last steps were undone."
                }
            );
        }
        None => out.push_str("Not minimized."),
    }
    if let Some(localization) = &case.localization {
        let _ = write!(out, " Localized in {}.", plural(localization.calls, "trial"));
    }
    if case.expectation == Expectation::Gone {
        out.push_str(" Fixed; replay should no longer reproduce it.");
    }
    out.push_str("</p>");
    if let Some(path) = words::path(case) {
        let _ = write!(
            out,
            "<p>To replay it, from the folder of this report:</p><pre><code>glitch replay \
            {}</code></pre>",
            text::html(&path)
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::tests::example;

    /// A text that stays as it is was cut into other tokens, or edited beyond the prompt.
    #[test]
    fn only_a_retokenized_prompt_is_said_to_be_cut_otherwise() {
        let says = |edit| {
            let (mut case, mut out) = (example(), String::new());
            case.comment.edited_prompt = case.comment.prompt.clone();
            case.edits = vec![edit];
            prompts(&mut out, &case);
            out.contains("cut into other tokens")
        };
        assert!(says(Edit::Retokenize { position: 1, pieces: vec![3, 4] }));
        assert!(!says(Edit::Replace { position: 9, id: 4 }));
    }
}
