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

/// Returns named prompts: of a file one a paragraph, a text as it stands; the built-in ones if none
/// are given.
///
/// # Errors
/// [`crate::Error::File`] for a file that is missing, too large or not UTF-8.
pub fn prompts(seeds: &[String]) -> Result<Vec<(String, String)>> {
    let mut prompts = Vec::new();
    if seeds.is_empty() {
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
        let built_in = prompts(&[]).unwrap();
        assert!(built_in.len() >= 16 && built_in[0].0 == "addresses-1", "{built_in:?}");
        assert_eq!(
            prompts(&["It was".into()]).unwrap(),
            [("inline-1".to_string(), "It was".to_string())]
        );
        assert!(
            prompts(&["/nowhere/a.txt".into()]).unwrap_err().to_string().contains("/nowhere/a.txt")
        );
    }
}
