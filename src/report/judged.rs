//! A verdict in plain words, for the terminal: whether or not the trial fails.

use super::format::{number, plural};
use super::words;
use crate::case::Case;
use crate::oracle::{LEAST_CONTROLS, Verdict};
use crate::text::{escape, fit, width};

/// Says whether a case's trial fails, and how its score compares with those of the controls: two
/// or three sentences, each a line.
pub fn verdict_in_words(verdict: &Verdict) -> Vec<String> {
    let Verdict { oracle, score, threshold, controls, p_value, .. } = verdict;
    let unit = words::unit(*oracle);
    let figure = |value: f64| format!("{}{unit}", number(value));
    if controls.len() < LEAST_CONTROLS {
        return vec![
            format!("No verdict: {oracle} scores {}, and that alone says nothing.", figure(*score)),
            format!(
                "Only {} to compare with, of at least {LEAST_CONTROLS}: the model has too few \
                alternatives to what is edited.",
                plural(controls.len() as u64, "matched control")
            ),
        ];
    }
    let (says, compared) =
        if verdict.fails() { ("It fails", "above") } else { ("It does not fail", "not above") };
    let worst = controls.last().copied().unwrap_or(0.0);
    let as_bad = controls.iter().filter(|control| *control >= score).count();
    vec![
        format!(
            "{says}: {oracle} scores {}, {compared} the threshold of {}.",
            figure(*score),
            figure(*threshold)
        ),
        format!(
            "Of {}, {as_bad} score as much or more; the worst scores {} (p = {}).",
            plural(controls.len() as u64, "matched control"),
            figure(worst),
            number(*p_value)
        ),
    ]
}

/// Lists tokens by position, as many a line as fit: `4 ' garden'`. Positions in `edited` are
/// marked with a star.
pub fn tokens_by_position(texts: &[String], edited: &[usize], columns: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for (position, text) in texts.iter().enumerate() {
        let star = if edited.contains(&position) { "*" } else { "" };
        let shown = fit(text, columns.saturating_sub(16));
        let entry = format!("{position}{star} '{shown}'");
        let used = lines.last().map_or(0, |line| width(line));
        if used > 0 && used + 2 + width(&entry) > columns {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            if !line.is_empty() {
                line.push_str("  ");
            }
            line.push_str(&entry);
        }
    }
    lines
}

/// Shows the greedy continuation without and with the edits, one line each.
pub fn generated(case: &Case, columns: usize) -> [String; 2] {
    let text = |text: &str| fit(text, columns.saturating_sub(10));
    [
        format!("without   {}", text(&case.comment.generated_before)),
        format!("with      {}", text(&case.comment.generated_after)),
    ]
}

/// The title of a case, with a line for its id.
pub fn heading(case: &Case, columns: usize) -> String {
    format!(
        "case      {}  {}",
        escape(&case.id),
        fit(&case.comment.title, columns.saturating_sub(28))
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::OracleKind;

    fn lines(score: f64, controls: &[f64]) -> Vec<String> {
        verdict_in_words(&Verdict::new(OracleKind::Divergence, score, controls, 1e-6))
    }

    #[test]
    fn a_verdict_is_said_whether_or_not_the_trial_fails() {
        assert_eq!(
            lines(0.5, &[0.02; 8]),
            [
                "It fails: divergence scores 0.50 bits, above the threshold of 0.10 bits.",
                "Of 8 matched controls, 0 score as much or more; the worst scores 0.020 bits (p = \
                0.11).",
            ]
        );
        assert_eq!(
            lines(0.05, &[0.06; 8]),
            [
                "It does not fail: divergence scores 0.050 bits, not above the threshold of 0.10 \
                bits.",
                "Of 8 matched controls, 8 score as much or more; the worst scores 0.060 bits (p = \
                1.00).",
            ]
        );
        let none = lines(0.5, &[0.02]);
        assert!(none[0].starts_with("No verdict: divergence scores 0.50 bits"), "{none:?}");
        assert!(none[1].starts_with("Only 1 matched control to compare with"), "{none:?}");
    }

    #[test]
    fn positions_stand_beside_their_tokens_and_fit() {
        let texts = ["<s>", "It", " was", "\n", " the"].map(String::from);
        let all = tokens_by_position(&texts, &[2], 200).join("\n");
        assert_eq!(all, r"0 '<s>'  1 'It'  2* ' was'  3 '\n'  4 ' the'");
        let narrow = tokens_by_position(&texts, &[], 20);
        assert_eq!(narrow, ["0 '<s>'  1 'It'", r"2 ' was'  3 '\n'", "4 ' the'"]);
        assert!(narrow.iter().all(|line| line.len() <= 20));
    }
}
