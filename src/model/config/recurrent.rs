//! Configurations of recurrent models: Mamba, Mamba-2, Falcon-Mamba, the Mamba layers of Jamba,
//! RWKV.

use serde_json::Value;

use super::fields::{Fields, short};
use super::{Activation, Config, Mixer, NormKind, QkNorm, Residual};
use crate::error::Result;

/// Positions of a model whose state has no end: what texts are cut at.
const ENDLESS: usize = 1 << 20;

/// A selective state space.
#[derive(Debug, Clone, PartialEq)]
pub struct Ssm {
    /// 1 or 2.
    pub version: u8,
    /// Channels, `intermediate_size` of the configuration.
    pub intermediate_size: usize,
    pub state_size: usize,
    pub conv_kernel: usize,
    /// Width that the time step is projected through (version 1).
    pub time_step_rank: usize,
    /// Heads, which share a decay and a time step (version 2; 0 in version 1).
    pub num_heads: usize,
    /// Groups of heads that share `B` and `C` (version 2).
    pub n_groups: usize,
    /// Bounds of the time step after its softplus (version 2).
    pub time_step_limit: (f32, f32),
    /// What of the time step, `B` and `C` is normalised before use.
    pub norms: SsmNorms,
}

/// Normalisation of a state space's inputs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum SsmNorms {
    Off,
    /// Without weights, with this epsilon: Falcon-Mamba.
    Plain(f64),
    /// With weights of their own: Jamba.
    Weighted,
}

/// RWKV's time and channel mixing.
#[derive(Debug, Clone, PartialEq)]
pub struct Rwkv {
    /// 4, 6 or 7.
    pub version: u8,
    /// Width of receptance, key and value.
    pub attention_size: usize,
    /// 0 in version 4.
    pub num_heads: usize,
    /// Version 4: layers after which the residual stream is halved; 0: none.
    pub rescale_every: usize,
}

impl Ssm {
    /// Width of the convolution: the channels, and in version 2 also `B` and `C`.
    pub fn conv_width(&self) -> usize {
        match self.version {
            1 => self.intermediate_size,
            _ => self.intermediate_size + 2 * self.n_groups * self.state_size,
        }
    }

    /// Rows of the projection that a layer begins with.
    pub fn in_width(&self) -> usize {
        match self.version {
            1 => 2 * self.intermediate_size,
            _ => self.intermediate_size + self.conv_width() + self.num_heads,
        }
    }

    /// Values of the time step: one a channel, or one a head.
    pub fn dt_width(&self) -> usize {
        if self.version == 1 { self.intermediate_size } else { self.num_heads }
    }

    /// See [`Config::state_parts`].
    pub fn state_parts(&self) -> (usize, usize) {
        match self.version {
            1 => (self.intermediate_size, self.state_size),
            _ => (self.num_heads, self.intermediate_size / self.num_heads * self.state_size),
        }
    }
}

impl Rwkv {
    pub fn head_dim(&self) -> usize {
        self.attention_size / self.num_heads.max(1)
    }

    /// See [`Config::state_parts`]. Of a channel of version 4: the numerator and the denominator of
    /// its average.
    pub fn state_parts(&self) -> (usize, usize) {
        match self.version {
            4 => (self.attention_size, 2),
            _ => (self.num_heads, self.head_dim() * self.head_dim()),
        }
    }
}

