//! Reading the mixture of experts of a configuration.

use serde_json::Value;

use super::fields::{Fields, short};
use crate::error::Result;
use crate::model::config::Experts;

/// Reads the fields that the families with experts have in common, without a shared expert. The
/// reader of a family changes what it does otherwise.
pub(super) fn experts(fields: &Fields, layers: usize) -> Result<Option<Experts>> {
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
    Ok(Some(Experts {
        num_experts,
        num_experts_per_tok,
        moe_intermediate_size,
        norm_topk_prob: fields.flag("norm_topk_prob")?.unwrap_or(false),
        routed_scaling_factor: 1.0,
        groups,
        shared_intermediate_size: 0,
        shared_gate: false,
        sparse: (0..layers)
            .map(|layer| !dense.contains(&(layer as u64)) && (layer + 1) % step == 0)
            .collect(),
    }))
}

/// Returns which layers `NAME_period` and `NAME_offset` choose; `default` has the two where the
/// configuration does not.
pub(super) fn periodic(
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
