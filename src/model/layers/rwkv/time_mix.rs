//! Time mixing: the block of an RWKV layer that mixes positions.

use super::shifted;
use crate::edit::Matrix;
use crate::error::{Error, Result};
use crate::model::arithmetic::Numerics;
use crate::model::arithmetic::scan::{Recurrence, RowStart};
use crate::model::batch::RecurrentState;
use crate::model::config::{Activation, NormKind, Rwkv};
use crate::model::hooks::Site;
use crate::model::layers::pass::{Pass, RecurrentRows, scanned};
use crate::model::weights::{Linear, Loader, Norm};

/// The weights of one layer's time mixing.
pub struct TimeMix {
    /// Projection to the receptance.
    pub receptance: Linear,
    /// Projection to the keys.
    pub key: Linear,
    /// Projection to the values.
    pub value: Linear,
    /// Projection to the gate (version 6).
    pub gate: Option<Linear>,
    /// Output projection, `[d_model, attention_size]`.
    pub output: Linear,
    version: Version,
}

enum Version {
    V4 {
        /// Share of the token shift in the inputs of key, value and receptance, `[d_model]` each.
        mix: [Vec<f32>; 3],
        /// `-exp(time_decay)`, `[attention_size]`.
        decay: Vec<f32>,
        /// Bonus of the current token, `[attention_size]`.
        first: Vec<f32>,
    },
    V6(Box<V6>),
    V7(Box<V7>),
}

struct V6 {
    /// Share of the token shift in the input of `mix_down`, `[d_model]`.
    mix: Vec<f32>,
    /// Projection to five short vectors, from which the shares of the shift are computed.
    mix_down: Linear,
    /// Projections of those vectors to the shares of decay, key, value, receptance and gate, with
    /// `time_maa_*` as biases.
    mix_up: [Linear; 5],
    /// Projection to the decay.
    decay: LowRank,
    /// Bonus of the current token, `[heads, head_dim]`.
    first: Vec<f32>,
    /// Norm of the output.
    norm: GroupNorm,
}

struct V7 {
    /// Share of the token shift in the inputs of receptance, decay, key, value, learning rate and
    /// gate, `[d_model]` each.
    mix: [Vec<f32>; 6],
    /// Projection to the decay.
    decay: LowRank,
    /// Projection to the in-context learning rate.
    rate: LowRank,
    /// Projection to the share of the first layer's values, in every layer but the first.
    value: Option<LowRank>,
    /// Projection to the gate.
    gate: LowRank,
    /// Factor from key to removal key, `[attention_size]`.
    removal: Vec<f32>,
    /// Share of the key that is multiplied by the learning rate, and the rest, `[attention_size]`
    /// each.
    replacement: [Vec<f32>; 2],
    /// Weights of the current token's bonus, `[heads, head_dim]`.
    bonus: Vec<f32>,
    /// Norm of the output.
    norm: GroupNorm,
}

/// The input of time mixing, `[tokens, d_model]`, and its token shift.
struct Shifted<'a, A> {
    x: &'a A,
    shift: &'a A,
    rows: &'a RecurrentRows<'a>,
}

/// A linear layer of low rank.
struct LowRank {
    down: Linear,
    up: Linear,
}

