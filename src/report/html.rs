//! The report page of a campaign: one HTML file with its style and plots inline, without scripts or
//! external resources.

use std::fmt::Write;

use super::card::{OPEN_CARDS, card, clip, title};
use super::format::{count, duration, number, percent, prose, wilson};
use super::glossary::legend;
use super::{svg, words};
use crate::campaign::{FOLLOWED_OF_A_KIND, NEXT_EVALUATIONS, Summary, kinds_seen};
use crate::case::Case;
use crate::species::{self, Species};
use crate::text;

const STYLE: &str = include_str!("style.css");

/// Most findings that get a card; the others become rows of a table, so that a browser can hold the
/// page.
const MOST_CARDS: usize = 200;
/// Most kinds that a table has.
const MOST_KINDS: usize = 40;
/// Most rows of the table of findings without a card.
const MOST_ROWS: usize = 5000;

/// Returns the report page of a campaign.
pub fn page(summary: &Summary, cases: &[Case]) -> String {
    let mut out = String::with_capacity(64 << 10);
    let kinds = species::group(cases);
    head(&mut out, &summary.model.name);
    header(&mut out, summary, cases.len(), kinds.len());
    out.push_str("<section><h2>Findings</h2>");
    if kinds.is_empty() {
        out.push_str(
            "<p>No case was kept. The curves above show whether anything was found along the \
            way.</p>",
        );
    } else {
        out.push_str(
            "<p class=\"soft\">One card for each kind: the simplest of the cases that show it \
            most. Kinds that hold in new prompts first; then by how many times the score exceeds \
            the threshold that matched controls set.</p>",
        );
        catalogue(&mut out, &kinds);
    }
    findings(&mut out, &kinds);
    out.push_str("</section>");
    super::interactions::section(&mut out, &summary.interactions, cases);
    campaign(&mut out, summary);
    legend(&mut out);
    out.push_str("</main></body></html>\n");
    out
}

/// Writes the kinds in a table, each with the case that shows it.
fn catalogue(out: &mut String, kinds: &[Species]) {
    out.push_str(
        "<div class=\"scroll\"><table><thead><tr><th>kind</th><th>the case that shows it</th><th \
        class=\"n\">cases</th><th class=\"n\">hold in new prompts</th></tr></thead><tbody>",
    );
    let mut number = 1;
    for kind in kinds.iter().take(MOST_KINDS) {
        let name = text::html(&clip(&kind.title(), 160));
        let _ = match number <= MOST_CARDS {
            true => write!(out, "<tr><td><a href=\"#case-{number}\">{name}</a></td>"),
            false => write!(out, "<tr><td>{name}</td>"),
        };
        let _ = write!(
            out,
            "<td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td></tr>",
            prose(&clip(&title(kind.face), 120)),
            count(kind.members.len() as u64),
            count(kind.consistent as u64)
        );
        number += kind.members.len();
    }
    out.push_str("</tbody></table></div>");
    if kinds.len() > MOST_KINDS {
        let more = count((kinds.len() - MOST_KINDS) as u64);
        let _ = write!(out, "<p class=\"soft\">and {more} more kinds below.</p>");
    }
}

/// Writes the cards of the findings, those of each kind together: its face, and the others one
/// click away.
fn findings(out: &mut String, kinds: &[Species]) {
    let (mut number, mut rest) = (0, Vec::new());
    for (at, kind) in kinds.iter().enumerate() {
        let others = kind.members.iter().filter(|case| case.id != kind.face.id);
        let mut others: Vec<&Case> = others.copied().collect();
        if number >= MOST_CARDS {
            rest.push(kind.face);
            rest.extend(others);
            continue;
        }
        let name = kind.title();
        card(out, kind.face, number, at < OPEN_CARDS, Some(&name));
        number += 1;
        rest.extend(others.split_off(others.len().min(MOST_CARDS - number)));
        if !others.is_empty() {
            let _ = write!(
                out,
                "<details class=\"twins\"><summary>{} more of this kind</summary>",
                count(others.len() as u64)
            );
            for case in others {
                card(out, case, number, false, None);
                number += 1;
            }
            out.push_str("</details>");
        }
    }
    if !rest.is_empty() {
        table(out, &rest, number);
    }
}

