//! The texts a campaign starts from.

use std::path::Path;

use crate::error::{Error, Result};

const BUILT_IN: [(&str, &str); 4] = [
    ("addresses", include_str!("../../corpus/seeds/addresses.txt")),
    ("sea", include_str!("../../corpus/seeds/sea.txt")),
    ("scripture", include_str!("../../corpus/seeds/scripture.txt")),
    ("novel", include_str!("../../corpus/seeds/novel.txt")),
];

/// Largest seed file read.
const MAX_BYTES: u64 = 16 << 20;

/// Named prompts: of each file a prompt a paragraph, anything that names no `.txt` file as it
/// stands; the built-in ones when nothing is given.
pub fn prompts(seeds: &[String]) -> Result<Vec<(String, String)>> {
    let mut prompts = Vec::new();
    if seeds.is_empty() {
        BUILT_IN.iter().for_each(|(name, text)| paragraphs(name, text, &mut prompts));
    }
    for (index, seed) in seeds.iter().enumerate() {
        if !seed.ends_with(".txt") {
            prompts.push((format!("inline-{}", index + 1), seed.clone()));
            continue;
        }
        let path = Path::new(seed);
        let size = std::fs::metadata(path).map_err(|source| Error::io(path, source))?.len();
        if size > MAX_BYTES {
            return Err(Error::file(
                path,
                "size",
                format!("{size} bytes; at most {MAX_BYTES} are read"),
            ));
        }
        let text = std::fs::read_to_string(path).map_err(|source| Error::io(path, source))?;
        let name =
            path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        paragraphs(&name, &text, &mut prompts);
    }
    Ok(prompts)
}

fn paragraphs(name: &str, text: &str, prompts: &mut Vec<(String, String)>) {
    let text = text.replace("\r\n", "\n");
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
