//! What each family of models makes of its configuration.

use serde_json::Value;

use super::fields::{Fields, short};
use super::{
    Activation, Config, Experts, Latent, Mixer, NormKind, QkNorm, Residual, RopeScaling, Rotary,
    recurrent,
};
use crate::error::Result;

/// Families with a decoder here, by `model_type`.
pub const FAMILIES: [&str; 21] = [
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gpt2",
    "gpt_neox",
    "gemma3_text",
    "olmo2",
    "phi3",
    "mixtral",
    "olmoe",
    "qwen2_moe",
    "qwen3_moe",
    "deepseek_v2",
    "mamba",
    "mamba2",
    "falcon_mamba",
    "jamba",
    "rwkv",
    "rwkv6",
    "rwkv7",
];

/// What a family fixes, where its configuration need not say.
struct Family {
    norm: NormKind,
    norm_eps: f64,
    residual: Residual,
    qk_norm: QkNorm,
    activation: &'static str,
    gated_mlp: bool,
    /// Part of a head that is rotated; `None` where positions are learned.
    rotated: Option<f64>,
    theta: f64,
    tied: bool,
}

const LLAMA: Family = Family {
    norm: NormKind::Rms,
    norm_eps: 1e-6,
    residual: Residual::PreNorm,
    qk_norm: QkNorm::Off,
    activation: "silu",
    gated_mlp: true,
    rotated: Some(1.0),
    theta: 10_000.0,
    tied: false,
};

fn family(model_type: &str) -> Option<Family> {
    let family = match model_type {
        "llama" | "mistral" | "qwen2" => LLAMA,
        "mixtral" | "phi3" => Family { norm_eps: 1e-5, ..LLAMA },
        "qwen2_moe" | "deepseek_v2" => LLAMA,
        "qwen3" | "qwen3_moe" => Family { qk_norm: QkNorm::Head, ..LLAMA },
        "olmo2" => {
            Family { norm_eps: 1e-5, residual: Residual::PostNorm, qk_norm: QkNorm::Full, ..LLAMA }
        }
        "jamba" => Family { rotated: None, ..LLAMA },
        "olmoe" => Family { norm_eps: 1e-5, qk_norm: QkNorm::Full, ..LLAMA },
        "gemma3_text" => Family {
            residual: Residual::Sandwich,
            qk_norm: QkNorm::Head,
            activation: "gelu_pytorch_tanh",
            theta: 1_000_000.0,
            tied: true,
            ..LLAMA
        },
        "gpt_neox" => Family {
            norm: NormKind::Layer,
            norm_eps: 1e-5,
            residual: Residual::Parallel,
            activation: "gelu",
            gated_mlp: false,
            rotated: Some(0.25),
            ..LLAMA
        },
        "gpt2" => Family {
            norm: NormKind::Layer,
            norm_eps: 1e-5,
            activation: "gelu_new",
            gated_mlp: false,
            rotated: None,
            tied: true,
            ..LLAMA
        },
        _ => return None,
    };
    Some(family)
}

