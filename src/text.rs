//! Text and numbers that came from a model or a file, made safe to show.
//!
//! A token may be anything: a terminal escape sequence, half of a right-to-left override, a
//! zero-width joiner, `<script>`. What it holds is the finding, so nothing is dropped: what cannot
//! be seen is written out (`\n`, `\x1b`, `\u{202e}`), what can be seen stays. Every text that
//! reaches a terminal or a page goes through here ([`escape`], [`fit`], [`html`]).

use std::borrow::Cow;
use std::fmt::Write as _;

use unicode_width::UnicodeWidthChar;

/// Most combining marks on one character; more is a tower that runs into other lines.
const MAX_MARKS: usize = 3;

/// `text` with every character that a terminal would obey or not show written as an escape.
///
/// Idempotent. A backslash stays a backslash: the result is for reading, not for parsing back.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    visible(text, |piece| match piece {
        Piece::Plain(c) => out.push(c),
        Piece::Escaped(c) => push_escape(&mut out, c),
    });
    out
}

/// `text` for HTML, in element content or a quoted attribute: markup characters become entities and
/// invisible ones are written out as [`escape`] does.
pub fn html(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + text.len() / 8);
    visible(text, |piece| match piece {
        Piece::Plain('&') => out.push_str("&amp;"),
        Piece::Plain('<') => out.push_str("&lt;"),
        Piece::Plain('>') => out.push_str("&gt;"),
        Piece::Plain('"') => out.push_str("&quot;"),
        Piece::Plain('\'') => out.push_str("&#39;"),
        Piece::Plain(c) => out.push(c),
        Piece::Escaped(c) => push_escape(&mut out, c),
    });
    out
}

/// [`escape`]d `text` in at most `columns` terminal columns, cut with `…` where it is longer.
pub fn fit(text: &str, columns: usize) -> String {
    let escaped = escape(text);
    if width(&escaped) <= columns {
        return escaped;
    }
    if columns == 0 {
        return String::new();
    }
    let mut out = String::new();
    let mut used = 1; // the ellipsis
    for c in escaped.chars() {
        used += char_width(c);
        if used > columns {
            break;
        }
        out.push(c);
    }
    out.push('…');
    out
}

/// Most characters of a part of an error message.
const MAX_PART: usize = 400;

/// Returns `text`, with its middle cut out where it is longer than an error message should repeat.
pub fn shorten(text: &str) -> Cow<'_, str> {
    let count = text.chars().count();
    if count <= MAX_PART {
        return Cow::Borrowed(text);
    }
    // The end of a path says more than its middle.
    let (head, tail) = (MAX_PART - MAX_PART / 4, MAX_PART / 4);
    let start: String = text.chars().take(head).collect();
    let end: String = text.chars().skip(count - tail).collect();
    Cow::Owned(format!("{start}… ({} characters) …{end}", count - head - tail))
}

/// Escapes, in JSON text, the characters that a terminal would obey or that reorder a line. Such
/// characters stand in strings alone, where `\u` means the same; the value does not change.
pub fn escape_json(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        // Line ends and spaces between the values of pretty JSON are its own.
        if c.is_ascii() && c != '\x7f' || !matches!(class(c), Class::Invisible) {
            out.push(c);
            continue;
        }
        for unit in c.encode_utf16(&mut [0; 2]) {
            let _ = write!(out, "\\u{unit:04x}");
        }
    }
    out
}

/// Terminal columns that escaped text takes.
pub fn width(escaped: &str) -> usize {
    escaped.chars().map(char_width).sum()
}

fn char_width(c: char) -> usize {
    c.width().unwrap_or(0)
}

enum Piece {
    Plain(char),
    Escaped(char),
}

/// Sorts the characters of `text` into those that show and those that do not.
fn visible(text: &str, mut emit: impl FnMut(Piece)) {
    // A mark needs something to sit on: at the start, or after an escape, it would alter what is
    // around the text.
    let (mut carrier, mut marks) = (false, 0);
    for c in text.chars() {
        match class(c) {
            Class::Printable => {
                (carrier, marks) = (true, 0);
                emit(Piece::Plain(c));
            }
            Class::Mark if carrier && marks < MAX_MARKS => {
                marks += 1;
                emit(Piece::Plain(c));
            }
            _ => {
                carrier = false;
                emit(Piece::Escaped(c));
            }
        }
    }
}

enum Class {
    Printable,
    /// Combines with the character before it.
    Mark,
    Invisible,
}

