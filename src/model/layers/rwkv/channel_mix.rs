//! Channel mixing: the block of an RWKV layer that works like an MLP.

use super::shifted;
use crate::edit::Matrix;
use crate::error::Result;
use crate::model::arithmetic::Numerics;
use crate::model::config::{Activation, Rwkv};
use crate::model::hooks::Site;
use crate::model::layers::pass::{Pass, RecurrentRows};
use crate::model::weights::{Linear, Loader};

/// The weights of one layer's channel mixing.
pub struct ChannelMix {
    /// `[d_mlp, d_model]`.
    pub key: Linear,
    /// `[d_model, d_mlp]`.
    pub value: Linear,
    /// Projection to the gate of the output, `[d_model, d_model]`; not in version 7.
    pub receptance: Option<Linear>,
    /// Share of the token shift in the input of the key, `[d_model]`.
    mix_key: Vec<f32>,
    /// Share of the token shift in the input of the receptance, `[d_model]`.
    mix_receptance: Vec<f32>,
}

impl ChannelMix {
    /// Loads the block of `width` neurons whose tensors are under `prefix`.
    pub(in crate::model) fn load(
        loader: &mut Loader,
        prefix: &str,
        width: usize,
        rwkv: &Rwkv,
    ) -> Result<Self> {
        let d = loader.config.hidden_size;
        let part = if rwkv.version == 4 { "feed_forward" } else { "ffn" };
        let name = |tensor: &str| format!("{prefix}.{part}.{tensor}");
        let (mix_key, mix_receptance) = match rwkv.version {
            4 => ("time_mix_key", "time_mix_receptance"),
            6 => ("time_maa_k", "time_maa_r"),
            _ => ("x_k", ""),
        };
        let has_receptance = !mix_receptance.is_empty();
        let own = |mix: Vec<f32>| {
            if rwkv.version == 4 { mix.into_iter().map(|m| 1.0 - m).collect() } else { mix }
        };
        Ok(Self {
            key: loader.linear(name("key"), width, d)?,
            value: loader.linear(name("value"), d, width)?,
            receptance: if has_receptance {
                Some(loader.linear(name("receptance"), d, d)?)
            } else {
                None
            },
            mix_key: own(loader.vector(&name(mix_key), d)?),
            mix_receptance: if has_receptance {
                own(loader.vector(&name(mix_receptance), d)?)
            } else {
                Vec::new()
            },
        })
    }

    /// Returns the number of parameters.
    pub(in crate::model) fn parameters(&self) -> usize {
        let receptance = self.receptance.as_ref().map_or(0, Linear::parameters);
        self.key.parameters()
            + self.value.parameters()
            + receptance
            + self.mix_key.len()
            + self.mix_receptance.len()
    }

    /// Applies the block to its normalised input `x`, `[tokens, d_model]`. Returns its contribution
    /// to the residual stream, `[tokens, d_model]`, and the
    /// [`RecurrentState::channel_inputs`] after the tokens that `rows` keeps.
    pub(in crate::model) fn forward<N: Numerics>(
        &self,
        pass: &Pass<N>,
        layer: usize,
        x: &N::Array,
        rows: &RecurrentRows,
    ) -> Result<(N::Array, Vec<Vec<f32>>)> {
        let mode = pass.mode;
        let (s, history) =
            shifted(pass, layer, Site::ChannelShift, x, rows, |s| &s.channel_inputs)?;
        let hidden = pass.product(
            layer,
            &mode.blend(x, &s, &self.mix_key)?,
            &self.key,
            &[Matrix::ChannelKey],
        )?;
        let hidden =
            pass.at(layer, Site::Neurons, mode.activate(hidden, Activation::ReluSquared)?)?;
        let out = pass.product(layer, &hidden, &self.value, &[Matrix::ChannelValue])?;
        let Some(receptance) = &self.receptance else { return Ok((out, history)) };
        let r = pass.product(
            layer,
            &mode.blend(x, &s, &self.mix_receptance)?,
            receptance,
            &[Matrix::ChannelReceptance],
        )?;
        Ok((mode.mul(out, &mode.activate(r, Activation::Sigmoid)?)?, history))
    }
}
