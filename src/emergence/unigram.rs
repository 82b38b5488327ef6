//! The loss of a unigram model, which no context helps: lesions that leave a model worse than this
//! have ended it, and what parts contribute to it is no longer a question.

use std::collections::BTreeMap;

/// Strengths of additive smoothing that are tried, in tokens per token of the vocabulary.
const SMOOTHING: [f64; 7] = [1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001];

/// Returns the loss of the unigram model on `texts`, nats per token, mean over the texts: token
/// frequencies of the other texts and of `more`, smoothed by adding a constant to every count. A
/// text's own tokens (`more` may contain the text itself) are not counted for it. The constant is
/// the one with the smallest loss, so that the bar is as high as such a model can set it.
///
/// The first token of each text is not predicted.
pub fn unigram_loss(texts: &[Vec<u32>], more: &[Vec<u32>], vocabulary: usize) -> f64 {
    let mut all: Vec<&Vec<u32>> = texts.iter().chain(more).collect();
    all.sort_unstable();
    all.dedup();
    let predicted = |text: &Vec<u32>| text.get(1..).unwrap_or_default().to_vec();
    let mut counts: BTreeMap<u32, f64> = BTreeMap::new();
    let mut total = 0.0;
    for token in all.iter().flat_map(|text| predicted(text)) {
        *counts.entry(token).or_default() += 1.0;
        total += 1.0;
    }
    let loss = |smoothing: f64| -> f64 {
        let of_text = |text: &Vec<u32>| {
            let tokens = predicted(text);
            let mut own: BTreeMap<u32, f64> = BTreeMap::new();
            tokens.iter().for_each(|token| *own.entry(*token).or_default() += 1.0);
            let sum = total - tokens.len() as f64 + smoothing * vocabulary as f64;
            let of_token = |token: &u32| {
                let count = counts.get(token).unwrap_or(&0.0) - own.get(token).unwrap_or(&0.0);
                -((count + smoothing) / sum).ln()
            };
            tokens.iter().map(of_token).sum::<f64>() / tokens.len().max(1) as f64
        };
        texts.iter().map(of_text).sum::<f64>() / texts.len().max(1) as f64
    };
    SMOOTHING.into_iter().map(loss).fold(f64::INFINITY, f64::min)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_texts_count_and_the_text_itself_does_not() {
        // Nothing but the text: every token is as likely.
        let alone = unigram_loss(&[vec![0, 1, 1, 1]], &[vec![0, 1, 1, 1]], 8);
        assert!((alone - 8f64.ln()).abs() < 1e-9, "{alone}");
        // Two texts of the same token predict each other, better with less smoothing.
        let same = unigram_loss(&[vec![0, 1, 1], vec![5, 1, 1]], &[], 8);
        let expect = -(2.001f64 / 2.008).ln();
        assert!((same - expect).abs() < 1e-9, "{same} {expect}");
        // Two that share none are worse than chance however they are smoothed.
        let other = unigram_loss(&[vec![0, 1, 1], vec![5, 2, 2]], &[], 8);
        assert!((other - (10f64).ln()).abs() < 1e-9, "{other}");
    }
}
