//! Mamba (Gu and Dao 2023), Mamba-2 (Dao and Gu 2024) and Falcon-Mamba.

use serde_json::Value;

use super::Family;
use super::fields::{Fields, short};
use super::names::{self, Names};
use super::recurrent::bare;
use crate::error::Result;
use crate::model::config::{Config, Mixer, NormKind, Ssm, SsmNorms};

pub(super) const MAMBA: Family = Family {
    model_type: "mamba",
    config: |fields| read(fields, &PLAIN),
    names: NAMES,
    gguf: None,
    pth: None,
};

pub(super) const MAMBA2: Family = Family {
    model_type: "mamba2",
    config: |fields| {
        read(fields, &StateSpace { version: 2, has_width: false, tied: false, ..PLAIN })
    },
    names: NAMES,
    gguf: None,
    pth: None,
};

pub(super) const FALCON_MAMBA: Family = Family {
    model_type: "falcon_mamba",
    config: |fields| {
        let eps = fields.positive("mixer_rms_eps")?.unwrap_or(1e-6);
        read(fields, &StateSpace { norms: SsmNorms::Plain(eps), ..PLAIN })
    },
    names: NAMES,
    gguf: None,
    pth: None,
};

const NAMES: Names = Names {
    embed: "backbone.embeddings",
    norm: "backbone.norm_f",
    layers: "backbone.layers",
    attention_norm: "norm",
    ..names::LLAMA
};

/// The constants of a family with state spaces, and its defaults for fields that a configuration
/// may leave out.
pub(super) struct StateSpace {
    /// Mamba 1 or 2.
    pub version: u8,
    /// Spelling of the fields.
    pub spelling: Spelling,
    /// True if the configuration may have an `intermediate_size`; otherwise it is `expand` times
    /// `hidden_size`.
    pub has_width: bool,
    /// Normalisation of the time step, `B` and `C`.
    pub norms: SsmNorms,
    /// Default of `tie_word_embeddings`, which transformers writes only where it differs.
    pub tied: bool,
}

/// The spelling of the fields of a state space.
pub(super) struct Spelling {
    pub expand: &'static str,
    pub state_size: &'static str,
    pub conv_kernel: &'static str,
    pub time_step_rank: &'static str,
}

/// Mamba's own constants and spelling.
const PLAIN: StateSpace = StateSpace {
    version: 1,
    spelling: Spelling {
        expand: "expand",
        state_size: "state_size",
        conv_kernel: "conv_kernel",
        time_step_rank: "time_step_rank",
    },
    has_width: true,
    norms: SsmNorms::Off,
    tied: true,
};

/// Reads the configuration of a model whose every layer is a state space.
fn read(fields: &Fields, family: &StateSpace) -> Result<Config> {
    let hidden_size = fields.required("hidden_size", 1 << 17)?;
    let num_hidden_layers = fields.required("num_hidden_layers", 1 << 10)?;
    if let Some(other) = fields.text("hidden_act").filter(|name| *name != "silu") {
        return Err(fields.error(
            "hidden_act",
            format!("only silu is known here, got {}", crate::text::escape(other)),
        ));
    }
    Ok(Config {
        mixers: vec![Mixer::Ssm; num_hidden_layers],
        ssm: Some(ssm(fields, family, hidden_size)?),
        norm: NormKind::Rms,
        norm_eps: fields.positive("layer_norm_epsilon")?.unwrap_or(1e-5),
        tie_word_embeddings: fields.flag("tie_word_embeddings")?.unwrap_or(family.tied),
        ..bare(fields, hidden_size, num_hidden_layers)?
    })
}

/// Reads the sizes of a state-space layer.
pub(super) fn ssm(fields: &Fields, family: &StateSpace, hidden_size: usize) -> Result<Ssm> {
    let (version, spelling) = (family.version, &family.spelling);
    let expand = fields.count(spelling.expand, 1 << 8)?.unwrap_or(2);
    let given = if family.has_width { fields.count("intermediate_size", 1 << 20)? } else { None };
    let intermediate_size = given.unwrap_or(expand * hidden_size);
    let time_step_rank = match fields.text(spelling.time_step_rank) {
        Some("auto") => None,
        _ => fields.count(spelling.time_step_rank, 1 << 17)?,
    };
    let mut ssm = Ssm {
        version,
        intermediate_size,
        state_size: fields.count(spelling.state_size, 1 << 12)?.unwrap_or(if version == 2 {
            128
        } else {
            16
        }),
        conv_kernel: fields.count(spelling.conv_kernel, 1 << 8)?.unwrap_or(4),
        time_step_rank: time_step_rank.unwrap_or(hidden_size.div_ceil(16)),
        num_heads: 0,
        n_groups: 1,
        time_step_limit: (0.0, f32::INFINITY),
        norms: family.norms,
    };
    if version == 2 {
        ssm.num_heads = fields.count("num_heads", 1 << 12)?.unwrap_or(128);
        ssm.n_groups = fields.count("n_groups", 1 << 12)?.unwrap_or(8);
        ssm.time_step_limit = limits(fields)?;
        let head_dim = fields.count("head_dim", 1 << 12)?.unwrap_or(64);
        if ssm.num_heads * head_dim != intermediate_size {
            let message = format!(
                "{} heads of {head_dim} are not {intermediate_size} channels",
                ssm.num_heads
            );
            return Err(fields.error("num_heads", message));
        }
        if !ssm.num_heads.is_multiple_of(ssm.n_groups) {
            return Err(fields.error(
                "n_groups",
                format!("{} does not divide {} heads", ssm.n_groups, ssm.num_heads),
            ));
        }
    }
    Ok(ssm)
}

/// Reads `time_step_limit` of Mamba-2: two numbers, the second of which may be infinite. JSON has
/// no word for that; it is read as null, see [`Config::from_json`].
fn limits(fields: &Fields) -> Result<(f32, f32)> {
    let Some(value) = fields.get("time_step_limit") else { return Ok((0.0, f32::INFINITY)) };
    let bound = |v: &Value| match v {
        Value::Null => Some(f32::INFINITY),
        v => v.as_f64().map(|x| x as f32).filter(|x| *x >= 0.0),
    };
    match value.as_array().map(Vec::as_slice) {
        Some([low, high]) => match (bound(low), bound(high)) {
            (Some(low), Some(high)) if low < high => Ok((low, high)),
            _ => Err(fields.error(
                "time_step_limit",
                format!("expected two ascending numbers, got {}", short(value)),
            )),
        },
        _ => Err(fields.error(
            "time_step_limit",
            format!("expected two ascending numbers, got {}", short(value)),
        )),
    }
}
