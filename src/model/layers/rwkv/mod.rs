//! RWKV layers, versions 4 (Peng et al. 2023), 6 (2024) and 7 (2025), by the names of their
//! author's code.
//!
//! Token shift is represented as the difference `s = x[t-1] - x[t]`. Every input of a block is then
//! `x + mix * s`, and a lesion of the shift sets `s` to zero, so that a token reads itself alone.

mod channel_mix;
mod time_mix;

pub use channel_mix::ChannelMix;
pub use time_mix::TimeMix;

use super::pass::{Pass, RecurrentRows};
use crate::error::Result;
use crate::model::arithmetic::Numerics;
use crate::model::batch::RecurrentState;
use crate::model::hooks::Site;

/// Returns the token shift of `x`, `[tokens, d_model]`, and the inputs at the kept tokens, from
/// which the shift of rows that continue there begins.
fn shifted<N: Numerics>(
    pass: &Pass<N>,
    layer: usize,
    site: Site,
    x: &N::Array,
    rows: &RecurrentRows,
    part: fn(&RecurrentState) -> &[f32],
) -> Result<(N::Array, Vec<Vec<f32>>)> {
    let starts = rows.starts(part);
    let history = match rows.keep {
        [] => Vec::new(),
        _ => rows.last_inputs(&pass.mode.values(x)?, pass.model.config.hidden_size, 1, &starts),
    };
    Ok((pass.at(layer, site, pass.mode.shift(x, &starts)?)?, history))
}