fn class(c: char) -> Class {
    if (' '..='~').contains(&c) {
        return Class::Printable;
    }
    if c.is_control() || c.is_whitespace() || is_ignorable(c) {
        return Class::Invisible;
    }
    if c.width() == Some(0) {
        return Class::Mark;
    }
    // The standard library's table of what prints: false for unassigned and private-use characters,
    // format characters and separators.
    if c.escape_debug().len() == 1 { Class::Printable } else { Class::Invisible }
}

/// Characters that take no ink although the tables call them letters or marks: Unicode's
/// Default_Ignorable_Code_Point, the blank braille pattern and the interlinear annotations.
fn is_ignorable(c: char) -> bool {
    /// First and last of each range.
    const RANGES: [(char, char); 18] = [
        ('\u{ad}', '\u{ad}'),
        ('\u{34f}', '\u{34f}'),
        ('\u{61c}', '\u{61c}'),
        ('\u{115f}', '\u{1160}'),
        ('\u{17b4}', '\u{17b5}'),
        ('\u{180b}', '\u{180f}'),
        ('\u{200b}', '\u{200f}'),
        ('\u{2028}', '\u{202e}'),
        ('\u{2060}', '\u{206f}'),
        ('\u{2800}', '\u{2800}'),
        ('\u{3164}', '\u{3164}'),
        ('\u{fe00}', '\u{fe0f}'),
        ('\u{feff}', '\u{feff}'),
        ('\u{ffa0}', '\u{ffa0}'),
        ('\u{fff0}', '\u{fffb}'),
        ('\u{1bca0}', '\u{1bca3}'),
        ('\u{1d173}', '\u{1d17a}'),
        ('\u{e0000}', '\u{e0fff}'),
    ];
    RANGES.iter().any(|(first, last)| (*first..=*last).contains(&c))
}

fn push_escape(out: &mut String, c: char) {
    let _ = match c {
        '\n' => write!(out, "\\n"),
        '\t' => write!(out, "\\t"),
        '\r' => write!(out, "\\r"),
        c if c.is_ascii() => write!(out, "\\x{:02x}", u32::from(c)),
        c => write!(out, "\\u{{{:x}}}", u32::from(c)),
    };
}

/// Formats a measured number to about three significant digits; whatever a file holds, the result
/// is short.
pub fn number(value: f64) -> String {
    if value.is_nan() {
        return "not a number".into();
    }
    if value.is_infinite() {
        return if value > 0.0 { "infinite" } else { "minus infinite" }.into();
    }
    match value.abs() {
        0.0 => "0".into(),
        a if a >= 1e9 => format!("{value:.2e}"),
        a if a >= 1000.0 => {
            let digits = count(a.round() as u64);
            if value < 0.0 { format!("-{digits}") } else { digits }
        }
        a if a >= 100.0 => format!("{value:.0}"),
        a if a >= 10.0 => format!("{value:.1}"),
        a if a >= 0.1 => format!("{value:.2}"),
        a if a >= 0.001 => format!("{value:.3}"),
        _ => format!("{value:.1e}"),
    }
}

/// Formats `1234567` as `1,234,567`.
pub fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Formats a count with its noun: `1 case`, `1,234 cases`.
pub fn plural(value: u64, word: &str) -> String {
    if value == 1 { format!("1 {word}") } else { format!("{} {word}s", count(value)) }
}

/// Joins words as a sentence does: `a`, `a and b`, `a, b and c`.
pub fn list<W: AsRef<str>>(words: &[W]) -> String {
    match words {
        [] => String::new(),
        [one] => one.as_ref().to_owned(),
        [first @ .., last] => {
            let first: Vec<&str> = first.iter().map(AsRef::as_ref).collect();
            format!("{} and {}", first.join(", "), last.as_ref())
        }
    }
}

/// Formats a share as a percentage.
pub fn percent(share: f64) -> String {
    if !share.is_finite() {
        return number(share);
    }
    let percent = share * 100.0;
    match percent.abs() {
        0.0 => "0%".into(),
        a if a >= 10.0 || (a - a.round()).abs() < 1e-9 => format!("{percent:.0}%"),
        a if a >= 0.1 => format!("{percent:.1}%"),
        a if a >= 0.001 => format!("{percent:.3}%"),
        _ => format!("{percent:.0e}%"),
    }
}

