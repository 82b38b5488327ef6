//! The tokenizer in a GGUF file's metadata.

use std::collections::HashMap;

use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::quantized::tokenizer::TokenizerFromGguf as _;
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::{self, Prepend, Replace};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::{AddedToken, Tokenizer as HfTokenizer, decoders};

use crate::error::{Error, Result};
use crate::model::formats::first_line;

/// Reads the tokenizer; `None` if the file has none.
///
/// # Errors
/// [`Error::Model`] naming the key of the metadata at fault.
pub(super) fn read(path: &str, content: &Content) -> Result<Option<HfTokenizer>> {
    if !content.metadata.contains_key("tokenizer.ggml.tokens") {
        return Ok(None);
    }
    // A SentencePiece model; candle reads those of GPT-2's kind.
    if text(content, "tokenizer.ggml.model") == Some("llama") {
        return sentencepiece(content)
            .map(Some)
            .map_err(|(key, message)| Error::model(path, key, message));
    }
    let mut tokenizer = HfTokenizer::from_gguf(content)
        .map_err(|e| Error::model(path, "tokenizer.ggml", first_line(&e)))?;
    // candle gives every pre-tokenizer it does not know GPT-2's with a leading space added, which
    // no model in use does, and does not know SmolLM's single digits.
    let pre = text(content, "tokenizer.ggml.pre").unwrap_or("gpt-2");
    let bytes = ByteLevel::new(false, true, true);
    match pre {
        "smollm" => {
            tokenizer.with_pre_tokenizer(Some(Sequence::new(vec![
                Digits::new(true).into(),
                bytes.into(),
            ])));
        }
        "qwen2" | "smaug-bpe" | "lfm2" | "llama3" => {}
        "llama-bpe" => {
            let json =
                tokenizer.to_string(false).map_err(|e| Error::model(path, "tokenizer.ggml", e))?;
            tokenizer = llama_bpe(&json).map_err(|e| Error::model(path, "tokenizer.ggml", e))?;
        }
        _ => {
            tokenizer.with_pre_tokenizer(Some(bytes));
        }
    }
    Ok(Some(tokenizer))
}

/// Gives a tokenizer Llama 3's split and whole-word merges, which llama.cpp calls `llama-bpe` and
/// candle knows as `llama3` only.
fn llama_bpe(json: &str) -> Result<HfTokenizer, String> {
    const SPLIT: &str = concat!(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    );
    let mut value: serde_json::Value = serde_json::from_str(json).map_err(|e| e.to_string())?;
    value["pre_tokenizer"] = serde_json::json!({ "type": "Sequence", "pretokenizers": [
        {
            "type": "Split",
            "pattern": { "Regex": SPLIT },
            "behavior": "Isolated",
            "invert": false,
        },
        {
            "type": "ByteLevel",
            "add_prefix_space": false,
            "trim_offsets": true,
            "use_regex": false,
        },
    ] });
    value["model"]["ignore_merges"] = true.into();
    serde_json::from_value(value).map_err(|e| e.to_string())
}

/// Returns a text of the metadata.
fn text<'a>(content: &'a Content, key: &str) -> Option<&'a str> {
    content.metadata.get(key).and_then(|v| v.to_string().ok()).map(String::as_str)
}

/// Longest piece, bytes, for which merges are derived: no vocabulary in use has longer ones.
const LONGEST_PIECE: usize = 256;