/// Reads a configuration of any family.
pub(super) fn read(fields: &Fields) -> Result<Config> {
    let named = fields.text("model_type").unwrap_or("").to_owned();
    // Gemma 3 with a vision tower beside it keeps the language model's configuration in one of its
    // own.
    if let ("gemma3", Some(text)) = (named.as_str(), fields.object("text_config")) {
        return read(&text);
    }
    match named.as_str() {
        "mamba" | "mamba2" | "falcon_mamba" => return recurrent::mamba(fields, &named),
        "rwkv" | "rwkv6" | "rwkv7" => return recurrent::rwkv(fields, &named),
        _ => {}
    }
    let Some(family) = family(&named) else {
        let (got, known) = (short(&Value::String(named)), FAMILIES.join(", "));
        return Err(fields.error("model_type", format!("{got} is not known here; known: {known}")));
    };
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
    let latent = latent(fields, &named)?;
    let head_dim = match fields.count("head_dim", 1 << 12)? {
        _ if latent.is_some() => {
            latent.as_ref().map_or(0, |l| l.qk_nope_head_dim + l.qk_rope_head_dim)
        }
        Some(dim) => dim,
        None if named == "gemma3_text" => 256,
        None => hidden_size / num_attention_heads,
    };
    let experts = experts(fields, &named, num_hidden_layers)?;
    let width = fields.spelled(&["intermediate_size", "n_inner"]);
    let intermediate_size = match fields.count(width, 1 << 20)? {
        Some(width) => width,
        None if named == "gpt2" => 4 * hidden_size,
        // A mixture of experts in every layer needs none.
        None if experts.as_ref().is_some_and(|e| e.sparse.iter().all(|s| *s)) => 1,
        None => return Err(fields.error("intermediate_size", "is missing")),
    };
    let eps = fields.spelled(&["rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon"]);
    let residual = match fields.flag("use_parallel_residual")? {
        Some(false) if family.residual == Residual::Parallel => Residual::PreNorm,
        _ => family.residual,
    };
    let positions = fields.spelled(&["max_position_embeddings", "n_positions"]);
    let mut max_position_embeddings = fields.count(positions, 1 << 26)?.unwrap_or(2048);
    let (rope, context) = {
        let rotated = latent.as_ref().map_or(head_dim, |l| l.qk_rope_head_dim);
        rotary(fields, &named, &family, rotated, num_hidden_layers)?
    };
    max_position_embeddings = max_position_embeddings.min(context.unwrap_or(usize::MAX));
    let mixers = mixers(fields, &named, num_hidden_layers)?;
    let ssm = if mixers.contains(&Mixer::Ssm) {
        Some(recurrent::ssm(fields, &named, hidden_size)?)
    } else {
        None
    };
    let attention_scale = match fields.positive("query_pre_attn_scalar")? {
        Some(scalar) if named == "gemma3_text" => scalar.powf(-0.5),
        None if named == "gemma3_text" => 256f64.powf(-0.5),
        _ => (head_dim as f64).powf(-0.5),
    };
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
        mixers,
        ssm,
        rwkv: None,
        norm: family.norm,
        norm_eps: fields.positive(eps)?.unwrap_or(family.norm_eps),
        residual,
        qk_norm: family.qk_norm,
        activation: activation(fields, family.activation)?,
        gated_mlp: family.gated_mlp,
        attention_scale,
        rope,
        sliding_window: sliding_window(fields, &named, num_hidden_layers)?,
        embedding_scale: if named == "gemma3_text" {
            f64::from((hidden_size as f32).sqrt())
        } else {
            1.0
        },
        experts,
        tie_word_embeddings: fields.flag("tie_word_embeddings")?.unwrap_or(family.tied),
        bos_token_id: fields.ids("bos_token_id")?.first().copied(),
        eos_token_ids: fields.ids("eos_token_id")?,
        model_type: named,
    })
}

/// Variants that have the name of a family and another arithmetic.
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

