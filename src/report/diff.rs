//! Word differences between two texts. A case holds its texts only as comments, so this is for
//! the eye; the edits, by position and id, are listed beside it.

/// A stretch of text that is in one of the two texts or in both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    pub text: String,
    pub changed: bool,
}

/// Above this many table cells, only the common start and end are found.
const MOST_CELLS: usize = 1 << 20;

/// Splits both texts into spans and marks those that are not common to both.
pub fn words(before: &str, after: &str) -> (Vec<Span>, Vec<Span>) {
    let (a, b) = (pieces(before), pieces(after));
    let start = a.iter().zip(&b).take_while(|(x, y)| x == y).count();
    let end =
        a[start..].iter().rev().zip(b[start..].iter().rev()).take_while(|(x, y)| x == y).count();
    let mut keep = (vec![true; a.len()], vec![true; b.len()]);
    let (middle_a, middle_b) = (&a[start..a.len() - end], &b[start..b.len() - end]);
    for (kept, length) in [(&mut keep.0, middle_a.len()), (&mut keep.1, middle_b.len())] {
        kept[start..start + length].fill(false);
    }
    for (i, j) in common(middle_a, middle_b) {
        (keep.0[start + i], keep.1[start + j]) = (true, true);
    }
    (spans(&a, &keep.0), spans(&b, &keep.1))
}

/// Splits a text into words with the white space before them, as most tokenizers do.
fn pieces(text: &str) -> Vec<&str> {
    let mut pieces = Vec::new();
    let (mut from, mut in_word) = (0, false);
    for (at, c) in text.char_indices() {
        if c.is_whitespace() && in_word {
            pieces.push(&text[from..at]);
            from = at;
        }
        in_word = !c.is_whitespace();
    }
    if from < text.len() {
        pieces.push(&text[from..]);
    }
    pieces
}

/// Returns a longest common subsequence as pairs of indices.
fn common(a: &[&str], b: &[&str]) -> Vec<(usize, usize)> {
    let columns = b.len() + 1;
    if (a.len() + 1).saturating_mul(columns) > MOST_CELLS {
        return Vec::new();
    }
    let mut longest = vec![0u32; (a.len() + 1) * columns];
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            longest[i * columns + j] = if a[i] == b[j] {
                longest[(i + 1) * columns + j + 1] + 1
            } else {
                longest[(i + 1) * columns + j].max(longest[i * columns + j + 1])
            };
        }
    }
    let (mut i, mut j, mut pairs) = (0, 0, Vec::new());
    while i < a.len() && j < b.len() {
        if a[i] == b[j] {
            pairs.push((i, j));
            (i, j) = (i + 1, j + 1);
        } else if longest[(i + 1) * columns + j] >= longest[i * columns + j + 1] {
            i += 1;
        } else {
            j += 1;
        }
    }
    pairs
}

fn spans(pieces: &[&str], keep: &[bool]) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::new();
    for (piece, &kept) in pieces.iter().zip(keep) {
        match spans.last_mut() {
            Some(last) if last.changed != kept => last.text.push_str(piece),
            _ => spans.push(Span { text: (*piece).to_owned(), changed: !kept }),
        }
    }
    spans
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(before: &str, after: &str, expect: (&str, &str)) {
        let show = |spans: Vec<Span>| -> String {
            spans
                .iter()
                .map(|s| if s.changed { format!("[{}]", s.text) } else { s.text.clone() })
                .collect()
        };
        let (a, b) = words(before, after);
        assert_eq!((show(a).as_str(), show(b).as_str()), expect);
    }

    #[test]
    fn changed_words_are_marked() {
        check("", "", ("", ""));
        check("the king said", "the king said", ("the king said", "the king said"));
        check("the king said", "the Guid said", ("the[ king] said", "the[ Guid] said"));
        check("the king", "the king\u{0} ever", ("the[ king]", "the[ king\u{0} ever]"));
        check("a b c d", "a x c d e", ("a[ b] c d", "a[ x] c d[ e]"));
        check("a b", "", ("[a b]", ""));
        check("  ", " ", ("[  ]", "[ ]"));
    }
}
