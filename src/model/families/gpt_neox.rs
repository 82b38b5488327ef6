//! GPT-NeoX (Black et al. 2022) and Pythia.

use super::Family;
use super::names::{self, Names, Qkv};
use super::transformer::{self, Transformer};
use crate::model::config::{NormKind, Residual};

pub(super) const GPT_NEOX: Family = Family {
    model_type: "gpt_neox",
    config: |fields| {
        // Some checkpoints run attention and MLP one after the other.
        let residual = match fields.flag("use_parallel_residual")? {
            Some(false) => Residual::PreNorm,
            _ => Residual::Parallel,
        };
        transformer::read(
            fields,
            &Transformer {
                norm: NormKind::Layer,
                norm_eps: 1e-5,
                residual,
                activation: "gelu",
                gated_mlp: false,
                rotated: Some(0.25),
                ..transformer::LLAMA
            },
        )
    },
    names: Names {
        embed: "gpt_neox.embed_in",
        norm: "gpt_neox.final_layer_norm",
        head: "embed_out",
        layers: "gpt_neox.layers",
        qkv: Qkv::ByHead("attention.query_key_value"),
        o: "attention.dense",
        up: &["mlp.dense_h_to_4h"],
        down: "mlp.dense_4h_to_h",
        ..names::LLAMA
    },
    gguf: None,
    pth: None,
};