fn experts(fields: &Fields, model_type: &str, layers: usize) -> Result<Option<Experts>> {
    if !["mixtral", "olmoe", "qwen2_moe", "qwen3_moe", "jamba", "deepseek_v2"].contains(&model_type)
    {
        return Ok(None);
    }
    if model_type == "jamba" && fields.count("num_experts", 1 << 12)? == Some(1) {
        return Ok(None);
    }
    let num_experts = fields.required(
        fields.spelled(&["num_experts", "num_local_experts", "n_routed_experts"]),
        1 << 12,
    )?;
    let num_experts_per_tok = fields.required("num_experts_per_tok", 1 << 12)?;
    if num_experts_per_tok > num_experts {
        return Err(fields.error(
            "num_experts_per_tok",
            format!("{num_experts_per_tok} of {num_experts} experts"),
        ));
    }
    let width = fields.spelled(&["moe_intermediate_size", "intermediate_size"]);
    let step = fields.count("decoder_sparse_step", 1 << 10)?.unwrap_or(1);
    let dense: Vec<u64> = match fields.get("mlp_only_layers") {
        Some(Value::Array(list)) if list.len() <= layers => {
            list.iter().filter_map(Value::as_u64).collect()
        }
        Some(other) => {
            return Err(fields.error(
                "mlp_only_layers",
                format!("expected a list of layers, got {}", short(other)),
            ));
        }
        None => Vec::new(),
    };
    let moe_intermediate_size = fields.required(width, 1 << 20)?;
    let groups = match fields.text("topk_method") {
        Some("group_limited_greedy") => {
            let (all, chosen) =
                (fields.required("n_group", 1 << 12)?, fields.required("topk_group", 1 << 12)?);
            if num_experts % all != 0
                || chosen > all
                || num_experts_per_tok > chosen * (num_experts / all)
            {
                return Err(fields.error(
                    "n_group",
                    format!("{chosen} of {all} groups of {num_experts} experts"),
                ));
            }
            Some((all, chosen))
        }
        Some("greedy") | None => None,
        Some(other) => {
            let got = crate::text::escape(other);
            return Err(fields
                .error("topk_method", format!("known: greedy, group_limited_greedy; got {got}")));
        }
    };
    let shared_intermediate_size = match model_type {
        "deepseek_v2" => {
            fields.count("n_shared_experts", 1 << 8)?.unwrap_or(0) * moe_intermediate_size
        }
        "qwen2_moe" => fields.required("shared_expert_intermediate_size", 1 << 20)?,
        _ => 0,
    };
    Ok(Some(Experts {
        num_experts,
        num_experts_per_tok,
        moe_intermediate_size,
        // transformers does not do what DeepSeek-V2's configuration says here, and no released
        // model says it.
        norm_topk_prob: model_type == "mixtral"
            || model_type != "deepseek_v2" && fields.flag("norm_topk_prob")?.unwrap_or(false),
        routed_scaling_factor: match model_type {
            "deepseek_v2" => fields.positive("routed_scaling_factor")?.unwrap_or(1.0),
            _ => 1.0,
        },
        groups,
        shared_intermediate_size,
        shared_gate: model_type == "qwen2_moe",
        sparse: match model_type {
            "jamba" => periodic(fields, "expert_layer", (2, 1), layers)?,
            "deepseek_v2" => {
                let first = fields.get("first_k_dense_replace").and_then(Value::as_u64).unwrap_or(0)
                    as usize;
                let every = fields.count("moe_layer_freq", 1 << 10)?.unwrap_or(1);
                (0..layers).map(|layer| layer >= first && layer % every == 0).collect()
            }
            _ => (0..layers)
                .map(|layer| !dense.contains(&(layer as u64)) && (layer + 1) % step == 0)
                .collect(),
        },
    }))
}

/// The widths of latent attention.
fn latent(fields: &Fields, model_type: &str) -> Result<Option<Latent>> {
    if model_type != "deepseek_v2" {
        return Ok(None);
    }
    Ok(Some(Latent {
        q_lora_rank: fields.count("q_lora_rank", 1 << 17)?,
        kv_lora_rank: fields.required("kv_lora_rank", 1 << 17)?,
        qk_nope_head_dim: fields.required("qk_nope_head_dim", 1 << 12)?,
        qk_rope_head_dim: fields.required("qk_rope_head_dim", 1 << 12)?,
        v_head_dim: fields.required("v_head_dim", 1 << 12)?,
    }))
}

/// Attention, but in Jamba, where it is every so-manieth layer's and a state space the others'.
fn mixers(fields: &Fields, model_type: &str, layers: usize) -> Result<Vec<Mixer>> {
    if model_type != "jamba" {
        return Ok(vec![Mixer::Attention; layers]);
    }
    let attention = periodic(fields, "attn_layer", (8, 4), layers)?;
    Ok(attention.into_iter().map(|a| if a { Mixer::Attention } else { Mixer::Ssm }).collect())
}

/// The layers that `NAME_period` and `NAME_offset` choose.
fn periodic(
    fields: &Fields,
    name: &str,
    default: (usize, usize),
    layers: usize,
) -> Result<Vec<bool>> {
    let period = fields.count(&format!("{name}_period"), 1 << 10)?.unwrap_or(default.0);
    let field = format!("{name}_offset");
    let offset = match fields.get(&field).map(|v| (v, v.as_u64())) {
        None => default.1,
        Some((_, Some(n))) if (n as usize) < period => n as usize,
        Some((v, _)) => {
            return Err(fields.error(
                &field,
                format!("expected a whole number below {period}, got {}", short(v)),
            ));
        }
    };
    Ok((0..layers).map(|layer| layer % period == offset).collect())
}

