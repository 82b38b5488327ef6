//! GPT-2 (Radford et al. 2019).

use super::Family;
use super::names::{self, Names, Qkv};
use super::transformer::{self, Transformer};
use crate::model::config::NormKind;

pub(super) const GPT2: Family = Family {
    model_type: "gpt2",
    config: |fields| {
        transformer::read(
            fields,
            &Transformer {
                norm: NormKind::Layer,
                norm_eps: 1e-5,
                activation: "gelu_new",
                gated_mlp: false,
                rotated: None,
                tied: true,
                mlp_ratio: Some(4),
                ..transformer::LLAMA
            },
        )
    },
    names: Names {
        embed: "transformer.wte",
        positions: Some("transformer.wpe"),
        norm: "transformer.ln_f",
        layers: "transformer.h",
        attention_norm: "ln_1",
        qkv: Qkv::Stacked("attn.c_attn"),
        o: "attn.c_proj",
        mlp_norm: "ln_2",
        up: &["mlp.c_fc"],
        down: "mlp.c_proj",
        transposed: true,
        ..names::LLAMA
    },
    gguf: None,
    pth: None,
};
