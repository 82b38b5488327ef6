//! The blocks of a decoder layer, each with its weights, how these are loaded, and its forward
//! pass, written once against the trait [`Numerics`](crate::model::arithmetic::Numerics).

mod attention;
mod latent;
mod live;
mod mamba;
mod mixture;
mod mlp;
mod pass;
mod rwkv;

pub use attention::{Attention, Projection};
pub use mamba::Mamba;
pub use mixture::{Routing, Sparse, chosen_experts, tokens_of_experts};
pub use mlp::Dense;
pub use pass::{PackedRows, Pass, RecurrentRows};
pub use rwkv::{ChannelMix, TimeMix};

use crate::edit::Matrix;
use crate::error::Result;
use crate::model::config::{Config, Mixer};
use crate::model::families::Names;
use crate::model::weights::{Linear, Loader, Norm};

/// One layer: a mixer, and in most families an MLP.
pub struct Layer {
    /// Norm before the mixer.
    pub attention_norm: Option<Norm>,
    /// The block that mixes positions.
    pub mixer: MixerWeights,
    /// Norm of the mixer's output.
    pub attention_post_norm: Option<Norm>,
    /// Norm before the MLP.
    pub mlp_norm: Option<Norm>,
    /// The MLP, mixture of experts or channel mixing; Mamba has none.
    pub mlp: Option<Mlp>,
    /// Norm of the MLP's output.
    pub mlp_post_norm: Option<Norm>,
}

/// The block of a layer that mixes positions.
pub enum MixerWeights {
    /// Attention.
    Attention(Attention),
    /// A selective state space.
    Ssm(Box<Mamba>),
    /// RWKV's time mixing.
    TimeMix(Box<TimeMix>),
}
/// The block of a layer that works on each position by itself.
pub enum Mlp {
    /// An MLP.
    Dense(Dense),
    /// A mixture of experts.
    Sparse(Sparse),
    /// RWKV's channel mixing.
    ChannelMix(ChannelMix),
}
impl Layer {
    /// Returns the packed matrix that holds `matrix`, and the first of its rows there; `None` if
    /// the layer has no such matrix.
    pub fn locate(&self, matrix: Matrix, config: &Config) -> Option<(&Linear, usize)> {
        let (q, kv) = (config.q_width(), config.kv_width());
        if let (
            MixerWeights::Attention(Attention { qkv: Projection::Stacked(qkv), .. }),
            Some(first),
        ) = (
            &self.mixer,
            match matrix {
                Matrix::Q => Some(0),
                Matrix::K => Some(q),
                Matrix::V => Some(q + kv),
                _ => None,
            },
        ) {
            return Some((qkv, first));
        }
        match (&self.mixer, matrix) {
            (MixerWeights::Attention(a), Matrix::O) => return Some((&a.o, 0)),
            (MixerWeights::Ssm(m), Matrix::SsmIn) => return Some((&m.in_proj, 0)),
            (MixerWeights::Ssm(m), Matrix::SsmX) => return m.x_proj.as_ref().map(|x| (x, 0)),
            (MixerWeights::Ssm(m), Matrix::SsmDt) => return m.dt_proj.as_ref().map(|dt| (dt, 0)),
            (MixerWeights::Ssm(m), Matrix::SsmOut) => return Some((&m.out_proj, 0)),
            (MixerWeights::TimeMix(t), Matrix::Receptance) => return Some((&t.receptance, 0)),
            (MixerWeights::TimeMix(t), Matrix::Key) => return Some((&t.key, 0)),
            (MixerWeights::TimeMix(t), Matrix::Value) => return Some((&t.value, 0)),
            (MixerWeights::TimeMix(t), Matrix::TimeGate) => return t.gate.as_ref().map(|g| (g, 0)),
            (MixerWeights::TimeMix(t), Matrix::TimeOut) => return Some((&t.output, 0)),
            _ => {}
        }
        match (self.mlp.as_ref()?, matrix) {
            (Mlp::Dense(d), Matrix::Gate) => config.gated_mlp.then_some((&d.up, 0)),
            (Mlp::Dense(d), Matrix::Up) => {
                Some((&d.up, if config.gated_mlp { config.intermediate_size } else { 0 }))
            }
            (Mlp::Dense(d), Matrix::Down) => Some((&d.down, 0)),
            (Mlp::ChannelMix(c), Matrix::ChannelKey) => Some((&c.key, 0)),
            (Mlp::ChannelMix(c), Matrix::ChannelValue) => Some((&c.value, 0)),
            (Mlp::ChannelMix(c), Matrix::ChannelReceptance) => {
                c.receptance.as_ref().map(|r| (r, 0))
            }
            _ => None,
        }
    }

