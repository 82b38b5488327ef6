//! DeepSeek-V2 (DeepSeek-AI 2024): latent attention and experts in groups, some of them shared.

use super::Family;
use super::fields::Fields;
use super::mixture::experts;
use super::names::{self, Names};
use super::transformer::{self, Transformer};
use crate::error::Result;
use crate::model::config::{Experts, Latent};

pub(super) const DEEPSEEK_V2: Family = Family {
    model_type: "deepseek_v2",
    config: |fields| {
        let family =
            Transformer { experts: Some(mixture), latent: Some(latent), ..transformer::LLAMA };
        transformer::read(fields, &family)
    },
    names: Names { shared: "mlp.shared_experts", ..names::LLAMA },
    gguf: None,
    pth: None,
};

/// Reads the widths of latent attention.
fn latent(fields: &Fields) -> Result<Latent> {
    Ok(Latent {
        q_lora_rank: fields.count("q_lora_rank", 1 << 17)?,
        kv_lora_rank: fields.required("kv_lora_rank", 1 << 17)?,
        qk_nope_head_dim: fields.required("qk_nope_head_dim", 1 << 12)?,
        qk_rope_head_dim: fields.required("qk_rope_head_dim", 1 << 12)?,
        v_head_dim: fields.required("v_head_dim", 1 << 12)?,
    })
}

/// Reads the mixture of experts, some of which are shared.
fn mixture(fields: &Fields, layers: usize) -> Result<Option<Experts>> {
    let Some(routed) = experts(fields, layers)? else { return Ok(None) };
    let shared = fields.count("n_shared_experts", 1 << 8)?.unwrap_or(0);
    let first = fields.get("first_k_dense_replace").and_then(|v| v.as_u64()).unwrap_or(0) as usize;
    let every = fields.count("moe_layer_freq", 1 << 10)?.unwrap_or(1);
    Ok(Some(Experts {
        // transformers does not do what the configuration says here, and no released model says it.
        norm_topk_prob: false,
        routed_scaling_factor: fields.positive("routed_scaling_factor")?.unwrap_or(1.0),
        shared_intermediate_size: shared * routed.moe_intermediate_size,
        sparse: (0..layers).map(|layer| layer >= first && layer % every == 0).collect(),
        ..routed
    }))
}
