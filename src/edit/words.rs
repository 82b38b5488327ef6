//! The edit language: how a person writes an edit.
//!
//! An edit is a line of words: `replace 4 ' garden'`, `zero L3.head1`, `scale 2 L1.mlp at 5`. What
//! each kind of edit reads and writes stands with it ([`Edit::parse`](super::Edit::parse)); here is
//! the splitting into words. A token is an id, or text in single or double quotes that encodes to
//! one token; what text encodes to and what files hold is the caller's to say ([`Lookup`]), so that
//! nothing here needs a tokenizer.
//!
//! ```text
//! replace POSITION TOKEN            embedding POSITION noise STRENGTH [seed N]
//! insert POSITION TOKEN             embedding POSITION towards TOKEN STRENGTH
//! retokenize POSITION TOKEN TOKEN...
//! promote LOGIT COMPONENT [at POSITION]
//! delete POSITION                   embedding POSITION direction TOKEN TOKEN STRENGTH
//! zero | mean | mask | force COMPONENT [at POSITION]
//! flip BIT COMPONENT [at POSITION]
//! scale FACTOR COMPONENT [at POSITION]
//! resample COMPONENT [at POSITION] [seed N]
//! noise STRENGTH COMPONENT [at POSITION] [seed N]
//! add STRENGTH VECTOR SITE [at POSITION]       VECTOR: a file, `random NORM` (then [seed N] at the
//! remove VECTOR SITE [at POSITION]             end), or the values as [0.5,-1,2]
//! clamp VALUE VECTOR SITE [at POSITION]
//! knockout COMPONENT to POSITION [at POSITION]
//! carry COMPONENT at POSITION from TOKEN...
//! freeze-routing
//! ```

use super::component::Component;

/// Characters of a word that an error repeats.
const SHOWN: usize = 60;

/// Resolves what a line of words refers to.
pub trait Lookup {
    /// Finds the id of a text that is one token, or says why there is none.
    fn token_id(&self, text: &str) -> Result<u32, String>;

    /// Reads the vector of a file, or says why there is none.
    fn vector(&self, file: &str) -> Result<Vec<f32>, String>;
}

/// Reads a line of words with `read`, which must take all of them; `lookup` finds what they refer
/// to.
///
/// # Errors
/// A message that repeats the line and says what was expected.
pub(super) fn parse<T>(
    text: &str,
    lookup: &dyn Lookup,
    read: impl Fn(&mut Words) -> Result<T, String>,
) -> Result<T, String> {
    let named = |message: String| format!("edit `{}`: {message}", cut(text));
    let words = split(text).map_err(named)?;
    let mut words = Words { words: &words, lookup };
    let found = read(&mut words).map_err(named)?;
    match words.words {
        [] => Ok(found),
        [extra, ..] => Err(named(format!("`{}` is one word too many", cut(&extra.text)))),
    }
}

/// A word of an edit; a quoted one is the text of a token.
#[derive(Debug, Clone, PartialEq)]
struct Word {
    text: String,
    quoted: bool,
}

/// Splits at white space outside quotes. Inside them, a backslash takes the next character as it
/// is, but for `\n`, `\t` and `\r`.
fn split(text: &str) -> Result<Vec<Word>, String> {
    let mut words = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(&first) = chars.peek() {
        if first.is_whitespace() {
            chars.next();
        } else if first == '\'' || first == '"' {
            chars.next();
            let mut quoted = String::new();
            loop {
                match chars.next() {
                    Some(c) if c == first => break,
                    Some('\\') => quoted.push(match chars.next() {
                        Some('n') => '\n',
                        Some('t') => '\t',
                        Some('r') => '\r',
                        Some(c) => c,
                        None => return Err(format!("the quote {first} is not closed")),
                    }),
                    Some(c) => quoted.push(c),
                    None => return Err(format!("the quote {first} is not closed")),
                }
            }
            if chars.peek().is_some_and(|c| !c.is_whitespace()) {
                return Err(format!("expected a space after the closing {first}"));
            }
            words.push(Word { text: quoted, quoted: true });
        } else {
            let mut word = String::new();
            while let Some(c) = chars.next_if(|c| !c.is_whitespace()) {
                word.push(c);
            }
            words.push(Word { text: word, quoted: false });
        }
    }
    Ok(words)
}

