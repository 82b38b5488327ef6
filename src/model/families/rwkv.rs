//! RWKV, versions 4 (Peng et al. 2023), 6 (2024) and 7 (2025).
//!
//! Version 4 has a configuration of Hugging Face's. Those of 6 and 7 leave out sizes that the
//! shapes of their tensors give; [`complete`] fills these in.

use super::Family;
use super::fields::{Fields, short};
use super::names::{self, Names};
use super::recurrent::{ENDLESS, bare};
use crate::error::{Error, Result};
use crate::model::config::{Activation, Config, Mixer, NormKind, Rwkv};
use crate::model::formats::Source;

pub(super) const RWKV4: Family = Family {
    model_type: "rwkv",
    config: |fields| read(fields, 4),
    names: Names {
        embed: "rwkv.embeddings",
        embed_norm: "0.pre_ln",
        norm: "rwkv.ln_out",
        head: "head",
        layers: "rwkv.blocks",
        attention_norm: "ln1",
        mlp_norm: "ln2",
        ..names::LLAMA
    },
    gguf: None,
    pth: None,
};

pub(super) const RWKV6: Family = Family {
    model_type: "rwkv6",
    config: |fields| read(fields, 6),
    names: NAMES,
    gguf: None,
    pth: Some("blocks.0.att.time_maa_x"),
};

pub(super) const RWKV7: Family = Family {
    model_type: "rwkv7",
    config: |fields| read(fields, 7),
    names: NAMES,
    gguf: None,
    pth: Some("blocks.0.att.r_k"),
};

/// The names of the author's own checkpoints.
const NAMES: Names = Names {
    embed: "emb",
    embed_norm: "0.ln0",
    norm: "ln_out",
    head: "head",
    layers: "blocks",
    attention_norm: "ln1",
    mlp_norm: "ln2",
    ..names::LLAMA
};

/// Reads the configuration of one version.
fn read(fields: &Fields, version: u8) -> Result<Config> {
    let hidden_size = fields.required("hidden_size", 1 << 17)?;
    let num_hidden_layers = fields.required("num_hidden_layers", 1 << 10)?;
    let (mut attention_size, mut intermediate_size, mut rescale_every) =
        (hidden_size, 4 * hidden_size, 0);
    if version == 4 {
        attention_size = fields.count("attention_hidden_size", 1 << 17)?.unwrap_or(hidden_size);
        intermediate_size = fields.count("intermediate_size", 1 << 20)?.unwrap_or(4 * hidden_size);
        rescale_every = match fields.get("rescale_every").map(|v| (v, v.as_u64())) {
            None => 6,
            Some((_, Some(n))) if n <= 1 << 10 => n as usize,
            Some((v, _)) => {
                return Err(fields
                    .error("rescale_every", format!("expected a whole number, got {}", short(v))));
            }
        };
    }
    Ok(Config {
        intermediate_size,
        mixers: vec![Mixer::TimeMix; num_hidden_layers],
        rwkv: Some(Rwkv {
            version,
            attention_size,
            num_heads: usize::from(version != 4),
            rescale_every,
        }),
        norm: NormKind::Layer,
        norm_eps: if version == 4 {
            fields.positive("layer_norm_epsilon")?.unwrap_or(1e-5)
        } else {
            1e-5
        },
        activation: Activation::ReluSquared,
        tie_word_embeddings: fields.flag("tie_word_embeddings")?.unwrap_or(false),
        max_position_embeddings: fields.count("context_length", 1 << 26)?.unwrap_or(ENDLESS),
        ..bare(fields, hidden_size, num_hidden_layers)?
    })
}

/// Fills in the heads of RWKV-6 and 7 and the width of their channel mixing, which the shapes of
/// their tensors say.
///
/// # Errors
/// [`Error::Model`] for a tensor that is missing or of another shape.
pub fn complete(config: &mut Config, source: &dyn Source) -> Result<()> {
    let Some(rwkv) = config.rwkv.as_mut().filter(|r| r.version != 4) else { return Ok(()) };
    let matrix = |name: &str| match source.shape(name).as_deref() {
        Some(&[rows, columns]) => Ok((rows, columns)),
        Some(other) => Err(Error::model(
            source.path(),
            name,
            format!("expected a matrix, got shape {other:?}"),
        )),
        None => Err(Error::model(source.path(), name, "tensor is missing")),
    };
    let by_head = if rwkv.version == 6 { "blocks.0.att.time_faaaa" } else { "blocks.0.att.r_k" };
    let (heads, dim) = matrix(by_head)?;
    let (attention, _) = matrix("blocks.0.att.receptance.weight")?;
    if heads.checked_mul(dim) != Some(attention) || attention == 0 {
        return Err(Error::model(
            source.path(),
            by_head,
            format!("{heads} heads of {dim} are not {attention} channels"),
        ));
    }
    (rwkv.num_heads, rwkv.attention_size) = (heads, attention);
    let key = "blocks.0.ffn.key.weight";
    config.intermediate_size = matrix(key)?.0;
    if config.intermediate_size == 0 {
        return Err(Error::model(source.path(), key, "has no rows"));
    }
    Ok(())
}