    /// Returns the number of parameters.
    pub(in crate::model) fn parameters(&self, config: &Config) -> usize {
        let norms =
            [&self.attention_norm, &self.attention_post_norm, &self.mlp_norm, &self.mlp_post_norm];
        let mixer = match &self.mixer {
            MixerWeights::Attention(attention) => attention.parameters(config),
            MixerWeights::Ssm(mamba) => mamba.parameters(),
            MixerWeights::TimeMix(time_mix) => time_mix.parameters(),
        };
        let mlp = match &self.mlp {
            None => 0,
            Some(Mlp::Dense(dense)) => dense.parameters(),
            Some(Mlp::Sparse(sparse)) => sparse.parameters(),
            Some(Mlp::ChannelMix(channel_mix)) => channel_mix.parameters(),
        };
        norms.into_iter().flatten().map(Norm::parameters).sum::<usize>() + mixer + mlp
    }

    /// Loads layer `i`, whose tensors are under `layers.i.`.
    pub(in crate::model) fn load(loader: &mut Loader, i: usize) -> Result<Self> {
        let (config, d) = (loader.config, loader.config.hidden_size);
        let prefix = format!("{}.{i}", loader.names.layers);
        let Names { attention_norm, attention_post_norm, mlp_norm, mlp_post_norm, .. } =
            loader.names;
        let (before, after) = (config.residual.before(), config.residual.after());
        let mut layer = Self {
            attention_norm: loader.norm_if(before, &prefix, attention_norm, d)?,
            mixer: MixerWeights::load(loader, &prefix, i)?,
            attention_post_norm: loader.norm_if(after, &prefix, attention_post_norm, d)?,
            mlp_norm: loader.norm_if(before && config.has_mlp(), &prefix, mlp_norm, d)?,
            mlp: if config.has_mlp() { Some(Mlp::load(loader, &prefix, i)?) } else { None },
            mlp_post_norm: loader.norm_if(after && config.has_mlp(), &prefix, mlp_post_norm, d)?,
        };
        for norm in [&mut layer.attention_norm, &mut layer.mlp_norm].into_iter().flatten() {
            norm.eps *= loader.rescaling(i);
        }
        Ok(layer)
    }
}

impl MixerWeights {
    fn load(loader: &mut Loader, prefix: &str, i: usize) -> Result<Self> {
        let config = loader.config;
        match (config.mixers[i], &config.ssm, &config.rwkv) {
            (Mixer::Ssm, Some(ssm), _) => {
                let prefix = format!("{prefix}.{}", loader.names.ssm);
                Ok(Self::Ssm(Box::new(Mamba::load(loader, &prefix, ssm)?)))
            }
            (Mixer::TimeMix, _, Some(rwkv)) => {
                Ok(Self::TimeMix(Box::new(TimeMix::load(loader, prefix, i, rwkv)?)))
            }
            _ => Ok(Self::Attention(Attention::load(loader, prefix, i)?)),
        }
    }
}

impl Mlp {
    fn load(loader: &mut Loader, prefix: &str, layer: usize) -> Result<Self> {
        let config = loader.config;
        if let Some(rwkv) = &config.rwkv {
            return ChannelMix::load(loader, prefix, config.intermediate_size, rwkv)
                .map(Self::ChannelMix);
        }
        match config.experts.as_ref().filter(|_| config.is_sparse(layer)) {
            Some(experts) => Sparse::load(loader, prefix, experts).map(Self::Sparse),
            None => Dense::load(loader, prefix).map(Self::Dense),
        }
    }
}
