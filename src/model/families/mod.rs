//! The families of models, one descriptor each: how a configuration is read, what the tensors are
//! called, and how the family is known in GGUF and `.pth` files.
//!
//! A family that needs no new operation is a [`Family`] in a file of this folder and its place in
//! [`REGISTRY`]. Every field of a descriptor has to be given, and a descriptor that is not
//! registered is dead code, which the lints refuse.

mod deepseek_v2;
mod fields;
mod gemma3;
mod gpt2;
mod gpt_neox;
mod jamba;
mod llama;
mod mamba;
mod mixtral;
mod mixture;
mod names;
mod olmo;
mod phi3;
mod qwen;
mod recurrent;
mod rotary;
mod rwkv;
mod transformer;

use serde_json::Value;

pub use fields::Fields;
pub use names::{Names, Qkv};
pub use rwkv::complete;

use super::config::Config;
use crate::error::Result;

/// Everything that is particular to one family of models.
pub struct Family {
    /// The `model_type` of its configurations.
    pub model_type: &'static str,
    /// Reads a configuration; [`read`] adds `model_type`.
    config: fn(&Fields) -> Result<Config>,
    /// The names of the tensors in its checkpoints.
    pub names: Names,
    /// The layout of its GGUF files; `None` if these are not read.
    pub gguf: Option<GgufLayout>,
    /// A tensor by which its `.pth` files are recognised, since no other family has it; `None` if
    /// these are not read.
    pub pth: Option<&'static str>,
}

/// The differences between the GGUF files of a family and its Hugging Face checkpoints.
pub struct GgufLayout {
    /// The `general.architecture` of its files.
    pub architecture: &'static str,
    /// True if its files have experts: Mixtral is a Llama with experts, to llama.cpp.
    pub has_experts: bool,
    /// Hugging Face and GGUF name of those parts of a layer that do not follow the common table.
    pub parts: &'static [(&'static str, &'static str)],
    /// True if the rows of the query and key projections are in the order of llama.cpp's own
    /// rotation, whose pairs are side by side.
    pub interleaved: bool,
    /// `norm_topk_prob` of every released model, which the metadata does not have.
    pub norm_topk_prob: bool,
}

/// A layout without peculiarities: tensors are renamed by the common table, and nothing else.
const PLAIN_GGUF: GgufLayout = GgufLayout {
    architecture: "",
    has_experts: false,
    parts: &[],
    interleaved: false,
    norm_topk_prob: false,
};

/// Every family, in the order in which errors list them.
const REGISTRY: &[&Family] = &[
    &llama::LLAMA,
    &llama::MISTRAL,
    &qwen::QWEN2,
    &qwen::QWEN3,
    &gpt2::GPT2,
    &gpt_neox::GPT_NEOX,
    &gemma3::GEMMA3,
    &olmo::OLMO2,
    &phi3::PHI3,
    &mixtral::MIXTRAL,
    &olmo::OLMOE,
    &qwen::QWEN2_MOE,
    &qwen::QWEN3_MOE,
    &deepseek_v2::DEEPSEEK_V2,
    &mamba::MAMBA,
    &mamba::MAMBA2,
    &mamba::FALCON_MAMBA,
    &jamba::JAMBA,
    &rwkv::RWKV4,
    &rwkv::RWKV6,
    &rwkv::RWKV7,
];

/// The `model_type` of every family that has a decoder here.
pub const FAMILIES: [&str; REGISTRY.len()] = {
    let mut names = [""; REGISTRY.len()];
    let mut i = 0;
    while i < names.len() {
        names[i] = REGISTRY[i].model_type;
        i += 1;
    }
    names
};

/// Returns the family of a `model_type`; `None` if there is no decoder for it here.
pub fn find(model_type: &str) -> Option<&'static Family> {
    REGISTRY.iter().copied().find(|family| family.model_type == model_type)
}

/// Returns the families whose GGUF files are read, each with the layout of these.
pub fn with_gguf() -> impl Iterator<Item = (&'static Family, &'static GgufLayout)> + Clone {
    REGISTRY.iter().copied().filter_map(|family| Some((family, family.gguf.as_ref()?)))
}

/// Returns the families whose `.pth` files are read, each with the tensor it is known by.
pub fn with_pth() -> impl Iterator<Item = (&'static Family, &'static str)> {
    REGISTRY.iter().copied().filter_map(|family| Some((family, family.pth?)))
}

/// Reads a configuration of any family.
///
/// # Errors
/// [`Error::Model`](crate::error::Error::Model) naming the field at fault.
pub fn read(fields: &Fields) -> Result<Config> {
    let model_type = fields.text("model_type").unwrap_or("");
    // Gemma 3 with a vision tower beside it keeps the language model's configuration in one of its
    // own.
    if let ("gemma3", Some(text)) = (model_type, fields.object("text_config")) {
        return read(&text);
    }
    let Some(family) = find(model_type) else {
        let (got, known) =
            (fields::short(&Value::String(model_type.to_owned())), FAMILIES.join(", "));
        return Err(fields.error("model_type", format!("{got} is not known here; known: {known}")));
    };
    Ok(Config { model_type: family.model_type.to_owned(), ..(family.config)(fields)? })
}
