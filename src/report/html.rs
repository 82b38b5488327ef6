//! The page: one HTML file with its style and plots in it, no script and no request to anywhere.

use std::fmt::Write;

use super::diff::{self, Span};
use super::format::{count, duration, list, number, percent, plural, wilson};
use super::{svg, words};
use crate::campaign::Summary;
use crate::case::{Case, Expectation, TokenProbability};
use crate::edit::{Component, Edit};
use crate::implicate::{Implication, PositionEffect};
use crate::text;

const STYLE: &str = include_str!("style.css");

/// Findings beyond this many become rows of a table: a browser has to hold the page.
const MOST_CARDS: usize = 200;
/// Rows of that table.
const MOST_ROWS: usize = 5000;
/// Cards that are open at first.
const OPEN_CARDS: usize = 2;
/// Characters of one text that are shown.
const MOST_TEXT: usize = 6000;
/// Edits listed on a card.
const MOST_EDITS: usize = 60;

/// The whole report.
pub fn page(summary: &Summary, cases: &[Case]) -> String {
    let mut out = String::with_capacity(64 << 10);
    let order = words::strongest_first(cases);
    head(&mut out, summary);
    header(&mut out, summary, cases.len());
    campaign(&mut out, summary);
    out.push_str("<section><h2>Findings</h2>");
    if order.is_empty() {
        out.push_str("<p>No case was kept. The curves above show whether anything was found on the way.</p>");
    } else {
        out.push_str(
            "<p class=\"soft\">Strongest first: by how many times the score exceeds the threshold that matched controls set.</p>",
        );
    }
    for (i, case) in order.iter().take(MOST_CARDS).enumerate() {
        card(&mut out, case, i);
    }
    if order.len() > MOST_CARDS {
        table(&mut out, &order[MOST_CARDS..]);
    }
    out.push_str("</section>");
    legend(&mut out);
    out.push_str("</main></body></html>\n");
    out
}

fn head(out: &mut String, summary: &Summary) {
    out.push_str("<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">");
    // Belt and braces: were a text ever let through unescaped, nothing in it may run or load.
    out.push_str(
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">",
    );
    out.push_str("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><meta name=\"color-scheme\" content=\"light dark\">");
    let _ = write!(out, "<title>glitch: {}</title><style>{STYLE}</style></head><body><main>", text::html(&summary.model.name));
}

fn header(out: &mut String, summary: &Summary, cases: usize) {
    let short: String = summary.model.fingerprint.chars().take(12).collect();
    let _ = write!(
        out,
        "<header><h1>Glitches of <span class=\"name\">{}</span></h1><p class=\"soft\">fingerprint <code title=\"{}\">{}</code> · seed {} · batches of {} · stopped by {}",
        text::html(&summary.model.name),
        text::html(&summary.model.fingerprint),
        text::html(&short),
        summary.seed,
        summary.batch_size,
        text::html(&summary.stopped_by)
    );
    if let Some(timing) = &summary.timing {
        let _ = write!(
            out,
            " · {} at {} evaluations/s, {} tokens/s",
            duration(timing.elapsed_s),
            number(timing.evaluations_per_s),
            number(timing.tokens_per_s)
        );
    }
    out.push_str("</p></header><ul class=\"tiles\">");
    let mut tile = |value: &str, name: &str, note: &str| {
        let _ = write!(out, "<li><b>{value}</b><span>{name}</span><small>{note}</small></li>");
    };
    let funnel = [summary.findings_raw, summary.findings_confirmed, summary.findings_minimised].map(count).join(" → ");
    tile(&funnel, "findings", &format!("raw → confirmed alone → minimised; {} kept", plural(cases as u64, "case")));
    tile(
        &count(summary.evaluations),
        "evaluations",
        &format!("and {} to confirm, minimise and explain", count(summary.follow_up_evaluations)),
    );
    tile(&count(summary.behaviours), "behaviours", &format!("kinds of output seen; {} in the queue", count(summary.queue)));
    match wilson(summary.controls_flagged, summary.controls) {
        Some((low, high)) => tile(
            &percent(summary.controls_flagged as f64 / summary.controls as f64),
            "of controls flagged",
            &format!(
                "{} of {} ordinary trials; 95% interval {} to {}",
                count(summary.controls_flagged),
                count(summary.controls),
                percent(low),
                percent(high)
            ),
        ),
        None => tile("–", "of controls flagged", "no control was judged"),
    }
    out.push_str("</ul>");
}

fn campaign(out: &mut String, summary: &Summary) {
    let line = |name, value: fn(&crate::campaign::CurvePoint) -> u64| svg::Line {
        name,
        points: summary.curve.iter().map(|p| (p.evaluations, value(p))).collect(),
    };
    out.push_str("<section><h2>Campaign</h2><div class=\"pair\">");
    if !summary.curve.is_empty() {
        let behaviours = svg::curves("behaviours over evaluations", &[line("behaviours", |p| p.behaviours)]);
        let findings = svg::curves(
            "findings over evaluations",
            &[line("confirmed", |p| p.findings_confirmed), line("raw", |p| p.findings_raw)],
        );
        let _ = write!(out, "<figure><figcaption>Behaviours seen</figcaption>{behaviours}</figure>");
        let _ = write!(
            out,
            "<figure><figcaption>Findings: <span class=\"key0\">— confirmed alone</span>, <span class=\"key1\">- - raw</span></figcaption>{findings}</figure>"
        );
    }
    out.push_str("</div>");
    if !summary.mutators.is_empty() {
        out.push_str("<h3>Yield of each mutator</h3><div class=\"scroll\"><table><thead><tr><th>mutator</th>");
        out.push_str("<th class=\"n\">findings</th><th class=\"n\">per 1,000</th><th class=\"n\">behaviours</th><th class=\"n\">trials</th>");
        out.push_str("</tr></thead><tbody>");
        for m in &summary.mutators {
            let rate = if m.trials == 0 { "–".into() } else { number(1000.0 * m.findings as f64 / m.trials as f64) };
            let _ = write!(out, "<tr><td>{}</td>", text::html(&m.mutator));
            for value in [count(m.findings), rate, count(m.new_behaviours), count(m.trials)] {
                let _ = write!(out, "<td class=\"n\">{value}</td>");
            }
            out.push_str("</tr>");
        }
        out.push_str("</tbody></table></div>");
    }
    out.push_str("</section>");
}

fn title(case: &Case) -> String {
    if case.comment.title.is_empty() { words::doing(case) } else { clip(&case.comment.title, 200) }
}

fn clip(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        None => text.to_owned(),
        Some((at, _)) => format!("{}… ({} characters more)", &text[..at], text[at..].chars().count()),
    }
}