/// A group normalisation (Wu and He 2018): each head is normalised by itself.
struct GroupNorm {
    head: Norm,
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl TimeMix {
    /// Loads the block of layer `layer`, whose tensors are under `prefix`.
    pub(in crate::model) fn load(
        loader: &mut Loader,
        prefix: &str,
        layer: usize,
        rwkv: &Rwkv,
    ) -> Result<Self> {
        let (d, width) = (loader.config.hidden_size, rwkv.attention_size);
        let part = if rwkv.version == 4 { "attention" } else { "att" };
        let name = |tensor: &str| format!("{prefix}.{part}.{tensor}");
        let mut square = |tensor: &str| loader.linear(name(tensor), width, d);
        let (receptance, key, value) = (square("receptance")?, square("key")?, square("value")?);
        let gate = if rwkv.version == 6 { Some(square("gate")?) } else { None };
        let output = loader.linear(name("output"), d, width)?;
        let low_rank = |loader: &mut Loader, bias: &str, down: &str, up: &str| -> Result<LowRank> {
            let rank = loader.columns(&name(down))?;
            let bias =
                if bias.is_empty() { None } else { Some(loader.vector(&name(bias), width)?) };
            Ok(LowRank {
                down: loader.in_out(&name(down), rank, d, None)?,
                up: loader.in_out(&name(up), width, rank, bias)?,
            })
        };
        let group_norm = |loader: &mut Loader| -> Result<GroupNorm> {
            let dim = rwkv.head_dim();
            let head = Norm {
                kind: NormKind::Layer,
                weight: vec![1.0; dim],
                bias: vec![0.0; dim],
                eps: 64e-5,
            };
            let (weight, bias) = (
                loader.vector(&name("ln_x.weight"), width)?,
                loader.vector(&name("ln_x.bias"), width)?,
            );
            Ok(GroupNorm { head, weight, bias })
        };
        let version = match rwkv.version {
            4 => {
                let mut mix = |tensor: &str| -> Result<Vec<f32>> {
                    // Stored is how much of the token itself is taken.
                    Ok(loader.vector(&name(tensor), d)?.into_iter().map(|own| 1.0 - own).collect())
                };
                let mix =
                    [mix("time_mix_key")?, mix("time_mix_value")?, mix("time_mix_receptance")?];
                let decay = loader
                    .vector(&name("time_decay"), width)?
                    .into_iter()
                    .map(|w| -w.exp())
                    .collect();
                Version::V4 { mix, decay, first: loader.vector(&name("time_first"), width)? }
            }
            6 => {
                let mut mix_up = Vec::with_capacity(5);
                let rank = loader.columns(&name("time_maa_w1"))? / 5;
                let all = loader.tensor(&name("time_maa_w2"), &[5, rank, d])?;
                for (of, up) in
                    ["w", "k", "v", "r", "g"].iter().zip(all.chunks_exact((rank * d).max(1)))
                {
                    let bias = loader.vector(&name(&format!("time_maa_{of}")), d)?;
                    mix_up.push(Linear::from_in_out(up, d, rank, Some(bias)));
                }
                let mix_up = <[Linear; 5]>::try_from(mix_up)
                    .map_err(|_| Error::internal("token shift without a rank"))?;
                Version::V6(Box::new(V6 {
                    mix: loader.vector(&name("time_maa_x"), d)?,
                    mix_down: loader.in_out(&name("time_maa_w1"), 5 * rank, d, None)?,
                    mix_up,
                    decay: low_rank(loader, "time_decay", "time_decay_w1", "time_decay_w2")?,
                    first: loader
                        .tensor(&name("time_faaaa"), &[rwkv.num_heads, rwkv.head_dim()])?,
                    norm: group_norm(loader)?,
                }))
            }
            _ => {
                let mut mix = |tensor: &str| loader.vector(&name(tensor), d);
                let mix =
                    [mix("x_r")?, mix("x_w")?, mix("x_k")?, mix("x_v")?, mix("x_a")?, mix("x_g")?];
                let waiting = loader.vector(&name("k_a"), width)?;
                let rest = waiting.iter().map(|k| 1.0 - k).collect();
                Version::V7(Box::new(V7 {
                    mix,
                    decay: low_rank(loader, "w0", "w1", "w2")?,
                    rate: low_rank(loader, "a0", "a1", "a2")?,
                    value: if layer == 0 {
                        None
                    } else {
                        Some(low_rank(loader, "v0", "v1", "v2")?)
                    },
                    gate: low_rank(loader, "", "g1", "g2")?,
                    removal: loader.vector(&name("k_k"), width)?,
                    replacement: [waiting, rest],
                    bonus: loader.tensor(&name("r_k"), &[rwkv.num_heads, rwkv.head_dim()])?,
                    norm: group_norm(loader)?,
                }))
            }
        };
        Ok(Self { receptance, key, value, gate, output, version })
    }

    /// Returns the number of parameters.
    pub(in crate::model) fn parameters(&self) -> usize {
        let square = [
            Some(&self.receptance),
            Some(&self.key),
            Some(&self.value),
            self.gate.as_ref(),
            Some(&self.output),
        ];
        let low_rank = |l: &LowRank| l.down.parameters() + l.up.parameters();
        let group_norm = |n: &GroupNorm| n.weight.len() + n.bias.len();
        square.into_iter().flatten().map(Linear::parameters).sum::<usize>()
            + match &self.version {
                Version::V4 { mix, decay, first } => {
                    mix.iter().map(Vec::len).sum::<usize>() + decay.len() + first.len()
                }
                Version::V6(v) => {
                    v.mix.len()
                        + v.mix_down.parameters()
                        + v.mix_up.iter().map(Linear::parameters).sum::<usize>()
                        + low_rank(&v.decay)
                        + v.first.len()
                        + group_norm(&v.norm)
                }
                Version::V7(v) => {
                    v.mix.iter().map(Vec::len).sum::<usize>()
                        + [Some(&v.decay), Some(&v.rate), v.value.as_ref(), Some(&v.gate)]
                            .into_iter()
                            .flatten()
                            .map(low_rank)
                            .sum::<usize>()
                        + v.removal.len()
                        + v.replacement[0].len()
                        + v.bonus.len()
                        + group_norm(&v.norm)
                }
            }
    }

    /// Applies the block to its normalised input `x`, `[tokens, d_model]`. Returns its contribution
    /// to the residual stream, `[tokens, d_model]`, and the states after the tokens that `rows`
    /// keeps. `first` holds the values of the first layer, which version 7 mixes into those of the
    /// others.
    pub(in crate::model) fn forward<N: Numerics>(
        &self,
        pass: &Pass<N>,
        layer: usize,
        x: &N::Array,
        rows: &RecurrentRows,
        first: &mut Option<N::Array>,
    ) -> Result<(N::Array, Vec<RecurrentState>)> {
        let mode = pass.mode;
        let (s, history) = shifted(pass, layer, Site::Shift, x, rows, |s| &s.inputs)?;
        let projected = |x: &N::Array, linear: &Linear, matrix: Matrix| {
            pass.product(layer, x, linear, &[matrix])
        };
        let (z, states) = match &self.version {
            Version::V4 { mix: [key, value, receptance], decay, first } => {
                let k = projected(&mode.blend(x, &s, key)?, &self.key, Matrix::Key)?;
                let v = projected(&mode.blend(x, &s, value)?, &self.value, Matrix::Value)?;
                let r = projected(
                    &mode.blend(x, &s, receptance)?,
                    &self.receptance,
                    Matrix::Receptance,
                )?;
                let (y, states) =
                    scanned(pass, layer, &Recurrence::Wkv4 { k: &k, v: &v, decay, first }, rows)?;
                (mode.mul(y, &mode.activate(r, Activation::Sigmoid)?)?, states)
            }
            Version::V6(v6) => {
                let V6 { mix, mix_down, mix_up, decay, first, norm } = &**v6;
                let mixed = mode
                    .activate(mode.linear(&mode.blend(x, &s, mix)?, mix_down)?, Activation::Tanh)?;
                let rank = mix_down.matrix.out() / 5;
                let parts = mode.split(&mixed, &[rank; 5])?;
                let input = |i: usize| -> Result<N::Array> {
                    mode.add(mode.mul(mode.linear(&parts[i], &mix_up[i])?, &s)?, x)
                };
                let w = decay.apply(mode, &input(0)?, Some(Activation::Tanh))?;
                let w = mode.activate(w, Activation::Decay6)?;
                let k = projected(&input(1)?, &self.key, Matrix::Key)?;
                let v = projected(&input(2)?, &self.value, Matrix::Value)?;
                let r = projected(&input(3)?, &self.receptance, Matrix::Receptance)?;
                let gate = self
                    .gate
                    .as_ref()
                    .ok_or_else(|| Error::internal("time mixing without its gate"))?;
                let gate = mode
                    .activate(projected(&input(4)?, gate, Matrix::TimeGate)?, Activation::Silu)?;
                let gate = pass.at(layer, Site::Gate, gate)?;
                let scan = Recurrence::Wkv6 {
                    r: &r,
                    w: &w,
                    k: &k,
                    v: &v,
                    first,
                    head_dim: norm.head.weight.len(),
                };
                let (y, states) = scanned(pass, layer, &scan, rows)?;
                (mode.mul(norm.apply(mode, &y)?, &gate)?, states)
            }
            Version::V7(v7) => {
                self.version7(v7, pass, layer, Shifted { x, shift: &s, rows }, first)?
            }
        };
        let z = pass.at(layer, Site::Z, z)?;
        let out = pass.product(layer, &z, &self.output, &[Matrix::TimeOut])?;
        let states = history.into_iter().zip(states);
        Ok((
            out,
            states
                .map(|(inputs, scan)| RecurrentState { inputs, scan, channel_inputs: Vec::new() })
                .collect(),
        ))
    }

    /// The recurrence of version 7: returns the gated output, `[tokens, attention_size]`, and the
    /// kept states.
    fn version7<N: Numerics>(
        &self,
        v7: &V7,
        pass: &Pass<N>,
        layer: usize,
        shifted: Shifted<N::Array>,
        first: &mut Option<N::Array>,
    ) -> Result<(N::Array, Vec<Vec<f32>>)> {
        let (mode, Shifted { x, shift: s, rows }) = (pass.mode, shifted);
        let input = |i: usize| mode.blend(x, s, &v7.mix[i]);
        let r = pass.product(layer, &input(0)?, &self.receptance, &[Matrix::Receptance])?;
        let w = mode.activate(
            v7.decay.apply(mode, &input(1)?, Some(Activation::Tanh))?,
            Activation::Decay7,
        )?;
        let k = pass.product(layer, &input(2)?, &self.key, &[Matrix::Key])?;
        let value_input = input(3)?;
        let mut v = pass.product(layer, &value_input, &self.value, &[Matrix::Value])?;
        match (&v7.value, &first) {
            (Some(low_rank), Some(first)) => {
                let t =
                    mode.activate(low_rank.apply(mode, &value_input, None)?, Activation::Sigmoid)?;
                v = mode.interpolate(v, first, &t)?;
            }
            (Some(_), None) => {
                return Err(Error::internal("the values of the first layer are missing"));
            }
            (None, _) => *first = Some(v.clone()),
        }
        let rate = mode.activate(v7.rate.apply(mode, &input(4)?, None)?, Activation::Sigmoid)?;
        let gate = v7.gate.down_then(mode, &input(5)?, Activation::Sigmoid)?;
        let gate = pass.at(layer, Site::Gate, gate)?;
        let dim = v7.norm.head.weight.len();
        let kk = mode.unit_heads(mode.affine(k.clone(), &v7.removal, None)?, dim)?;
        let [waiting, rest] = &v7.replacement;
        let k = mode.mul(k, &mode.affine(rate.clone(), waiting, Some(rest))?)?;
        let b = mode.mul(rate, &kk)?;
        let scan = Recurrence::Wkv7 { r: &r, w: &w, k: &k, v: &v, kk: &kk, b: &b, head_dim: dim };
        let (y, states) = scanned(pass, layer, &scan, rows)?;
        let y = mode.add(v7.norm.apply(mode, &y)?, &mode.bonus(&r, &k, &v, &v7.bonus, dim)?)?;
        Ok((mode.mul(y, &gate)?, states))
    }

    /// Returns the values of the first layer, `[tokens, attention_size]`, for rows that enter the
    /// stack above it, from the normalised input `x`, `[tokens, d_model]`, they had there; `None`
    /// if no later layer reads them.
    pub(in crate::model) fn first_values<N: Numerics>(
        &self,
        mode: &N,
        x: &N::Array,
        rows: &[RowStart],
    ) -> Result<Option<N::Array>> {
        let Version::V7(v7) = &self.version else { return Ok(None) };
        let s = mode.shift(x, rows)?;
        mode.linear(&mode.blend(x, &s, &v7.mix[3])?, &self.value).map(Some)
    }
}

impl LowRank {
    /// Applies the layer, with an activation between its matrices if there is one.
    fn apply<N: Numerics>(
        &self,
        mode: &N,
        x: &N::Array,
        between: Option<Activation>,
    ) -> Result<N::Array> {
        match between {
            Some(activation) => self.down_then(mode, x, activation),
            None => mode.linear(&mode.linear(x, &self.down)?, &self.up),
        }
    }

    /// Applies the layer with an activation between its matrices.
    fn down_then<N: Numerics>(
        &self,
        mode: &N,
        x: &N::Array,
        activation: Activation,
    ) -> Result<N::Array> {
        mode.linear(&mode.activate(mode.linear(x, &self.down)?, activation)?, &self.up)
    }
}

impl GroupNorm {
    fn apply<N: Numerics>(&self, mode: &N, x: &N::Array) -> Result<N::Array> {
        mode.affine(mode.norm(x, &self.head)?, &self.weight, Some(&self.bias))
    }
}
