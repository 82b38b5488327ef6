//! Mamba layers: Mamba (Gu and Dao 2023), Mamba-2 (Dao and Gu 2024), and those of Falcon-Mamba and
//! Jamba. Names are those of the papers' code.

use super::pass::{Pass, RecurrentRows, scanned};
use crate::edit::Matrix;
use crate::error::{Error, Result};
use crate::model::arithmetic::Numerics;
use crate::model::arithmetic::kernels::elementwise::Convolution;
use crate::model::arithmetic::scan::Recurrence;
use crate::model::batch::RecurrentState;
use crate::model::config::{Activation, NormKind, Ssm, SsmNorms};
use crate::model::hooks::Site;
use crate::model::weights::{Linear, Loader, Norm};

/// The weights of one layer.
pub struct Mamba {
    /// Input projection: to `[x | gate]` in version 1, to `[gate | x B C | dt]` in version 2.
    pub in_proj: Linear,
    /// Causal convolution of `x`, in version 2 of `x`, `B` and `C`.
    pub conv: Convolution,
    /// Projection to `[dt | B | C]` (version 1).
    pub x_proj: Option<Linear>,
    /// Projection of the time step to the channels (version 1).
    pub dt_proj: Option<Linear>,
    /// Bias of the time step, `[heads]` (version 2).
    dt_bias: Vec<f32>,
    /// Norms of the time step, `B` and `C`, in the families that have them.
    norms: Option<[Norm; 3]>,
    /// `A`, negative: `[channels, state_size]`, in version 2 `[heads]`.
    a: Vec<f32>,
    /// `D`: `[channels]`, in version 2 `[heads]`.
    d: Vec<f32>,
    /// Norm before the output projection (version 2).
    norm: Option<Norm>,
    /// Output projection, `[d_model, channels]`.
    pub out_proj: Linear,
}

impl Mamba {
    /// Loads the layer whose tensors are under `prefix`.
    pub(super) fn load(loader: &mut Loader, prefix: &str, ssm: &Ssm) -> Result<Self> {
        let d = loader.config.hidden_size;
        let (inner, n, version) = (ssm.intermediate_size, ssm.state_size, ssm.version);
        let name = |part: &str| format!("{prefix}.{part}");
        let width = ssm.conv_width();
        let in_proj = loader.linear(name("in_proj"), ssm.in_width(), d)?;
        let by_column = loader.tensor(&name("conv1d.weight"), &[width, 1, ssm.conv_kernel])?;
        let weight = (0..ssm.conv_kernel)
            .flat_map(|k| by_column.iter().skip(k).step_by(ssm.conv_kernel).copied())
            .collect();
        let bias =
            loader.optional(&name("conv1d.bias"), &[width])?.unwrap_or_else(|| vec![0.0; width]);
        let conv = Convolution { weight, bias };
        let (mut x_proj, mut dt_proj, mut dt_bias, mut norm) = (None, None, Vec::new(), None);
        if version == 1 {
            x_proj = Some(loader.linear(name("x_proj"), ssm.time_step_rank + 2 * n, inner)?);
            dt_proj = Some(loader.linear(name("dt_proj"), inner, ssm.time_step_rank)?);
        } else {
            dt_bias = loader.tensor(&name("dt_bias"), &[ssm.num_heads])?;
            norm = Some(loader.norm(&name("norm"), inner)?);
        }
        let norms = match ssm.norms {
            SsmNorms::Off => None,
            SsmNorms::Plain(eps) => {
                let plain = |width: usize| Norm {
                    kind: NormKind::Rms,
                    weight: vec![1.0; width],
                    bias: Vec::new(),
                    eps,
                };
                Some([plain(ssm.time_step_rank), plain(n), plain(n)])
            }
            SsmNorms::Weighted => Some([
                loader.norm(&name("dt_layernorm"), ssm.time_step_rank)?,
                loader.norm(&name("b_layernorm"), n)?,
                loader.norm(&name("c_layernorm"), n)?,
            ]),
        };
        let a_log = if version == 1 {
            loader.tensor(&name("A_log"), &[inner, n])?
        } else {
            loader.tensor(&name("A_log"), &[ssm.num_heads])?
        };
        let out_d = if version == 1 { inner } else { ssm.num_heads };
        Ok(Self {
            in_proj,
            conv,
            x_proj,
            dt_proj,
            dt_bias,
            norms,
            a: a_log.into_iter().map(|a| -a.exp()).collect(),
            d: loader.tensor(&name("D"), &[out_d])?,
            norm,
            out_proj: loader.linear(name("out_proj"), d, inner)?,
        })
    }

