//! The texts a campaign starts from.

use crate::error::Result;
use crate::storage::{self, TextOrFile};

const BUILT_IN: [(&str, &str); 4] = [
    ("addresses", include_str!("../../corpus/seeds/addresses.txt")),
    ("sea", include_str!("../../corpus/seeds/sea.txt")),
    ("scripture", include_str!("../../corpus/seeds/scripture.txt")),
    ("novel", include_str!("../../corpus/seeds/novel.txt")),
];

/// Largest seed file read.
const MAX_BYTES: u64 = 16 << 20;

/// Returns named prompts: one a paragraph of each entry of `seeds` that is a file, any other entry
/// as it stands, then `texts`. Without any, the built-in ones.
///
/// # Errors
/// [`crate::Error::File`] for a file that is missing, too large or not UTF-8.
pub fn prompts(seeds: &[String], texts: &[String]) -> Result<Vec<(String, String)>> {
    let mut prompts = Vec::new();
    if seeds.is_empty() && texts.is_empty() {
        BUILT_IN.iter().for_each(|(name, text)| paragraphs(name, text, &mut prompts));
    }
    for (index, seed) in seeds.iter().enumerate() {
        match TextOrFile::parse(seed, "seeds")? {
            TextOrFile::Text(text) => prompts.push((format!("inline-{}", index + 1), text.into())),
            TextOrFile::File(path) => {
                let name = path.file_stem().unwrap_or_default().to_string_lossy();
                paragraphs(&name, &storage::read_text(path, MAX_BYTES)?, &mut prompts);
            }
        }
    }
    let named = |(index, text): (usize, &String)| (format!("prompt-{}", index + 1), text.clone());
    prompts.extend(texts.iter().enumerate().map(named));
    Ok(prompts)
}

fn paragraphs(name: &str, text: &str, prompts: &mut Vec<(String, String)>) {
    let found = text.split("\n\n").map(str::trim).filter(|paragraph| !paragraph.is_empty());
    prompts.extend(
        found
            .enumerate()
            .map(|(index, paragraph)| (format!("{name}-{}", index + 1), paragraph.to_string())),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_are_paragraphs_or_inline() {
        let built_in = prompts(&[], &[]).unwrap();
        assert!(built_in.len() >= 16 && built_in[0].0 == "addresses-1", "{built_in:?}");
        let named = |seeds: &[&str], texts: &[&str]| {
            let owned = |texts: &[&str]| texts.iter().map(ToString::to_string).collect::<Vec<_>>();
            prompts(&owned(seeds), &owned(texts))
        };
        let pair = |name: &str, text: &str| (name.to_owned(), text.to_owned());
        assert_eq!(named(&["It was"], &[]).unwrap(), [pair("inline-1", "It was")]);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("notes.md");
        std::fs::write(&file, "One.\n\nTwo\nlines.\n").unwrap();
        assert_eq!(
            named(&[file.to_str().unwrap()], &["x.txt"]).unwrap(),
            [pair("notes-1", "One."), pair("notes-2", "Two\nlines."), pair("prompt-1", "x.txt")]
        );
        let missing = named(&["/nowhere/a.txt"], &[]).unwrap_err().to_string();
        assert!(missing.contains("/nowhere/a.txt"), "{missing}");
    }
}
