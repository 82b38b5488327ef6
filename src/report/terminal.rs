//! The terminal's summary of a campaign: counts, and the strongest findings in plain words.

use std::path::Path;

use super::format::{count, number, percent, plural, wilson};
use super::{against, deficits, explanation, words};
use crate::campaign::Summary;
use crate::case::Case;
use crate::species;
use crate::text;

/// Most kinds of findings that are described; the others are in the report.
const BEST: usize = 5;
/// Smallest width that a sentence can be wrapped to.
const LEAST_COLUMNS: usize = 8;

/// Returns the summary in lines of at most `columns` columns (at least 8), with paths relative to
/// the folder of the campaign.
pub fn terminal(summary: &Summary, cases: &[Case], columns: usize) -> String {
    terminal_in(Path::new(""), summary, cases, columns)
}

/// Returns the summary like [`terminal`], with paths under `dir` so that they can be pasted into a
/// command.
pub fn terminal_in(dir: &Path, summary: &Summary, cases: &[Case], columns: usize) -> String {
    let mut page = Page { out: String::new(), columns: columns.max(LEAST_COLUMNS) };
    let kinds = species::group(cases);
    let place = |file: &str| dir.join(file).display().to_string();
    page.say(
        0,
        &format!(
            "{}: {}, {}.",
            summary.model.name,
            plural(summary.evaluations, "evaluation"),
            plural(summary.behaviours, "behaviour")
        ),
    );
    page.say(
        0,
        &format!(
            "Findings: {} raw, {} confirmed with new controls, {} minimized, {} kept.",
            count(summary.findings_raw),
            count(summary.findings_confirmed),
            count(summary.findings_minimized),
            words::cases_of_kinds(cases.len(), kinds.len())
        ),
    );
    for sentence in words::campaign(summary) {
        page.say(0, &sentence);
    }
    if let Some((low, high)) = wilson(summary.controls_flagged, summary.controls) {
        page.say(
            0,
            &format!(
                "Taken at random, {} of {} controls exceed the same thresholds: {} (95% interval \
                {} to {}).",
                count(summary.controls_flagged),
                count(summary.controls),
                percent(summary.controls_flagged as f64 / summary.controls as f64),
                percent(low),
                percent(high)
            ),
        );
    }
    for (i, kind) in kinds.iter().take(BEST).enumerate() {
        let case = kind.face;
        page.blank();
        let v = &case.verdict;
        if !case.comment.title.is_empty() {
            page.line(0, &format!("{}. {}", i + 1, case.comment.title));
        }
        let mut sentences = vec![words::what(case)];
        sentences.extend(words::controls(case));
        sentences.extend(words::baseline(case));
        sentences.extend(words::replicated(case));
        sentences.extend(words::sampled(case));
        sentences.extend(deficits::sentence(case).filter(|_| deficits::any_shown(case)));
        sentences.extend(against::sentences(case));
        sentences.extend(case.localization.iter().flat_map(explanation::brief));
        let attribution =
            case.localization.as_ref().and_then(|localization| localization.attribution.as_ref());
        sentences.extend(attribution.and_then(words::attribution));
        let start = page.out.len();
        page.say(3, &sentences.join(" "));
        // Without a title the sentence bears the number, in the place of its indent.
        if case.comment.title.is_empty() && page.out[start..].starts_with("   ") {
            page.out.replace_range(start..start + 3, &format!("{}. ", i + 1));
        }
        page.say(
            3,
            &format!(
                "{}: score {}, threshold {}{}{}",
                v.oracle.oracle().label(),
                number(v.score),
                number(v.threshold),
                words::own_controls(case).map_or(String::new(), |own| format!(", {own}")),
                case.minimization.as_ref().map_or(String::new(), |m| format!(
                    "; {} left of {}{}",
                    m.elements_after,
                    m.elements_before,
                    if m.one_minimal { ", 1-minimal" } else { "" }
                ))
            ),
        );
        if let Some(path) = words::path(case) {
            page.say(3, &format!("glitch replay {}", place(&path)));
        }
    }
    page.blank();
    let shown = kinds.len().min(BEST);
    if cases.len() > shown {
        let more = plural((cases.len() - shown) as u64, "more case");
        let kinds = match kinds.len() {
            all if all > BEST => format!(", of these and {} more kinds,", all - BEST),
            _ => " of these kinds".to_owned(),
        };
        page.say(0, &format!("{more}{kinds} in {}", place("cases")));
    }
    page.say(0, &format!("Report: {}", place("report.html")));
    page.out
}

