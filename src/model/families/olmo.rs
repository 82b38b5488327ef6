//! OLMo 2 (OLMo Team 2024) and OLMoE (Muennighoff et al. 2024).

use super::mixture::experts;
use super::names::{self, Names};
use super::transformer::{self, Transformer};
use super::{Family, GgufLayout, PLAIN_GGUF};
use crate::model::config::{QkNorm, Residual};

const COMMON: Transformer =
    Transformer { norm_eps: 1e-5, qk_norm: QkNorm::Full, ..transformer::LLAMA };

pub(super) const OLMO2: Family = Family {
    model_type: "olmo2",
    config: |fields| {
        transformer::read(fields, &Transformer { residual: Residual::PostNorm, ..COMMON })
    },
    names: Names {
        attention_post_norm: "post_attention_layernorm",
        mlp_post_norm: "post_feedforward_layernorm",
        ..names::LLAMA
    },
    gguf: None,
    pth: None,
};

pub(super) const OLMOE: Family = Family {
    model_type: "olmoe",
    config: |fields| transformer::read(fields, &Transformer { experts: Some(experts), ..COMMON }),
    names: names::LLAMA,
    gguf: Some(GgufLayout { architecture: "olmoe", has_experts: true, ..PLAIN_GGUF }),
    pth: None,
};
