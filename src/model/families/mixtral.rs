//! Mixtral (Jiang et al. 2024): Mistral with experts.

use super::fields::Fields;
use super::mixture::experts;
use super::names::{self, Names};
use super::rotary::Window;
use super::transformer::{self, Transformer};
use super::{Family, GgufLayout, PLAIN_GGUF};
use crate::error::Result;
use crate::model::config::Experts;

pub(super) const MIXTRAL: Family = Family {
    model_type: "mixtral",
    config: |fields| {
        let family = Transformer {
            norm_eps: 1e-5,
            window: Window::Always,
            experts: Some(normalised),
            ..transformer::LLAMA
        };
        transformer::read(fields, &family)
    },
    names: Names {
        router: "block_sparse_moe.gate",
        experts: "block_sparse_moe.experts",
        expert: ["w1", "w3", "w2"],
        ..names::LLAMA
    },
    gguf: Some(GgufLayout {
        architecture: "llama",
        has_experts: true,
        interleaved: true,
        ..PLAIN_GGUF
    }),
    pth: None,
};

/// Reads the experts, whose weights add up to one whatever the configuration says.
fn normalised(fields: &Fields, layers: usize) -> Result<Option<Experts>> {
    Ok(experts(fields, layers)?.map(|routed| Experts { norm_topk_prob: true, ..routed }))
}
