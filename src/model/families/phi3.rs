//! Phi-3 (Abdin et al. 2024).

use super::Family;
use super::names::{self, Names, Qkv};
use super::rotary::Window;
use super::transformer::{self, Transformer};

pub(super) const PHI3: Family = Family {
    model_type: "phi3",
    config: |fields| {
        transformer::read(
            fields,
            &Transformer { norm_eps: 1e-5, window: Window::Always, ..transformer::LLAMA },
        )
    },
    names: Names {
        qkv: Qkv::Stacked("self_attn.qkv_proj"),
        up: &["mlp.gate_up_proj"],
        ..names::LLAMA
    },
    gguf: None,
    pth: None,
};
