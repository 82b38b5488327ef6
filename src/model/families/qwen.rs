//! Qwen 2 and 3 (Yang et al. 2024, 2025), dense and with experts.

use super::fields::Fields;
use super::mixture::experts;
use super::rotary::Window;
use super::transformer::{self, Transformer};
use super::{Family, GgufLayout, PLAIN_GGUF, names};
use crate::error::Result;
use crate::model::config::{Experts, QkNorm};

const DENSE2: Transformer = Transformer { window: Window::Optional, ..transformer::LLAMA };

const DENSE3: Transformer = Transformer { qk_norm: QkNorm::Head, ..DENSE2 };

pub(super) const QWEN2: Family = Family {
    model_type: "qwen2",
    config: |fields| transformer::read(fields, &DENSE2),
    names: names::LLAMA,
    gguf: Some(GgufLayout { architecture: "qwen2", ..PLAIN_GGUF }),
    pth: None,
};

pub(super) const QWEN3: Family = Family {
    model_type: "qwen3",
    config: |fields| transformer::read(fields, &DENSE3),
    names: names::LLAMA,
    gguf: Some(GgufLayout { architecture: "qwen3", ..PLAIN_GGUF }),
    pth: None,
};

pub(super) const QWEN2_MOE: Family = Family {
    model_type: "qwen2_moe",
    config: |fields| {
        transformer::read(fields, &Transformer { experts: Some(with_shared), ..DENSE2 })
    },
    names: names::LLAMA,
    gguf: Some(GgufLayout { architecture: "qwen2moe", has_experts: true, ..PLAIN_GGUF }),
    pth: None,
};

pub(super) const QWEN3_MOE: Family = Family {
    model_type: "qwen3_moe",
    config: |fields| transformer::read(fields, &Transformer { experts: Some(experts), ..DENSE3 }),
    names: names::LLAMA,
    gguf: Some(GgufLayout {
        architecture: "qwen3moe",
        has_experts: true,
        norm_topk_prob: true,
        ..PLAIN_GGUF
    }),
    pth: None,
};

/// Reads the experts of Qwen 2, one of which is shared and has a gate.
fn with_shared(fields: &Fields, layers: usize) -> Result<Option<Experts>> {
    let shared_intermediate_size = fields.required("shared_expert_intermediate_size", 1 << 20)?;
    let routed = experts(fields, layers)?;
    Ok(routed.map(|routed| Experts { shared_intermediate_size, shared_gate: true, ..routed }))
}