/// Formats bytes as lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn words_are_joined_as_in_a_sentence() {
        let joined = [&[][..], &["a"], &["a", "b"], &["a", "b", "c"]].map(list);
        assert_eq!(joined, ["", "a", "a and b", "a, b and c"]);
    }

    fn check(input: &str, terminal: &str, page: &str) {
        assert_eq!(escape(input), terminal);
        assert_eq!(html(input), page);
    }

    #[test]
    fn invisible_is_written_out_and_the_rest_stays() {
        let same = |text| check(text, text, text);
        same("");
        same(" plain, text.");
        same("Größe 日本語 🐉 हिन्दी e\u{301} Ġthe ▁a");
        same("back\\slash");
        check("\x1b[31mred\x07", "\\x1b[31mred\\x07", "\\x1b[31mred\\x07");
        check("a\nb\tc\r\0\x7f", "a\\nb\\tc\\r\\x00\\x7f", "a\\nb\\tc\\r\\x00\\x7f");
        let invisible = "\u{9b}\u{202e}\u{2066}\u{200b}\u{200d}\u{feff}\u{2028}\u{2029}\u{e000}\
            \u{f8ff}\u{ad}\u{3164}\u{fe0f}\u{e0041}\u{10ffff}\u{378}\u{a0}\u{3000}\u{2800}";
        for c in invisible.chars() {
            let shown = format!("x\\u{{{:x}}}y", u32::from(c));
            check(&format!("x{c}y"), &shown, &shown);
        }
    }

    #[test]
    fn a_mark_with_nothing_to_sit_on_is_written_out() {
        check("\u{301}", "\\u{301}", "\\u{301}");
        check("\n\u{301}", "\\n\\u{301}", "\\n\\u{301}");
        assert_eq!(
            escape(&format!("z{}", "\u{301}".repeat(5))),
            "z\u{301}\u{301}\u{301}\\u{301}\\u{301}"
        );
    }

    #[test]
    fn markup_becomes_entities() {
        check(
            "<script>alert(1)</script>",
            "<script>alert(1)</script>",
            "&lt;script&gt;alert(1)&lt;/script&gt;",
        );
        check("\" onload='x' &amp;", "\" onload='x' &amp;", "&quot; onload=&#39;x&#39; &amp;amp;");
    }

    #[test]
    fn json_has_no_raw_controls_and_the_same_value() {
        let text = "\u{9b}31m \u{202e}x\u{200b}\u{e0041} \u{7f}\u{1b} 日本 \u{2028}\u{a0}\"\\";
        let json = serde_json::to_string(&text).unwrap();
        let escaped = escape_json(&json);
        assert!(!escaped.chars().any(|c| c.is_control() || is_ignorable(c)), "{escaped}");
        assert!(escaped.contains("\\u009b31m \\u202ex\\u200b\\udb40\\udc41 \\u007f"), "{escaped}");
        assert!(escaped.contains("日本"));
        assert_eq!(serde_json::from_str::<String>(&escaped).unwrap(), text);
        let pretty = serde_json::to_string_pretty(&[1, 2]).unwrap();
        assert_eq!(escape_json(&pretty), pretty);
    }

    #[test]
    fn the_middle_of_a_long_value_is_cut() {
        let short = "y".repeat(MAX_PART);
        assert_eq!(shorten(&short), short);
        let long = format!("/a{}/model.gguf", "日".repeat(1000));
        let cut = shorten(&long);
        assert!(cut.starts_with("/a日") && cut.ends_with("/model.gguf"), "{cut}");
        assert!(cut.chars().count() < MAX_PART + 30 && cut.contains("characters"), "{cut}");
    }

    #[test]
    fn what_is_too_long_is_cut_at_the_column() {
        for (text, columns, expect) in [
            ("abc", 3, "abc"),
            ("abcd", 3, "ab…"),
            ("abcd", 1, "…"),
            ("abcd", 0, ""),
            ("日本語", 6, "日本語"),
            ("日本語", 5, "日本…"),
            ("日本語", 4, "日…"),
            ("a\nb", 3, "a\\…"),
        ] {
            assert_eq!(fit(text, columns), expect, "{text:?} in {columns}");
        }
    }

    proptest! {
        #[test]
        fn nothing_gets_through(
            text in "\\PC{0,20}|[\\x00-\\x{2100}\\x{e000}-\\x{e010}]{0,40}",
            columns in 0usize..30,
        ) {
            let escaped = escape(&text);
            for out in [&escaped, &html(&text), &fit(&text, columns)] {
                prop_assert!(!out.chars().any(|c| c.is_control() || is_ignorable(c)), "{out:?}");
            }
            prop_assert_eq!(escape(&escaped), escaped.clone());
            prop_assert!(!html(&text).contains(['<', '>', '"', '\'']));
            prop_assert!(width(&fit(&text, columns)) <= columns);
        }
    }
}