/// Escapes a text and wraps it at spaces.
pub(super) fn wrapped(text: &str, columns: usize) -> Vec<String> {
    let mut page = Page { out: String::new(), columns };
    page.say(0, text);
    page.out.lines().map(str::to_owned).collect()
}

struct Page {
    out: String,
    columns: usize,
}

impl Page {
    fn blank(&mut self) {
        self.out.push('\n');
    }

    /// Adds one line, cut at the last column.
    fn line(&mut self, indent: usize, text: &str) {
        let indent = indent.min(self.columns / 4);
        self.out.push_str(&" ".repeat(indent));
        self.out.push_str(&text::fit(text, self.columns - indent));
        self.out.push('\n');
    }

    /// Adds a text wrapped at spaces; a longer word is broken at the last column.
    fn say(&mut self, indent: usize, text: &str) {
        let indent = indent.min(self.columns / 4);
        let room = self.columns - indent;
        let escaped = text::escape(text);
        let (mut line, mut used) = (String::new(), 0);
        let mut flush = |line: &mut String| {
            if !line.is_empty() {
                self.out.push_str(&" ".repeat(indent));
                self.out.push_str(line.trim_end_matches(' '));
                self.out.push('\n');
                line.clear();
            }
        };
        for word in escaped.split_inclusive(' ') {
            let bare = text::width(word.trim_end_matches(' '));
            if used + bare > room && used > 0 {
                flush(&mut line);
                used = 0;
            }
            for c in word.chars() {
                let mut bytes = [0; 4];
                let c: &str = c.encode_utf8(&mut bytes);
                let wide = text::width(c);
                if used + wide > room && c != " " {
                    flush(&mut line);
                    used = 0;
                }
                // Spaces past the edge are not kept, so a line never exceeds its room.
                if used + wide <= room {
                    line.push_str(c);
                    used += wide;
                }
            }
        }
        flush(&mut line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::sample;

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        let (summary, cases) = sample::campaign();
        for columns in [8, 13, 20, 40, 79, 80, 100, 200] {
            for line in terminal_in(Path::new("fuzz/out/日本語"), &summary, &cases, columns).lines()
            {
                assert!(
                    text::width(line) <= columns,
                    "{} columns of {columns}: {line}",
                    text::width(line)
                );
            }
        }
    }

    fn check(input: &str, expect: &str) {
        let (summary, cases) = sample::saying(input);
        let shown = terminal(&summary, &cases, 120);
        assert!(shown.contains(expect), "{shown}");
        assert!(!shown.chars().any(|c| c.is_control() && c != '\n'), "{shown:?}");
        assert_eq!(text::escape(&shown).replace("\\n", "\n"), shown.replace("\\n", "\n"));
    }

    #[test]
    fn escape_sequences_are_shown_and_not_obeyed() {
        check("\x1b[2J\x1b]0;owned\x07", "\\x1b[2J\\x1b]0;owned\\x07");
        check("a\r\nb", "a\\r\\nb");
        check("\u{202e}drow", "\\u{202e}drow");
    }

    #[test]
    fn the_summary_is_shown_as_it_is() {
        let (summary, cases) = sample::campaign();
        insta::assert_snapshot!("summary_80_columns", terminal(&summary, &cases, 80));
        insta::assert_snapshot!("summary_no_cases", terminal(&summary, &[], 80));
    }
}