fn card(out: &mut String, case: &Case, i: usize) {
    let v = &case.verdict;
    let open = if i < OPEN_CARDS { " open" } else { "" };
    let _ = write!(
        out,
        "<details class=\"card\" id=\"case-{}\"{open}><summary><span class=\"rank\">{}</span><span class=\"title\">{}</span><span class=\"chip\">{} {}{}</span></summary><div class=\"body\">",
        i + 1,
        i + 1,
        text::html(&title(case)),
        words::oracle_name(v.oracle),
        number(v.score),
        words::unit(v.oracle)
    );
    let mut lead = vec![words::what(case)];
    lead.extend(words::controls(case));
    lead.extend(case.implication.as_ref().and_then(words::carried));
    let _ = write!(out, "<p class=\"lead\">{}</p>", text::html(&lead.join(" ")));
    prompts(out, case);
    out.push_str("<div class=\"pair\">");
    next_tokens(out, case);
    score(out, case);
    out.push_str("</div>");
    if let Some(implication) = &case.implication {
        implicated(out, implication);
    }
    provenance(out, case);
    out.push_str("</div></details>");
}

fn prompts(out: &mut String, case: &Case) {
    let c = &case.comment;
    let (before, after) = diff::words(&clip(&c.prompt, MOST_TEXT), &clip(&c.edited_prompt, MOST_TEXT));
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
        row("after", "<i>the same: the edits are inside the model</i>".into());
    } else {
        row("after", shown(&after, "ins"));
    }
    if !c.continuation.is_empty() {
        row("measured on", text::html(&clip(&c.continuation, MOST_TEXT)));
    }
    if !(c.generated_before.is_empty() && c.generated_after.is_empty()) {
        row("model writes, before", text::html(&clip(&c.generated_before, MOST_TEXT)));
        row("model writes, after", text::html(&clip(&c.generated_after, MOST_TEXT)));
    }
    out.push_str("</dl>");
    if !case.edits.is_empty() {
        let _ = write!(out, "<h3>{}</h3><ul class=\"edits\">", plural(case.edits.len() as u64, "edit"));
        for edit in case.edits.iter().take(MOST_EDITS) {
            let _ = write!(out, "<li>{}</li>", text::html(&words::edit(case, edit)));
        }
        if case.edits.len() > MOST_EDITS {
            let _ = write!(out, "<li>and {} more</li>", case.edits.len() - MOST_EDITS);
        }
        out.push_str("</ul><p class=\"soft\">Positions count the tokens of the prompt before the edits, from 0.</p>");
    }
}

