//! Jamba (Lieber et al. 2024): attention in every eighth layer, state spaces in the others, and
//! experts in every second.

use super::Family;
use super::fields::Fields;
use super::mamba::{Spelling, StateSpace, ssm};
use super::mixture::{experts, periodic};
use super::names::{self, Names};
use super::transformer::{self, Transformer};
use crate::error::Result;
use crate::model::config::{Config, Experts, Mixer, SsmNorms};

pub(super) const JAMBA: Family = Family {
    model_type: "jamba",
    config: read,
    names: Names {
        norm: "model.final_layernorm",
        ssm: "mamba",
        mlp_norm: "pre_ff_layernorm",
        up: &["feed_forward.gate_proj", "feed_forward.up_proj"],
        down: "feed_forward.down_proj",
        router: "feed_forward.router",
        experts: "feed_forward.experts",
        ..names::LLAMA
    },
    gguf: None,
    pth: None,
};

const STATE_SPACE: StateSpace = StateSpace {
    version: 1,
    spelling: Spelling {
        expand: "mamba_expand",
        state_size: "mamba_d_state",
        conv_kernel: "mamba_d_conv",
        time_step_rank: "mamba_dt_rank",
    },
    has_width: false,
    norms: SsmNorms::Weighted,
    tied: false,
};

fn read(fields: &Fields) -> Result<Config> {
    let family = Transformer { rotated: None, experts: Some(mixture), ..transformer::LLAMA };
    let mut config = transformer::read(fields, &family)?;
    let attention = periodic(fields, "attn_layer", (8, 4), config.num_hidden_layers)?;
    config.mixers =
        attention.into_iter().map(|a| if a { Mixer::Attention } else { Mixer::Ssm }).collect();
    if config.mixers.contains(&Mixer::Ssm) {
        config.ssm = Some(ssm(fields, &STATE_SPACE, config.hidden_size)?);
    }
    Ok(config)
}

/// Reads the mixture of experts; a model with one expert has an MLP instead.
fn mixture(fields: &Fields, layers: usize) -> Result<Option<Experts>> {
    if fields.count("num_experts", 1 << 12)? == Some(1) {
        return Ok(None);
    }
    let sparse = periodic(fields, "expert_layer", (2, 1), layers)?;
    Ok(experts(fields, layers)?.map(|routed| Experts { sparse, ..routed }))
}