    /// Returns the number of parameters.
    pub(super) fn parameters(&self) -> usize {
        let linears = [
            Some(&self.in_proj),
            self.x_proj.as_ref(),
            self.dt_proj.as_ref(),
            Some(&self.out_proj),
        ];
        let norms =
            self.norms.iter().flatten().chain(&self.norm).map(|n| n.weight.len()).sum::<usize>();
        linears.into_iter().flatten().map(Linear::parameters).sum::<usize>()
            + self.conv.weight.len()
            + self.conv.bias.len()
            + self.dt_bias.len()
            + self.a.len()
            + self.d.len()
            + norms
    }

    /// Applies the layer to its normalised input `x`, `[tokens, d_model]`. Returns its contribution
    /// to the residual stream, `[tokens, d_model]`, and the states after the tokens that `rows`
    /// keeps.
    pub(in crate::model) fn forward<N: Numerics>(
        &self,
        pass: &Pass<N>,
        layer: usize,
        ssm: &Ssm,
        x: &N::Array,
        rows: &RecurrentRows,
    ) -> Result<(N::Array, Vec<RecurrentState>)> {
        let mode = pass.mode;
        let (inner, n) = (ssm.intermediate_size, ssm.state_size);
        let projected = pass.product(layer, x, &self.in_proj, &[Matrix::SsmIn])?;
        let widths: &[usize] = &if ssm.version == 1 {
            vec![inner, inner]
        } else {
            vec![inner, ssm.conv_width(), ssm.num_heads]
        };
        let mut parts = mode.split(&projected, widths)?.into_iter();
        let mut next = || {
            parts
                .next()
                .ok_or_else(|| Error::internal("a projection has fewer parts than the layer"))
        };
        drop(projected);
        let (gate, mixed, dt) = if ssm.version == 1 {
            let mixed = next()?;
            (next()?, mixed, None)
        } else {
            (next()?, next()?, Some(next()?))
        };
        let inputs = rows.starts(|s| &s.inputs);
        let history = match rows.keep {
            [] => Vec::new(),
            _ => rows.last_inputs(
                &mode.values(&mixed)?,
                ssm.conv_width(),
                ssm.conv_kernel - 1,
                &inputs,
            ),
        };
        let mixed = mode.activate(mode.convolve(&mixed, &self.conv, &inputs)?, Activation::Silu)?;
        let mixed = pass.at(layer, Site::Conv, mixed)?;
        let gate = pass.at(layer, Site::Gate, mode.activate(gate, Activation::Silu)?)?;
        let (y, states) = match (dt, &self.x_proj, &self.dt_proj) {
            (None, Some(x_proj), Some(dt_proj)) => {
                let projected = pass.product(layer, &mixed, x_proj, &[Matrix::SsmX])?;
                let mut parts = mode.split(&projected, &[ssm.time_step_rank, n, n])?;
                if let Some(norms) = &self.norms {
                    parts = parts
                        .iter()
                        .zip(norms)
                        .map(|(part, norm)| mode.norm(part, norm))
                        .collect::<Result<_>>()?;
                }
                let dt = mode.activate(
                    pass.product(layer, &parts[0], dt_proj, &[Matrix::SsmDt])?,
                    Activation::Softplus,
                )?;
                let dt = pass.at(layer, Site::Dt, dt)?;
                let scan = Recurrence::Mamba {
                    x: &mixed,
                    dt: &dt,
                    b: &parts[1],
                    c: &parts[2],
                    a: &self.a,
                    d: &self.d,
                };
                scanned(pass, layer, &scan, rows)?
            }
            (Some(dt), ..) => {
                let ones = vec![1.0; ssm.num_heads];
                let dt = mode
                    .activate(mode.affine(dt, &ones, Some(&self.dt_bias))?, Activation::Softplus)?;
                let dt = match ssm.time_step_limit {
                    (0.0, f32::INFINITY) => dt,
                    (low, high) => mode.clamp(dt, low, high)?,
                };
                let dt = pass.at(layer, Site::Dt, dt)?;
                let parts = mode.split(&mixed, &[inner, ssm.n_groups * n, ssm.n_groups * n])?;
                let (groups, state_size) = (ssm.n_groups, n);
                let (x, b, c) = (&parts[0], &parts[1], &parts[2]);
                let scan = Recurrence::Mamba2 {
                    x,
                    dt: &dt,
                    b,
                    c,
                    a: &self.a,
                    d: &self.d,
                    groups,
                    state_size,
                };
                scanned(pass, layer, &scan, rows)?
            }
            _ => return Err(Error::internal("a state space without its projections")),
        };
        let mut z = mode.mul(y, &gate)?;
        if let Some(norm) = &self.norm {
            z = mode.norm(&z, norm)?;
        }
        let z = pass.at(layer, Site::Z, z)?;
        let out = pass.product(layer, &z, &self.out_proj, &[Matrix::SsmOut])?;
        let states = history.into_iter().zip(states);
        Ok((
            out,
            states
                .map(|(inputs, scan)| RecurrentState { inputs, scan, channel_inputs: Vec::new() })
                .collect(),
        ))
    }
}