/// Paired bars: each token's probability before and after.
fn next_tokens(out: &mut String, case: &Case) {
    const MOST: usize = 8;
    let find = |list: &[TokenProbability], id| list.iter().find(|t| t.id == id).map(|t| t.probability);
    let mut rows: Vec<(&TokenProbability, Option<f64>, Option<f64>)> = Vec::new();
    for token in case.top_before.iter().chain(&case.top_after) {
        if rows.iter().all(|row| row.0.id != token.id) {
            rows.push((token, find(&case.top_before, token.id), find(&case.top_after, token.id)));
        }
    }
    if rows.is_empty() {
        return;
    }
    let most = |row: &(&TokenProbability, Option<f64>, Option<f64>)| row.1.unwrap_or(0.0).max(row.2.unwrap_or(0.0));
    rows.sort_by(|a, b| most(b).total_cmp(&most(a)).then(a.0.id.cmp(&b.0.id)));
    out.push_str("<figure><figcaption>Next token: <span class=\"key0\">■ before</span>, <span class=\"key1\">▨ after</span></figcaption><table class=\"bars\"><tbody>");
    for (token, before, after) in rows.into_iter().take(MOST) {
        let _ = write!(out, "<tr><th title=\"id {}\">{}</th><td>", token.id, text::html(&clip(&token.text, 40)));
        for (class, probability) in [("before", before), ("after", after)] {
            let width = probability.filter(|p| p.is_finite()).unwrap_or(0.0).clamp(0.0, 1.0) * 100.0;
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
    let plot = svg::strip(&v.controls, v.score, v.threshold, unit);
    let _ = write!(out, "<figure><figcaption>{against}</figcaption>{plot}<dl class=\"facts\">");
    for (name, value) in [
        ("score", number(v.score) + unit),
        ("threshold", number(v.threshold) + unit),
        ("margin", number(v.margin) + unit),
        ("noise floor", number(v.noise_floor)),
        ("p-value", number(v.p_value)),
    ] {
        let _ = write!(out, "<div><dt>{name}</dt><dd>{value}</dd></div>");
    }
    let _ = write!(out, "</dl><p class=\"soft\">{}</p></figure>", text::html(words::oracle_meaning(v.oracle)));
}

fn implicated(out: &mut String, implication: &Implication) {
    out.push_str("<h3>What carries it</h3>");
    if implication.set.is_empty() {
        out.push_str("<p>No component stands out.</p>");
    } else {
        let names: Vec<String> = implication.set.iter().map(ToString::to_string).collect();
        let _ = write!(
            out,
            "<p><b>{}</b>. {} {}</p>",
            text::html(&list(&names, 40)),
            text::html(&words::necessity_and_sufficiency(implication)),
            text::html(&words::emergence(implication))
        );
    }
    let map = |label, value| svg::heat_map(label, &implication.effects, value, &implication.set);
    out.push_str("<div class=\"pair\">");
    if let Some(svg) = map("share of the glitch removed by each head and MLP", |e| e.necessity) {
        let _ = write!(out, "<figure><figcaption>Removed when this part alone is set right</figcaption>{svg}</figure>");
    }
    if let Some(svg) = map("share of the glitch made by each head and MLP", |e| e.sufficiency) {
        let _ = write!(out, "<figure><figcaption>Made when this part alone goes wrong</figcaption>{svg}</figure>");
    }
    out.push_str("</div>");
    let mut fine: Vec<_> = implication
        .effects
        .iter()
        .filter(|e| !matches!(e.component, Component::Head { .. } | Component::Mlp { .. }) && !e.necessity.is_nan())
        .collect();
    fine.sort_by(|a, b| b.necessity.total_cmp(&a.necessity).then(a.component.cmp(&b.component)));
    let rows = fine.into_iter().take(8).map(|e| (e.component.to_string(), e.necessity, e.sufficiency)).collect();
    effects_table(out, "finer parts, strongest", rows);
    let mut places: Vec<_> = implication.positions.iter().collect();
    places.sort_by(|a, b| (b.necessity + b.sufficiency).total_cmp(&(a.necessity + a.sufficiency)));
    let place = |e: &PositionEffect| format!("{} at position {} (token {})", e.component, e.position, e.id);
    let rows = places.into_iter().take(8).map(|e| (place(e), e.necessity, e.sufficiency)).collect();
    effects_table(out, "at one position only, strongest", rows);
}

/// A table of effects; nothing for no rows.
fn effects_table(out: &mut String, head: &str, rows: Vec<(String, f64, f64)>) {
    if rows.is_empty() {
        return;
    }
    let _ = write!(
        out,
        "<div class=\"scroll\"><table><thead><tr><th>{head}</th><th class=\"n\">removed</th><th class=\"n\">made</th></tr></thead><tbody>"
    );
    for (what, removed, made) in rows {
        let (removed, made) = (percent(removed), percent(made));
        let _ = write!(out, "<tr><td>{}</td><td class=\"n\">{removed}</td><td class=\"n\">{made}</td></tr>", text::html(&what));
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
    match &case.minimisation {
        Some(m) => {
            let _ = write!(
                out,
                "Reduced from {} to {} in {}; {}",
                plural(m.elements_before as u64, "element"),
                count(m.elements_after as u64),
                plural(m.calls, "trial"),
                if m.one_minimal {
                    "1-minimal: each remaining element was taken out alone, and without it the glitch is gone."
                } else {
                    "not shown to be 1-minimal: the budget ended before each remaining element was tried."
                }
            );
        }
        None => out.push_str("Not minimised."),
    }
    if let Some(implication) = &case.implication {
        let _ = write!(out, " Explained in {}.", plural(implication.calls, "trial"));
    }
    if case.expectation == Expectation::Gone {
        out.push_str(" It is mended and expected to stay away.");
    }
    out.push_str("</p>");
    if let Some(path) = words::path(case) {
        let _ = write!(
            out,
            "<p>Run it again, from the folder of this report:</p><pre><code>glitch replay {}</code></pre>",
            text::html(&path)
        );
    }
}

fn table(out: &mut String, rest: &[&Case]) {
    let _ = write!(
        out,
        "<h3>{} more</h3><div class=\"scroll\"><table><thead><tr><th class=\"n\">no.</th><th>finding</th><th>oracle</th><th class=\"n\">score</th><th class=\"n\">threshold</th><th>case</th></tr></thead><tbody>",
        count(rest.len() as u64)
    );
    for (i, case) in rest.iter().take(MOST_ROWS).enumerate() {
        let v = &case.verdict;
        let _ = write!(
            out,
            "<tr><td class=\"n\">{}</td><td>{}</td><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td><code>{}</code></td></tr>",
            MOST_CARDS + i + 1,
            text::html(&clip(&title(case), 120)),
            words::oracle_name(v.oracle),
            number(v.score),
            number(v.threshold),
            text::html(&clip(&case.id, 64))
        );
    }
    out.push_str("</tbody></table></div>");
    if rest.len() > MOST_ROWS {
        let _ =
            write!(out, "<p class=\"soft\">and {} more in the folder of the cases.</p>", count((rest.len() - MOST_ROWS) as u64));
    }
}

/// What a newcomer needs in order to read the page.
const WORDS: &[(&str, &str)] = &[
    ("token", "The pieces of text that a model reads and writes; each has a number, its id."),
    ("trial, evaluation", "One run of the model on one prompt with some edits."),
    ("edit", "One change: of a token, of the numbers that stand for it (its embedding), or of a part of the model (a lesion)."),
    (
        "control",
        "A trial of the same kind and size that is ordinary. What counts as a glitch is read off the controls, never off an absolute number.",
    ),
    (
        "score, threshold, margin",
        "How badly the model misbehaves; what the controls say it takes to be called a glitch; the first less the second.",
    ),
    (
        "noise floor",
        "How far a score moves when nothing changes but which trials share a batch. A margin below it means nothing.",
    ),
    (
        "p-value",
        "The share of controls that score at least as high, counting the finding itself. Its smallest possible value is 1 / (controls + 1).",
    ),
    ("bit", "Of divergence: from 0 (the same predictions) to 1 (no overlap). Of improbability: each bit halves the chance."),
    (
        "raw, confirmed, minimised",
        "Seen inside a batch; seen again when run alone; reduced to the smallest edits that still show it.",
    ),
    ("1-minimal", "No single remaining edit can be taken out without losing the glitch."),
    (
        "component",
        "A part of the model: L2.head3 is attention head 3 of layer 2, L2.mlp that layer's feed-forward block, L2.neuron7 one unit of it, embed the embedding. Layers and heads count from 0.",
    ),
    ("necessity", "The share of the glitch that goes when the parts get their normal output back."),
    ("sufficiency", "The share of the glitch that appears when only these parts misbehave."),
    (
        "emergence",
        "The share of the joint effect that the parts do not have one by one. Near 0: they add up. Near 1: only together. Negative: each does what the others do.",
    ),
    ("behaviour", "A kind of output, by a coarse fingerprint; new ones are worth following up even when they are no glitch."),
];

fn legend(out: &mut String) {
    out.push_str("<section><details class=\"legend\"><summary>Words used here</summary><dl class=\"words\">");
    for (word, meaning) in WORDS {
        let _ = write!(out, "<dt>{word}</dt><dd>{meaning}</dd>");
    }
    out.push_str("</dl></details></section>");
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    /// Every tag that is opened is closed, in order.
    fn balanced(page: &str) -> Result<(), String> {
        const VOID: [&str; 1] = ["meta"];
        let mut open: Vec<&str> = Vec::new();
        let mut rest = page.split_once("<html").map(|(_, r)| r).ok_or("no html")?;
        while let Some(start) = rest.find('<') {
            rest = &rest[start + 1..];
            let end = rest.find('>').ok_or("a tag without end")?;
            let tag = &rest[..end];
            rest = &rest[end + 1..];
            let name = tag.trim_start_matches('/').split([' ', '/']).next().unwrap_or("");
            if tag.starts_with('/') {
                match open.pop() {
                    Some(top) if top == name => {}
                    None if name == "html" => {}
                    top => return Err(format!("</{name}> closes {top:?}")),
                }
            } else if !tag.ends_with('/') && !VOID.contains(&name) {
                open.push(name);
            }
        }
        if open.is_empty() { Ok(()) } else { Err(format!("left open: {open:?}")) }
    }

    #[test]
    fn every_tag_is_closed() {
        let (summary, cases) = sample::campaign();
        balanced(&page(&summary, &cases)).unwrap();
        balanced(&page(&summary, &[])).unwrap();
        let many: Vec<Case> = cases.iter().cycle().take(MOST_CARDS + 7).cloned().collect();
        let page = page(&summary, &many);
        balanced(&page).unwrap();
        assert!(page.contains("7 more</h3>"));
    }

    fn check(input: &str, expect: &str) {
        let (summary, cases) = sample::saying(input);
        let page = page(&summary, &cases);
        balanced(&page).unwrap();
        assert!(page.contains(expect), "{expect:?} is not shown");
        assert!(!page.contains(input), "{input:?} is on the page as it was");
        assert!(!page.contains("<script") && !page.contains("javascript:"));
        assert!(!page.chars().any(|c| c.is_control() && c != '\n'), "a control character got through");
    }

    #[test]
    fn hostile_texts_are_shown_and_do_nothing() {
        check("<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;");
        check("</style></title></svg><img src=x onerror=alert(1)>", "&lt;/style&gt;&lt;/title&gt;&lt;/svg&gt;&lt;img src=x");
        check("\" onmouseover=\"alert(1)", "&quot; onmouseover=&quot;alert(1)");
        check("' style='x", "&#39; style=&#39;x");
        check("\x1b]0;owned\x07", "\\x1b]0;owned\\x07");
        check("\u{202e}drow\u{2066}", "\\u{202e}drow\\u{2066}");
        check("<!-- ", "&lt;!-- ");
        check("&lt;", "&amp;lt;");
    }

    #[test]
    fn strange_numbers_do_not_break_the_page() {
        let (summary, mut cases) = sample::campaign();
        for (i, odd) in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1.0, f64::MAX].into_iter().enumerate() {
            let Some(case) = cases.get_mut(i) else { break };
            let v = &mut case.verdict;
            (v.score, v.threshold, v.margin, v.p_value) = (odd, odd, odd, odd);
            v.controls.push(odd);
            case.top_after.iter_mut().for_each(|t| t.probability = odd);
            if let Some(implication) = &mut case.implication {
                implication.effects.iter_mut().step_by(3).for_each(|e| e.necessity = odd);
                (implication.necessity, implication.emergence) = (odd, Some(odd));
            }
        }
        let page = page(&summary, &cases);
        balanced(&page).unwrap();
        assert!(!page.contains("NaN") && !page.contains(":inf"));
    }

    /// `GLITCH_REPORT_SAMPLE=FILE cargo test --lib report` writes the sample page, to look at.
    #[test]
    fn the_sample_is_the_same_each_time() {
        let (summary, cases) = sample::campaign();
        let made = page(&summary, &cases);
        assert_eq!(made, page(&summary, &cases));
        if let Some(file) = std::env::var_os("GLITCH_REPORT_SAMPLE") {
            std::fs::write(file, made).unwrap();
        }
    }
}