/// The rotary embedding of every layer, and the longest context it is good for where that is not
/// what `max_position_embeddings` says.
fn rotary(
    fields: &Fields,
    model_type: &str,
    family: &Family,
    head_dim: usize,
    layers: usize,
) -> Result<(Vec<Rotary>, Option<usize>)> {
    let Some(rotated) = family.rotated else { return Ok((Vec::new(), None)) };
    // transformers 5 moved theta and scaling into one object (for Gemma 3, one for each kind of
    // layer).
    let nested =
        ["rope_scaling", "rope_parameters"].into_iter().find_map(|field| fields.object(field));
    let full = nested.as_ref().and_then(|n| n.object("full_attention"));
    let global = full.as_ref().or(nested.as_ref());
    let part = match fields.positive(fields.spelled(&["partial_rotary_factor", "rotary_pct"]))? {
        Some(part) => part,
        None => {
            global.map_or(Ok(None), |n| n.positive("partial_rotary_factor"))?.unwrap_or(rotated)
        }
    };
    let dim = (head_dim as f64 * part) as usize;
    if dim == 0 || !dim.is_multiple_of(2) || dim > head_dim {
        return Err(fields.error(
            "head_dim",
            format!("{dim} of {head_dim} dimensions cannot be rotated: it must be an even part"),
        ));
    }
    let theta = match fields.positive(fields.spelled(&["rope_theta", "rotary_emb_base"]))? {
        Some(theta) => theta,
        None => global.map_or(Ok(None), |n| n.positive("rope_theta"))?.unwrap_or(family.theta),
    };
    let (scaling, context) = match global {
        Some(global) => rope_scaling(fields, global, dim)?,
        None => (None, None),
    };
    let all = Rotary { theta, dim, scaling };
    if model_type != "gemma3_text" {
        return Ok((vec![all; layers], context));
    }
    let sliding = nested.as_ref().and_then(|n| n.object("sliding_attention"));
    let local = match fields.positive("rope_local_base_freq")? {
        Some(theta) => theta,
        None => sliding.map_or(Ok(None), |s| s.positive("rope_theta"))?.unwrap_or(10_000.0),
    };
    let local = Rotary { theta: local, dim, scaling: None };
    let windows = sliding_window(fields, model_type, layers)?;
    Ok((
        windows.iter().map(|w| if w.is_some() { local.clone() } else { all.clone() }).collect(),
        context,
    ))
}