/// The words that are left, read from the front.
pub(super) struct Words<'a> {
    words: &'a [Word],
    lookup: &'a dyn Lookup,
}

impl<'a> Words<'a> {
    /// Takes the next word, which is not quoted.
    pub fn word(&mut self, expected: &str) -> Result<&'a str, String> {
        match self.words {
            [] => Err(format!("expected {expected} at the end")),
            [word, ..] if word.quoted => {
                Err(format!("expected {expected}, got the text '{}'", cut(&word.text)))
            }
            [word, rest @ ..] => {
                self.words = rest;
                Ok(&word.text)
            }
        }
    }

    /// Takes the next word if it is this one.
    pub fn accept(&mut self, keyword: &str) -> bool {
        match self.words {
            [word, rest @ ..] if !word.quoted && word.text == keyword => {
                self.words = rest;
                true
            }
            _ => false,
        }
    }

    /// Takes the next word, which must be this one.
    pub fn expect(&mut self, keyword: &str) -> Result<(), String> {
        let word = self.word(&format!("`{keyword}`"))?;
        if word == keyword {
            Ok(())
        } else {
            Err(format!("expected `{keyword}`, got `{}`", cut(word)))
        }
    }

    /// Takes a position.
    pub fn position(&mut self) -> Result<usize, String> {
        let expected = "a position (a token's number, from 0)";
        let word = self.word(expected)?;
        word.parse().map_err(|_| format!("expected {expected}, got `{}`", cut(word)))
    }

    /// Takes a finite number; `what` names it.
    pub fn number(&mut self, what: &str) -> Result<f32, String> {
        let expected = format!("{what} (a finite number)");
        let word = self.word(&expected)?;
        match word.parse::<f32>() {
            Ok(value) if value.is_finite() => Ok(value),
            _ => Err(format!("expected {expected}, got `{}`", cut(word))),
        }
    }

    /// Takes a token, as its id.
    pub fn token(&mut self) -> Result<u32, String> {
        let expected = "a token (an id, or text in quotes)";
        match self.words {
            [word, rest @ ..] if word.quoted => {
                self.words = rest;
                self.lookup.token_id(&word.text)
            }
            _ => {
                let word = self.word(expected)?;
                word.parse().map_err(|_| format!("expected {expected}, got `{}`", cut(word)))
            }
        }
    }

    /// Takes all the tokens that are left, one at least.
    pub fn tokens(&mut self) -> Result<Vec<u32>, String> {
        let mut ids = vec![self.token()?];
        while !self.words.is_empty() {
            ids.push(self.token()?);
        }
        Ok(ids)
    }

    /// Takes a vector: the name of a file, quoted or not, or values in brackets.
    pub fn vector(&mut self, expected: &str) -> Result<Vec<f32>, String> {
        let [word, rest @ ..] = self.words else {
            return Err(format!("expected {expected} at the end"));
        };
        self.words = rest;
        let inside = word.text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
        let Some(values) = inside.filter(|_| !word.quoted) else {
            return self.lookup.vector(&word.text);
        };
        let value = |text: &str| match text.parse::<f32>() {
            Ok(value) if value.is_finite() => Ok(value),
            _ => Err(format!("`{}` is no finite number", cut(text))),
        };
        values.split(',').map(value).collect()
    }

    /// Takes a component.
    pub fn component(&mut self) -> Result<Component, String> {
        let word = self.word("a component, such as L3.head1")?;
        if word.chars().count() > SHOWN {
            return Err(format!("`{}` is not a component", cut(word)));
        }
        word.parse()
    }

    /// Takes `at POSITION`, if it is next.
    pub fn place(&mut self) -> Result<Option<usize>, String> {
        if self.accept("at") { self.position().map(Some) } else { Ok(None) }
    }

    /// Takes `seed N`, if it is next; 0 otherwise.
    pub fn seed(&mut self) -> Result<u64, String> {
        if !self.accept("seed") {
            return Ok(0);
        }
        let word = self.word("a seed")?;
        word.parse().map_err(|_| format!("expected a seed (a whole number), got `{}`", cut(word)))
    }
}

/// Repeats a word in an error message, whatever its length.
pub(super) fn cut(word: &str) -> String {
    let mut shown: String = word.chars().take(SHOWN).collect();
    if shown.len() < word.len() {
        shown.push('…');
    }
    shown
}
