//! Reading the configuration of a transformer whose layers are attention and an MLP or a mixture of
//! experts: most families differ in constants only.

use serde_json::Value;

use super::fields::{Fields, short};
use super::rotary::{Window, rotary, sliding_window};
use crate::error::Result;
use crate::model::config::{
    Activation, Config, Experts, Latent, Mixer, NormKind, QkNorm, Residual,
};

/// The constants of a family of transformers, and its defaults for fields that a configuration may
/// leave out.
pub(super) struct Transformer {
    /// Normalisation of the residual stream.
    pub norm: NormKind,
    /// Default epsilon of the norms.
    pub norm_eps: f64,
    /// Arrangement of blocks and norms.
    pub residual: Residual,
    /// Normalisation of queries and keys.
    pub qk_norm: QkNorm,
    /// Default of `hidden_act`.
    pub activation: &'static str,
    /// True if an MLP has a gate.
    pub gated_mlp: bool,
    /// Default share of a head that is rotated, in `0.0..=1.0`; `None` if positions are learned.
    pub rotated: Option<f64>,
    /// Default of `rope_theta`.
    pub theta: f64,
    /// Default of `tie_word_embeddings`.
    pub tied: bool,
    /// Default width of a head; `None`: `hidden_size` over the number of heads.
    pub head_dim: Option<usize>,
    /// Default of `intermediate_size` over `hidden_size`; `None` if the field is required.
    pub mlp_ratio: Option<usize>,
    /// The layers with a sliding window.
    pub window: Window,
    /// Reader of the mixture of experts.
    pub experts: Option<ReadExperts>,
    /// Reader of the widths of latent attention.
    pub latent: Option<fn(&Fields) -> Result<Latent>>,
}

/// Reads the mixture of experts of a configuration, given the number of layers; `None` if it has
/// none.
pub(super) type ReadExperts = fn(&Fields, usize) -> Result<Option<Experts>>;

/// Llama's constants, from which other families differ.
pub(super) const LLAMA: Transformer = Transformer {
    norm: NormKind::Rms,
    norm_eps: 1e-6,
    residual: Residual::PreNorm,
    qk_norm: QkNorm::Off,
    activation: "silu",
    gated_mlp: true,
    rotated: Some(1.0),
    theta: 10_000.0,
    tied: false,
    head_dim: None,
    mlp_ratio: None,
    window: Window::Never,
    experts: None,
    latent: None,
};

/// Reads the configuration of one such family.
///
/// # Errors
/// [`Error::Model`](crate::error::Error::Model) naming the field that is missing, out of range or
/// asks for an operation that is not implemented.
pub(super) fn read(fields: &Fields, family: &Transformer) -> Result<Config> {
    refuse(fields)?;
    let hidden_size = fields.required(fields.spelled(&["hidden_size", "n_embd"]), 1 << 17)?;
    let num_hidden_layers =
        fields.required(fields.spelled(&["num_hidden_layers", "n_layer"]), 1 << 10)?;
    let num_attention_heads =
        fields.required(fields.spelled(&["num_attention_heads", "n_head"]), 1 << 10)?;
    let num_key_value_heads =
        fields.count("num_key_value_heads", 1 << 10)?.unwrap_or(num_attention_heads);
    if num_attention_heads % num_key_value_heads != 0 {
        return Err(fields.error(
            "num_key_value_heads",
            format!("{num_key_value_heads} does not divide {num_attention_heads} heads"),
        ));
    }
    let latent = family.latent.map(|latent| latent(fields)).transpose()?;
    let head_dim = match fields.count("head_dim", 1 << 12)? {
        _ if latent.is_some() => {
            latent.as_ref().map_or(0, |l| l.qk_nope_head_dim + l.qk_rope_head_dim)
        }
        Some(dim) => dim,
        None => family.head_dim.unwrap_or(hidden_size / num_attention_heads),
    };
    let experts = match family.experts {
        Some(experts) => experts(fields, num_hidden_layers)?,
        None => None,
    };
    let width = fields.spelled(&["intermediate_size", "n_inner"]);
    let intermediate_size = match (fields.count(width, 1 << 20)?, family.mlp_ratio) {
        (Some(width), _) => width,
        (None, Some(ratio)) => ratio * hidden_size,
        // A mixture of experts in every layer needs none.
        (None, None) if experts.as_ref().is_some_and(|e| e.sparse.iter().all(|s| *s)) => 1,
        (None, None) => return Err(fields.error("intermediate_size", "is missing")),
    };
    let eps = fields.spelled(&["rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon"]);
    let positions = fields.spelled(&["max_position_embeddings", "n_positions"]);
    let mut max_position_embeddings = fields.count(positions, 1 << 26)?.unwrap_or(2048);
    let (rope, context) = {
        let rotated = latent.as_ref().map_or(head_dim, |l| l.qk_rope_head_dim);
        rotary(fields, family, rotated)?
    };
    max_position_embeddings = max_position_embeddings.min(context.unwrap_or(usize::MAX));
    Ok(Config {
        vocab_size: fields.required("vocab_size", 1 << 24)?,
        hidden_size,
        intermediate_size,
        num_hidden_layers,
        num_attention_heads,
        num_key_value_heads,
        head_dim,
        max_position_embeddings,
        latent,
        mixers: vec![Mixer::Attention; num_hidden_layers],
        ssm: None,
        rwkv: None,
        norm: family.norm,
        norm_eps: fields.positive(eps)?.unwrap_or(family.norm_eps),
        residual: family.residual,
        qk_norm: family.qk_norm,
        activation: activation(fields, family.activation)?,
        gated_mlp: family.gated_mlp,
        attention_scale: (head_dim as f64).powf(-0.5),
        rope: rope.map_or_else(Vec::new, |rope| vec![rope; num_hidden_layers]),
        sliding_window: sliding_window(fields, &family.window, num_hidden_layers)?,
        embedding_scale: 1.0,
        experts,
        tie_word_embeddings: fields.flag("tie_word_embeddings")?.unwrap_or(family.tied),
        bos_token_id: fields.ids("bos_token_id")?.first().copied(),
        eos_token_ids: fields.ids("eos_token_id")?,
        model_type: String::new(),
    })
}

/// Refuses variants that have the name of a family and another arithmetic.
fn refuse(fields: &Fields) -> Result<()> {
    for field in ["attn_logit_softcapping", "final_logit_softcapping", "clip_qkv"] {
        if fields.get(field).is_some() {
            return Err(fields.error(field, "is not known here: only null"));
        }
    }
    for (field, known) in [("scale_attn_weights", true), ("scale_attn_by_inverse_layer_idx", false)]
    {
        if fields.flag(field)?.is_some_and(|value| value != known) {
            return Err(fields.error(field, format!("only {known} is known here")));
        }
    }
    Ok(())
}

/// Reads the activation of the MLPs.
fn activation(fields: &Fields, default: &str) -> Result<Activation> {
    let field = fields.spelled(&["hidden_activation", "hidden_act", "activation_function"]);
    let name = fields.get(field).map_or(Some(default), Value::as_str);
    Ok(match name {
        Some("silu" | "swish") => Activation::Silu,
        Some("gelu") => Activation::Gelu,
        Some("gelu_new" | "gelu_pytorch_tanh" | "gelu_fast") => Activation::GeluTanh,
        _ => {
            let got = fields.get(field).map(short).unwrap_or_default();
            return Err(fields.error(
                field,
                format!("known: silu, gelu, gelu_new, gelu_pytorch_tanh; got {got}"),
            ));
        }
    })
}