fn rope_scaling(
    fields: &Fields,
    rope: &Fields,
    dim: usize,
) -> Result<(Option<RopeScaling>, Option<usize>)> {
    let kind = rope.text("rope_type").or_else(|| rope.text("type")).unwrap_or("default");
    let number = |field: &str| {
        rope.positive(field)?
            .ok_or_else(|| rope.error(&format!("rope_scaling.{field}"), "is missing"))
    };
    let scaling = match kind {
        "default" => return Ok((None, None)),
        "linear" => RopeScaling::Linear { factor: number("factor")? },
        "llama3" => {
            let (low, high) = (number("low_freq_factor")?, number("high_freq_factor")?);
            if high <= low {
                return Err(
                    rope.error("rope_scaling.high_freq_factor", "must be above low_freq_factor")
                );
            }
            RopeScaling::Llama3 {
                factor: number("factor")?,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_position_embeddings: number("original_max_position_embeddings")?,
            }
        }
        "yarn" => {
            let factor = number("factor")?;
            let owner =
                if rope.get("original_max_position_embeddings").is_some() { rope } else { fields };
            let field =
                owner.spelled(&["original_max_position_embeddings", "max_position_embeddings"]);
            let original = owner.required(field, 1 << 26)? as f64;
            // As transformers has it, which leaves the temperature of the softmax alone.
            let magnitude =
                |scale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
            let attention_factor = match (
                rope.positive("attention_factor")?,
                rope.positive("mscale")?,
                rope.positive("mscale_all_dim")?,
            ) {
                (Some(factor), ..) => factor,
                (None, Some(scale), Some(all)) => magnitude(scale) / magnitude(all),
                _ => magnitude(1.0),
            };
            RopeScaling::Yarn {
                factor,
                beta_fast: rope.positive("beta_fast")?.unwrap_or(32.0),
                beta_slow: rope.positive("beta_slow")?.unwrap_or(1.0),
                original_max_position_embeddings: original,
                attention_factor,
            }
        }
        // Phi-3: one set of divisors up to the original context, another beyond. A row's arithmetic
        // must not depend on how long the row is, so contexts end where the first set does.
        "longrope" => {
            let divisors: Option<Vec<f32>> =
                rope.get("short_factor").and_then(Value::as_array).and_then(|list| {
                    list.iter()
                        .map(|v| v.as_f64().filter(|d| d.is_finite() && *d > 0.0).map(|d| d as f32))
                        .collect()
                });
            let divisors = divisors.filter(|d| d.len() == dim / 2).ok_or_else(|| {
                rope.error(
                    "rope_scaling.short_factor",
                    format!("expected {} positive numbers", dim / 2),
                )
            })?;
            let owner = if fields.get("original_max_position_embeddings").is_some() {
                fields
            } else {
                rope
            };
            let original = owner.required("original_max_position_embeddings", 1 << 26)?;
            let longest = fields.count("max_position_embeddings", 1 << 26)?.unwrap_or(original);
            let factor = longest as f64 / original as f64;
            let attention_factor = match rope.positive("attention_factor")? {
                Some(factor) => factor,
                None if factor <= 1.0 => 1.0,
                None => (1.0 + factor.ln() / (original as f64).ln()).sqrt(),
            };
            return Ok((
                Some(RopeScaling::Divisors { divisors, attention_factor }),
                Some(original),
            ));
        }
        other => {
            let got = crate::text::escape(other);
            return Err(rope.error(
                "rope_scaling.rope_type",
                format!("known: default, linear, llama3, yarn, longrope; got {got}"),
            ));
        }
    };
    Ok((Some(scaling), None))
}

/// Which layers see a window. Mistral, Mixtral and Phi-3: all; Qwen: where `use_sliding_window`
/// says so, from layer `max_window_layers` on; Gemma 3: all but every sixth
/// (`sliding_window_pattern`). An explicit `layer_types` list wins.
fn sliding_window(fields: &Fields, model_type: &str, layers: usize) -> Result<Vec<Option<usize>>> {
    let window = fields.count("sliding_window", 1 << 26)?;
    let in_use = match model_type {
        "mistral" | "mixtral" | "phi3" | "gemma3_text" => true,
        "qwen2" | "qwen3" | "qwen2_moe" | "qwen3_moe" => {
            fields.flag("use_sliding_window")?.unwrap_or(false)
        }
        _ => false,
    };
    let Some(window) = window.filter(|_| in_use) else { return Ok(vec![None; layers]) };
    if let Some(types) = fields.get("layer_types") {
        let types = types
            .as_array()
            .filter(|t| t.len() == layers)
            .ok_or_else(|| fields.error("layer_types", format!("expected a list of {layers}")))?;
        return types
            .iter()
            .map(|t| match t.as_str() {
                Some("full_attention") => Ok(None),
                Some("sliding_attention") => Ok(Some(window)),
                _ => Err(fields.error(
                    "layer_types",
                    format!("expected full_attention or sliding_attention, got {}", short(t)),
                )),
            })
            .collect();
    }
    if model_type == "gemma3_text" {
        let pattern = fields
            .count(fields.spelled(&["sliding_window_pattern", "_sliding_window_pattern"]), 1 << 10)?
            .unwrap_or(6);
        return Ok((0..layers)
            .map(|layer| ((layer + 1) % pattern != 0).then_some(window))
            .collect());
    }
    let first = match fields.get("max_window_layers") {
        Some(v) if model_type.starts_with("qwen") => v.as_u64().ok_or_else(|| {
            fields.error("max_window_layers", format!("expected a whole number, got {}", short(v)))
        })? as usize,
        _ => 0,
    };
    Ok((0..layers).map(|layer| (layer >= first).then_some(window)).collect())
}
