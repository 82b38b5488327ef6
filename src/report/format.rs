//! Numbers and lists for readers: short, whatever a file holds.

use crate::stats;
use crate::text;
pub use crate::text::{count, number, percent, plural};

/// Formats seconds: `12 s`, `3 min 20 s`, `2 h 5 min`.
pub fn duration(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return "unknown".into();
    }
    let whole = seconds.round() as u64;
    match whole {
        0..10 => format!("{seconds:.1} s"),
        10..60 => format!("{whole} s"),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
    }
}

/// Quotes a token or a text, unescaped.
pub fn quoted(text: &str) -> String {
    format!("`{text}`")
}

/// Returns a sentence for HTML: what is [`quoted`] in it stands out instead, with its spaces.
pub fn prose(sentence: &str) -> String {
    let (mut out, mut rest) = (String::with_capacity(sentence.len()), sentence);
    while let Some((before, after)) = rest.split_once('`') {
        // A token may be a backtick.
        let from = usize::from(after.starts_with("``"));
        let Some(length) = after[from..].find('`').map(|length| from + length) else { break };
        out += &text::html(before);
        out += &format!("<code>{}</code>", text::html(&after[..length]));
        rest = &after[length + 1..];
    }
    out + &text::html(rest)
}

/// Returns Wilson's 95% interval of a rate (Wilson 1927); `None` for no trials.
pub fn wilson(hits: u64, of: u64) -> Option<(f64, f64)> {
    const Z: f64 = 1.959_963_984_540_054;
    // A file may count more hits than trials.
    (of > 0).then(|| stats::wilson(hits.min(of), of, Z))
}

/// Formats a list: `a`, `a and b`, `a, b and c`; items beyond the first `most` are only counted.
pub fn list(items: &[String], most: usize) -> String {
    let mut shown: Vec<String> = items.iter().take(most).cloned().collect();
    if items.len() > most {
        shown.push(format!("{} more", items.len() - most));
    }
    text::list(&shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        for (value, expect) in [
            (0.0, "0"),
            (0.923, "0.92"),
            (-0.01234, "-0.012"),
            (12.345, "12.3"),
            (123.4, "123"),
            (-12345.6, "-12,346"),
            (2.1e-5, "2.1e-5"),
            (f64::NAN, "not a number"),
            (f64::INFINITY, "infinite"),
            (f64::MAX, "1.80e308"),
        ] {
            assert_eq!(number(value), expect);
        }
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(
            [0.88, 0.0, 1.0, 0.034, 0.0002].map(percent),
            ["88%", "0%", "100%", "3.4%", "0.020%"]
        );
        assert_eq!(
            [5.0, 61.0, 7500.0, f64::NAN].map(duration),
            ["5.0 s", "1 min 1 s", "2 h 5 min", "unknown"]
        );
        assert_eq!(list(&["a".into(), "b".into(), "c".into()], 2), "a, b and 1 more");
    }

    #[test]
    fn quotes_stand_out() {
        assert_eq!(
            prose("` <a>` for `b`, not `c"),
            "<code> &lt;a&gt;</code> for <code>b</code>, not `c"
        );
        assert_eq!(prose("``` before `x`"), "<code>`</code> before <code>x</code>");
        assert_eq!(prose("``"), "<code></code>");
    }

    #[test]
    fn wilson_is_the_textbooks() {
        let (low, high) = wilson(5, 100).unwrap();
        assert!((low - 0.02154).abs() < 1e-4 && (high - 0.11175).abs() < 1e-4, "{low} {high}");
        assert_eq!(wilson(0, 0), None);
        assert_eq!(wilson(0, 10).unwrap().0, 0.0);
    }
}