/// Sizes of a Mamba layer; `jamba` spells them with a prefix.
pub(super) fn ssm(fields: &Fields, model_type: &str, hidden_size: usize) -> Result<Ssm> {
    let version = if model_type == "mamba2" { 2 } else { 1 };
    let name = |plain: &'static str, jamba: &'static str| {
        if model_type == "jamba" { jamba } else { plain }
    };
    let expand = fields.count(name("expand", "mamba_expand"), 1 << 8)?.unwrap_or(2);
    let given = if model_type == "mamba" || model_type == "falcon_mamba" {
        fields.count("intermediate_size", 1 << 20)?
    } else {
        None
    };
    let intermediate_size = given.unwrap_or(expand * hidden_size);
    let rank = name("time_step_rank", "mamba_dt_rank");
    let time_step_rank = match fields.text(rank) {
        Some("auto") => None,
        _ => fields.count(rank, 1 << 17)?,
    };
    let mut ssm = Ssm {
        version,
        intermediate_size,
        state_size: fields
            .count(name("state_size", "mamba_d_state"), 1 << 12)?
            .unwrap_or(if version == 2 { 128 } else { 16 }),
        conv_kernel: fields.count(name("conv_kernel", "mamba_d_conv"), 1 << 8)?.unwrap_or(4),
        time_step_rank: time_step_rank.unwrap_or(hidden_size.div_ceil(16)),
        num_heads: 0,
        n_groups: 1,
        time_step_limit: (0.0, f32::INFINITY),
        norms: match model_type {
            "falcon_mamba" => SsmNorms::Plain(fields.positive("mixer_rms_eps")?.unwrap_or(1e-6)),
            "jamba" => SsmNorms::Weighted,
            _ => SsmNorms::Off,
        },
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

/// `time_step_limit` of Mamba-2: two numbers, the second of which may be infinite (which JSON has
/// no word for: it is read as null, see [`Config::from_json`]).
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

/// Mamba, Mamba-2, Falcon-Mamba.
pub(super) fn mamba(fields: &Fields, model_type: &str) -> Result<Config> {
    let hidden_size = fields.required("hidden_size", 1 << 17)?;
    let num_hidden_layers = fields.required("num_hidden_layers", 1 << 10)?;
    if let Some(other) = fields.text("hidden_act").filter(|name| *name != "silu") {
        return Err(fields.error(
            "hidden_act",
            format!("only silu is known here, got {}", crate::text::escape(other)),
        ));
    }
    let config = Config {
        mixers: vec![Mixer::Ssm; num_hidden_layers],
        ssm: Some(ssm(fields, model_type, hidden_size)?),
        norm: NormKind::Rms,
        norm_eps: fields.positive("layer_norm_epsilon")?.unwrap_or(1e-5),
        // transformers writes the field only where it is not the default, which differs.
        tie_word_embeddings: fields.flag("tie_word_embeddings")?.unwrap_or(model_type != "mamba2"),
        ..bare(fields, model_type, hidden_size, num_hidden_layers)?
    };
    Ok(config)
}

/// RWKV. Version 4 has a configuration of Hugging Face's; 6 and 7 have what their tensors do not
/// tell, and [`Rwkv`] is completed from those by [`Config::complete`].
pub(super) fn rwkv(fields: &Fields, model_type: &str) -> Result<Config> {
    let hidden_size = fields.required("hidden_size", 1 << 17)?;
    let num_hidden_layers = fields.required("num_hidden_layers", 1 << 10)?;
    let version = match model_type {
        "rwkv6" => 6,
        "rwkv7" => 7,
        _ => 4,
    };
    let (mut attention_size, mut intermediate_size, mut rescale_every) =
        (hidden_size, 4 * hidden_size, 0);
    if version == 4 {
        attention_size = fields.count("attention_hidden_size", 1 << 17)?.unwrap_or(hidden_size);
        intermediate_size = fields.count("intermediate_size", 1 << 20)?.unwrap_or(4 * hidden_size);
        rescale_every = match fields.get("rescale_every").map(|v| (v, v.as_u64())) {
            None => 6,
            Some((_, Some(n))) if n <= 1 << 10 => n as usize,
            Some((v, _)) => {
                return Err(fields
                    .error("rescale_every", format!("expected a whole number, got {}", short(v))));
            }
        };
    }
    Ok(Config {
        intermediate_size,
        mixers: vec![Mixer::TimeMix; num_hidden_layers],
        rwkv: Some(Rwkv {
            version,
            attention_size,
            num_heads: usize::from(version != 4),
            rescale_every,
        }),
        norm: NormKind::Layer,
        norm_eps: if version == 4 {
            fields.positive("layer_norm_epsilon")?.unwrap_or(1e-5)
        } else {
            1e-5
        },
        activation: Activation::ReluSquared,
        tie_word_embeddings: fields.flag("tie_word_embeddings")?.unwrap_or(false),
        max_position_embeddings: fields.count("context_length", 1 << 26)?.unwrap_or(ENDLESS),
        ..bare(fields, model_type, hidden_size, num_hidden_layers)?
    })
}

/// A decoder with neither attention nor MLP.
fn bare(
    fields: &Fields,
    model_type: &str,
    hidden_size: usize,
    num_hidden_layers: usize,
) -> Result<Config> {
    Ok(Config {
        model_type: model_type.to_owned(),
        vocab_size: fields.required("vocab_size", 1 << 24)?,
        hidden_size,
        intermediate_size: 0,
        num_hidden_layers,
        num_attention_heads: 0,
        num_key_value_heads: 0,
        head_dim: 0,
        max_position_embeddings: ENDLESS,
        latent: None,
        mixers: Vec::new(),
        ssm: None,
        rwkv: None,
        norm: NormKind::Rms,
        norm_eps: 1e-5,
        residual: Residual::PreNorm,
        qk_norm: QkNorm::Off,
        activation: Activation::Silu,
        gated_mlp: false,
        attention_scale: 1.0,
        rope: Vec::new(),
        sliding_window: vec![None; num_hidden_layers],
        embedding_scale: 1.0,
        experts: None,
        tie_word_embeddings: false,
        bos_token_id: fields.ids("bos_token_id")?.first().copied(),
        eos_token_ids: fields.ids("eos_token_id")?,
    })
}
