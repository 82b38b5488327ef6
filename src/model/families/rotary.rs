//! Reading the rotary embedding and the attention windows of a configuration.

use serde_json::Value;

use super::fields::{Fields, short};
use super::transformer::Transformer;
use crate::error::Result;
use crate::model::config::{RopeScaling, Rotary};

/// The layers of a family that attend within the `sliding_window` of their configuration. A
/// `layer_types` list wins over all but [`Window::Never`].
pub(super) enum Window {
    /// No layer, whatever the configuration says.
    Never,
    /// Every layer.
    Always,
    /// If `use_sliding_window` is true, those from layer `max_window_layers` on: Qwen.
    Optional,
    /// All but every `sliding_window_pattern`th layer, this many if the field is missing:
    /// Gemma 3.
    Pattern(usize),
}

/// Returns the rotary embedding that all layers share (`None` where positions are learned), and the
/// longest context it is good for where that is not what `max_position_embeddings` says.
pub(super) fn rotary(
    fields: &Fields,
    family: &Transformer,
    head_dim: usize,
) -> Result<(Option<Rotary>, Option<usize>)> {
    let Some(rotated) = family.rotated else { return Ok((None, None)) };
    let nested = nested(fields);
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
    Ok((Some(Rotary { theta, dim, scaling }), context))
}

/// The object in which transformers 5 keeps theta and scaling, and earlier versions scaling alone
/// (for Gemma 3, one object for each kind of layer inside it).
fn nested<'a>(fields: &'a Fields) -> Option<Fields<'a>> {
    ["rope_scaling", "rope_parameters"].into_iter().find_map(|field| fields.object(field))
}

/// Returns the theta of the layers that attend within a window, where these have one of their own:
/// Gemma 3.
pub(super) fn local_theta(fields: &Fields) -> Result<f64> {
    if let Some(theta) = fields.positive("rope_local_base_freq")? {
        return Ok(theta);
    }
    let sliding = nested(fields);
    let sliding = sliding.as_ref().and_then(|nested| nested.object("sliding_attention"));
    Ok(sliding.map_or(Ok(None), |s| s.positive("rope_theta"))?.unwrap_or(10_000.0))
}

/// Reads the scaling of rotary frequencies from `rope`, and the context that it is good for where
/// that is not `max_position_embeddings`. `dim` dimensions of a head are rotated.
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

/// Returns the window of each layer, tokens; `None` where a layer attends to all positions before.
pub(super) fn sliding_window(
    fields: &Fields,
    window: &Window,
    layers: usize,
) -> Result<Vec<Option<usize>>> {
    let in_use = match window {
        Window::Never => false,
        Window::Always | Window::Pattern(_) => true,
        Window::Optional => fields.flag("use_sliding_window")?.unwrap_or(false),
    };
    let width = fields.count("sliding_window", 1 << 26)?;
    let Some(width) = width.filter(|_| in_use) else { return Ok(vec![None; layers]) };
    if let Some(types) = fields.get("layer_types") {
        let types = types
            .as_array()
            .filter(|t| t.len() == layers)
            .ok_or_else(|| fields.error("layer_types", format!("expected a list of {layers}")))?;
        return types
            .iter()
            .map(|t| match t.as_str() {
                Some("full_attention") => Ok(None),
                Some("sliding_attention") => Ok(Some(width)),
                _ => Err(fields.error(
                    "layer_types",
                    format!("expected full_attention or sliding_attention, got {}", short(t)),
                )),
            })
            .collect();
    }
    if let Window::Pattern(default) = window {
        let field = fields.spelled(&["sliding_window_pattern", "_sliding_window_pattern"]);
        let pattern = fields.count(field, 1 << 10)?.unwrap_or(*default);
        return Ok((0..layers)
            .map(|layer| ((layer + 1) % pattern != 0).then_some(width))
            .collect());
    }
    let first = match (window, fields.get("max_window_layers")) {
        (Window::Optional, Some(v)) => v.as_u64().ok_or_else(|| {
            fields.error("max_window_layers", format!("expected a whole number, got {}", short(v)))
        })? as usize,
        _ => 0,
    };
    Ok((0..layers).map(|layer| (layer >= first).then_some(width)).collect())
}