/// Token types as numbered by SentencePiece and GGUF.
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// Converts a byte-pair encoding of SentencePiece (Kudo and Richardson 2018), which merges the
/// neighbours whose union scores highest, into a list of merges in that order, as transformers
/// does. An error is a key of the metadata and a message.
fn sentencepiece(content: &Content) -> Result<HfTokenizer, (&'static str, String)> {
    const TOKENS: &str = "tokenizer.ggml.tokens";
    const SCORES: &str = "tokenizer.ggml.scores";
    const TYPES: &str = "tokenizer.ggml.token_type";
    let array = |key: &'static str| {
        let values = content.metadata.get(key).and_then(|v| v.to_vec().ok());
        values.ok_or_else(|| (key, "expected an array".to_owned()))
    };
    let pieces: Vec<&str> = array(TOKENS)?
        .iter()
        .map(|v| {
            v.to_string().map(String::as_str).map_err(|_| (TOKENS, "expected strings".to_owned()))
        })
        .collect::<Result<_, _>>()?;
    let scores: Vec<f32> = array(SCORES)?
        .iter()
        .map(|v| {
            v.to_f32()
                .ok()
                .filter(|s| s.is_finite())
                .ok_or_else(|| (SCORES, "expected finite numbers".to_owned()))
        })
        .collect::<Result<_, _>>()?;
    let types: Vec<i64> = match content.metadata.contains_key(TYPES) {
        true => array(TYPES)?
            .iter()
            .map(whole)
            .collect::<Option<_>>()
            .ok_or_else(|| (TYPES, "expected whole numbers".to_owned()))?,
        false => vec![1; pieces.len()],
    };
    if scores.len() != pieces.len() || types.len() != pieces.len() {
        let message =
            format!("{} tokens, {} scores, {} types", pieces.len(), scores.len(), types.len());
        return Err((SCORES, message));
    }
    let ids: HashMap<&str, u32> = pieces.iter().zip(0..).map(|(piece, id)| (*piece, id)).collect();
    let mut merges: Vec<(f32, &str, &str)> = Vec::new();
    for (piece, score) in
        pieces.iter().zip(&scores).filter(|(piece, _)| piece.len() <= LONGEST_PIECE)
    {
        let cuts = piece.char_indices().skip(1).map(|(at, _)| piece.split_at(at));
        let mut pairs: Vec<_> =
            cuts.filter_map(|(l, r)| Some((ids.get(l)?, ids.get(r)?, l, r))).collect();
        pairs.sort_unstable_by_key(|(l, r, ..)| (**l, **r));
        merges.extend(pairs.into_iter().map(|(_, _, l, r)| (*score, l, r)));
    }
    let length = |s: &str| s.chars().count();
    merges.sort_by(|a, b| {
        b.0.total_cmp(&a.0)
            .then_with(|| length(b.1).cmp(&length(a.1)))
            .then_with(|| length(b.2).cmp(&length(a.2)))
    });
    let merges = merges.into_iter().map(|(_, l, r)| (l.to_owned(), r.to_owned())).collect();
    let vocabulary: Vocab = ids.iter().map(|(piece, id)| ((*piece).to_owned(), *id)).collect();
    let unknown = types.iter().position(|t| *t == UNKNOWN).map(|at| pieces[at]);
    let unknown = unknown.or_else(|| ids.contains_key("<unk>").then_some("<unk>"));
    let bad = |e: tokenizers::Error| (TOKENS, crate::text::escape(&e.to_string()));
    let mut builder =
        BPE::builder().vocab_and_merges(vocabulary, merges).fuse_unk(true).byte_fallback(true);
    if let Some(unknown) = unknown {
        builder = builder.unk_token(unknown.to_owned());
    }
    let mut tokenizer = HfTokenizer::new(builder.build().map_err(bad)?);
    let spaces = Replace::new(" ", "\u{2581}").map_err(bad)?;
    // Llama's own tokenizer puts a space before a text; Gemma's does not, and says so.
    let prefix = content
        .metadata
        .get("tokenizer.ggml.add_space_prefix")
        .and_then(|v| v.to_bool().ok())
        .unwrap_or(true);
    if prefix {
        let steps = vec![Prepend::new("\u{2581}".to_owned()).into(), spaces.into()];
        tokenizer.with_normalizer(Some(normalizers::Sequence::new(steps))).map_err(bad)?;
    } else {
        tokenizer.with_normalizer(Some(spaces)).map_err(bad)?;
    }
    let decoders = vec![
        Replace::new("\u{2581}", " ").map_err(bad)?.into(),
        ByteFallback::new().into(),
        Fuse::new().into(),
    ];
    tokenizer.with_decoder(Some(decoders::sequence::Sequence::new(decoders)));
    let added = |kind: i64, special: bool| -> Vec<AddedToken> {
        let matching = pieces.iter().zip(&types).filter(|(_, t)| **t == kind);
        matching.map(|(piece, _)| AddedToken::from(*piece, special).normalized(!special)).collect()
    };
    let bad_added = |e: tokenizers::Error| (TYPES, crate::text::escape(&e.to_string()));
    tokenizer.add_special_tokens(added(CONTROL, true)).map_err(bad_added)?;
    tokenizer.add_tokens(added(USER_DEFINED, false)).map_err(bad_added)?;
    Ok(tokenizer)
}

/// Converts an integer of any width; `None` for other types.
fn whole(value: &Value) -> Option<i64> {
    match *value {
        Value::I32(v) => Some(v.into()),
        Value::U32(v) => Some(v.into()),
        Value::I8(v) => Some(v.into()),
        Value::U8(v) => Some(v.into()),
        Value::I64(v) => Some(v),
        _ => None,
    }
}