/// Writes the beginning of a page, up to its content; escapes `title`.
pub(super) fn head(out: &mut String, title: &str) {
    out.push_str("<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">");
    // Belt and braces: were a text ever let through unescaped, nothing in it may run or load.
    out.push_str(
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src \
        'unsafe-inline'; img-src data:\">",
    );
    out.push_str(
        "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><meta \
        name=\"color-scheme\" content=\"light dark\">",
    );
    let _ = write!(
        out,
        "<title>glitch: {}</title><style>{STYLE}</style></head><body><main>",
        text::html(title)
    );
}

fn header(out: &mut String, summary: &Summary, cases: usize, kinds: usize) {
    let short: String = summary.model.fingerprint.chars().take(12).collect();
    let _ = write!(
        out,
        "<header><h1>Glitches in <span class=\"name\">{}</span></h1><p class=\"soft\">fingerprint \
        <code title=\"{}\">{}</code> · seed {} · batches of {} · stopped by {}",
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
    let funnel = [summary.findings_raw, summary.findings_confirmed, summary.findings_minimized]
        .map(count)
        .join(" → ");
    tile(
        &funnel,
        "findings",
        &format!(
            "raw → confirmed with new controls → minimized; {} kept",
            words::cases_of_kinds(cases, kinds)
        ),
    );
    if summary.replicated > 0 {
        let specific = summary.replicated.saturating_sub(summary.consistent);
        tile(
            &format!("{} → {}", count(summary.replicated), count(summary.consistent)),
            "in new prompts",
            &format!(
                "put there → consistent (false discovery rate 5%); {} specific to their prompt",
                count(specific)
            ),
        );
    }
    if summary.judged > 0 {
        tile(
            &format!("{} → {}", count(summary.extreme), count(summary.judged)),
            "extreme trials",
            "beyond the upper decile of controls → judged, those of little known kinds first",
        );
    }
    if let Some(unseen) = &summary.unseen {
        let ([chance, low, high], [kinds, fewest, most]) = words::unseen_figures(unseen);
        tile(
            &count(kinds_seen(&summary.kinds)),
            "kinds of raw findings",
            &format!(
                "another in the next {} evaluations: {chance} ({low} to {high}); four times the \
                evaluations would show about {kinds} ({fewest} to {most})",
                count(NEXT_EVALUATIONS)
            ),
        );
    }
    tile(
        &count(summary.evaluations),
        "evaluations",
        &format!("and {} to confirm, minimize and explain", count(summary.follow_up_evaluations)),
    );
    tile(
        &count(summary.behaviours),
        "behaviours",
        &format!("kinds of output seen; {} in the queue", count(summary.queue)),
    );
    match wilson(summary.controls_flagged, summary.controls) {
        Some((low, high)) => tile(
            &percent(summary.controls_flagged as f64 / summary.controls as f64),
            "of controls flagged",
            &format!(
                "{} of {} ordinary trials taken at random; 95% interval {} to {}",
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
        let behaviours =
            svg::curves("behaviours over evaluations", &[line("behaviours", |p| p.behaviours)]);
        let findings = svg::curves(
            "findings over evaluations",
            &[line("confirmed", |p| p.findings_confirmed), line("raw", |p| p.findings_raw)],
        );
        let _ =
            write!(out, "<figure><figcaption>Behaviours seen</figcaption>{behaviours}</figure>");
        let _ = write!(
            out,
            "<figure><figcaption>Findings: <span class=\"key0\">— confirmed</span>, <span \
            class=\"key1\">- - raw</span></figcaption>{findings}</figure>"
        );
    }
    out.push_str("</div>");
    if !summary.mutators.is_empty() {
        out.push_str(
            "<h3>Yield of each mutator</h3><div \
            class=\"scroll\"><table><thead><tr><th>mutator</th>",
        );
        out.push_str(
            "<th class=\"n\">findings</th><th class=\"n\">per 1,000</th><th \
            class=\"n\">behaviours</th><th class=\"n\">trials</th>",
        );
        out.push_str("</tr></thead><tbody>");
        for m in &summary.mutators {
            let rate = if m.trials == 0 {
                "–".into()
            } else {
                number(1000.0 * m.findings as f64 / m.trials as f64)
            };
            let _ = write!(out, "<tr><td>{}</td>", text::html(&m.mutator));
            for value in [count(m.findings), rate, count(m.new_behaviours), count(m.trials)] {
                let _ = write!(out, "<td class=\"n\">{value}</td>");
            }
            out.push_str("</tr>");
        }
        out.push_str("</tbody></table></div>");
    }
    kinds(out, summary);
    out.push_str("</section>");
}

/// Writes how many raw findings there are of each kind, and how many were followed up.
fn kinds(out: &mut String, summary: &Summary) {
    if summary.kinds.is_empty() {
        return;
    }
    let _ = write!(
        out,
        "<h3>Raw findings by kind</h3><p class=\"soft\">{FOLLOWED_OF_A_KIND} of a kind are \
        followed up; what else is of it, or has more edits than it takes, is counted, and a sample \
        of it confirmed with new controls. A confirmed finding counts for the kind that is left \
        once it is minimized; what fails on the way there is a raw finding as well.</p><div \
        class=\"scroll\"><table><thead><tr><th>kind</th><th class=\"n\">raw</th><th \
        class=\"n\">confirmed</th><th class=\"n\">of the others, confirmed in a sample</th></tr>\
        </thead><tbody>",
    );
    for kind in summary.kinds.iter().take(MOST_KINDS) {
        let _ = write!(
            out,
            "<tr><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td \
            class=\"n\">{}</td></tr>",
            text::html(&clip(&kind.kind, 120)),
            count(kind.raw),
            count(kind.minimized),
            words::sample(kind)
        );
    }
    out.push_str("</tbody></table></div>");
    if summary.kinds.len() > MOST_KINDS {
        let more = count((summary.kinds.len() - MOST_KINDS) as u64);
        let _ = write!(out, "<p class=\"soft\">and {more} more kinds in summary.json.</p>");
    }
}

/// Writes the findings that have no card, numbered after the first `before`.
fn table(out: &mut String, rest: &[&Case], before: usize) {
    let _ = write!(
        out,
        "<h3>{} more</h3><div class=\"scroll\"><table><thead><tr><th \
        class=\"n\">no.</th><th>finding</th><th>oracle</th><th class=\"n\">score</th><th \
        class=\"n\">threshold</th><th>case</th></tr></thead><tbody>",
        count(rest.len() as u64)
    );
    for (i, case) in rest.iter().take(MOST_ROWS).enumerate() {
        let v = &case.verdict;
        let _ = write!(
            out,
            "<tr><td class=\"n\">{}</td><td>{}</td><td>{}</td><td class=\"n\">{}</td><td \
            class=\"n\">{}</td><td><code>{}</code></td></tr>",
            before + i + 1,
            prose(&clip(&title(case), 120)),
            v.oracle.oracle().label(),
            number(v.score),
            number(v.threshold),
            text::html(&clip(&case.id, 64))
        );
    }
    out.push_str("</tbody></table></div>");
    if rest.len() > MOST_ROWS {
        let _ = write!(
            out,
            "<p class=\"soft\">and {} more in the folder of the cases.</p>",
            count((rest.len() - MOST_ROWS) as u64)
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::sample::{self, balanced};

    #[test]
    fn every_tag_is_closed() {
        let (summary, cases) = sample::campaign();
        balanced(&page(&summary, &cases)).unwrap();
        balanced(&page(&summary, &[])).unwrap();
        let numbered = |(i, case): (usize, &Case)| Case { id: format!("{i:016x}"), ..case.clone() };
        let copies = cases.iter().cycle().take(MOST_CARDS + 7);
        let many: Vec<Case> = copies.enumerate().map(numbered).collect();
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
        assert!(
            !page.chars().any(|c| c.is_control() && c != '\n'),
            "a control character got through"
        );
    }

    #[test]
    fn hostile_texts_are_shown_and_do_nothing() {
        check("<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;");
        check(
            "</style></title></svg><img src=x onerror=alert(1)>",
            "&lt;/style&gt;&lt;/title&gt;&lt;/svg&gt;&lt;img src=x",
        );
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
        for (i, odd) in
            [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1.0, f64::MAX].into_iter().enumerate()
        {
            let Some(case) = cases.get_mut(i) else { break };
            let v = &mut case.verdict;
            (v.score, v.threshold, v.margin, v.p_value) = (odd, odd, odd, odd);
            v.controls.push(odd);
            case.top_after.iter_mut().for_each(|t| t.probability = odd);
            if let Some(localization) = &mut case.localization {
                localization.effects.iter_mut().step_by(3).for_each(|e| e.necessity = odd);
                (localization.necessity, localization.emergence) = (odd, Some(odd));
                if let Some(graph) = &mut localization.graph {
                    graph.faithfulness = odd;
                    graph.nodes.iter_mut().for_each(|n| (n.necessity, n.direct) = (odd, odd));
                    graph.edges.iter_mut().for_each(|e| (e.to, e.effect) = (e.to + i, odd));
                }
                if let Some(map) = &mut localization.residual_map {
                    map.necessity.iter_mut().for_each(|shares| shares.fill(odd));
                    map.layers.pop();
                }
                if let Some(lens) = &mut localization.logit_lens {
                    lens.corrupted.log_probs.fill(odd);
                    lens.corrupted.texts.pop();
                    lens.clean.log_probs.pop();
                }
                if let Some(interactions) = &mut localization.interactions {
                    interactions.effect = odd;
                    interactions.pairs.iter_mut().for_each(|p| p.necessity = [odd; 3]);
                }
                if let Some(attribution) = &mut localization.attribution {
                    attribution.mediation.layerwise.fill(odd);
                    (
                        attribution.mediation.attending,
                        attribution.comparisons[0].mediation.attending,
                    ) = (odd, odd);
                }
            }
        }
        let page = page(&summary, &cases);
        balanced(&page).unwrap();
        assert!(!page.contains("NaN") && !page.contains(":inf"));
    }

    /// The snapshot is the page itself: open it in a browser.
    #[test]
    fn the_page_of_the_sample_is_shown_as_it_is() {
        let (summary, cases) = sample::campaign();
        let made = page(&summary, &cases);
        assert_eq!(made, page(&summary, &cases));
        insta::assert_binary_snapshot!("sample.html", lines(&made).into_bytes());
    }

    /// Puts each element on its own line, so that a diff of snapshots is readable.
    fn lines(page: &str) -> String {
        page.replace("><", ">\n<")
    }
}
